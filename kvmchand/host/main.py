# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's main process on a host: owns every descriptor, applies the registry's rules, and starts the services.

It parses no outside byte: what clients say comes from the local process and the control process, encoded anew. It answers local
clients itself, so that regions pass through no other process.
"""

from __future__ import annotations

import resource
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from kvmchand.channels.channels import Channels
from kvmchand.channels.device import Device
from kvmchand.channels.grants import Grants
from kvmchand.channels.lifelines import Lifelines
from kvmchand.channels.memory import Allocator
from kvmchand.channels.registry import DomainKind, Registry, Side
from kvmchand.channels.requester import Requester
from kvmchand.channels.sharing import Sharing
from kvmchand.config import Settings
from kvmchand.errors import Busy, InternalError, KvmchanError, LimitReached, NotFound, OutOfResources, ProtocolError, TimedOut
from kvmchand.host import listing
from kvmchand.ids import HOST, PAGE, ChannelId, ClientId, DomainId, Size
from kvmchand.links.guests import Guests
from kvmchand.links.pool import NotYet
from kvmchand.linux import libc
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop, Timer
from kvmchand.runtime.privileges import raise_descriptor_limit, require_user
from kvmchand.runtime.signals import notify, stopped_by_signals
from kvmchand.runtime.sockets import Sockets
from kvmchand.services.local.clients import Clients
from kvmchand.services.store.store import Store
from kvmchand.wire import client
from kvmchand.wire.codec import PACKET_MAX

_LISTING_MAX = PACKET_MAX - 1024
"""Bytes of what a listing lists: the names of the messages stand around it."""
_CHANNEL_FDS = 3
"""Descriptors that main has of a channel, beside one for each connection."""
_SPARE_FDS = 64
"""Kept for the daemon itself, the restart of a service included. Without a free one main could not take a connection over, and
so could not even tell its client."""
_DEVICE_DEADLINE = 30.0
"""Seconds that a request waits for a device to come into a guest."""
_OPENING = (client.Offer, client.Connect, client.Bind, client.Join, client.Share, client.Map)
"""Requests for what a connection has one of at the most."""


@dataclass(slots=True)
class Pending:
    """A request that waits for one of `devices`."""

    requester: Requester
    request: object
    deadline: float
    reason: str
    devices: list[Device]
    patience: Timer
    """Refuses the request at `deadline`."""


class Host:
    """The process's whole state. close() leaves nothing of it on the machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = Loop()
        self._registry = Registry(settings.limits.max_channels, settings.limits.guest_channels)
        self._allocator = Allocator()
        self._channels = Channels(
            self._registry, self._allocator, settings.limits.max_ring, self._serve_again, self._loop.call_soon
        )
        grants = Grants(settings.limits.max_shared // PAGE, settings.limits.max_channels)
        self._sharing = Sharing(self._registry, grants, self._allocator, self._channels.wake)
        self._pending: dict[ClientId, Pending] = {}
        self._guests: Guests | None = None
        self._failure: KvmchanError | None = None
        self._undo = ExitStack()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        settings = self._settings
        raise_descriptor_limit()
        require_user(settings.service_user)
        self._sockets = Sockets(settings.runtime_dir, settings.socket)
        self._undo.callback(self._sockets.close)
        self._lifelines = Lifelines(self._loop.call_at, self._end)
        self._undo.callback(self._lifelines.close)
        self._loop.add(self._lifelines.fd, self._lifelines.on_event)
        self._undo.enter_context(stopped_by_signals(self._loop))
        self._registry.add_domain(HOST, DomainKind.HOST)
        self._sockets.listen(HOST, client.SOCKET_NAME, client.STORE_SOCKET_NAME)
        for domain in settings.local_domains:
            self._registry.add_domain(domain, DomainKind.LOCAL)
            self._sockets.listen(domain, client.socket_name(domain), client.store_socket_name(domain))
        self._clients = Clients(self._loop, self._sockets, self, settings.service_user, settings.limits.max_channels)
        self._undo.callback(self._clients.close)
        self._store = Store(self._loop, self._sockets, self, settings.service_user, self._clients.next_generation)
        self._undo.callback(self._store.close)
        self._registry.observer = self._store
        for domain in self._registry.domains:
            self._store.introduce(domain, f"Domain-{domain}", str(UUID(int=domain)))
        self._store.start()
        if settings.libvirt:
            self._guests = Guests(self._loop, settings, self, self._clients.next_generation)
            self._undo.callback(self._guests.close)
            self._allocator.pool = self._guests.pool
            self._guests.start()
        self._clients.start()

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Established channels outlive it, but nothing else does."""
        self._loop.run()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        self._channels.close()
        self._sharing.close()
        self._undo.close()
        self._loop.close()

    # ---- clients, here and in guests: ClientEvents ----

    def on_ready(self) -> None:
        log.info(f"ready: {self._sockets}")
        notify("READY=1")

    def on_failure(self, error: KvmchanError) -> None:
        self._failure = error
        self._loop.stop()

    def on_close(self, closing: Requester) -> None:
        self._forget_request(closing.number)
        if self._channels.is_closed(closing.number):
            self._channels.release(closing.number)
        else:
            self._end(closing.number)
        closing.forget()

    def on_loss(self, number: ClientId) -> None:
        self._forget_request(number)
        memory = self._channels.region(number) or self._sharing.held(number)
        if memory is None:
            return
        if memory.is_mapped(number):
            # It closed its descriptors, or a child of it did, but the memory is in use: wait for the mapping's end.
            self._lifelines.watch(number, memory)
        else:
            self._end(number)

    def on_drop(self, number: ClientId) -> None:
        self._forget_request(number)
        self._end(number)

    def _forget_request(self, number: ClientId) -> None:
        self._forget_pending(number)
        self._channels.forget_waiter(number)

    def _forget_pending(self, number: ClientId) -> None:
        forgotten = self._pending.pop(number, None)
        if forgotten is not None:
            forgotten.patience.cancel()

    def _end(self, holder: ClientId) -> None:
        """What a connection holds ends without a close."""
        held = self._registry.held(holder)
        if held is not None and not held[0].is_vchan and self._sharing.will_wake(*held):
            self._channels.release(holder)  # its other end hears of it when the byte is cleared, as on Xen
        else:
            self._channels.end(holder)
        self._sharing.end(holder)

    # ---- guests: GuestEvents ----

    def on_guest(self, domain: DomainId, name: str, uuid: str) -> None:
        self._registry.add_domain(domain, DomainKind.GUEST)
        self._store.introduce(domain, name, uuid)

    def on_guest_store(self, domain: DomainId, message: object) -> None:
        self._store.on_guest_message(domain, message)

    def on_guest_messages_lost(self, domain: DomainId) -> None:
        self._store.reset(domain)

    def on_guest_reset(self, domain: DomainId) -> None:
        self._store.reset(domain)
        for waiting in [each for each in self._pending.values() if each.requester.domain == domain]:
            self._forget_pending(waiting.requester.number)
        self._channels.forget_waiters(domain)
        for holder in self._holders(domain):
            self._end(holder)

    def _holders(self, domain: DomainId) -> list[ClientId]:
        return self._registry.holders(domain) + self._sharing.holders(domain)

    def on_guest_gone(self, domain: DomainId) -> None:
        self.on_guest_reset(domain)
        self._channels.domain_gone(domain)
        self._store.release(domain)

    def on_device_lost(self, domain: DomainId, device: Device) -> None:
        for holder in self._holders(domain):
            if self._is_on(device, holder):
                self._end(holder)

    def _is_on(self, device: Device, holder: ClientId) -> bool:
        memory = self._channels.region(holder) or self._sharing.held(holder)
        return memory is not None and self._allocator.is_on(device, memory)

    def on_devices_changed(self) -> None:
        for waiting in list(self._pending.values()):
            self._forget_pending(waiting.requester.number)
            self._ask(waiting.requester, waiting.request, waiting.deadline)

    def on_device_failed(self, device: Device, error: KvmchanError) -> None:
        for waiting in list(self._pending.values()):
            if device in waiting.devices and all(each.is_closing for each in waiting.devices):
                self._refuse(waiting, error)

    def _give_up(self, number: ClientId) -> None:
        waiting = self._pending[number]
        self._refuse(waiting, TimedOut(waiting.reason))

    def _refuse(self, waiting: Pending, error: KvmchanError) -> None:
        self._forget_pending(waiting.requester.number)
        self._fail(waiting.requester, waiting.request, error)

    # ---- the store: StoreEvents ----

    def on_store_output(self, domain: DomainId, message: object) -> None:
        if self._guests is not None:
            self._guests.tell(domain, message)

    def require_room(self) -> None:
        self._require_fds(0)

    def on_nodes_removed(self, channel: ChannelId) -> None:
        offered = self._registry.channels.get(channel)
        if offered is not None:
            self._registry.withdraw(offered)

    # ---- requests ----

    def on_request(self, requester: Requester, request: object) -> None:
        if requester.number in self._pending or self._channels.is_waiting(requester.number):
            # One at a time, as the protocol has it; a guest's daemon may say anything.
            self._fail(requester, request, ProtocolError("a request came before the answer to the one before"))
            return
        self._serve_again(requester, request)

    def _serve_again(self, requester: Requester, request: object) -> None:
        self._ask(requester, request, time.monotonic() + _DEVICE_DEADLINE)

    def _ask(self, requester: Requester, request: object, deadline: float) -> None:
        """Answers a request, now or when a device that it needs has come."""
        try:
            self._require_fds(0)
            try:
                self._serve(requester, request)
            except (Busy, LimitReached):
                self._lifelines.look()  # who is dead must not stand in the way
                self._serve(requester, request)
        except NotYet as waiting:
            patience = self._loop.call_at(deadline, lambda: self._give_up(requester.number))
            pending = Pending(requester, request, deadline, waiting.sentence, waiting.devices, patience)
            self._pending[requester.number] = pending
        except KvmchanError as error:
            self._fail(requester, request, error)

    def _fail(self, requester: Requester, request: object, error: KvmchanError) -> None:
        """Answers with an error, unless the request waits until it can be met."""
        try:
            if isinstance(error, NotFound | Busy) and self._channels.may_wait(request):
                self._require_share(requester.domain)
                self._channels.wait(requester, request)
                return
        except (LimitReached, OutOfResources) as another:
            error = another
        # Who holds nothing must not stay where descriptors are short.
        ends = isinstance(error, ProtocolError)
        ends |= isinstance(error, OutOfResources) and not self._holds(requester.number)
        if requester.answer(client.Error(error.code, error.sentence)) and ends:
            requester.drop()

    def _holds(self, number: ClientId) -> bool:
        return self._registry.held(number) is not None or self._sharing.held(number) is not None

    def _serve(self, requester: Requester, request: object) -> None:
        if isinstance(request, _OPENING) and self._holds(requester.number):
            raise ProtocolError("this connection has a channel or pages already: open one connection for each")
        match request:
            case client.Offer():
                self._require_share(requester.domain)
                self._channels.offer(requester, request)
            case client.Connect():
                self._channels.connect(requester, request)
            case client.Bind():
                self._require_share(requester.domain)
                self._channels.bind(requester, request)
            case client.Join():
                self._channels.join(requester, request)
            case client.Share():
                self._require_share(requester.domain)
                self._sharing.share(requester, request)
            case client.Map():
                self._require_share(requester.domain)
                self._sharing.map(requester, request)
            case client.Notify():
                self._sharing.notify(requester, request)
            case client.GetPort():
                requester.answer(self._channels.port(requester, request))
            case client.GetDomains():
                requester.answer(self._domains(requester, request.first))
            case client.List():
                requester.answer(self._list(requester, request.after))
            case _:
                raise InternalError(f"no answer to {type(request).__name__}")

    def _require_fds(self, wanted: int) -> int:
        """OutOfResources unless so many descriptors are free; how many would be left."""
        held = _CHANNEL_FDS * len(self._channels) + len(self._sharing) + len(self._store)
        taken = len(self._clients) + held + 2 * len(self._registry.domains) + _SPARE_FDS
        taken += self._guests.pool.fds if self._guests is not None else 0
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if taken + wanted > most:
            raise OutOfResources(f"the daemon needs more than the {most} descriptors it may have: raise its limit (LimitNOFILE)")
        return most - taken - wanted

    def _require_share(self, domain: DomainId) -> None:
        """OutOfResources without descriptors for a channel. LimitReached where a domain has more of them than are left: so none
        takes them all. The host may."""
        left = self._require_fds(_CHANNEL_FDS)
        taken = (_CHANNEL_FDS + 2) * self._registry.ends(domain, Side.SERVER)
        taken += 2 * self._sharing.count(domain) + self._channels.waiters(domain)
        if domain != HOST and taken > left:
            raise LimitReached(f"domain {domain} has its share of the daemon's descriptors, {taken}: raise LimitNOFILE")

    def _domains(self, requester: Requester, first: int) -> client.Domains:
        numbers = [number for number in sorted(self._registry.domains) if number >= first]
        listed = [client.DomainInfo(each, self._registry.domains[each].value) for each in numbers[: client.DOMAINS_MAX]]
        return client.Domains(requester.domain, tuple(listed))

    def _list(self, requester: Requester, cursor: Size) -> client.Listing:
        domains = [client.DomainInfo(number, kind.value) for number, kind in sorted(self._registry.domains.items())]
        guests, links = self._guests.listing() if self._guests is not None and requester.domain == HOST else ((), ())

        channels = listing.placed_channels(partial(self._channels.listed, requester.domain))
        return listing.page([*map(listing.placed, (domains, guests, links)), channels], cursor, _LISTING_MAX)


def serve(settings: Settings) -> None:
    """Runs the host's daemon until it is told to stop."""
    libc.set_process_name("kvmchand")
    host = Host(settings)
    try:
        host.run()
    finally:
        host.close()
