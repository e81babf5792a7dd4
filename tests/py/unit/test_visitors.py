# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who waits for an offer: in the order they came, until it is made, or they or the server's domain are gone."""

from __future__ import annotations

from kvmchand.core.visitors import Visitors
from kvmchand.ids import ClientId, DomainId

ONE, TWO = DomainId(1), DomainId(2)


def test_those_at_a_path_are_taken_in_their_order_and_wait_no_more() -> None:
    visitors: Visitors[str] = Visitors()
    for number, path in ((3, "/a"), (1, "/a"), (2, "/b")):
        visitors.add(ClientId(number), ONE, path, f"visit {number}")
    assert list(visitors) == ["visit 3", "visit 1", "visit 2"]
    assert visitors.take("/a") == ["visit 3", "visit 1"]
    assert ClientId(3) not in visitors
    assert ClientId(2) in visitors
    assert visitors.take("/a") == visitors.take("/c") == []
    assert visitors.take("/b") == ["visit 2"]
    assert visitors == Visitors()


def test_those_of_a_domain_that_is_gone_are_taken_wherever_they_wait() -> None:
    visitors: Visitors[str] = Visitors()
    for number, server, path in ((1, ONE, "/a"), (2, TWO, "/a"), (3, ONE, "/b")):
        visitors.add(ClientId(number), server, path, f"visit {number}")
    assert visitors.take_of(ONE) == ["visit 1", "visit 3"]
    assert list(visitors) == ["visit 2"]


def test_who_is_gone_waits_no_more() -> None:
    visitors: Visitors[str] = Visitors()
    visitors.add(ClientId(1), ONE, "/a", "visit")
    visitors.remove(ClientId(1))
    visitors.remove(ClientId(1))
    assert visitors == Visitors()
