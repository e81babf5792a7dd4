# SPDX-License-Identifier: LGPL-2.1-or-later
"""A domain's listening socket, as the service that accepts on it has it, and who may connect there. It is main's, and outlives
the service."""

from __future__ import annotations

import os
import socket
import struct

from kvmchand.errors import AccessDenied, LimitReached
from kvmchand.linux import libc
from kvmchand.runtime import log
from kvmchand.wire import local

_SO_PEERGROUPS = 59
_PEER_GROUPS_BYTES = 1024
"""The most that Python's getsockopt takes: 256 groups. Of who is in more, only the first group counts."""


class Spare:
    """A descriptor kept so that, where there are no others, a connection can be taken off the queue and closed: the full queue
    would keep us awake."""

    def __init__(self) -> None:
        self._fd = self._open()

    @staticmethod
    def _open() -> int:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def refuse(self, sock: socket.socket) -> None:
        os.close(self._fd)
        try:
            sock.accept()[0].close()
        except OSError:
            pass
        self._fd = self._open()


class Listener:
    """`clients`: connections it has, which the service counts."""

    def __init__(self, sock: socket.socket, settings: local.Listen, spare: Spare) -> None:
        self.sock = sock
        self.settings = settings
        self.clients = 0
        self._spare = spare

    def accept(self) -> socket.socket | None:
        """A new connection, non-blocking and not judged yet; None where there is none any more, or it could not be taken."""
        try:
            sock, _ = self.sock.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            log.warning(f"a connection was dropped, for lack of descriptors: {error.strerror}")
            self._spare.refuse(self.sock)
            return None
        sock.setblocking(False)
        return sock

    def check(self, sock: socket.socket) -> None:
        """AccessDenied unless the process at the other end may use this socket; LimitReached: its domain has too many."""
        self._check_user(sock)
        if self.clients >= self.settings.max_clients:
            raise LimitReached(f"domain {self.settings.domain} has {self.clients} connections: close some")

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
