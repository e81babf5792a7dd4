# SPDX-License-Identifier: LGPL-2.1-or-later
"""The clients of the local sockets, as main has them.

They are the local process that reads what clients say, and a duplicate of each connection, on which
main answers. A local process that dies is started again and gets the connections back.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence

from kvmchand.channels.grants import Share
from kvmchand.channels.region import Region, SharedMemory
from kvmchand.channels.registry import Channel, Side
from kvmchand.channels.requester import Requester, RequesterEvents
from kvmchand.errors import ProtocolError, VchanError
from kvmchand.ids import GENERATION, HOST, ClientId, DomainId, Size
from kvmchand.linux import libc
from kvmchand.runtime import closer, log
from kvmchand.runtime.loop import HALF_CLOSED, HUNG_UP, Loop
from kvmchand.runtime.sockets import Sockets
from kvmchand.runtime.supervisor import ServiceEvents, SupervisedService
from kvmchand.wire import client, local
from kvmchand.wire.packet import AT_ONCE, Fds, send_packet

_IDLE_CLIENTS = 1024
"""Connections that a domain may have beside those of its channels."""


class Client(Requester):
    """A client of a local socket, and main's duplicate of its connection."""

    __slots__ = ("_clients", "sock")

    def __init__(self, clients: Clients, number: ClientId, domain: DomainId, sock: socket.socket) -> None:
        """Own a connection. `clients` is the table that has the client."""
        pid, uid, _ = libc.peer_credentials(sock)  # from the socket, and not from what the local process says
        super().__init__(number, domain, pid, is_admin=domain == HOST and uid in (0, os.geteuid()))
        self._clients = clients
        self.sock = sock

    def answer(self, reply: client.Reply, fds: Sequence[int] = ()) -> bool:
        """Send a reply and the descriptors beside it, which stay the caller's."""
        return self._send(client.replies.encode(reply), fds)

    def move(self, packet: bytes, memory: int) -> bool:
        """Tell a server's end where it goes on."""
        return self._send(packet, (memory,))

    def _send(self, packet: bytes, fds: Sequence[int]) -> bool:
        try:
            send_packet(self.sock, packet, fds, AT_ONCE)
        except OSError:
            self.drop()
            return False
        return True

    def grant(self, channel: Channel, region: Region, side: Side) -> bool:
        """Answer with an end of a channel on this machine."""
        grant, fds = region.grant(channel, side, self.number)
        try:
            self.mark_busy()
            if side is Side.CLIENT:
                region.signal(Side.CLIENT)  # as on Xen, an event is pending when a client has connected
            return self.answer(grant, fds)
        finally:
            os.close(fds[0])

    def give(self, share: Share, memory: SharedMemory, *, writable: bool) -> bool:
        """Answer with shared pages."""
        opened = memory.open(self.number, writable=writable)
        try:
            self.mark_busy()
            return self.answer(client.Pages(Size(share.ref), share.pages, memory.offset), (opened,))
        finally:
            os.close(opened)

    def forget(self) -> None:
        """Close the connection, as one that the client has closed."""
        self._clients.forget(self)

    def drop(self) -> None:
        """End the connection also for the local process, which has its own duplicate."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # gone already
        self._clients.drop(self)

    def take_back(self) -> bool | None:
        """End the connection of a client that has not read its grant. See Requester.

        One that is only slow finds the connection ended behind the grant, and asks again.
        """
        # The connection may be gone, and the memory still mapped.
        if self.sock.fileno() < 0 or libc.unread(self.sock.fileno()) == 0:
            return False
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # gone already
        return True if libc.unread(self.sock.fileno()) else None

    def pause(self) -> None:
        """Stop watching the connection until forget()."""
        self._clients.pause(self)

    def mark_busy(self) -> None:
        """Exempt the client from the limit on idle ones."""
        self._clients.mark_busy(self)

    def mark_idle(self) -> None:
        """Count the client among the idle ones, the newest of which outlive the older ones."""
        self._clients.mark_idle(self)


class Clients(ServiceEvents):
    """The table of local clients, and the local process that reads what they say."""

    _events: RequesterEvents
    """The object that start() was given."""

    def __init__(
        self,
        loop: Loop,
        sockets: Sockets,
        user: str,
        max_channels: int,
        on_ready: Callable[[], None],
        fail: Callable[[VchanError], None],
    ) -> None:
        """Have no client yet.

        `on_ready` is called when the local process serves, `fail` when it has ended for good.
        """
        self._loop = loop
        self._sockets = sockets
        self._on_ready = on_ready
        self._user = user
        self._max_clients = 2 * max_channels + 2 * _IDLE_CLIENTS
        self._clients: dict[ClientId, Client] = {}
        self._idle: dict[DomainId, dict[ClientId, Client]] = {}
        """Those without a channel, the oldest first."""
        self._generation = 0
        """The local process's generation. It numbers its clients from GENERATION times this on."""
        self._service = SupervisedService(loop, "local", fail)

    def __len__(self) -> int:
        return len(self._clients)

    def get(self, number: ClientId) -> Client | None:
        """Return a client, or None if it is gone."""
        return self._clients.get(number)

    def next_generation(self) -> int:
        """Return a number for clients' numbers that no other source of clients uses."""
        self._generation += 1
        return self._generation

    # ---- the local process: ServiceEvents ----

    def start(self, events: RequesterEvents) -> None:
        """Serve clients. From now on `events` hears what they do."""
        self._events = events
        self._service.start(self)

    def first_messages(self) -> list[tuple[bytes, Sequence[int]]]:
        """Return what a new local process is told."""
        self._first = self.next_generation() * GENERATION
        told: list[tuple[object, list[int]]] = []
        told += [(listen, [sock.fileno()]) for listen, sock in self._sockets.to_listen(self._max_clients)]
        told += [(local.Restore(each.number, each.domain), [each.sock.fileno()]) for each in self._clients.values()]
        told += [(local.Start(ClientId(self._first), self._user), [])]
        return [(local.to_local.encode(message), fds) for message, fds in told]

    def decode(self, data: bytes, fds: Fds) -> tuple[Client, client.Request] | local.Started | None:
        """Return the client and the request of a packet."""
        message = local.to_main.decode(data)
        if isinstance(message, local.Started):
            return message
        requester = self._clients.get(message.client)
        if requester is None:
            if len(fds) != 1:
                return None  # it hung up meanwhile
            if not self._first <= message.client < self._first + GENERATION:
                raise ProtocolError(f"{message.client} is no number for a new client")
            requester = self._adopt(message.client, fds)
        return requester, message.request

    def on_message(self, message: object) -> None:
        """React to what the local process said."""
        if not isinstance(message, tuple):
            self._on_ready()
            return
        self._service.reset_failures()
        self._events.on_request(*message)

    def on_death(self, culprit: int | None) -> None:
        """Drop the client whose bytes ended the local process."""
        dropped = self._clients.get(ClientId(culprit or 0))
        if dropped is not None:
            log.warning(f"client {culprit} is dropped, for its bytes ended the local process")
            dropped.drop()

    # ---- connections ----

    def _adopt(self, number: ClientId, fds: Fds) -> Client:
        """Take ownership of a connection, the one descriptor in `fds`.

        Raises OSError or KeyError if it is not a connection of a client of ours.
        """
        sock = socket.socket(fileno=fds.borrow()[0])
        fds.steal()
        try:
            adopted = Client(self, number, self._sockets.domain_of(sock), sock)
            self._loop.add(sock.fileno(), lambda events: self._on_hang_up(adopted, events), HALF_CLOSED)
        except BaseException:
            closer.close(sock)
            raise
        self._clients[number] = adopted
        idle = self._idle.setdefault(adopted.domain, {})
        idle[number] = adopted
        while len(idle) > _IDLE_CLIENTS:
            next(iter(idle.values())).drop()
        return adopted

    def _on_hang_up(self, gone: Client, events: int) -> None:
        if not events & HUNG_UP:
            # It closes its channel, has told its peer so, or should have, and waits for us to end
            # the connection.
            self._events.on_close(gone)
            return
        self.forget(gone)
        self._events.on_loss(gone.number)

    def pause(self, closing: Client) -> None:
        """Stop watching a connection until forget()."""
        self._loop.modify(closing.sock.fileno(), 0)

    def mark_busy(self, busy: Client) -> None:
        """Exempt a client from the limit on idle ones."""
        self._idle[busy.domain].pop(busy.number, None)

    def mark_idle(self, idle: Client) -> None:
        """Count a client among the idle ones, as the newest."""
        self._idle[idle.domain][idle.number] = idle

    def forget(self, gone: Client) -> None:
        """Close our duplicate of a connection."""
        del self._clients[gone.number]
        self._idle[gone.domain].pop(gone.number, None)
        self._loop.remove(gone.sock.fileno())
        closer.end(gone.sock)

    def drop(self, dropped: Client) -> None:
        """Forget a client that was ended from this side, and report that."""
        self.forget(dropped)
        self._events.on_drop(dropped.number)

    def close(self) -> None:
        """End the local process and all connections."""
        self._service.stop()
        for each in self._clients.values():
            closer.end(each.sock)
        self._clients.clear()
