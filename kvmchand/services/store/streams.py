# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connections that speak xenstore's protocol, as a store process has them, and the turns they get.

A request is taken off a socket only when it is complete, so a restarted process continues where
this one was. A client that does not read is not heard, so only events can pile up for it, up to a
limit.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from kvmchand.errors import LimitReached, VchanError
from kvmchand.ids import HOST, ClientId, DomainId
from kvmchand.runtime import closer, log, passrights
from kvmchand.runtime.acceptor import Acceptor
from kvmchand.runtime.listener import Listener
from kvmchand.runtime.loop import EDGE, HALF_CLOSED, HUNG_UP, READABLE, WRITABLE
from kvmchand.runtime.marker import Marker
from kvmchand.wire import local, store
from kvmchand.wire.codec import Codec
from kvmchand.wire.packet import Fds
from kvmchand.xenstore import protocol

OUTPUT_MAX = 1 << 20
"""Bytes that may wait for a client: some ten thousand events of usual paths."""
DOMAIN_OUTPUT_MAX = 16 << 20
"""Bytes of events that may wait for all clients of a domain other than 0."""
_IDLE = READABLE | HALF_CLOSED | EDGE


class Taken(NamedTuple):
    """A request and its bytes. `is_last`: no other request was waiting behind it."""

    request: protocol.Request
    data: bytes
    is_last: bool


class Stream(ABC):
    """A connection: where its requests come from, and its output goes."""

    def __init__(self, number: ClientId, domain: DomainId, waiting: Counter[DomainId]) -> None:
        """Make an empty stream. `waiting`: bytes of all streams together, by domain."""
        self.number = number
        self.domain = domain
        self.whose = f"domain {domain}"
        """What sentences call the domain."""
        self._waiting = waiting
        self._queue: deque[tuple[bytes, bool]] = deque()
        """Packets, and whether each is an event."""
        self._events: set[bytes] = set()
        """Events in the queue, or expected there."""
        self._bytes = 0
        self.was_waiting = False
        """is_waiting at the last look."""
        self.is_asking = False
        """Its last request has no answer yet, so it is not heard."""

    def expect_event(self, packet: bytes) -> bool:
        """Make room for an event that put_event() adds later.

        Returns False if the same event waits already. Raises LimitReached if too much waits.
        """
        if packet in self._events:
            return False
        if self.domain != HOST and self._waiting[self.domain] > DOMAIN_OUTPUT_MAX:
            raise LimitReached(f"its domain does not read what it watches: over {DOMAIN_OUTPUT_MAX} bytes wait")
        self._count(packet)
        self._events.add(packet)
        return True

    def put_event(self, packet: bytes) -> None:
        """Add an expected event. Raises OSError if the client is gone."""
        self._queue.append((packet, True))
        self.flush()

    def put(self, data: bytes) -> None:
        """Add a reply. Raises LimitReached if too much waits, OSError if the client is gone."""
        self._count(data)
        self._queue.append((data, False))
        self.flush()

    def _count(self, data: bytes) -> None:
        if self._bytes > OUTPUT_MAX:
            raise LimitReached(f"it does not read what it watches: over {OUTPUT_MAX} bytes wait")
        self._bytes += len(data)
        self._waiting[self.domain] += len(data)

    def forget_output(self) -> None:
        """Drop what waits: the connection is over."""
        self._waiting[self.domain] -= self._bytes
        self._bytes = 0

    def _next(self, most: int) -> tuple[bytes, bool]:
        """Return the next packets, and whether a reply is among them.

        They have at most `most` bytes, or are a single packet.
        """
        found: list[bytes] = []
        size, answers = 0, False
        while self._queue and (not found or size + len(self._queue[0][0]) <= most):
            packet, is_event = self._queue.popleft()
            found.append(packet)
            size += len(packet)
            if is_event:
                self._events.discard(packet)
            else:
                answers = True
        self._bytes -= size
        self._waiting[self.domain] -= size
        return b"".join(found), answers

    @property
    def is_waiting(self) -> bool:
        """Return whether it has not taken everything it was sent."""
        return bool(self._queue)

    @abstractmethod
    def flush(self) -> None:
        """Send as much as it takes. Raises OSError if the client is gone."""

    @abstractmethod
    def take(self) -> Taken | None:
        """Return its next request, or None if none is complete.

        Raises OSError if the client is gone.
        """

    @abstractmethod
    def close(self) -> None:
        """End the connection."""


class SocketStream(Stream):
    """A connection of a program of this machine."""

    def __init__(self, number: ClientId, listen: local.Listen, waiting: Counter[DomainId], sock: socket.socket) -> None:
        super().__init__(number, listen.domain, waiting)
        self.whose = listen.whose
        self.sock = sock
        self._rest = b""
        """What remains of the packets being sent."""
        self.is_closing = False
        """It says nothing more."""

    @property
    def is_waiting(self) -> bool:
        """Return whether it has not taken everything it was sent."""
        return bool(self._rest or self._queue)

    def put(self, data: bytes) -> None:
        """Send a reply at once where nothing waits before it."""
        if self.is_waiting:
            super().put(data)
        else:
            self._rest = data
            self.flush()

    def flush(self) -> None:
        """Send as much as the socket takes."""
        while self._rest or self._queue:
            data = self._rest or self._next(store.OUTPUT_BYTES)[0]
            try:
                sent = self.sock.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            self._rest = data[sent:]
            if self._rest:
                return

    def take(self) -> Taken | None:
        """Return its next request, or None if none is complete."""
        try:
            data = passrights.peek(self.sock, store.REQUEST_BYTES)
        except BlockingIOError:
            return None
        found = protocol.take(data)
        if found is None:
            if self.is_closing or not data:
                raise ConnectionResetError
            return None
        request, size = found
        taken = self.sock.recv(size)
        return Taken(request, taken, size == len(data))

    def close(self) -> None:
        """End the connection, for main's duplicate, too."""
        closer.hang_up(self.sock)


class Streams(Acceptor):
    """What both store processes have in common: the one with the tree and the one that forwards."""

    def __init__(self, main: socket.socket, marker: Marker, incoming: Codec, outgoing: Codec) -> None:
        super().__init__(main, marker, incoming, outgoing)
        self._streams: dict[ClientId, Stream] = {}
        self._waiting: Counter[DomainId] = Counter()
        self._busy: dict[DomainId, dict[ClientId, Stream]] = {}
        """Streams that may have requests.

        Each turn takes one of each domain, so that no domain delays another by having many
        connections.
        """

    def run(self) -> None:
        """Serve until main ends."""
        if self._wait_for_start():
            self._loop.run()

    @abstractmethod
    def _on_request(self, sender: Stream, taken: Taken) -> None:
        """Do what a client asks. An OSError ends the client."""

    def _on_output(self, stream: Stream) -> None:
        """Note that what waits for a client changed, or was taken."""

    def _on_gone(self, stream: Stream) -> None:
        """Clean up after a connection, before main is told."""

    # ---- main ----

    def _obey(self, message: object, fds: Fds) -> None:
        match message:
            case store.Ended():
                stream = self._streams.get(message.client)
                if stream is not None:
                    self._forget(stream)
            case _:
                super()._obey(message, fds)

    # ---- connections ----

    def _on_refused(self, listener: Listener, _sock: socket.socket, error: VchanError) -> None:
        log.warning(
            f"a connection to the store of {listener.settings.whose} is refused: {error.sentence}", whose=listener.settings.whose
        )

    def _on_accepted(self, number: ClientId, listener: Listener, sock: socket.socket) -> None:
        self._say(store.Connected(number), (sock.fileno(),))
        self._on_restored(number, listener, sock)

    def _on_restored(self, number: ClientId, listener: Listener, sock: socket.socket) -> None:
        sock.setblocking(False)
        stream = SocketStream(number, listener.settings, self._waiting, sock)
        listener.clients += 1
        self._add(stream)
        self._loop.add(sock.fileno(), lambda events: self._on_socket(stream, events), _IDLE)

    def _add(self, stream: Stream) -> None:
        self._streams[stream.number] = stream

    def _on_socket(self, stream: SocketStream, events: int) -> None:
        stream.is_closing |= bool(events & (HALF_CLOSED | HUNG_UP))
        self._wake(stream)
        if events & WRITABLE:
            self._guard(stream, lambda stream: stream.flush())

    def _end(self, ended: Stream) -> None:
        """End a connection, and tell main."""
        self._forget(ended)
        self._say(store.Ended(ended.number))

    def _forget(self, gone: Stream) -> None:
        del self._streams[gone.number]
        self._busy.get(gone.domain, {}).pop(gone.number, None)
        if isinstance(gone, SocketStream):
            self._listeners[gone.domain].clients -= 1
            self._loop.remove(gone.sock.fileno())
        gone.close()
        gone.forget_output()
        self._on_gone(gone)

    # ---- turns ----

    def _wake(self, stream: Stream) -> None:
        """Note that a stream may have requests."""
        if not self._busy:
            self._loop.call_soon(self._take_turns)
        self._busy.setdefault(stream.domain, {})[stream.number] = stream

    def _take_turns(self) -> None:
        for domain, busy in list(self._busy.items()):
            if busy:
                stream = busy.pop(next(iter(busy)))
                self._marker.set(stream.number)
                self._guard(stream, self._take_turn)
                self._marker.clear()
            if not busy:
                del self._busy[domain]
        if self._busy:
            self._loop.call_soon(self._take_turns)

    def _guard(self, stream: Stream, action: Callable[[Stream], None]) -> None:
        """Do something that may end a client, and see to its output afterwards."""
        try:
            action(stream)
        except OSError as error:
            self._fail(stream, error)
            return
        if stream.number in self._streams:
            self._see_output(stream)

    def _fail(self, stream: Stream, error: OSError) -> None:
        if stream.number in self._streams:
            if isinstance(error, VchanError):
                log.warning(f"{stream.whose}, store client {stream.number}, is dropped: {error.sentence}", whose=stream.whose)
            self._end(stream)

    def _take_turn(self, stream: Stream) -> None:
        taken = None if stream.is_waiting or stream.is_asking else stream.take()
        if taken is not None:
            if not taken.is_last:
                self._wake(stream)
            self._on_request(stream, taken)

    def _see_output(self, stream: Stream) -> None:
        """Follow a change of whether output waits for a client."""
        if stream.is_waiting != stream.was_waiting:
            stream.was_waiting = stream.is_waiting
            if isinstance(stream, SocketStream):
                self._loop.modify(stream.sock.fileno(), _IDLE | WRITABLE if stream.is_waiting else _IDLE)
            if not stream.is_waiting:
                self._wake(stream)  # it may have asked meanwhile
            self._on_output(stream)
