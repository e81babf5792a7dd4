# SPDX-License-Identifier: LGPL-2.1-or-later
"""Transactions: all or nothing, on a tree that stands still, or EAGAIN."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmchand.xenstore.protocol import Kind
from rig.store import HOST, ONE, TWO, Failed, Rig


@pytest.fixture
def rig(rig: Rig) -> Rig:
    rig.write(ONE, "a/b", "old")
    rig.write(ONE, "c", "old")
    return rig


def test_its_changes_are_seen_within_it_only_until_its_end(rig: Rig) -> None:
    transaction = rig.begin(ONE)
    rig.write(ONE, "new/deep", "x", transaction)
    rig.remove(ONE, "a", transaction)
    rig.permit(ONE, "c", "r1", transaction=transaction)
    assert rig.read(ONE, "new/deep", transaction) == "x"
    assert "a" not in rig.children(ONE, "/local/domain/1", transaction)
    assert rig.children(ONE, "/local/domain/1") == ["domid", "name", "vm", "a", "c"]
    assert rig.read(ONE, "a/b") == "old"
    rig.end(ONE, transaction)
    assert rig.children(ONE, "/local/domain/1") == ["domid", "name", "vm", "c", "new"]
    assert rig.read(TWO, "/local/domain/1/c") == "old"


def test_one_that_is_given_up_leaves_nothing(rig: Rig) -> None:
    before, used = len(rig.records), rig.usage(1).bytes
    transaction = rig.begin(ONE)
    rig.write(ONE, "new", "x" * 1000, transaction)
    rig.remove(ONE, "a", transaction)
    rig.end(ONE, transaction, "F")
    assert rig.children(ONE, "/local/domain/1") == ["domid", "name", "vm", "a", "c"]
    assert (len(rig.records), rig.usage(1).bytes) == (before, used)


def test_what_it_has_read_stays_as_it_was(rig: Rig) -> None:
    transaction = rig.begin(ONE)
    assert rig.read(ONE, "c", transaction) == "old"
    assert rig.children(ONE, "a", transaction) == ["b"]
    rig.write(ONE, "c", "new")
    rig.write(ONE, "a/later", "new")
    assert rig.read(ONE, "c", transaction) == "old"
    assert rig.children(ONE, "a", transaction) == ["b"]
    with pytest.raises(Failed, match="EAGAIN"):
        rig.end(ONE, transaction)


def look_for(rig: Rig, path: str, number: int) -> None:
    with pytest.raises(Failed, match="ENOENT"):
        rig.read(ONE, path, number)


ACTIONS: dict[str, Callable[[Rig, int], object]] = {
    "read a/b": lambda rig, number: rig.read(ONE, "a/b", number),
    "list a": lambda rig, number: rig.children(ONE, "a", number),
    "write a/b": lambda rig, number: rig.write(ONE, "a/b", f"by {number}", number),
    "make a/x": lambda rig, number: rig.write(ONE, "a/x", f"by {number}", number),
    "remove a/b": lambda rig, number: rig.remove(ONE, "a/b", number),
    "remove a": lambda rig, number: rig.remove(ONE, "a", number),
    "permit a/b": lambda rig, number: rig.permit(ONE, "a/b", "n1", "r2", transaction=number),
    "write c": lambda rig, number: rig.write(ONE, "c", f"by {number}", number),
    "look for a/x": lambda rig, number: look_for(rig, "a/x", number),
}


@pytest.mark.parametrize(
    ("within", "meanwhile", "commits"),
    [
        ("read a/b", "write c", True),
        ("read a/b", "make a/x", True),
        ("read a/b", "read a/b", True),
        ("read a/b", "write a/b", False),
        ("read a/b", "permit a/b", False),
        ("read a/b", "remove a/b", False),
        ("read a/b", "remove a", False),
        ("write a/b", "write a/b", False),
        ("write a/b", "read a/b", True),
        ("write a/b", "permit a/b", False),
        ("write a/b", "remove a", False),
        ("write a/b", "make a/x", True),
        ("make a/x", "make a/x", False),
        ("make a/x", "remove a", False),
        ("make a/x", "write c", True),
        ("list a", "make a/x", False),
        ("list a", "remove a/b", False),
        ("list a", "write a/b", True),
        ("remove a", "make a/x", False),
        ("remove a", "write a/b", False),
        ("remove a", "write c", True),
        ("remove a/b", "remove a/b", False),
        ("permit a/b", "write a/b", False),
        ("look for a/x", "make a/x", False),
        ("look for a/x", "write c", True),
    ],
)
@pytest.mark.parametrize("other", ["plain", "transaction"])
def test_conflicts(rig: Rig, within: str, meanwhile: str, commits: bool, other: str) -> None:
    transaction = rig.begin(ONE)
    ACTIONS[within](rig, transaction)
    number = rig.begin(ONE) if other == "transaction" else 0
    ACTIONS[meanwhile](rig, number)
    if number:
        rig.end(ONE, number)
    value = rig.read(ONE, "a/b") if "remove" not in meanwhile else None
    if commits:
        rig.end(ONE, transaction)
    else:
        with pytest.raises(Failed, match="EAGAIN"):
            rig.end(ONE, transaction)
        if value is not None:
            assert rig.read(ONE, "a/b") == value


def test_of_two_that_count_up_one_number_none_is_lost(rig: Rig) -> None:
    rig.write(ONE, "count", "0")
    first, second = rig.begin(ONE), rig.begin(ONE)
    for number in (first, second):
        rig.write(ONE, "count", str(int(rig.read(ONE, "count", number)) + 1), number)
    rig.end(ONE, second)
    with pytest.raises(Failed, match="EAGAIN"):
        rig.end(ONE, first)
    assert rig.read(ONE, "count") == "1"


def test_what_it_removes_and_makes_again_is_new(rig: Rig) -> None:
    transaction = rig.begin(ONE)
    rig.remove(ONE, "a", transaction)
    rig.write(ONE, "a/z", "x", transaction)
    rig.end(ONE, transaction)
    assert rig.children(ONE, "a") == ["z"]
    with pytest.raises(Failed, match="ENOENT"):
        rig.read(ONE, "a/b")


def test_ids_are_of_one_client_and_end_with_it(rig: Rig) -> None:
    transaction = rig.begin(ONE)
    assert transaction != rig.begin(ONE) != 0
    for client, number in ((TWO, transaction), (ONE, 4000)):
        for kind, word in ((Kind.READ, "c"), (Kind.TRANSACTION_END, "T"), (Kind.TRANSACTION_START, "")):
            with pytest.raises(Failed, match="ENOENT"):
                rig.ask(client, kind, word, transaction=number)
    rig.end(ONE, transaction)
    with pytest.raises(Failed, match="ENOENT"):
        rig.end(ONE, transaction)
    rig.store.disconnect(ONE)
    assert rig.usage(1).transactions == 0


def test_none_is_begun_within_another_and_without_one_none_ends(rig: Rig) -> None:
    transaction = rig.begin(ONE)
    with pytest.raises(Failed, match="EBUSY"):
        rig.ask(ONE, Kind.TRANSACTION_START, "", transaction=transaction)
    with pytest.raises(Failed, match="ENOENT"):
        rig.end(ONE, 0)
    for word in ("", "t", "TF"):
        with pytest.raises(Failed, match="EINVAL"):
            rig.end(ONE, transaction, word)
    rig.end(ONE, transaction)


def test_reset_watches_ends_the_transactions_too(rig: Rig) -> None:
    transaction = rig.begin(ONE)
    rig.ask(ONE, Kind.RESET_WATCHES, "")
    with pytest.raises(Failed, match="ENOENT"):
        rig.end(ONE, transaction)


def test_permissions_hold_within_one(rig: Rig) -> None:
    transaction = rig.begin(TWO)
    for kind in (Kind.READ, Kind.RM, Kind.MKDIR):
        with pytest.raises(Failed, match="EACCES"):
            rig.ask(TWO, kind, "/local/domain/1/c", transaction=transaction)
    rig.end(TWO, transaction)


def test_watches_fire_at_the_commit_once_for_each_node(rig: Rig) -> None:
    rig.watch(HOST, "/local/domain/1")
    rig.watch(HOST, "/local/domain/1/a/b")
    transaction = rig.begin(ONE)
    rig.write(ONE, "c", "1", transaction)
    rig.write(ONE, "c", "2", transaction)
    rig.permit(ONE, "c", "r1", transaction=transaction)
    rig.write(ONE, "new/deep", "x", transaction)
    rig.remove(ONE, "a", transaction)
    assert rig.events == []
    rig.end(ONE, transaction)
    home = "/local/domain/1/"
    assert sorted(rig.told(HOST)) == [f"{home}a", f"{home}a/b", f"{home}c", f"{home}new/deep"]


def test_watches_of_one_that_is_given_up_do_not_fire(rig: Rig) -> None:
    rig.watch(HOST, "/local/domain/1")
    for how in ("F", "T"):
        transaction = rig.begin(ONE)
        rig.write(ONE, "c", "1", transaction)
        if how == "T":
            rig.write(ONE, "c", "2")
            rig.told(HOST)
            with pytest.raises(Failed, match="EAGAIN"):
                rig.end(ONE, transaction)
        else:
            rig.end(ONE, transaction, how)
        assert rig.events == []


@pytest.mark.parametrize("above", ["a", "/local/domain/1"])
@pytest.mark.parametrize("action", ["remove a", "remove a/b", "make a/x", "write a/b", "permit a/b", "list a"])
def test_one_that_has_looked_at_what_is_gone_can_go_on_and_not_be_committed(rig: Rig, above: str, action: str) -> None:
    transaction = rig.begin(ONE)
    rig.read(ONE, "a", transaction)
    rig.read(ONE, "a/b", transaction)
    rig.remove(HOST, above if above.startswith("/") else "/local/domain/1/a")
    ACTIONS[action](rig, transaction)
    with pytest.raises(Failed, match="EAGAIN"):
        rig.end(ONE, transaction)
