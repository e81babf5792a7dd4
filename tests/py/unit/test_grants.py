# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which pages are shared with whom: the references, who may map them, and for how long."""

from __future__ import annotations

import pytest

from kvmchand.channels.grants import Grants, Share
from kvmchand.errors import AccessDenied, InvalidArgument, LimitReached, NotFound, ProtocolError
from kvmchand.ids import ClientId, DomainId

ONE, TWO, THREE = DomainId(1), DomainId(2), DomainId(3)
OWNER, PEER, OTHER = ClientId(10), ClientId(20), ClientId(30)
FIRST = 1 << 30


@pytest.fixture
def grants() -> Grants:
    return Grants(max_pages=8, max_mappings=2)


def share(grants: Grants, pages: int = 2, holder: ClientId = OWNER, *, writable: bool = True) -> Share:
    return grants.share(grants.permit_share(ONE, TWO, pages, holder, writable=writable))


def map_page(grants: Grants, ref: int, holder: ClientId = PEER, *, caller: DomainId = TWO, writable: bool = True) -> Share:
    found = grants.require_map(caller, ONE, ref, holder, writable=writable)
    grants.map(found, holder)
    return found


def assert_empty(grants: Grants) -> None:
    assert grants == Grants(grants.max_pages, grants.max_mappings, _next=grants._next)


def test_references_count_up_and_each_leads_to_its_share(grants: Grants) -> None:
    first, second = share(grants), share(grants, 3, OTHER)
    assert (first.ref, second.ref, second.end) == (FIRST, FIRST + 2, FIRST + 5)
    for ref in range(FIRST, FIRST + 5):
        assert grants.require_map(TWO, ONE, ref, PEER, writable=True) is (first if ref < second.ref else second)


@pytest.mark.parametrize("ref", [0, 1, FIRST - 1, FIRST + 2, 2**31, 2**63 - 1])
def test_a_reference_that_is_none_is_not_found(grants: Grants, ref: int) -> None:
    share(grants)
    with pytest.raises(NotFound, match=str(ref)):
        map_page(grants, ref)


def test_pages_are_for_the_domain_they_are_shared_with(grants: Grants) -> None:
    share(grants)
    with pytest.raises(AccessDenied, match="for domain 2, and this is domain 3"):
        map_page(grants, FIRST, caller=THREE)
    with pytest.raises(NotFound):
        grants.require_map(TWO, THREE, FIRST, PEER, writable=False)


def test_pages_shared_for_reading_are_mapped_for_reading(grants: Grants) -> None:
    share(grants, writable=False)
    with pytest.raises(AccessDenied, match="only be read"):
        map_page(grants, FIRST)
    map_page(grants, FIRST, writable=False)


def test_a_share_lasts_while_it_is_mapped_but_is_not_mapped_anew(grants: Grants) -> None:
    shared = share(grants)
    map_page(grants, FIRST)
    map_page(grants, FIRST + 1, OTHER)
    assert grants.release(OWNER) is shared
    with pytest.raises(NotFound):
        grants.require_map(TWO, ONE, FIRST, ClientId(40), writable=True)
    grants.release(PEER)
    assert not shared.is_over
    grants.release(OTHER)
    assert shared.is_over
    assert_empty(grants)
    assert grants.release(OTHER) is None


def test_a_connection_has_one_share_or_mapping(grants: Grants) -> None:
    share(grants)
    for holder in (OWNER, PEER):
        if holder == PEER:
            map_page(grants, FIRST)
        with pytest.raises(ProtocolError):
            share(grants, holder=holder)
        with pytest.raises(ProtocolError):
            map_page(grants, FIRST, holder)


def test_a_domain_shares_no_more_than_it_may(grants: Grants) -> None:
    share(grants, 6)
    with pytest.raises(LimitReached, match="max_shared"):
        share(grants, 3, OTHER)
    share(grants, 2, OTHER)
    grants.release(OWNER)
    share(grants, 6)


@pytest.mark.parametrize("pages", [0, -1, -(2**31)])
def test_so_few_pages_can_not_be_shared(grants: Grants, pages: int) -> None:
    with pytest.raises(InvalidArgument):
        share(grants, pages)


def test_a_domain_has_no_more_mappings_than_it_may(grants: Grants) -> None:
    share(grants)
    map_page(grants, FIRST)
    map_page(grants, FIRST, OTHER)
    with pytest.raises(LimitReached):
        map_page(grants, FIRST, ClientId(40))
    grants.release(PEER)
    map_page(grants, FIRST, ClientId(40))


def test_what_a_domain_has_is_counted_until_it_is_over(grants: Grants) -> None:
    share(grants)
    map_page(grants, FIRST)
    map_page(grants, FIRST, OTHER)
    assert [grants.count(each) for each in (ONE, TWO, THREE)] == [1, 2, 0]
    grants.release(OWNER)
    grants.release(PEER)
    assert [grants.count(each) for each in (ONE, TWO)] == [1, 1]
    grants.release(OTHER)
    assert_empty(grants)


def test_who_has_anything_is_told_by_domain(grants: Grants) -> None:
    share(grants)
    map_page(grants, FIRST)
    assert (grants.holders(ONE), grants.holders(TWO), grants.holders(THREE)) == ([OWNER], [PEER], [])
    grants.release(OWNER)
    assert (grants.holders(ONE), grants.holders(TWO)) == ([], [PEER])


def test_references_start_anew_at_their_end_and_keep_clear_of_what_stands() -> None:
    grants = Grants(max_pages=100, max_mappings=1, _next=2**31 - 3)
    at_end = share(grants, 2, ClientId(1))
    assert at_end.ref == 2**31 - 3
    wrapped = share(grants, 2, ClientId(2))
    assert wrapped.ref == FIRST
    grants._next = FIRST
    after = share(grants, 5, ClientId(3))
    assert after.ref == FIRST + 2
    grants.release(ClientId(2))
    grants._next = FIRST
    assert share(grants, 3, ClientId(4)).ref == after.end
    grants._next = FIRST
    assert share(grants, 2, ClientId(5)).ref == FIRST
