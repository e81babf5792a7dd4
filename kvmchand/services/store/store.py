# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store, as a host's main process has it: the store process, and what it must know.

It must know of domains and vchans, and who is connected to it, here and in guests. Main knows
nothing of what is in the store. A store process that dies is started again; it gets its connections
back, and what it recorded in a memory file that main only keeps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvmchand.channels.registry import Channel
from kvmchand.errors import OutOfResources, ProtocolError, VchanError
from kvmchand.ids import GENERATION, ChannelId, ClientId, DomainId
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.sockets import Sockets
from kvmchand.runtime.supervisor import ServiceEvents, SupervisedService
from kvmchand.services.store.connections import Connections
from kvmchand.wire import client, local, store
from kvmchand.wire.packet import Fds

_REMOTES_MAX = 1024
"""Connections of a guest, each of which may have a packet under way to it."""
_NUMBER_MAX = 0x7FFFFFFF
"""The largest grant reference: the node has it as a decimal number, which programs read into an
int.
"""


@dataclass(slots=True, eq=False)
class Remote:
    """A connection in a guest, whose daemon calls it `remote`.

    `is_asking`: its request has no answer yet.
    """

    number: ClientId
    domain: DomainId
    remote: ClientId
    is_asking: bool = False


class StoreEvents(Protocol):
    """Hears what happens in the store."""

    def on_connection(self) -> None:
        """React when a program has connected. Raises OutOfResources to have it disconnected."""

    def on_output(self, domain: DomainId, message: object) -> None:
        """React to what a guest's daemon is to be told."""

    def on_nodes_removed(self, channel: ChannelId) -> None:
        """React when a program has removed a channel's nodes, and with them the offer."""


class Store(ServiceEvents):
    """The store's state that outlives its process.

    It is who is connected, and what the process must know.
    """

    _events: StoreEvents
    """The object that start() was given."""

    def __init__(
        self,
        loop: Loop,
        sockets: Sockets,
        user: str,
        next_generation: Callable[[], int],
        fail: Callable[[VchanError], None],
    ) -> None:
        """Know of no domain yet. `fail` is called when the store process has ended for good."""
        self._user = user
        self._next_generation = next_generation
        self._connections = Connections(sockets)
        self._journal = os.memfd_create("kvmchand-store", os.MFD_CLOEXEC)
        self._domains: dict[DomainId, store.Domain] = {}
        self._offers: dict[ChannelId, store.Offered] = {}
        self._remotes: dict[ClientId, Remote] = {}
        self._in_guests: dict[DomainId, dict[ClientId, Remote]] = {}
        """By the guest's numbers."""
        self._last_remote = next_generation() * GENERATION
        self._service = SupervisedService(loop, "store", fail)

    def __len__(self) -> int:
        """Return the descriptors that its connections take."""
        return len(self._connections)

    def start(self, events: StoreEvents) -> None:
        """Serve programs. From now on `events` hears what happens."""
        self._events = events
        self._service.start(self)

    def close(self) -> None:
        """End the store process and all connections."""
        self._service.stop()
        self._connections.close()
        os.close(self._journal)

    def _tell(self, message: object) -> None:
        self._service.send(store.to_store.encode(message))

    # ---- what there is ----

    def introduce(self, domain: DomainId, name: str, uuid: str = "") -> None:
        """Make a domain's nodes."""
        told = self._domains[domain] = store.Domain(domain, name, uuid)
        self._tell(told)

    def release(self, domain: DomainId) -> None:
        """Remove a domain's nodes."""
        del self._domains[domain]
        self._tell(store.Gone(domain))

    def publish(self, channel: Channel) -> None:
        """Show a vchan at its path, before its server is answered."""
        told = store.Offered(
            channel.number,
            channel.path,
            channel.server_domain,
            channel.client_domain,
            channel.number & _NUMBER_MAX,
            client.port_of(channel.number, is_server=True),
        )
        self._offers[channel.number] = told
        self._service.queue(store.to_store.encode(told))

    def unpublish(self, channel: Channel) -> None:
        """Show a vchan no more. Does nothing if it is not shown."""
        if self._offers.pop(channel.number, None) is not None:
            self._service.queue(store.to_store.encode(store.Withdrawn(channel.number)))

    # ---- connections in guests ----

    def take_guest_message(self, domain: DomainId, message: object) -> None:
        """Do what a guest's daemon says of one of its connections. Raises ProtocolError."""
        match message:
            case store.Request():
                self._on_request(domain, message)
            case store.Taken():
                remote = self._in_guests.get(domain, {}).get(message.client)
                if remote is not None:
                    self._tell(store.Taken(remote.number))
            case store.Ended():
                remote = self._in_guests.get(domain, {}).get(message.client)
                if remote is not None:
                    self._forget(remote)
                    self._tell(store.Ended(remote.number))

    def _on_request(self, domain: DomainId, request: store.Request) -> None:
        remotes = self._in_guests.setdefault(domain, {})
        remote = remotes.get(request.client)
        if remote is None:
            if len(remotes) >= _REMOTES_MAX:
                log.warning(
                    f"domain {domain} is refused another connection to the store: it has {len(remotes)}", whose=f"domain {domain}"
                )
                self._events.on_output(domain, store.Ended(request.client))
                return
            self._last_remote += 1
            remote = Remote(ClientId(self._last_remote), domain, request.client)
            self._remotes[remote.number] = remotes[request.client] = remote
            self._tell(store.Remote(remote.number, domain))
        if remote.is_asking:
            raise ProtocolError("the guest's daemon passed on a request to the store before the answer to the one before")
        remote.is_asking = True
        self._tell(store.Request(remote.number, request.data))

    def reset(self, domain: DomainId) -> None:
        """End a guest's connections. Its daemon knows."""
        for remote in self._in_guests.pop(domain, {}).values():
            del self._remotes[remote.number]
            self._tell(store.Ended(remote.number))

    def _forget(self, remote: Remote) -> None:
        del self._remotes[remote.number]
        del self._in_guests[remote.domain][remote.remote]

    def _end(self, remote: Remote) -> None:
        self._forget(remote)
        self._events.on_output(remote.domain, store.Ended(remote.remote))

    # ---- the store process: ServiceEvents ----

    def first_messages(self) -> list[tuple[bytes, Sequence[int]]]:
        """Return what a new store process is told."""
        told: list[tuple[object, Sequence[int]]] = [(store.Journal(), [self._journal])]
        told += [(each, []) for each in (*self._domains.values(), *self._offers.values())]
        told += [(store.Remote(each.number, each.domain), []) for each in self._remotes.values()]
        told += self._connections.first_messages(self._next_generation(), self._user)
        return [(store.to_store.encode(message), fds) for message, fds in told]

    def decode(self, data: bytes, fds: Fds) -> object:
        """Return the message of a packet."""
        message: object = store.from_store.decode(data)
        if isinstance(message, store.Connected):
            self._connections.adopt(message.client, fds)
        elif isinstance(message, store.Output) and len(message.data) > store.OUTPUT_BYTES:
            raise ProtocolError(f"an output of {len(message.data)} bytes, and {store.OUTPUT_BYTES} are the most")
        return message

    def on_message(self, message: object) -> None:
        """React to what the store process said."""
        match message:
            case local.Started():
                return
            case store.Connected():
                self._require_room(message.client)
            case store.Output():
                remote = self._remotes.get(message.client)
                if remote is not None:
                    remote.is_asking = remote.is_asking and not message.answers
                    self._events.on_output(remote.domain, store.Output(remote.remote, message.data, message.answers))
            case store.Ended():
                remote = self._remotes.get(message.client)
                if remote is not None:
                    self._end(remote)
                self._connections.forget(message.client)
            case store.Withdraw():
                self._events.on_nodes_removed(message.channel)
                self._tell(store.Withdrawn(message.channel))
        self._service.reset_failures()

    def _require_room(self, new: ClientId) -> None:
        try:
            self._events.on_connection()
        except OutOfResources as error:
            log.warning(f"a new connection to the store is ended: {error.sentence}", whose="the store")
            self._connections.drop(new)
            self._tell(store.Ended(new))

    def on_death(self, culprit: int | None) -> None:
        """Drop the client whose bytes ended the store process."""
        if culprit is not None:
            log.warning(f"store client {culprit} is dropped, for its bytes ended the store process")
            self._connections.drop(ClientId(culprit))
        for remote in list(self._remotes.values()):
            if remote.is_asking or remote.number == culprit:
                self._end(remote)
