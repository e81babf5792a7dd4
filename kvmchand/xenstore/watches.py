# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who watches which node. They are found by the names of the changed node and of those above, however many watches there are."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from kvmchand.ids import ClientId, DomainId
from kvmchand.xenstore import paths
from kvmchand.xenstore.quotas import Ledger, Refused

SPECIAL = ("@introduceDomain", "@releaseDomain")
"""What can be watched and is no node: domains that come and go."""


@dataclass(frozen=True, slots=True)
class Watch:
    client: ClientId
    domain: DomainId
    path: str
    token: bytes
    relative: bool
    """Its path was given relative to the domain's own node, and so its events' paths are."""

    @property
    def size(self) -> int:
        return len(self.path) + len(self.token)

    def told(self, path: str) -> str:
        """A changed node's path as its events have it."""
        return path[len(paths.home(self.domain)) + 1 :] if self.relative else path


class Watches:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._at: dict[str, dict[tuple[ClientId, bytes], Watch]] = {}
        self._of: dict[ClientId, dict[tuple[str, bytes], Watch]] = {}

    def add(self, watch: Watch) -> None:
        """Refused if that client has it already."""
        if (watch.path, watch.token) in self._of.get(watch.client, {}):
            raise Refused(errno.EEXIST)
        self._ledger.add_watch(watch.domain, watch.size)
        self._of.setdefault(watch.client, {})[watch.path, watch.token] = watch
        self._at.setdefault(watch.path, {})[watch.client, watch.token] = watch

    def remove(self, client: ClientId, path: str, token: bytes) -> Watch:
        """Refused if that client has no such watch."""
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
        return list(self._of.get(client, {}).values())

    def all(self) -> Iterator[Watch]:
        for mine in self._of.values():
            yield from mine.values()

    def has(self, watch: Watch) -> bool:
        return (watch.path, watch.token) in self._of.get(watch.client, {})

    def at(self, path: str) -> list[Watch]:
        return list(self._at.get(path, {}).values())

    def at_or_above(self, path: str) -> Iterator[Watch]:
        yield from self.at(path)
        while path.startswith("/") and path != "/":
            path = paths.parent(path)
            yield from self.at(path)
