# SPDX-License-Identifier: LGPL-2.1-or-later
"""How our processes close sockets whose other end is outside.

Whoever closes a socket last also closes the descriptors that wait there to be received, which may
take as long as their sender likes. So where the kernel lets a socket hold any (passrights.py), a
process that nobody waits for closes it: services/closer.
"""

from __future__ import annotations

import os
import socket
from collections import deque

from kvmchand.wire.packet import AT_ONCE, send_packet

_closer: socket.socket | None = None
"""The way to that process, if there is one."""
_waiting: deque[tuple[bytes, socket.socket]] = deque()
"""Sockets that it had no room for, and what they are called there."""


def use(sock: socket.socket) -> None:
    """Let the process at the other end close them from now on. The socket stays the caller's."""
    global _closer
    _closer = sock


def forget() -> None:
    """Close them by ourselves from now on."""
    global _closer
    _closer = None


def descriptor() -> int:
    """Return the descriptor that another process of ours needs for use(), or -1."""
    return -1 if _closer is None else _closer.fileno()


def hang_up(outside: socket.socket) -> None:
    """End a connection, for all duplicates of it, and close it. Never waits."""
    try:
        outside.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # gone already
    close(outside)


def end(outside: socket.socket) -> None:
    """Close the last duplicate of a connection, which ends it at once. Never waits."""
    if _closer is None:
        outside.close()
    else:
        hang_up(outside)  # that process closes it later


def close(outside: socket.socket) -> None:
    """Close a socket that another process of ours may have, too. Never waits."""
    if _closer is None:
        outside.close()
        return
    _waiting.append((b"%d %d" % (os.getpid(), outside.fileno()), outside))
    try:
        while _waiting:
            _hand_over(_closer, *_waiting[0])
            _waiting.popleft()
    except BlockingIOError:
        pass  # it has no room: the next call tries again


def _hand_over(closer: socket.socket, tag: bytes, outside: socket.socket) -> None:
    """Let that process close a socket after us. Raises BlockingIOError if it has no room."""
    try:
        if outside.fileno() >= 0:
            send_packet(closer, tag, (outside.fileno(),), AT_ONCE)
            outside.close()
        send_packet(closer, tag, (), AT_ONCE)
    except BlockingIOError:
        raise
    except OSError:
        outside.close()  # main has ended, and with it that process
