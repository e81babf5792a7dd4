# SPDX-License-Identifier: LGPL-2.1-or-later
"""Listings in pages: everything once, however much there is, and no page more than a packet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from kvmchand.host import listing
from kvmchand.ids import ChannelId, DomainId, Size
from kvmchand.wire import client
from kvmchand.wire.codec import PACKET_MAX

ROOM = PACKET_MAX - 1024
DOMAINS = [client.DomainInfo(DomainId(each), "guest") for each in range(600)]
GUESTS = [client.GuestInfo(DomainId(each), f"“{each:03}”" * 12, True, 255) for each in range(400)]
LINKS = [client.LinkInfo(DomainId(each), DomainId(1), 255, Size(1 << 40), 65536) for each in range(400)]
LONGEST = "/local/domain/1/" + '"' * 3056


def channel(number: int) -> client.ChannelInfo:
    path = LONGEST if number % 7 == 0 else f"/local/domain/1/{number}"
    most = Size(1 << 20)
    return client.ChannelInfo(
        ChannelId(number), path, "client-gone", DomainId(32751), DomainId(32751), 4194304, 4194304, most, most, most, most
    )


def channels(numbers: list[int]) -> Callable[[int], Iterator[listing.Placed]]:
    return listing.placed_channels(lambda first: (channel(number) for number in numbers if number >= first))


Section = Callable[[int], Iterator[listing.Placed]]


def sections(
    domains: Sequence[client.DomainInfo], guests: Sequence[client.GuestInfo], links: Sequence[client.LinkInfo], last: Section
) -> list[Section]:
    return [listing.placed(domains), listing.placed(guests), listing.placed(links), last]


def pages(parts: list[Section], room: int = ROOM) -> Iterator[client.Listing]:
    cursor = 0
    while True:
        page = listing.page(parts, cursor, room)
        yield page
        if not page.following:
            return
        assert page.following > cursor
        cursor = page.following


@pytest.mark.parametrize("room", [ROOM, 12 * 1024, 1])
def test_everything_is_listed_once_and_in_order(room: int) -> None:
    numbers = list(range(1, 2000, 3))
    found = list(pages(sections(DOMAINS, GUESTS, LINKS, channels(numbers)), room))
    assert [each for page in found for each in page.domains] == DOMAINS
    assert [each for page in found for each in page.guests] == GUESTS
    assert [each for page in found for each in page.links] == LINKS
    assert [each.channel for page in found for each in page.channels] == numbers


def test_a_page_is_never_more_than_a_packet() -> None:
    for page in pages(sections(DOMAINS, GUESTS, LINKS, channels(list(range(500))))):
        assert len(client.replies.encode(page)) <= PACKET_MAX


def test_a_short_listing_is_one_page() -> None:
    (page,) = pages(sections(DOMAINS[:3], GUESTS[:2], LINKS[:2], channels([5])))
    assert (len(page.domains), len(page.guests), len(page.links), len(page.channels)) == (3, 2, 2, 1)
    (nothing,) = pages(sections((), (), (), channels([])))
    assert nothing == client.Listing((), (), (), (), (), Size(0))


def test_channels_that_come_and_go_between_pages_move_no_others() -> None:
    numbers = list(range(1, 2000))
    parts = sections((), (), (), channels(numbers))
    first = listing.page(parts, 0, ROOM)
    seen = [each.channel for each in first.channels]
    del numbers[: len(seen) // 2]
    numbers.append(5000)
    cursor = first.following
    while cursor:
        page = listing.page(parts, cursor, ROOM)
        seen += [each.channel for each in page.channels]
        cursor = page.following
    assert seen == [*range(1, 2000), 5000]
