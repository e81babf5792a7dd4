# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which client watches which node.

Watches are found by the names of the changed node and of those above it, so the cost does not grow
with the number of watches.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from kvmchand.ids import ClientId, DomainId
from kvmchand.xenstore import paths
from kvmchand.xenstore.quotas import Ledger, Refused


@dataclass(frozen=True, slots=True)
class Watch:
    """A client's watch on a node."""

    client: ClientId
    domain: DomainId
    path: str
    token: bytes
    relative: bool
    """Its path was given relative to the domain's own node, so its events' paths are relative, too.
    """

    @property
    def size(self) -> int:
        """Return the bytes that it counts for."""
        return len(self.path) + len(self.token)

    def told(self, path: str) -> str:
        """Return a changed node's path as the events of this watch show it."""
        return path[len(paths.home(self.domain)) + 1 :] if self.relative else path


class Watches:
    """All watches, by node and by client."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._at: dict[str, dict[tuple[ClientId, bytes], Watch]] = {}
        self._of: dict[ClientId, dict[tuple[str, bytes], Watch]] = {}

    def add(self, watch: Watch) -> None:
        """Add a watch. Raises Refused if that client has it already."""
        if (watch.path, watch.token) in self._of.get(watch.client, {}):
            raise Refused(errno.EEXIST)
        self._ledger.add_watch(watch.domain, watch.size)
        self._of.setdefault(watch.client, {})[watch.path, watch.token] = watch
        self._at.setdefault(watch.path, {})[watch.client, watch.token] = watch

    def remove(self, client: ClientId, path: str, token: bytes) -> Watch:
        """Remove and return a watch. Raises Refused if that client has no such watch."""
        mine = self._of.get(client, {})
        watch = mine.pop((path, token), None)
        if watch is None:
            raise Refused(errno.ENOENT)
        if not mine:
            del self._of[client]
        there = self._at[path]
        del there[client, token]
        if not there:
            del self._at[path]
        self._ledger.remove_watch(watch.domain, watch.size)
        return watch

    def of(self, client: ClientId) -> list[Watch]:
        """Return a client's watches."""
        return list(self._of.get(client, {}).values())

    def all(self) -> Iterator[Watch]:
        """Return all watches."""
        for mine in self._of.values():
            yield from mine.values()

    def has(self, watch: Watch) -> bool:
        """Return whether a client has this watch."""
        return (watch.path, watch.token) in self._of.get(watch.client, {})

    def at(self, path: str) -> list[Watch]:
        """Return the watches on a node."""
        return list(self._at.get(path, {}).values())

    def at_or_above(self, path: str) -> Iterator[Watch]:
        """Return the watches on a node and on all nodes above it."""
        if not self._at:
            return
        yield from self.at(path)
        while path.startswith("/") and path != "/":
            path = paths.parent(path)
            yield from self.at(path)
