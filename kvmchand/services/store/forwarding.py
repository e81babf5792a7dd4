# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store, as a guest's main process has it: the forwarding process, and what is under way.

The guest's programs are connected to this process, and it forwards what they ask to the store on
the host, which hears of a connection with its first request. Where messages may be lost, their
connections end, so programs notice; idle ones outlive a forwarding process that dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvmchand.errors import ProtocolError, VchanError
from kvmchand.ids import ClientId
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop, Timer
from kvmchand.runtime.sockets import Sockets
from kvmchand.runtime.supervisor import ServiceEvents, SupervisedService
from kvmchand.services.store.connections import Connections
from kvmchand.wire import local, store
from kvmchand.wire.packet import Fds

_HOST_DEADLINE = 20.0
"""Seconds that a request waits for the link to the host."""


@dataclass(slots=True, eq=False)
class Asked:
    """What is under way of a connection."""

    waiting: store.Request | None = None
    """The request that waits for the link to the host."""
    patience: Timer | None = None
    """Ends the connection if the link does not come up in time."""
    is_known: bool = False
    """The host knows the connection."""
    is_asking: bool = False
    """A request has no answer yet."""
    is_told: bool = False
    """It was sent something, and may not have taken all of it."""


class Forward(ServiceEvents):
    """The connections to the store in a guest, and the process that forwards what they ask."""

    def __init__(
        self,
        loop: Loop,
        sockets: Sockets,
        user: str,
        next_generation: Callable[[], int],
        tell_host: Callable[[object], bool],
        fail: Callable[[VchanError], None],
    ) -> None:
        """Know of no connection yet.

        `tell_host` passes a message to the host's store, and returns False if there is no link to
        it yet. `fail` is called when the forwarding process has ended for good.
        """
        self._loop = loop
        self._tell_host = tell_host
        self._user = user
        self._next_generation = next_generation
        self._connections = Connections(sockets)
        self._asked: dict[ClientId, Asked] = {}
        self._service = SupervisedService(loop, "forward", fail)

    def start(self) -> None:
        """Start the forwarding process."""
        self._service.start(self)

    def close(self) -> None:
        """End the forwarding process and all connections."""
        self._service.stop()
        self._connections.close()

    def _tell(self, message: object) -> None:
        self._service.send(store.to_forwarder.encode(message))

    # ---- the host ----

    def pass_on_waiting(self) -> None:
        """Pass on what waits for the link to the host, now that it is there."""
        for asked in self._asked.values():
            if asked.waiting is not None:
                self._pass_on(asked, asked.waiting)

    def end_known(self) -> None:
        """End the connections that the host knows: the link is gone, or may have lost messages."""
        for number, asked in list(self._asked.items()):
            if asked.is_known:
                self._end(number)

    def take_host_message(self, message: object) -> None:
        """Do what the host's store says of a connection."""
        match message:
            case store.Output():
                asked = self._asked.get(message.client)
                if asked is not None:
                    asked.is_told = True
                    asked.is_asking = asked.is_asking and not message.answers
                    self._tell(message)
            case store.Ended():
                if message.client in self._asked:
                    log.warning(f"the host has ended connection {message.client} to the store", whose="the store")
                    self._end(message.client)

    def _give_up(self, number: ClientId) -> None:
        """End a connection that has waited for the host too long."""
        log.warning(f"connection {number} to the store is ended: there is no link to the host's within {_HOST_DEADLINE:.0f} s")
        self._end(number)

    def _end(self, number: ClientId) -> None:
        """End a connection, whoever knows of it already."""
        self._connections.drop(number)
        self._tell(store.Ended(number))
        self._forget(number)

    def _forget(self, number: ClientId) -> None:
        self._connections.forget(number)
        gone = self._asked.pop(number, None)
        if gone is not None:
            _stop_waiting(gone)
            if gone.is_known:
                self._tell_host(store.Ended(number))

    # ---- the forwarding process: ServiceEvents ----

    def first_messages(self) -> list[tuple[bytes, Sequence[int]]]:
        """Return what a new forwarding process is told."""
        told = self._connections.first_messages(self._next_generation(), self._user)
        return [(store.to_forwarder.encode(message), fds) for message, fds in told]

    def decode(self, data: bytes, fds: Fds) -> object:
        """Return the message of a packet."""
        message: object = store.from_forwarder.decode(data)
        match message:
            case store.Connected():
                self._connections.adopt(message.client, fds)
                self._asked[message.client] = Asked()
            case store.Request():
                asked = self._asked.get(message.client)
                if asked is not None and asked.is_asking:
                    raise ProtocolError("two requests are under way of one connection")
                if len(message.data) > store.REQUEST_BYTES:
                    raise ProtocolError(f"a request of {len(message.data)} bytes, and {store.REQUEST_BYTES} are the most")
        return message

    def on_message(self, message: object) -> None:
        """React to what the forwarding process said."""
        match message:
            case local.Started():
                return
            case store.Request():
                asked = self._asked.get(message.client)
                if asked is not None:
                    self._pass_on(asked, message)
            case store.Taken():
                asked = self._asked.get(message.client)
                if asked is not None:
                    asked.is_told = False
                    self._tell_host(message)
            case store.Ended():
                self._forget(message.client)
        self._service.reset_failures()

    def _pass_on(self, asked: Asked, request: store.Request) -> None:
        asked.is_asking = True
        asked.is_known = self._tell_host(request)
        if asked.is_known:
            _stop_waiting(asked)
        elif asked.waiting is None:
            asked.waiting = request
            deadline = time.monotonic() + _HOST_DEADLINE
            asked.patience = self._loop.call_at(deadline, lambda: self._give_up(request.client))

    def on_death(self, culprit: int | None) -> None:
        """End the connections that may have lost a message."""
        for number, asked in list(self._asked.items()):
            if asked.is_asking or asked.is_told or number == culprit:
                self._end(number)


def _stop_waiting(asked: Asked) -> None:
    asked.waiting = None
    if asked.patience is not None:
        asked.patience.cancel()
