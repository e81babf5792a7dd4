# SPDX-License-Identifier: LGPL-2.1-or-later
"""The desk: takes each client's request, and answers it at once or when what it waits for has come.

A request is refused if it comes out of turn or no descriptors are left. Then channels or sharing
decide about it. If they need a device that a guest has not taken yet, it waits for that; if it is
to connect to a vchan that is not offered, it may wait for that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from kvmchand.channels.channels import Channels
from kvmchand.channels.device import Device
from kvmchand.channels.registry import Registry
from kvmchand.channels.requester import Requester, RequesterEvents
from kvmchand.channels.sharing import Sharing
from kvmchand.channels.waitlist import Waitlist
from kvmchand.errors import Busy, InternalError, LimitReached, NotFound, OutOfResources, ProtocolError, TimedOut, VchanError
from kvmchand.host.detaching import Detaching
from kvmchand.host.holdings import Holdings
from kvmchand.host.listing import Lister
from kvmchand.host.room import Room
from kvmchand.ids import ClientId, DomainId
from kvmchand.links.pool import NotYet
from kvmchand.runtime.loop import Loop, Timer
from kvmchand.wire import client

_DEVICE_DEADLINE = 30.0
"""Seconds that a request waits for a device to come into a guest."""
_OPENING = (client.Offer, client.Connect, client.Bind, client.Join, client.Share, client.Map)
"""Requests for what a connection has one of at most."""


@dataclass(slots=True)
class Pending:
    """A request that waits for one of `devices`."""

    requester: Requester
    request: client.Request
    deadline: float
    devices: list[Device]
    patience: Timer
    """Refuses the request at the deadline."""


class Desk(RequesterEvents):
    """Takes the requests of all clients."""

    def __init__(
        self,
        loop: Loop,
        registry: Registry,
        channels: Channels,
        sharing: Sharing,
        waitlist: Waitlist,
        holdings: Holdings,
        room: Room,
        lister: Lister,
        detaching: Detaching,
    ) -> None:
        """Have no request yet."""
        self._loop = loop
        self._registry = registry
        self._channels = channels
        self._sharing = sharing
        self._waitlist = waitlist
        self._holdings = holdings
        self._room = room
        self._lister = lister
        self._detaching = detaching
        self._pending: dict[ClientId, Pending] = {}

    # ---- clients: RequesterEvents ----

    def on_request(self, requester: Requester, request: client.Request) -> None:
        """Serve a request, unless the one before has no answer yet."""
        if any(requester.number in waiting for waiting in (self._pending, self._waitlist, self._detaching)):
            # One at a time, as the protocol has it; a guest's daemon may say anything.
            self._fail(requester, request, ProtocolError("a request came before the answer to the one before"))
        else:
            self._waitlist.leave(requester)
            self._begin(requester, request)

    def on_close(self, closing: Requester) -> None:
        """Release what a client closes."""
        self._forget_request(closing.number)
        self._holdings.close_end(closing.number)
        closing.forget()

    def on_loss(self, number: ClientId) -> None:
        """End what a client has, unless programs still have it mapped."""
        self._forget_request(number)
        self._holdings.lose(number)

    def on_drop(self, number: ClientId) -> None:
        """End what a client has."""
        self._forget_request(number)
        self._holdings.end(number)

    # ---- the way of a request ----

    def _begin(self, requester: Requester, request: client.Request) -> None:
        self._ask(requester, request, time.monotonic() + _DEVICE_DEADLINE)

    def _ask(self, requester: Requester, request: client.Request, deadline: float) -> None:
        """Answer a request, or have it wait for a device."""
        try:
            self._room.require()
            try:
                self._serve(requester, request)
            except (Busy, LimitReached):
                self._holdings.look()  # the dead must not stand in the way
                self._serve(requester, request)
        except NotYet as error:
            self._wait_for_device(requester, request, deadline, error)
        except VchanError as error:
            self._fail(requester, request, error)

    def _serve(self, requester: Requester, request: client.Request) -> None:
        """Do what a request asks. Raises VchanError to refuse it, and NotYet if it must wait."""
        if isinstance(request, _OPENING) and requester.number in self._holdings:
            raise ProtocolError("this connection has a channel or pages already: open one connection for each")
        match request:
            case client.Offer():
                self._room.require_share(requester.domain)
                self._channels.offer(requester, request)
            case client.Connect():
                self._channels.connect(requester, request)
            case client.Bind():
                self._room.require_share(requester.domain)
                self._channels.bind(requester, request)
            case client.Join():
                self._channels.join(requester, request)
            case client.Share():
                self._room.require_share(requester.domain)
                self._sharing.share(requester, request)
            case client.Map():
                self._room.require_share(requester.domain)
                self._sharing.map(requester, request)
            case client.Notify():
                self._sharing.notify(requester, request)
            case client.GetPort():
                requester.answer(self._channels.port(requester, request))
            case client.GetDomains():
                requester.answer(self._lister.domains(requester, request.first))
            case client.List():
                requester.answer(self._lister.page(requester, request.after))
            case client.Detach():
                self._detaching.detach(requester, request.domain)
            case client.Attach():
                self._detaching.attach(requester, request.domain)
            case _:
                raise InternalError(f"no answer to {type(request).__name__}")

    def _fail(self, requester: Requester, request: client.Request, error: VchanError) -> None:
        """Answer with an error, or have the request wait until it can be met."""
        try:
            if isinstance(error, NotFound | Busy) and self._waitlist.may_wait(request):
                self._room.require_share(requester.domain)
                self._waitlist.add(requester, request, self._begin)
                return
        except (LimitReached, OutOfResources) as another:
            error = another
        # A client that holds nothing must not stay while descriptors are short.
        ends = isinstance(error, ProtocolError)
        ends |= isinstance(error, OutOfResources) and requester.number not in self._holdings
        if requester.answer(client.Error(error.code, error.sentence)) and ends:
            requester.drop()

    # ---- requests that wait for a device ----

    def _wait_for_device(self, requester: Requester, request: client.Request, deadline: float, reason: NotYet) -> None:
        patience = self._loop.call_at(deadline, lambda: self._refuse(pending, TimedOut(reason.sentence)))
        pending = Pending(requester, request, deadline, reason.devices, patience)
        self._pending[requester.number] = pending

    def retry(self) -> None:
        """Serve again what waits for devices, one of which has become usable."""
        for pending in self._all_pending():
            self._forget_pending(pending.requester.number)
            self._ask(pending.requester, pending.request, pending.deadline)

    def _all_pending(self) -> Iterator[Pending]:
        """Yield the requests that wait, except those that are forgotten meanwhile."""
        for pending in list(self._pending.values()):
            if self._pending.get(pending.requester.number) is pending:
                yield pending

    def refuse_waiting_for(self, device: Device, error: VchanError) -> None:
        """Refuse the requests that wait for a device which will not come."""
        for pending in self._all_pending():
            if device in pending.devices and all(each.is_closing for each in pending.devices):
                self._refuse(pending, error)

    def _refuse(self, pending: Pending, error: VchanError) -> None:
        self._forget_pending(pending.requester.number)
        self._fail(pending.requester, pending.request, error)

    def forget_domain(self, domain: DomainId) -> None:
        """Forget what clients of a guest wait for, whose daemon is gone."""
        for pending in self._all_pending():
            if pending.requester.domain == domain:
                self._forget_pending(pending.requester.number)
        self._waitlist.forget_domain(domain)

    def _forget_request(self, number: ClientId) -> None:
        self._forget_pending(number)
        self._waitlist.forget(number)
        self._detaching.forget(number)

    def _forget_pending(self, number: ClientId) -> None:
        forgotten = self._pending.pop(number, None)
        if forgotten is not None:
            forgotten.patience.cancel()
