# SPDX-License-Identifier: LGPL-2.1-or-later
"""What there is, in parts: as many records as a packet has room for, and where the rest begins.

A listing comes in pages. A cursor names the section, and the place in it from which the page goes
on. A channel's place is its number, so none is shown twice or left out because others come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from kvmchand.channels.channels import Channels
from kvmchand.channels.registry import DomainKind, Registry
from kvmchand.channels.requester import Requester
from kvmchand.ids import HOST, DomainId, Size
from kvmchand.links.guests import Guests
from kvmchand.wire import client
from kvmchand.wire.codec import PACKET_MAX
from kvmchand.wire.jsontext import to_json
from kvmchand.wire.record import Record

Placed = tuple[int, Any, int]
"""A record's place in its section, the record, and the bytes that it takes in a packet."""
Section = Callable[[int], Iterator[Placed]]
"""Yields a section's records from a place on."""

_ROOM = PACKET_MAX - 1024
"""Bytes of a packet for what is listed. The others are for what stands around that, also where the
packet goes through the control ring."""
_SECTION = 1 << 48


def _bytes_of(record: Record) -> int:
    """Return the bytes that a record takes in a packet, with the comma behind it."""
    return len(to_json(record.as_dict()).encode(errors="replace")) + 1


def placed(records: Sequence[Record]) -> Section:
    """Return a section of records whose places are their order."""

    def from_place(first: int) -> Iterator[Placed]:
        for place, record in enumerate(records[first:], first):
            yield place, record, _bytes_of(record)

    return from_place


def placed_channels(listed: Callable[[int], Iterator[client.ChannelInfo]]) -> Section:
    """Return a section of channels, whose places are their numbers.

    `listed` returns those from a number on.
    """

    def from_place(first: int) -> Iterator[Placed]:
        for each in listed(first):
            yield each.channel, each, _bytes_of(each)

    return from_place


def page(sections: Sequence[Section], cursor: int, room: int) -> client.Listing:
    """Return the page from `cursor` on, with at least one record if any are left.

    `sections` are domains, guests, links and channels.
    """
    (domains, guests, links, channels), following = _fill(sections, cursor, room)
    return client.Listing(tuple(domains), tuple(guests), tuple(links), (), tuple(channels), Size(following))


def _fill(sections: Sequence[Section], cursor: int, room: int) -> tuple[list[list[Any]], int]:
    """Return each section's records that fit from `cursor` on, and the cursor of the rest, or 0.

    At least one record fits if any are left.
    """
    first, place = divmod(cursor, _SECTION)
    parts: list[list[Any]] = [[] for _ in sections]
    for number in range(first, len(sections)):
        for at, record, size in sections[number](place if number == first else 0):
            if size > room and any(parts):
                return parts, number * _SECTION + at
            parts[number].append(record)
            room -= size
    return parts, 0


class Lister:
    """Lists what a client may see."""

    def __init__(self, registry: Registry, channels: Channels, guests: Guests | None) -> None:
        """List what is in these. `guests` is None if none are served."""
        self._registry = registry
        self._channels = channels
        self._guests = guests

    def domains(self, requester: Requester, first: int) -> client.Domains:
        """Return the domains from a number on, as many as fit."""
        listed = [each for each in self._domains(requester) if each.domain >= first]
        (fitting,), _ = _fill([placed(listed[: client.DOMAINS_MAX])], 0, _ROOM)
        return client.Domains(requester.domain, tuple(fitting), len(fitting) < len(listed))

    def page(self, requester: Requester, cursor: Size) -> client.Listing:
        """Return the page from `cursor` on. Only the host's clients see guests and links."""
        known = self._guests_for(requester)
        guests, links = ((), ()) if known is None else known.listing()
        channels = placed_channels(partial(self._channels.listed, requester.domain))
        return page([placed(self._domains(requester)), placed(guests), placed(links), channels], cursor, _ROOM)

    def _guests_for(self, requester: Requester) -> Guests | None:
        """Return the guests if there are any whose names and links the requester may see."""
        return self._guests if requester.domain == HOST else None

    def _domains(self, requester: Requester) -> list[client.DomainInfo]:
        """Return all domains by rising number, as the requester may see them."""
        guests = self._guests_for(requester)

        def info(domain: DomainId, kind: DomainKind) -> client.DomainInfo:
            guest = None if guests is None else guests.get(domain)
            if guest is not None:
                return client.DomainInfo(domain, kind.value, guest.name, guest.uuid)
            return client.DomainInfo(domain, kind.value, "host" if domain == HOST else "", "")

        return [info(domain, kind) for domain, kind in sorted(self._registry.domains.items())]
