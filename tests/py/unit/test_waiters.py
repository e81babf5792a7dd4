# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who waits for an offer: in the order they came, until it is made, or they or the server's domain
are gone.
"""

from __future__ import annotations

from kvmchand.channels.waiters import Waiters
from kvmchand.ids import ClientId, DomainId

ONE, TWO = DomainId(1), DomainId(2)


def visitors_at(*visits: tuple[int, DomainId, str]) -> Waiters[str]:
    waiters: Waiters[str] = Waiters()
    for number, server, path in visits:
        waiters.add(ClientId(number), DomainId(10 + number % 2), (server, path), f"waiter {number}")
    return waiters


def test_those_at_a_place_are_told_in_their_order_and_wait_until_they_are_taken() -> None:
    waiters = visitors_at((3, ONE, "/a"), (1, ONE, "/a"), (2, ONE, "/b"), (4, TWO, "/a"))
    assert list(waiters) == ["waiter 3", "waiter 1", "waiter 2", "waiter 4"]
    assert waiters.at((ONE, "/a")) == [3, 1]
    assert waiters.at((TWO, "/b")) == []
    assert waiters.take(ClientId(3)) == "waiter 3"
    assert ClientId(3) not in waiters
    assert ClientId(1) in waiters
    assert waiters.at((ONE, "/a")) == [1]


def test_those_of_a_domain_are_told_wherever_they_wait() -> None:
    assert visitors_at((1, ONE, "/a"), (2, TWO, "/a"), (3, ONE, "/b")).of(ONE) == [1, 3]


def test_a_domains_clients_are_counted() -> None:
    waiters = visitors_at((1, ONE, "/a"), (2, TWO, "/a"), (3, ONE, "/b"))
    waiters.take(ClientId(3))
    assert [waiters.count(DomainId(each)) for each in (10, 11, 12)] == [1, 1, 0]


def test_who_is_gone_waits_no_more_and_leaves_nothing() -> None:
    waiters = visitors_at((1, ONE, "/a"))
    waiters.take(ClientId(1))
    assert waiters.take(ClientId(1)) is None
    assert waiters == Waiters()
