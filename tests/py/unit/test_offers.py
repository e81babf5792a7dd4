# SPDX-License-Identifier: LGPL-2.1-or-later
"""The vchans that are offered, as nodes: what the server's and the client's library find, and what
ends an offer.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmchand.xenstore.protocol import Kind
from kvmchand.xenstore.store import Quotas
from rig.store import HOST, ONE, TWO, Failed, Rig, assert_sound, state

PATH = "/local/domain/1/ch"
RING, PORT = f"{PATH}/ring-ref", f"{PATH}/event-channel"


def test_the_client_finds_the_numbers_and_others_do_not(rig: Rig) -> None:
    rig.offer()
    assert (rig.read(TWO, RING), rig.read(TWO, PORT)) == ("105", "205")
    assert rig.read(ONE, "ch/ring-ref") == rig.read(HOST, RING) == "105"
    assert rig.permissions(ONE, "ch/ring-ref") == ["n1", "r2"]
    assert rig.permissions(ONE, "ch/event-channel") == ["n1", "r2"]
    assert rig.permissions(ONE, "ch") == ["n1"]
    with pytest.raises(Failed, match="EACCES"):
        rig.write(TWO, RING, "1")
    rig.offer(6, "/local/domain/1/deep/er", client=0)
    with pytest.raises(Failed, match="EACCES"):
        rig.read(TWO, "/local/domain/1/deep/er/ring-ref")
    assert rig.permissions(ONE, "deep") == ["n1"]
    assert rig.withdrawn == []


def test_an_offer_of_domain_0_may_be_anywhere(rig: Rig) -> None:
    rig.offer(path="/tool/x/y", server=0, client=2)
    assert rig.read(TWO, "/tool/x/y/ring-ref") == "105"
    assert rig.permissions(HOST, "/tool/x/y/ring-ref") == ["n0", "r2"]


def test_who_waits_for_an_offer_is_told_and_of_its_end(rig: Rig) -> None:
    rig.watch(TWO, PATH)
    rig.offer()
    assert sorted(rig.told(TWO)) == [PORT, RING]
    rig.withdraw(5)
    assert rig.told(TWO) == []
    rig.watch(ONE, "ch")
    rig.watch(TWO, RING)
    rig.offer()
    rig.events.clear()
    rig.withdraw(5)
    assert sorted(rig.events) == [(ONE, "ch", "t"), (TWO, RING, "t")]


def test_a_withdrawn_offer_takes_its_path_along_and_leaves_those_above(rig: Rig) -> None:
    rig.offer(path=f"{PATH}/1/2")
    rig.write(ONE, "ch/1/2/more", "x")
    rig.withdraw(5)
    assert rig.children(ONE, "ch/1") == []
    rig.withdraw(5)
    assert rig.withdrawn == []
    assert rig.store._offers.by_channel == {}


ENDS: dict[str, Callable[[Rig, int], object]] = {
    "remove path": lambda rig, number: rig.remove(ONE, "ch", number),
    "remove ring-ref": lambda rig, number: rig.remove(ONE, "ch/ring-ref", number),
    "remove event-channel": lambda rig, number: rig.remove(HOST if not number else ONE, PORT, number),
    "write ring-ref": lambda rig, number: rig.write(ONE, "ch/ring-ref", "9", number),
    "write the same": lambda rig, number: rig.write(ONE, "ch/event-channel", "205", number),
}


@pytest.mark.parametrize("way", ENDS)
def test_an_offer_ends_when_its_nodes_are_removed_or_written(rig: Rig, way: str) -> None:
    rig.offer()
    rig.offer(6, "/local/domain/1/other")
    ENDS[way](rig, 0)
    assert rig.withdrawn == [5]
    left = rig.children(ONE, "ch") if way != "remove path" else []
    rig.withdraw(5)
    assert (rig.children(ONE, "ch") if way != "remove path" else []) == left
    assert rig.withdrawn == [5]
    assert_sound(rig.store)
    assert list(rig.store._offers.by_channel) == [6]


@pytest.mark.parametrize("way", ENDS)
def test_within_a_transaction_it_ends_with_the_commit_only(rig: Rig, way: str) -> None:
    rig.offer()
    for how, ended in (("F", []), ("T", [5])):
        transaction = rig.begin(ONE)
        ENDS[way](rig, transaction)
        assert rig.withdrawn == []
        rig.end(ONE, transaction, how)
        assert rig.withdrawn == ended


def test_what_leaves_the_numbers_alone_does_not_end_an_offer(rig: Rig) -> None:
    rig.offer()
    rig.permit(ONE, "ch/ring-ref", "n1", "r0")
    rig.write(ONE, "ch", "x")
    rig.write(ONE, "ch/more", "x")
    rig.ask(ONE, Kind.MKDIR, "ch/ring-ref")
    rig.remove(ONE, "ch/more")
    assert rig.withdrawn == []
    rig.remove(HOST, "/local/domain/1")
    assert rig.withdrawn == [5]


def test_all_offers_below_a_removed_node_end_each_once(rig: Rig) -> None:
    for number in range(3):
        rig.offer(number, f"/local/domain/1/all/{number}")
    rig.remove(ONE, "all")
    assert sorted(rig.withdrawn) == [0, 1, 2]


@pytest.mark.parametrize("first", ["withdraw", "offer"])
def test_a_second_offer_at_a_path_takes_it_over_in_either_order(rig: Rig, first: str) -> None:
    rig.offer(5)
    if first == "withdraw":
        rig.withdraw(5)
    rig.offer(6)
    rig.withdraw(5)
    assert (rig.read(TWO, RING), rig.read(TWO, PORT)) == ("106", "206")
    assert rig.withdrawn == []
    assert_sound(rig.store)
    rig.withdraw(6)
    with pytest.raises(Failed, match="ENOENT"):
        rig.read(ONE, "ch")


def test_an_offer_over_what_the_server_wrote_takes_its_place(rig: Rig) -> None:
    rig.write(ONE, "ch/ring-ref", "mine")
    rig.permit(ONE, "ch/ring-ref", "b1")
    before = rig.usage(1).nodes
    rig.offer()
    assert rig.read(TWO, RING) == "105"
    assert rig.permissions(ONE, "ch/ring-ref") == ["n1", "r2"]
    assert rig.usage(1).nodes == before - 1
    rig.withdraw(5)
    assert rig.usage(1).nodes == before - 2


@pytest.mark.parametrize("path", ["name", "name/deep/er", "theirs"])
def test_an_offer_where_its_server_may_not_write_does_not_stand(rig: Rig, path: str) -> None:
    rig.write(HOST, "/local/domain/1/theirs/ring-ref", "domain 0 says so")
    for each in ("theirs", "theirs/ring-ref"):
        rig.permit(HOST, f"/local/domain/1/{each}", "n0", "r1")
    before = state(rig.store)
    assert rig.offer(path=f"/local/domain/1/{path}") == "EACCES"
    rig.withdraw(5)
    assert state(rig.store) == before


def test_an_offer_does_not_replace_a_node_that_its_server_may_not_write(rig: Rig) -> None:
    rig.write(HOST, "/local/domain/1/ch/event-channel", "domain 0 says so")
    rig.permit(HOST, PORT, "n0", "r1")
    rig.offer()
    rig.withdraw(5)
    assert rig.read(ONE, PORT) == "domain 0 says so"


def test_a_withdrawn_offers_path_that_its_server_may_not_write_any_more_stays(rig: Rig) -> None:
    rig.offer()
    rig.permit(HOST, PATH, "n0", "r1")
    rig.withdraw(5)
    assert rig.children(ONE, "ch") == []


def test_the_same_offer_again_changes_nothing(rig: Rig) -> None:
    rig.offer()
    records = len(rig.records)
    assert rig.offer() == ""
    assert len(rig.records) == records


# ---- quotas ----


def test_offers_count_in_no_quota() -> None:
    full = Rig(Quotas(nodes=3))
    full.write(ONE, "a", "")
    full.write(ONE, "b", "")
    with pytest.raises(Failed, match="ENOSPC"):
        full.write(ONE, "c", "")
    for number in range(200):
        full.offer(number, f"/local/domain/1/ch{number}")
    assert full.read(TWO, "/local/domain/1/ch199/ring-ref") == "299"
    assert full.usage(1).nodes == 3
    assert_sound(full.store)


def test_the_nodes_above_an_offer_count_and_without_room_for_them_it_is_not_shown() -> None:
    full = Rig(Quotas(nodes=3))
    assert full.offer(1, "/local/domain/1/a/b/c") == ""
    assert full.usage(1).nodes == 3
    assert full.offer(2, "/local/domain/1/x/y") == "ENOSPC"
    with pytest.raises(Failed, match="ENOENT"):
        full.read(ONE, "x")
    assert full.withdrawn == []
    assert list(full.store._offers.by_channel) == [1]
    full.withdraw(2)
    assert_sound(full.store)


def test_an_offer_that_is_not_shown_says_which_quota_has_no_room() -> None:
    for quotas, why in ((Quotas(nodes=1), "ENOSPC"), (Quotas(bytes=20), "ENOMEM")):
        full = Rig(quotas)
        assert full.offer(1, "/local/domain/1/x/y") == why
        assert full.offer(2) == ""
        # What is left of it counts.
        full.remove(ONE, "ch/event-channel")
        assert full.offer(3, "/local/domain/1/next") == why
        assert_sound(full.store)


def test_offers_whose_nodes_were_overwritten_do_not_add_up_beyond_the_quota() -> None:
    full = Rig(Quotas(nodes=10))
    for number in range(50):
        full.offer(number, f"/local/domain/1/ch{number}")
        if number in full.store._offers.by_channel:
            full.write(ONE, f"ch{number}/ring-ref", "mine")
    assert full.usage(1).nodes <= 10 + 3
    assert_sound(full.store)
