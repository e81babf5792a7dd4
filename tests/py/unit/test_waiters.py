# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who waits for an offer: in the order they came, until it is made, or they or the server's domain are gone."""

from __future__ import annotations

from kvmchand.channels.waiters import Visitors
from kvmchand.ids import ClientId, DomainId

ONE, TWO = DomainId(1), DomainId(2)


def visitors_at(*visits: tuple[int, DomainId, str]) -> Visitors[str]:
    visitors: Visitors[str] = Visitors()
    for number, server, path in visits:
        visitors.add(ClientId(number), DomainId(10 + number % 2), (server, path), f"visit {number}")
    return visitors


def test_those_at_a_place_are_told_in_their_order_and_wait_until_they_are_taken() -> None:
    visitors = visitors_at((3, ONE, "/a"), (1, ONE, "/a"), (2, ONE, "/b"), (4, TWO, "/a"))
    assert list(visitors) == ["visit 3", "visit 1", "visit 2", "visit 4"]
    assert visitors.at((ONE, "/a")) == [3, 1]
    assert visitors.at((TWO, "/b")) == []
    assert visitors.take(ClientId(3)) == "visit 3"
    assert ClientId(3) not in visitors
    assert ClientId(1) in visitors
    assert visitors.at((ONE, "/a")) == [1]


def test_those_of_a_domain_are_told_wherever_they_wait() -> None:
    assert visitors_at((1, ONE, "/a"), (2, TWO, "/a"), (3, ONE, "/b")).of(ONE) == [1, 3]


def test_a_domains_clients_are_counted() -> None:
    visitors = visitors_at((1, ONE, "/a"), (2, TWO, "/a"), (3, ONE, "/b"))
    visitors.take(ClientId(3))
    assert [visitors.count(DomainId(each)) for each in (10, 11, 12)] == [1, 1, 0]


def test_who_is_gone_waits_no_more_and_leaves_nothing() -> None:
    visitors = visitors_at((1, ONE, "/a"))
    visitors.take(ClientId(1))
    assert visitors.take(ClientId(1)) is None
    assert visitors == Visitors()
