# SPDX-License-Identifier: LGPL-2.1-or-later
"""The connections to the store's sockets, as main has them.

They are duplicates, for a store process that is started again. Main neither reads nor writes them.
One is here from when the store process reports it until the process reports its end, or main ends
it.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kvmchand.errors import ProtocolError
from kvmchand.ids import GENERATION, ClientId, DomainId
from kvmchand.runtime import closer
from kvmchand.runtime.sockets import Sockets
from kvmchand.wire import local
from kvmchand.wire.packet import Fds

CONNECTIONS_MAX = 4096
"""Connections of a domain: one for each of its channels, some for its watches, and room."""


@dataclass(slots=True, eq=False)
class Connection:
    """A program's connection."""

    number: ClientId
    domain: DomainId
    sock: socket.socket


class Connections:
    """All connections."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._connections: dict[ClientId, Connection] = {}
        self._counts: Counter[DomainId] = Counter()
        self._first = 0

    def __len__(self) -> int:
        return len(self._connections)

    def first_messages(self, generation: int, user: str) -> list[tuple[object, Sequence[int]]]:
        """Return what a new store process is told of its sockets, last of all.

        `generation`: of its clients' numbers.
        """
        self._first = generation * GENERATION
        listens = self._sockets.to_listen(CONNECTIONS_MAX, is_store=True)
        restores = [(local.Restore(each.number, each.domain), [each.sock.fileno()]) for each in self._connections.values()]
        start = local.Start(ClientId(self._first), user)
        return [*((listen, [sock.fileno()]) for listen, sock in listens), *restores, (start, [])]

    def adopt(self, number: ClientId, fds: Fds) -> Connection:
        """Take ownership of a new connection, the one descriptor in `fds`.

        Raises OSError, KeyError or ValueError if it is invalid.
        """
        (fd,) = fds.borrow()
        if not self._first <= number < self._first + GENERATION or number in self._connections:
            raise ProtocolError(f"{number} is no number for a new connection")
        sock = socket.socket(fileno=fd)
        fds.steal()
        try:
            domain = self._sockets.domain_of(sock, is_store=True)
            if self._counts[domain] >= CONNECTIONS_MAX:
                raise ProtocolError(f"domain {domain} has {CONNECTIONS_MAX} connections, and got another")
        except BaseException:
            closer.close(sock)
            raise
        self._counts[domain] += 1
        adopted = self._connections[number] = Connection(number, domain, sock)
        return adopted

    def forget(self, number: ClientId) -> None:
        """Close our duplicate: the connection is over."""
        gone = self._connections.pop(number, None)
        if gone is not None:
            self._counts[gone.domain] -= 1
            closer.end(gone.sock)

    def drop(self, number: ClientId) -> None:
        """End a connection."""
        dropped = self._connections.get(number)
        if dropped is not None:
            try:
                dropped.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # gone already
            self.forget(number)

    def close(self) -> None:
        """Close all duplicates."""
        for number in list(self._connections):
            self.forget(number)
