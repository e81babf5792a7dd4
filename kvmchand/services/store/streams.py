# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connections that speak xenstore's protocol, as a store process has them, and the turns that they get.

A request is taken off a socket only whole, so that a process that is started again goes on where this one was. Who does not read
what it is told is not heard meanwhile, so that only events can pile up for it, and those to a limit.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from kvmchand.errors import KvmchanError, LimitReached, ProtocolError
from kvmchand.ids import HOST, ClientId, DomainId
from kvmchand.runtime import log
from kvmchand.runtime.acceptor import Acceptor
from kvmchand.runtime.listener import Listener
from kvmchand.runtime.loop import EDGE, HALF_CLOSED, HUNG_UP, READABLE, WRITABLE
from kvmchand.runtime.supervisor import Marker
from kvmchand.wire import store
from kvmchand.wire.codec import Codec
from kvmchand.wire.packet import Fds
from kvmchand.xenstore import protocol

OUTPUT_MAX = 1 << 20
"""Bytes that wait for a client to read: some ten thousand events of usual paths."""
DOMAIN_OUTPUT_MAX = 16 << 20
"""Bytes of events that wait for all clients of a domain other than 0."""
_IDLE = READABLE | HALF_CLOSED | EDGE


@dataclass(frozen=True, slots=True)
class Taken:
    """A request, and the bytes it was. `is_last`: no other was there behind it."""

    request: protocol.Request
    data: bytes
    is_last: bool


class Stream(ABC):
    """A connection: where its requests come from, and its output goes."""

    def __init__(self, number: ClientId, domain: DomainId, waiting: Counter[DomainId]) -> None:
        """`waiting`: bytes of all streams together, by domain."""
        self.number = number
        self.domain = domain
        self._waiting = waiting
        self._queue: deque[tuple[bytes, bool]] = deque()
        """Packets, and whether each is an event."""
        self._events: set[bytes] = set()
        """Those in the queue, and expected there."""
        self._bytes = 0
        self.was_waiting = False
        """As is_waiting was at the last look."""
        self.is_asking = False
        """Its last request has no answer yet, and it is not heard."""

    def expect_event(self, packet: bytes) -> bool:
        """Makes room for an event, which put_event() then fills; False where the same waits already. LimitReached: too much
        does."""
        if packet in self._events:
            return False
        if self.domain != HOST and self._waiting[self.domain] > DOMAIN_OUTPUT_MAX:
            raise LimitReached(f"its domain does not read what it watches: over {DOMAIN_OUTPUT_MAX} bytes wait")
        self._count(packet)
        self._events.add(packet)
        return True

    def put_event(self, packet: bytes) -> None:
        """One that is expected. OSError: it is gone."""
        self._queue.append((packet, True))
        self.flush()

    def put(self, data: bytes) -> None:
        """What the client has asked for. LimitReached: too much waits already. OSError: it is gone."""
        self._count(data)
        self._queue.append((data, False))
        self.flush()

    def _count(self, data: bytes) -> None:
        if self._bytes > OUTPUT_MAX:
            raise LimitReached(f"it does not read what it watches: over {OUTPUT_MAX} bytes wait")
        self._bytes += len(data)
        self._waiting[self.domain] += len(data)

    def forget_output(self) -> None:
        """It is over: nothing waits for it any more."""
        self._waiting[self.domain] -= self._bytes
        self._bytes = 0

    def _next(self, most: int) -> tuple[bytes, bool]:
        """The packets that go next, of `most` bytes together or one, and whether a reply is among them."""
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
        """Whether it has not taken all it was told."""
        return bool(self._queue)

    @abstractmethod
    def flush(self) -> None:
        """Passes on what it takes. OSError: it is gone."""

    @abstractmethod
    def take(self) -> Taken | None:
        """Its next request, if it is there whole. ProtocolError, or another OSError: it is gone."""

    @abstractmethod
    def close(self) -> None: ...


class SocketStream(Stream):
    def __init__(self, number: ClientId, domain: DomainId, waiting: Counter[DomainId], sock: socket.socket) -> None:
        super().__init__(number, domain, waiting)
        self.sock = sock
        self._rest = b""
        """Of what is being sent."""
        self.is_closing = False
        """It says nothing more."""

    @property
    def is_waiting(self) -> bool:
        return bool(self._rest or self._queue)

    def flush(self) -> None:
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
        try:
            data = self.sock.recv(store.REQUEST_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        found = protocol.take(data)
        if found is None:
            if self.is_closing or not data:
                raise ConnectionResetError
            return None
        request, size = found
        taken = self.sock.recv(size)
        if len(taken) != size:
            raise ProtocolError("a request came with descriptors beside it")
        return Taken(request, taken, size == len(data))

    def close(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_RDWR)  # main has a duplicate
        except OSError:
            pass  # gone already
        self.sock.close()


class Streams(Acceptor):
    """A store process: what the one with the tree and the one that forwards have in common."""

    def __init__(self, main: socket.socket, marker: Marker, incoming: Codec, outgoing: Codec) -> None:
        super().__init__(main, marker, incoming, outgoing)
        self._streams: dict[ClientId, Stream] = {}
        self._waiting: Counter[DomainId] = Counter()
        self._busy: dict[DomainId, dict[ClientId, Stream]] = {}
        """Those that may have requests. Each turn takes one of each domain, so that none stalls another by many connections."""

    def run(self) -> None:
        if self._wait_for_start():
            self._loop.run()

    @abstractmethod
    def _on_request(self, sender: Stream, taken: Taken) -> None:
        """Does what a client asks; an OSError ends the client."""

    def _on_output(self, stream: Stream) -> None:
        """What is told it has changed, or has been taken."""

    def _on_gone(self, stream: Stream) -> None:
        """It is over, and main not told yet."""

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

    def _on_refused(self, listener: Listener, _sock: socket.socket, error: KvmchanError) -> None:
        log.warning(f"a connection to domain {listener.settings.domain}'s store is refused: {error.sentence}")

    def _on_accepted(self, number: ClientId, listener: Listener, sock: socket.socket) -> None:
        self._say(store.Connected(number), (sock.fileno(),))
        self._on_restored(number, listener, sock)

    def _on_restored(self, number: ClientId, listener: Listener, sock: socket.socket) -> None:
        sock.setblocking(False)
        stream = SocketStream(number, listener.settings.domain, self._waiting, sock)
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
        """A connection that is over, as main does not know yet."""
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
        """Give a stream that may have requests a turn."""
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
        """Does something that may be a client's end; then main and, on a host, the tree hear of it."""
        try:
            action(stream)
        except OSError as error:
            self._fail(stream, error)
            return
        if stream.number in self._streams:
            self._see_output(stream)

    def _fail(self, stream: Stream, error: OSError) -> None:
        if stream.number in self._streams:
            if isinstance(error, KvmchanError):
                log.warning(f"domain {stream.domain}, store client {stream.number}, is dropped: {error.sentence}")
            self._end(stream)

    def _take_turn(self, stream: Stream) -> None:
        taken = None if stream.is_waiting or stream.is_asking else stream.take()
        if taken is not None:
            if not taken.is_last:
                self._wake(stream)
            self._on_request(stream, taken)

    def _see_output(self, stream: Stream) -> None:
        """After output, or an attempt at it."""
        if stream.is_waiting != stream.was_waiting:
            stream.was_waiting = stream.is_waiting
            if isinstance(stream, SocketStream):
                self._loop.modify(stream.sock.fileno(), _IDLE | WRITABLE if stream.is_waiting else _IDLE)
            if not stream.is_waiting:
                self._wake(stream)  # it may have asked meanwhile
            self._on_output(stream)
