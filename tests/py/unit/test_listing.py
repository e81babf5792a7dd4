# SPDX-License-Identifier: LGPL-2.1-or-later
"""Listings in pages: everything once, however much there is, and no page more than a packet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from kvmchand.channels.channels import Channels
from kvmchand.channels.device import pair_of
from kvmchand.channels.memory import Allocator
from kvmchand.channels.registry import DomainKind, Registry
from kvmchand.channels.rings import Sizes
from kvmchand.channels.waitlist import Waitlist
from kvmchand.config import RingSettings
from kvmchand.errors import VchanError
from kvmchand.host import listing
from kvmchand.host.listing import Lister
from kvmchand.ids import HOST, PAGE, ChannelId, ClientId, DomainId, Size
from kvmchand.links.guest import Guest
from kvmchand.links.guests import Guests
from kvmchand.links.links import LinkLimits, Links
from kvmchand.runtime.loop import Loop
from kvmchand.services.control.sessions import Sessions
from kvmchand.wire import client
from kvmchand.wire.codec import PACKET_MAX, TEXT_MAX
from rig.requester import Silent

ROOM = PACKET_MAX - 1024
LONG = '“é"\\😀\x01”' * 20
"""Part of a name, with characters of each length that JSON has for one."""


def name_of(number: int) -> str:
    return f"{number}{LONG[: number % len(LONG)]}"


def uuid_of(number: int) -> str:
    return str(UUID(int=number << 64))


DOMAINS = [client.DomainInfo(DomainId(each), "guest", name_of(each), uuid_of(each)) for each in range(600)]
GUESTS = [client.GuestInfo(DomainId(each), f"“{each:03}”" * 12, True, 255, True) for each in range(400)]
LINKS = [client.LinkInfo(DomainId(each), DomainId(1), 255, Size(1 << 40), 65536) for each in range(400)]
LONGEST = "/local/domain/1/" + '"' * 3056


def channel(number: int) -> client.ChannelInfo:
    path = LONGEST if number % 7 == 0 else f"/local/domain/1/{number}"
    most = Size(1 << 20)
    return client.ChannelInfo(
        ChannelId(number), path, "client-gone", DomainId(32751), DomainId(32751), 4194304, 4194304, most, most, most, most
    )


def channels(numbers: list[int]) -> listing.Section:
    return listing.placed_channels(lambda first: (channel(number) for number in numbers if number >= first))


def sections(
    domains: Sequence[client.DomainInfo],
    guests: Sequence[client.GuestInfo],
    links: Sequence[client.LinkInfo],
    last: listing.Section,
) -> list[listing.Section]:
    return [listing.placed(domains), listing.placed(guests), listing.placed(links), last]


def pages(parts: list[listing.Section], room: int = ROOM) -> Iterator[client.Listing]:
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


# ---- what a requester is told of guests ----

GUEST_NUMBERS = range(11, 611)
LOCAL = DomainId(2)

Listing = Callable[[dict[int, str]], Lister]


def refuse(error: VchanError) -> None:
    raise error


@pytest.fixture
def listing_of() -> Iterator[Listing]:
    """Make a lister of the host, a local domain, and guests with these numbers and names."""
    with ExitStack() as undo:

        def make(names: dict[int, str]) -> Lister:
            registry = Registry()
            registry.add_domain(HOST, DomainKind.HOST)
            registry.add_domain(LOCAL, DomainKind.LOCAL)
            loop = Loop()
            undo.callback(loop.close)
            links = Links(LinkLimits(max_devices=1, max_bytes=PAGE))
            guests = Guests(links, Sessions(loop, "nobody", refuse, is_host=True, rate=1))
            for number, name in names.items():
                domain = DomainId(number)
                device = links.add(pair_of(HOST, domain), {domain}, PAGE, 1, control=True)
                guests.add(Guest(domain, name, uuid_of(number), device))
                registry.add_domain(domain, DomainKind.GUEST)
            waitlist = Waitlist(registry, lambda _callback: None)
            channels = Channels(registry, Allocator(None), Sizes(RingSettings()), Unshown(), waitlist)
            undo.callback(channels.close)
            return Lister(registry, channels, guests)

        yield make


@pytest.fixture
def lister(listing_of: Listing) -> Lister:
    return listing_of({each: name_of(each) for each in GUEST_NUMBERS})


class Unshown:
    """A directory of no vchans."""

    def publish(self, channel: Any) -> None:
        raise AssertionError

    unpublish = publish


def asked_for_all(lister: Lister, requester: Silent) -> list[client.Domains]:
    """The answers to GetDomains, until one has none."""
    answers = [lister.domains(requester, 0)]
    while answers[-1].domains:
        answers.append(lister.domains(requester, answers[-1].domains[-1].domain + 1))
    *answers, none = answers
    assert [each.more for each in (*answers, none)] == [*[True] * (len(answers) - 1), False, False]
    return answers


def listed_to(lister: Lister, requester: Silent) -> list[client.DomainInfo]:
    """The domains on all pages of the listing."""
    page = lister.page(requester, Size(0))
    found = [*page.domains]
    while page.following:
        page = lister.page(requester, page.following)
        found += page.domains
    return found


def requester(domain: DomainId) -> Silent:
    return Silent(ClientId(1), domain, 1)


def test_the_host_is_told_what_libvirt_calls_its_guests(lister: Lister) -> None:
    first = [client.DomainInfo(HOST, "host", "host", ""), client.DomainInfo(LOCAL, "local", "", "")]
    guests = [client.DomainInfo(DomainId(each), "guest", name_of(each), uuid_of(each)) for each in GUEST_NUMBERS]
    answers = asked_for_all(lister, requester(HOST))
    assert {each.own for each in answers} == {HOST}
    assert [each for answer in answers for each in answer.domains] == first + guests
    assert listed_to(lister, requester(HOST)) == first + guests


@pytest.mark.parametrize("domain", [LOCAL, DomainId(11)], ids=["local", "guest"])
def test_another_domain_is_not_told_what_the_hosts_guests_are_called(lister: Lister, domain: DomainId) -> None:
    first = [client.DomainInfo(HOST, "host", "host", ""), client.DomainInfo(LOCAL, "local", "", "")]
    guests = [client.DomainInfo(DomainId(each), "guest", "", "") for each in GUEST_NUMBERS]
    answers = asked_for_all(lister, requester(domain))
    assert {each.own for each in answers} == {domain}
    assert [each for answer in answers for each in answer.domains] == first + guests
    assert [len(each.domains) for each in answers] == [256, 256, 90]
    assert listed_to(lister, requester(domain)) == first + guests


def test_an_answer_has_as_many_domains_as_a_packet_holds(lister: Lister) -> None:
    answers = asked_for_all(lister, requester(HOST))
    assert len(answers) > len(GUEST_NUMBERS) / client.DOMAINS_MAX + 1
    for answer, following in pairwise(answers):
        more = client.Domains(answer.own, (*answer.domains, following.domains[0]), answer.more)
        assert len(client.replies.encode(answer)) <= PACKET_MAX
        assert len(client.replies.encode(more)) > ROOM


@pytest.mark.parametrize("character", ["x", "\x01", "é"])
def test_a_name_as_long_as_may_be_has_an_answer(listing_of: Listing, character: str) -> None:
    names = {each: character * (TEXT_MAX // len(character.encode())) for each in (11, 12, 13)}
    answers = asked_for_all(listing_of(names), requester(HOST))
    assert [each.name for answer in answers for each in answer.domains] == ["host", "", *names.values()]
    assert max(len(client.replies.encode(each)) for each in answers) <= PACKET_MAX
