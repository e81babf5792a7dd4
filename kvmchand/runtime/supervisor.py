# SPDX-License-Identifier: LGPL-2.1-or-later
"""A service process as main sees it: how it is started, and how it ended.

A service is a fresh interpreter with two descriptors: its socket to main, and a page shared with
main. On this page it notes whose bytes it is reading, so main knows whose they were if it crashes;
and main notes how many packets it has sent. A service that ends is started again, and told again
what exists.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from kvmchand.errors import InternalError, VchanError
from kvmchand.runtime import closer, log
from kvmchand.runtime.loop import READABLE, WRITABLE, Loop, Timer
from kvmchand.runtime.marker import BEAT, Marker
from kvmchand.wire.packet import AT_ONCE, Fds, receive_packet, send_packet

_END_DEADLINE = 0.5
"""Seconds that a service has to end after its socket has. Main stands still meanwhile."""
_SEND_DEADLINE = 10
"""Seconds that a new service has to read its first messages. Main stands still meanwhile."""
_WAITING_MAX = 64 << 20
"""Bytes that may wait for a service to read.

Its peers make main say many things at once, which is not its fault.
"""
_RESTARTS_MAX = 5
"""Restarts in a row without success, after which a service is given up."""
_PATIENCE = 3 * BEAT
"""Seconds without a sign of life after which a service is killed, but only at the second look."""
HOPELESS = 3
"""Exit status of a service that would fail again. It has said why."""
_ENTRY = Path(__file__).parents[1] / "services" / "__main__.py"


class Service:
    """A running service, as main sees it. It has ended when `sock` has."""

    def __init__(self, name: str, *, site: bool = False) -> None:
        """Start the process. `site`: it needs packages beside the standard library."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        page = os.memfd_create(f"kvmchand-{name}", os.MFD_CLOEXEC)
        fds = [closer.descriptor(), theirs.fileno(), page]
        try:
            os.ftruncate(page, mmap.PAGESIZE)
            self.marker = Marker(page)
            self.marker.beat()
            self._process = subprocess.Popen(
                [sys.executable, "-I", *([] if site else ["-S"]), str(_ENTRY), name, *map(str, fds)],
                pass_fds=[fd for fd in fds if fd >= 0],
                stdin=subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(page)
        self.sock = ours
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_DEADLINE, 0))

    def kill(self) -> None:
        """Kill the process; stop() cleans up."""
        self._process.kill()

    def stop(self) -> int:
        """End the service, unless it has ended. Returns its exit status, negative for a signal."""
        self.sock.close()
        self.marker.close()
        for _ in range(2):
            try:
                return self._process.wait(timeout=_END_DEADLINE)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return -signal.SIGKILL  # it sleeps where no signal reaches it, and ends when it wakes


class ServiceEvents(Protocol):
    """Hears what a service says, and knows what to tell it."""

    def first_messages(self) -> list[tuple[bytes, Sequence[int]]]:
        """Return what each new process is told first, and the descriptors that go with it.

        The descriptors stay the callee's.
        """

    def decode(self, data: bytes, fds: Fds) -> object:
        """Return what a packet of the service says, or None if nothing follows.

        Descriptors that are not stolen are closed. OSError, KeyError or ValueError end the service:
        somebody's bytes have taken over what we started.
        """

    def on_message(self, message: object) -> None:
        """React to what decode() returned."""

    def on_death(self, culprit: int | None) -> None:
        """React when the service ended, reading the bytes of `culprit`. It is started again."""


class SupervisedService:
    """A service that is started again when it ends."""

    _events: ServiceEvents
    """The object that start() was given."""

    def __init__(
        self, loop: Loop, name: str, fail: Callable[[VchanError], None], *, site: bool = False, patience: float = _PATIENCE
    ) -> None:
        """Start nothing yet.

        `fail` is called when the service has ended for good. `site`: as for Service. `patience`:
        seconds between two looks whether it hangs.
        """
        self._loop = loop
        self._name = name
        self._fail = fail
        self._site = site
        self._service: Service | None = None
        self._failures = 0
        self._waiting: deque[tuple[bytes, Fds]] = deque()
        self._waiting_bytes = 0
        self._is_full = False
        """Something waits for room in its socket."""
        self._patience = patience
        self._is_late = False
        """It seemed to hang when we last looked."""
        self._next_look: Timer | None = None

    def start(self, events: ServiceEvents) -> None:
        """Start the process. From now on `events` hears of it, and of those that follow it."""
        self._events = events
        self._launch()

    def _launch(self) -> None:
        service = self._service = Service(self._name, site=self._site)
        self._is_full = False
        try:
            for data, fds in self._events.first_messages():
                service.marker.count_sent()
                send_packet(service.sock, data, fds)
        except OSError:
            pass  # it has ended already, as its socket will say; or never read, and is killed then
        # After all others: whoever has died is found dead before anyone's request is looked at.
        self._loop.add(service.sock.fileno(), self._on_ready, last=True)
        self._is_late = False
        self._look_later()

    def _look_later(self) -> None:
        self._next_look = self._loop.call_at(time.monotonic() + self._patience, self._look)

    def _look(self) -> None:
        """Kill the process if it hangs. At the first look perhaps all of us stood still."""
        service = self._service
        if service is None:
            return
        hangs = service.marker.silence() > self._patience
        if hangs and self._is_late:
            log.warning(f"the {self._name} process is killed, for it hangs")
            service.kill()
        self._is_late = hangs
        self._look_later()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send the service a packet. The descriptors stay the caller's.

        A service that is not running gets its first messages instead.
        """
        if self._service is None:
            return
        self._service.marker.count_sent()
        self._flush()
        if self._waiting or not self._send_now(self._service, data, fds):
            try:
                self._wait(self._service, data, Fds.duplicates(fds))
            except OSError:
                self._give_up(self._service)
            self._watch(self._service)

    def queue(self, data: bytes) -> None:
        """Send a packet before the loop waits again, with the next send() at the latest.

        Until then it counts as sent, and no client waits for the system call.
        """
        if self._service is not None:
            self._service.marker.count_sent()
            if not self._waiting:
                self._loop.call_soon(self._flush)
            self._wait(self._service, data, Fds())

    def _flush(self) -> None:
        """Send what waits, unless its socket is known to be full."""
        if self._service is not None and self._waiting and not self._is_full:
            self._send_waiting(self._service)

    def _wait(self, service: Service, data: bytes, fds: Fds) -> None:
        self._waiting.append((data, fds))
        self._waiting_bytes += len(data)
        if self._waiting_bytes > _WAITING_MAX:
            self._give_up(service)

    def _give_up(self, service: Service) -> None:
        log.warning(f"the {self._name} process is killed, for it does not read")
        service.kill()
        self._forget_waiting()

    def _watch(self, service: Service) -> None:
        """Watch for room in the socket while something waits for it."""
        if self._is_full != bool(self._waiting):
            self._is_full = not self._is_full
            self._loop.modify(service.sock.fileno(), READABLE | WRITABLE if self._is_full else READABLE)

    @staticmethod
    def _send_now(service: Service, data: bytes, fds: Sequence[int]) -> bool:
        """Send a packet. Returns False if there is no room."""
        try:
            send_packet(service.sock, data, fds, AT_ONCE)
        except BlockingIOError:
            return False
        except OSError:
            pass  # it has ended, as its socket will say
        return True

    def _send_waiting(self, service: Service) -> None:
        while self._waiting:
            data, fds = self._waiting[0]
            if not self._send_now(service, data, fds.borrow()):
                break
            self._waiting.popleft()
            self._waiting_bytes -= len(data)
            fds.close()
        self._watch(service)

    def _forget_waiting(self) -> None:
        for _, fds in self._waiting:
            fds.close()
        self._waiting.clear()
        self._waiting_bytes = 0

    def drain(self) -> None:
        """Take what the service has said so far, before anything else is heard."""
        while self._service is not None:
            poll = select.poll()
            poll.register(self._service.sock, select.POLLIN)
            if not poll.poll(0):
                return
            self._on_ready(READABLE)

    def reset_failures(self) -> None:
        """Note that the service works: ends from now on are no failures in a row."""
        self._failures = 0

    def _on_ready(self, events: int) -> None:
        service = self._service
        if service is None:
            return
        if events & WRITABLE:
            self._send_waiting(service)
        if not events & ~WRITABLE:
            return
        try:
            try:
                data, fds = receive_packet(service.sock, AT_ONCE)
            except BlockingIOError:
                return  # in this turn, drain() has taken what the loop had seen
            except ConnectionResetError:
                # It ended, and left what we said unread.
                data, fds = receive_packet(service.sock, AT_ONCE)
            if not data:
                self._on_end(service)
                return
            with fds:
                message = self._events.decode(data, fds)
        except (OSError, KeyError, ValueError) as error:
            log.warning(f"the {self._name} process is killed, for what it says can't be: {error}")
            service.kill()
            self._on_end(service)
            return
        if message is not None:
            self._events.on_message(message)

    def _on_end(self, service: Service) -> None:
        self._loop.remove(service.sock.fileno())
        self._service = None
        self._stop_looking()
        self._forget_waiting()
        culprit = service.marker.get()
        status = service.stop()
        self._failures += 1
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        log.warning(f"the {self._name} process ended ({how})")
        self._events.on_death(culprit)
        if self._failures > _RESTARTS_MAX or status == HOPELESS:
            sentence = f"the {self._name} process ended {self._failures} times in a row: see the log above"
            self._fail(InternalError(sentence))
            return
        self._launch()

    def _stop_looking(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()

    def stop(self) -> None:
        """End the service, and drop what waits."""
        self._stop_looking()
        if self._service is not None:
            self._service.stop()
            self._service = None
        self._forget_waiting()
