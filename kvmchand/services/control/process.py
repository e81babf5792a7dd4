# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control process: reads the control rings.

On a host it reads those of all guests, in a guest the one to its host. Everything in a ring is the
other machine's to write, so nothing is believed. A packet is taken only when it is complete, so a
restarted process continues where this one was. When main ends, every session is hung up, so the
other side knows at once.
"""

from __future__ import annotations

import ctypes
import socket
import time
from collections import deque
from typing import Any

from kvmchand.errors import ChannelClosed, LimitReached, ProtocolError, VchanError
from kvmchand.linux.eventfd import drain_event
from kvmchand.runtime import log
from kvmchand.runtime.loop import Timer
from kvmchand.runtime.marker import Marker
from kvmchand.runtime.privileges import drop_privileges
from kvmchand.runtime.worker import Worker, serve
from kvmchand.wire import client, control, dataplane, store
from kvmchand.wire.codec import PACKET_MAX
from kvmchand.wire.packet import Fds

_BUCKETS_MAX = 1024
"""Buckets above which those of guests that are gone are dropped."""
QUEUE_MAX = 4096
"""Packets that may wait for room in a ring. An other end that lets more wait is lost."""
_BURST = 2
"""Seconds' worth of requests that may come at once."""
_PER_STORE_REQUEST = 2
"""Messages for each request to the store: the request, and the report that its answer was taken.

They are delayed where other requests are refused.
"""
_FLOOD = 10
"""How many times the rate messages that cannot be refused, such as closes, may come before the
session ends.
"""


class Bucket:
    """How many more requests a guest may make right now."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._tokens = float(rate * _BURST)
        self._then = time.monotonic()

    def take(self) -> bool:
        """Take one, if there is one. A refused request costs nothing, so waiting helps."""
        now = time.monotonic()
        self._tokens = min(self._tokens + (now - self._then) * self._rate, self._rate * _BURST)
        self._then = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def wait(self) -> float:
        """Return the seconds until there is one."""
        return max(0.0, 1 - self._tokens) / max(self._rate, 1)

    def is_calm(self) -> bool:
        """Return whether fewer requests come than are allowed."""
        return self._tokens >= self._rate

    def overdraw(self) -> bool:
        """Take one that does not exist. Returns False if that has gone too far."""
        if self._tokens <= -self._rate * _FLOOD:
            return False
        self._tokens -= 1
        return True


class Session:
    """An end of a control vchan."""

    def __init__(self, settings: control.Attach, fds: list[int], bucket: Bucket, store_bucket: Bucket) -> None:
        """Take ownership of the descriptors.

        Raises OSError if the other side left the ring in an invalid state.
        """
        self.number = settings.session
        self.domain = settings.domain
        self._incoming = control.to_host if settings.is_server else control.to_guest
        self._ctrl = dataplane.attach_end(settings.grant, fds, is_server=settings.is_server)
        self._copy = ctypes.create_string_buffer(control.LENGTH.size + PACKET_MAX)
        self._bucket = bucket
        self._store_bucket = store_bucket
        self.held: bytes | None = None
        """A message of the store's that came too fast."""
        self.turn: Timer | None = None
        """The turn in which it may continue."""
        self._refused = 0
        self.to_send: deque[bytes] = deque()
        self.fd = int(dataplane.fd_for_select(self._ctrl))

    def take_events(self) -> None:
        """Forget the events that are pending."""
        drain_event(self.fd)  # and not wait(): main may have taken what the loop saw

    def is_open(self) -> bool:
        """Return whether the other end is there."""
        return bool(dataplane.is_open(self._ctrl))

    def flush(self) -> None:
        """Put what there is room for.

        Raises OSError if the other end is gone or broke the rules.
        """
        while self.to_send:
            data = self.to_send[0]
            if not dataplane.send(self._ctrl, data, len(data)):
                return  # an event comes when there is room
            self.to_send.popleft()

    def put(self, packet: bytes) -> None:
        """Queue a packet. Raises ProtocolError if the other end does not read."""
        if len(self.to_send) >= QUEUE_MAX:
            raise ProtocolError(f"{QUEUE_MAX} packets wait to be read by the other end: it does not")
        self.to_send.append(control.LENGTH.pack(len(packet)) + packet)
        self.flush()

    def take(self) -> bytes | None:
        """Return the next packet if it is complete.

        Raises OSError if the other end broke the ring's rules.
        """
        head = control.LENGTH.size
        if not dataplane.peek(self._ctrl, self._copy, head):
            return None
        (size,) = control.LENGTH.unpack_from(self._copy)
        if not 0 < size <= PACKET_MAX:
            raise ProtocolError(f"a packet of {size} bytes came; at most {PACKET_MAX} are allowed")
        try:
            if not dataplane.recv(self._ctrl, self._copy, head + size):
                return None
        except ChannelClosed:
            return None  # the caller looks for that, once nothing more comes
        return ctypes.string_at(self._copy, head + size)[head:]

    def hold(self, packet: bytes) -> None:
        """Take nothing more until release() has returned `packet`."""
        self.held = packet

    def wait(self) -> float:
        """Return the seconds until release() gives the packet that has to wait."""
        return self._store_bucket.wait()

    def release(self) -> bytes | None:
        """Return the packet for main that had to wait, once it has waited long enough."""
        held = self.held
        if held is not None and self._store_bucket.take():
            self.held = None
            return held
        return None

    def decode(self, data: bytes) -> bytes | None:
        """Return a packet for main, encoded again; None if it is refused here, or has to wait."""
        message = self._incoming.decode(data)
        anew = self._incoming.encode(message)
        if isinstance(message, store.Request | store.Output | store.Taken | store.Ended):
            if self._store_bucket.take():
                return anew
            self.hold(anew)
            return None
        if self._bucket.take():
            if self._refused and self._bucket.is_calm():
                log.warning(f"session {self.number}: {self._refused} requests were refused, for they came too fast")
                self._refused = 0
            return anew
        if not isinstance(message, control.Ask):
            if not self._bucket.overdraw():
                raise ProtocolError("messages come many times faster than the limit (guest_requests in the settings)")
            return anew
        self._refused += 1
        if self._refused == 1:
            log.warning(f"session {self.number}: requests come faster than guest_requests in the settings, and are refused")
        error = LimitReached("this domain asks too often (guest_requests in the host's settings): wait, and ask again")
        reply = control.Reply(message.client, message.serial, client.Error(error.code, error.sentence))
        self.put(control.to_guest.encode(reply))
        return None

    def hang_up(self) -> None:
        """Tell the other end that the session is over."""
        dataplane.hang_up(self._ctrl)

    def close(self) -> None:
        """Close the descriptors, and unmap the ring."""
        dataplane.detach(self._ctrl)


class Control(Worker):
    """The process's whole state."""

    def __init__(self, main: socket.socket, marker: Marker) -> None:
        super().__init__(main, marker, control.to_control, control.to_main)
        self._sessions: dict[int, Session] = {}
        self._buckets: dict[int, tuple[Bucket, Bucket]] = {}
        """By the guest's domain."""
        self._busy: dict[int, Session] = {}
        """Sessions that may have packets.

        Each turn takes one packet of each, so that none delays another.
        """

    def run(self) -> None:
        """Serve until main ends."""
        try:
            if self._wait_for_start():
                self._loop.run()
        finally:
            for session in self._sessions.values():
                session.hang_up()

    # ---- main ----

    def _obey(self, message: object, fds: Fds) -> None:
        match message:
            case control.Attach():
                self._attach(message, fds)
            case control.Send():
                session = self._sessions.get(message.session)
                if session is not None:
                    self._try(session, lambda: session.put(message.packet))
            case control.Detach():
                session = self._sessions.get(message.session)
                if session is not None:
                    if message.hangs_up:
                        session.hang_up()
                    self._forget(session)
            case control.Start():
                drop_privileges(message.user)
                self._start(control.Started())

    def _attach(self, settings: control.Attach, fds: Fds) -> None:
        try:
            session = Session(settings, fds.steal(), *self._buckets_of(settings))
        except OSError as error:
            self._say(control.Lost(settings.session, str(error.strerror)[:400]))
            return
        self._sessions[session.number] = session
        self._loop.add(session.fd, lambda _events: self._on_event(session))
        self._wake(session)

    def _buckets_of(self, settings: control.Attach) -> tuple[Bucket, Bucket]:
        """Return a guest's buckets, for all requests and for the store's.

        A new session does not fill them again.
        """
        if len(self._buckets) > _BUCKETS_MAX:
            self._buckets = {session.domain: self._buckets[session.domain] for session in self._sessions.values()}
        made = Bucket(settings.rate), Bucket(_PER_STORE_REQUEST * settings.rate)
        return self._buckets.setdefault(settings.domain, made)

    # ---- rings ----

    def _try(self, session: Session, action: Any) -> bool:
        """Do something that may end a session. Returns whether the session still exists."""
        self._marker.set(session.number)
        try:
            action()
        except OSError as error:
            sentence = error.sentence if isinstance(error, VchanError) else str(error.strerror)
            self._lose(session, sentence)
            return False
        finally:
            self._marker.clear()
        return True

    def _lose(self, session: Session, sentence: str) -> None:
        session.hang_up()
        self._forget(session)
        self._say(control.Lost(session.number, sentence[:400]))

    def _forget(self, session: Session) -> None:
        del self._sessions[session.number]
        self._busy.pop(session.number, None)
        if session.turn is not None:
            session.turn.cancel()
        self._loop.remove(session.fd)
        session.close()

    def _on_event(self, session: Session) -> None:
        if self._try(session, session.take_events):
            self._wake(session)

    def _wake(self, session: Session) -> None:
        """Give a session that may have packets a turn."""
        if not self._busy:
            self._loop.call_soon(self._take_turns)
        self._busy[session.number] = session

    def _take_turns(self) -> None:
        for session in list(self._busy.values()):
            self._try(session, lambda session=session: self._take_turn(session))
        if self._busy:
            self._loop.call_soon(self._take_turns)

    def _take_turn(self, session: Session) -> None:
        is_open = session.is_open()  # before the look: what was written before a hang-up is still to be read
        session.flush()
        data = None
        if session.held is not None:
            packet = session.release()
        else:
            data = session.take()
            packet = session.decode(data) if data is not None else None
        if packet is not None:
            self._marker.clear()
            self._say(control.Received(session.number, packet))
        if session.held is not None:
            del self._busy[session.number]
            if session.turn is not None:
                session.turn.cancel()
            session.turn = self._loop.call_at(time.monotonic() + session.wait(), lambda: self._wake(session))
            return
        if packet is not None or data is not None:
            return
        del self._busy[session.number]
        if not is_open:
            self._lose(session, "the other end is gone")


def main(socket_fd: int, marker_fd: int) -> None:
    """Run the process."""
    serve("kvmchand-ctrl", Control, socket_fd, marker_fd)
