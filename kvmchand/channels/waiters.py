# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that wait for a vchan to be offered, or to be free: from their request until it can be met, or they or the server's
domain are gone. Pure state.
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
    _by_place: dict[Place, dict[ClientId, Waiter]] = field(default_factory=dict)
    _places: dict[ClientId, tuple[DomainId, Place]] = field(default_factory=dict)
    """And whose client each is."""
    _counts: Counter[DomainId] = field(default_factory=Counter)

    def __contains__(self, number: ClientId) -> bool:
        return number in self._places

    def __iter__(self) -> Iterator[Waiter]:
        for here in self._by_place.values():
            yield from here.values()

    def count(self, domain: DomainId) -> int:
        """How many of a domain's clients wait."""
        return self._counts[domain]

    def add(self, number: ClientId, domain: DomainId, place: Place, waiter: Waiter) -> None:
        """A client of `domain`'s."""
        self._by_place.setdefault(place, {})[number] = waiter
        self._places[number] = domain, place
        self._counts[domain] += 1

    def take(self, number: ClientId) -> Waiter | None:
        """It waits no more, if it did."""
        if number not in self._places:
            return None
        domain, place = self._places.pop(number)
        self._counts[domain] -= 1
        waiter = self._by_place[place].pop(number)
        if not self._by_place[place]:
            del self._by_place[place]
        return waiter

    def at(self, place: Place) -> list[ClientId]:
        """Those that wait at a place, the first first."""
        return list(self._by_place.get(place, ()))

    def of(self, server: DomainId) -> list[ClientId]:
        """Those that wait for a domain's offers."""
        return [number for number, (_, (domain, _)) in self._places.items() if domain == server]
