# SPDX-License-Identifier: LGPL-2.1-or-later
"""The runtime directory and its local sockets: two for each domain, for clients and for the store.

They are main's, so they outlive the processes that accept on them. The directory stays locked, with
the sockets in it, until close().
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kvmchand.config import SocketSettings
from kvmchand.errors import Busy, InvalidArgument
from kvmchand.ids import DomainId, Size
from kvmchand.runtime import closer, passrights
from kvmchand.runtime.privileges import group_number
from kvmchand.wire import local

_BACKLOG = 512
_SOCKET = re.compile(r"kvmchand\.sock|store\.sock|(domain|store)-[0-9]+\.sock")
"""What client.socket_name() and its like return."""
_GROUP_MAY = 0o020
_OTHERS_MAY = 0o002


class Sockets:
    """The directory and the sockets."""

    def __init__(self, directory: Path, settings: SocketSettings) -> None:
        """Lock the directory, made if it does not exist.

        Raises InvalidArgument, or Busy if another daemon has it.
        """
        self._directory = directory
        self._settings = settings
        self._group = group_number(settings.group) if settings.group else os.getegid()
        self._sockets: dict[str, tuple[DomainId, socket.socket, bool]] = {}
        """By path; and whether each is the store's."""
        self._whose: dict[DomainId, str] = {}
        """What sentences call the domains."""
        self._undo = ExitStack()
        try:
            # Others can enter it, and those above it: the sockets' modes say who may connect.
            with _umask(0o022):
                directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidArgument(f"the runtime directory {directory} can't be used: {error.strerror}") from error
        self._undo.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise Busy(f"another kvmchand serves {directory}: stop it, or give this one another --runtime-dir") from None
        self._remove_left()

    def _remove_left(self) -> None:
        """Remove what a killed daemon left, perhaps of domains that are not served any more."""
        for path in self._directory.iterdir():
            if _SOCKET.fullmatch(path.name) and path.is_socket():
                path.unlink(missing_ok=True)

    def listen(self, domain: DomainId, name: str, store_name: str, whose: str = "") -> None:
        """Make a domain's sockets. `whose`: what sentences call it; "" for its number."""
        self._whose[domain] = whose or f"domain {domain}"
        self._listen(domain, name, socket.SOCK_SEQPACKET, is_store=False)
        self._listen(domain, store_name, socket.SOCK_STREAM, is_store=True)

    def _listen(self, domain: DomainId, name: str, kind: int, *, is_store: bool) -> None:
        path = self._directory / name
        sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        self._undo.callback(closer.close, sock)
        passrights.refuse(sock)
        try:
            with _umask(0o777):
                sock.bind(str(path))
            self._undo.callback(path.unlink, missing_ok=True)
            if self._settings.group:
                os.chown(path, -1, self._group)
            path.chmod(self._settings.mode)
            sock.listen(_BACKLOG)
        except OSError as error:
            # A path that is too long has no errno.
            raise InvalidArgument(f"the socket {path} can't be made: {error.strerror or error}") from error
        self._sockets[str(path)] = (domain, sock, is_store)

    def to_listen(self, max_clients: int, *, is_store: bool = False) -> list[tuple[local.Listen, socket.socket]]:
        """Return what the accepting process is told of each socket, and the socket to send with it.

        The process checks itself who connects, as the file's mode does: anyone who may change the
        mode could let others in.
        """
        public = bool(self._settings.mode & _OTHERS_MAY)
        group = self._group if self._settings.mode & _GROUP_MAY else -1
        return [
            (local.Listen(domain, self._whose[domain], public, Size(os.geteuid()), group, max_clients), sock)
            for domain, sock, is_stores in self._sockets.values()
            if is_stores is is_store
        ]

    def domain_of(self, connection: socket.socket, *, is_store: bool = False) -> DomainId:
        """Return the domain whose socket a connection came through, as the kernel knows it.

        Raises KeyError if it is none of ours.
        """
        domain, _, is_stores = self._sockets[connection.getsockname()]
        if is_stores is not is_store:
            raise KeyError(connection.getsockname())
        return domain

    def __str__(self) -> str:
        return ", ".join(
            f"{path} ({self._whose[domain]})" for path, (domain, _, is_store) in self._sockets.items() if not is_store
        )

    def close(self) -> None:
        """Close and remove the sockets, and unlock the directory."""
        self._undo.close()


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
