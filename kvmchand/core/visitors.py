# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that wait for a vchan to be offered, or to be free: from their request until it can be met, or they or the server's
domain are gone. Pure state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kvmchand.ids import ClientId, DomainId

Visit = TypeVar("Visit")
"""Whatever the owner keeps of a waiting request."""


@dataclass(slots=True)
class Visitors(Generic[Visit]):
    _by_path: dict[str, dict[ClientId, tuple[DomainId, Visit]]] = field(default_factory=dict)
    _paths: dict[ClientId, str] = field(default_factory=dict)

    def __contains__(self, number: ClientId) -> bool:
        return number in self._paths

    def __iter__(self) -> Iterator[Visit]:
        for here in self._by_path.values():
            for _, visit in here.values():
                yield visit

    def add(self, number: ClientId, server: DomainId, path: str, visit: Visit) -> None:
        self._by_path.setdefault(path, {})[number] = (server, visit)
        self._paths[number] = path

    def remove(self, number: ClientId) -> None:
        """It waits no more, if it did."""
        path = self._paths.pop(number, None)
        if path is None:
            return
        del self._by_path[path][number]
        if not self._by_path[path]:
            del self._by_path[path]

    def take(self, path: str) -> list[Visit]:
        """Those that wait at a path, the first first; they wait no more."""
        return self._take_all(list(self._by_path.get(path, {})))

    def take_of(self, server: DomainId) -> list[Visit]:
        """Those that wait for a domain's offers."""
        return self._take_all(
            [number for here in self._by_path.values() for number, (domain, _) in here.items() if domain == server]
        )

    def _take_all(self, numbers: list[ClientId]) -> list[Visit]:
        visits = []
        for number in numbers:
            visits.append(self._by_path[self._paths[number]][number][1])
            self.remove(number)
        return visits
