# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pages of a listing: as many records as a packet has room for, and where the next page begins.

A cursor names the section, and the place in it from which the page goes on. A channel's place is
its number, so none is shown twice or left out because others come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from kvmchand.channels.channels import Channels
from kvmchand.channels.registry import Registry
from kvmchand.channels.requester import Requester
from kvmchand.ids import HOST, Size
from kvmchand.links.guests import Guests
from kvmchand.wire import client
from kvmchand.wire.codec import PACKET_MAX

Placed = tuple[int, Any, int]
"""A record's place in its section, the record, and the bytes that it takes at the most."""

_NAMES = 1024
"""Bytes of a listing's packet around what is listed."""
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
    """Return a section of records whose places are their order."""

    def from_place(first: int) -> Iterator[Placed]:
        for place, record in enumerate(records[first:], first):
            name = _text_bytes(getattr(record, "name", ""))
            yield place, record, name + (_DOMAIN_BYTES if isinstance(record, client.DomainInfo) else _RECORD_BYTES)

    return from_place


def placed_channels(listed: Callable[[int], Iterator[client.ChannelInfo]]) -> Callable[[int], Iterator[Placed]]:
    """Return a section of channels, whose places are their numbers.

    `listed` returns those from a number on.
    """

    def from_place(first: int) -> Iterator[Placed]:
        for each in listed(first):
            yield each.channel, each, _CHANNEL_BYTES + _text_bytes(each.path)

    return from_place


def page(sections: Sequence[Callable[[int], Iterator[Placed]]], cursor: int, room: int) -> client.Listing:
    """Return the page from `cursor` on, with at least one record if any are left.

    `sections` are domains, guests, links and channels, each from a place on.
    """
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


class Lister:
    """Lists what a client may see."""

    def __init__(self, registry: Registry, channels: Channels, guests: Guests | None) -> None:
        """List what is in these. `guests` is None if none are served."""
        self._registry = registry
        self._channels = channels
        self._guests = guests

    def domains(self, requester: Requester, first: int) -> client.Domains:
        """Return the domains from a number on, as many as fit."""
        numbers = [number for number in sorted(self._registry.domains) if number >= first]
        listed = [client.DomainInfo(each, self._registry.domains[each].value) for each in numbers[: client.DOMAINS_MAX]]
        return client.Domains(requester.domain, tuple(listed))

    def page(self, requester: Requester, cursor: Size) -> client.Listing:
        """Return the page from `cursor` on. Only the host's clients see guests and links."""
        domains = [client.DomainInfo(number, kind.value) for number, kind in sorted(self._registry.domains.items())]
        guests, links = self._guests.listing() if self._guests is not None and requester.domain == HOST else ((), ())
        channels = placed_channels(partial(self._channels.listed, requester.domain))
        return page([*map(placed, (domains, guests, links)), channels], cursor, PACKET_MAX - _NAMES)
