# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pages of a listing: as many records as a packet has room for, and where the next page begins.

A cursor says the section, and the place in it from which the page goes on. Channels have their numbers for places, so that none
is shown twice or left out because others come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kvmchand.ids import Size
from kvmchand.wire import client

Placed = tuple[int, Any, int]
"""A record's place in its section, the record, and the bytes that it takes at the most."""

_SECTION = 1 << 48
_DOMAIN_BYTES = 60
_RECORD_BYTES = 120
"""Of a guest without its name, or a link: numbers, and the names of fields."""
_CHANNEL_BYTES = 400
"""Of a channel without its path."""
_CHARACTER_BYTES = 6
"""Of one in JSON's longest spelling."""


def _text_bytes(text: str) -> int:
    return _CHARACTER_BYTES * len(text)


def placed(records: Sequence[Any]) -> Callable[[int], Iterator[Placed]]:
    """A section of records whose places are their order."""

    def from_place(first: int) -> Iterator[Placed]:
        for place, record in enumerate(records[first:], first):
            name = _text_bytes(getattr(record, "name", ""))
            yield place, record, name + (_DOMAIN_BYTES if isinstance(record, client.DomainInfo) else _RECORD_BYTES)

    return from_place


def placed_channels(listed: Callable[[int], Iterator[client.ChannelInfo]]) -> Callable[[int], Iterator[Placed]]:
    """A section of channels, whose places are their numbers. `listed`: those from a number on."""

    def from_place(first: int) -> Iterator[Placed]:
        for each in listed(first):
            yield each.channel, each, _CHANNEL_BYTES + _text_bytes(each.path)

    return from_place


def page(sections: Sequence[Callable[[int], Iterator[Placed]]], cursor: int, room: int) -> client.Listing:
    """The page from `cursor` on. `sections`: domains, guests, links, channels, each from a place on. It has one record at the
    least, if there are any left."""
    first, place = divmod(cursor, _SECTION)
    parts: list[list[Any]] = [[] for _ in sections]
    for number in range(first, len(sections)):
        for at, record, size in sections[number](place if number == first else 0):
            if size > room and any(parts):
                return _listing(parts, number * _SECTION + at)
            parts[number].append(record)
            room -= size
    return _listing(parts, 0)


def _listing(parts: list[list[Any]], following: int) -> client.Listing:
    domains, guests, links, channels = map(tuple, parts)
    return client.Listing(domains, guests, links, (), channels, Size(following))
