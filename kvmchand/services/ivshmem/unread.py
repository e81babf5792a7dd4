# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connections that we are done with, each kept until its QEMU has read what it was told.

QEMU connects when the hypervisor adds the character device, and reads when it adds the ivshmem
device. If it finds the end of the connection in between, it drops what it was told before, and then
stands still for ever, waiting for it (tcp_chr_hup and ivshmem_recv_msg, QEMU 7.2).
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence

from kvmchand.linux import libc
from kvmchand.runtime import closer
from kvmchand.runtime.loop import Loop, Timer

PATIENCE = 5.0
"""Seconds that a process which ends waits for QEMUs to read. They take some milliseconds."""
_FIRST_INTERVAL, _LAST_INTERVAL = 0.01, 1.0
"""Seconds between two looks, of which each is twice as long as the one before."""
_KEPT_MAX = 64
"""Connections: more than there are hypervisors that ended between the two steps."""


class Unread:
    """The connections that main is done with."""

    def __init__(self, loop: Loop) -> None:
        """Keep none yet."""
        self._loop = loop
        self._socks: list[socket.socket] = []
        self._interval = _FIRST_INTERVAL
        self._next_look: Timer | None = None

    def end(self, sock: socket.socket) -> None:
        """End a connection, for all duplicates of it, once its QEMU has read everything."""
        if has_read(sock):
            closer.hang_up(sock)
            return
        self._socks.append(sock)
        if len(self._socks) > _KEPT_MAX:
            closer.hang_up(self._socks.pop(0))
        self._interval = _FIRST_INTERVAL
        self._look()

    def _look(self) -> None:
        for sock in [each for each in self._socks if has_read(each)]:
            self._socks.remove(sock)
            closer.hang_up(sock)
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        if self._socks:
            self._next_look = self._loop.call_at(time.monotonic() + self._interval, self._look)
            self._interval = min(2 * self._interval, _LAST_INTERVAL)

    def close(self) -> None:
        """Wait until all is read, but not for ever, and end the connections."""
        wait_read(self._socks)
        for sock in self._socks:
            closer.hang_up(sock)
        self._socks.clear()
        if self._next_look is not None:
            self._next_look.cancel()


def has_read(sock: socket.socket) -> bool:
    """Return whether the other end has read everything, or has gone."""
    return libc.unread(sock.fileno()) == 0 or has_gone(sock)


def has_gone(sock: socket.socket) -> bool:
    """Return whether the other end is closed."""
    poll = select.poll()
    poll.register(sock, 0)  # its end is told in any case
    return bool(poll.poll(0))


def wait_read(socks: Sequence[socket.socket]) -> None:
    """Wait until the other ends have read everything, but not for ever."""
    deadline = time.monotonic() + PATIENCE
    while not all(map(has_read, socks)) and time.monotonic() < deadline:
        time.sleep(_FIRST_INTERVAL)
