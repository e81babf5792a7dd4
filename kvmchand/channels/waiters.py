# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that wait for a vchan to be offered, or to be free.

Pure state. A client waits from its request until the request can be met, or until the client or the
server's domain is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kvmchand.ids import ClientId, DomainId

Waiter = TypeVar("Waiter")
"""Whatever the owner keeps of a waiting request."""
Place = tuple[DomainId, str]
"""The server's domain, and the path."""


@dataclass(slots=True)
class Waiters(Generic[Waiter]):
    """The waiting clients, by place."""

    _by_place: dict[Place, dict[ClientId, Waiter]] = field(default_factory=dict)
    _places: dict[ClientId, tuple[DomainId, Place]] = field(default_factory=dict)
    """Each client's place, and its domain."""
    _counts: Counter[DomainId] = field(default_factory=Counter)

    def __contains__(self, number: ClientId) -> bool:
        return number in self._places

    def __iter__(self) -> Iterator[Waiter]:
        for here in self._by_place.values():
            yield from here.values()

    def count(self, domain: DomainId) -> int:
        """Return how many of a domain's clients wait."""
        return self._counts[domain]

    def add(self, number: ClientId, domain: DomainId, place: Place, waiter: Waiter) -> None:
        """Add a client of `domain`."""
        self._by_place.setdefault(place, {})[number] = waiter
        self._places[number] = domain, place
        self._counts[domain] += 1

    def get(self, number: ClientId) -> Waiter | None:
        """Return what is kept of a client, or None if it does not wait."""
        found = self._places.get(number)
        return self._by_place[found[1]][number] if found is not None else None

    def take(self, number: ClientId) -> Waiter | None:
        """Remove a client, and return what was kept of it, or None if it did not wait."""
        if number not in self._places:
            return None
        domain, place = self._places.pop(number)
        self._counts[domain] -= 1
        waiter = self._by_place[place].pop(number)
        if not self._by_place[place]:
            del self._by_place[place]
        return waiter

    def at(self, place: Place) -> list[ClientId]:
        """Return the clients that wait at a place, the first one first."""
        return list(self._by_place.get(place, ()))

    def of(self, server: DomainId) -> list[ClientId]:
        """Return the clients that wait for a domain's offers."""
        return [number for number, (_, (domain, _)) in self._places.items() if domain == server]
