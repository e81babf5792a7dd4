# SPDX-License-Identifier: LGPL-2.1-or-later
"""A domain's listening socket, as the accepting service has it, and who may connect there.

The socket is main's, and outlives the service.
"""

from __future__ import annotations

import os
import socket
import struct

from kvmchand.errors import AccessDenied, LimitReached
from kvmchand.linux import libc
from kvmchand.runtime import closer, log
from kvmchand.wire import local

_SO_PEERGROUPS = 59
_PEER_GROUPS_BYTES = 1024
"""The most that Python's getsockopt returns: 256 groups.

For a user in more, only the first one counts.
"""


class Spare:
    """A descriptor in reserve.

    When no other is left, it lets a connection be taken off the queue and closed. A full queue
    would keep waking the loop.
    """

    def __init__(self) -> None:
        self._fd = self._open()

    @staticmethod
    def _open() -> int:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def refuse(self, sock: socket.socket) -> None:
        """Take a connection off the queue, and close it."""
        os.close(self._fd)
        try:
            closer.close(sock.accept()[0])
        except OSError:
            pass
        self._fd = self._open()


class Listener:
    """A listening socket. `clients`: its connections, which the service counts."""

    def __init__(self, sock: socket.socket, settings: local.Listen, spare: Spare) -> None:
        self.sock = sock
        self.settings = settings
        self.clients = 0
        self._spare = spare

    def accept(self) -> socket.socket | None:
        """Return a new connection, non-blocking and not checked yet.

        Returns None if none is waiting, or it could not be taken.
        """
        try:
            sock, _ = self.sock.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            log.warning(f"a connection was dropped, for lack of descriptors: {error.strerror}", whose=self.settings.whose)
            self._spare.refuse(self.sock)
            return None
        sock.setblocking(False)
        return sock

    def check(self, sock: socket.socket) -> None:
        """Raise AccessDenied unless the process at the other end may use this socket.

        Raises LimitReached if its domain has too many connections.
        """
        self._check_user(sock)
        if self.clients >= self.settings.max_clients:
            raise LimitReached(f"{self.settings.whose} has {self.clients} connections: close some")

    def _check_user(self, sock: socket.socket) -> None:
        _, uid, gid = libc.peer_credentials(sock)
        allowed = self.settings
        if allowed.public or uid in (0, allowed.owner):
            return
        if allowed.group >= 0 and (gid == allowed.group or allowed.group in _peer_groups(sock)):
            return
        raise AccessDenied(f"user {uid} may not use kvmchand: join the group in its settings (socket.group)")


def _peer_groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _PEER_GROUPS_BYTES)
    except OSError:
        return ()
    return struct.unpack(f"={len(data) // 4}I", data)
