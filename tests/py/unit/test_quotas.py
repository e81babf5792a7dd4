# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a domain may use of the store: each quota is met, is another domain's matter, and what is
given back is there again.
"""

from __future__ import annotations

import pytest

from kvmchand.ids import ClientId
from kvmchand.xenstore.protocol import Kind
from kvmchand.xenstore.store import Quotas
from rig.store import HOST, ONE, TWO, Failed, Rig, assert_sound


def fill(rig: Rig, name: str = "n", value: str = "", transaction: int = 0) -> tuple[int, str]:
    """How many nodes could be written until one could not, and the error then."""
    for number in range(100_000):
        try:
            rig.write(ONE, f"{name}/{number}", value, transaction)
        except Failed as error:
            return number, str(error)
    raise AssertionError("no quota was met")


def test_nodes() -> None:
    rig = Rig(Quotas(nodes=10))
    assert fill(rig) == (8, "ENOSPC")
    with pytest.raises(Failed, match="ENOSPC"):
        rig.ask(ONE, Kind.MKDIR, "m")
    rig.write(ONE, "n/0", "it may still be written")
    rig.remove(ONE, "n/0")
    rig.write(ONE, "m", "")
    with pytest.raises(Failed, match="ENOSPC"):
        rig.write(ONE, "n/0", "")
    rig.write(TWO, "a/b/c", "")
    for number in range(20):
        rig.write(HOST, f"/tool/{number}", "")
    assert_sound(rig.store)


def test_a_write_that_makes_more_nodes_than_there_is_room_for_makes_none() -> None:
    rig = Rig(Quotas(nodes=4))
    with pytest.raises(Failed, match="ENOSPC"):
        rig.write(ONE, "a/b/c/d", "")
    assert "a" not in rig.children(ONE, "/local/domain/1")
    rig.write(ONE, "a/b/c", "")
    assert_sound(rig.store)


def test_nodes_that_domain_0_gives_away_count_and_more_than_the_quota_are_kept() -> None:
    rig = Rig(Quotas(nodes=3))
    for number in range(5):
        rig.write(HOST, f"/local/domain/1/{number}", "")
    assert rig.usage(1).nodes == 6
    with pytest.raises(Failed, match="ENOSPC"):
        rig.write(ONE, "mine", "")
    rig.write(ONE, "0", "x")
    assert_sound(rig.store)


def test_bytes() -> None:
    rig = Rig(Quotas(bytes=20_000))
    number, error = fill(rig, value="v" * 1000)
    assert (number, error) == (19, "ENOMEM")
    with pytest.raises(Failed, match="ENOMEM"):
        rig.write(ONE, "n/0", "v" * 2000)
    rig.write(ONE, "n/0", "")
    rig.write(ONE, "n/1", "v" * 1900)
    rig.remove(ONE, "n")
    assert rig.usage(1).bytes == len("/local/domain/1")
    rig.write(ONE, "n", "v" * 4000)
    assert_sound(rig.store)


def test_what_others_write_into_a_domains_nodes_counts_as_the_owners() -> None:
    rig = Rig(Quotas(bytes=3000))
    rig.write(ONE, "a", "")
    rig.permit(ONE, "a", "b1")
    rig.write(TWO, "/local/domain/1/a", "v" * 2900)
    assert rig.usage(1).bytes > 2900 > rig.usage(2).bytes
    with pytest.raises(Failed, match="ENOMEM"):
        rig.write(TWO, "/local/domain/1/a", "v" * 3000)
    assert_sound(rig.store)


def test_watches() -> None:
    rig = Rig(Quotas(watches=3, bytes=2000))
    other = ClientId(21)
    rig.connect(other, 1)
    for number in range(3):
        rig.watch(ONE if number else other, f"a/{number}")
    with pytest.raises(Failed, match="E2BIG"):
        rig.ask(ONE, Kind.WATCH, "b", "t")
    with pytest.raises(Failed, match="EEXIST"):
        rig.ask(ONE, Kind.WATCH, "a/1", "t")
    rig.watch(TWO, "a")
    for number in range(5):
        rig.watch(HOST, f"/{number}")
    rig.store.disconnect(other)
    rig.watch(ONE, "b")
    rig.ask(ONE, Kind.UNWATCH, "b", "t")
    with pytest.raises(Failed, match="ENOMEM"):
        rig.ask(ONE, Kind.WATCH, "b", "t" * 2000)
    assert_sound(rig.store)


def test_transactions() -> None:
    rig = Rig(Quotas(transactions=2))
    first, _ = rig.begin(ONE), rig.begin(ONE)
    with pytest.raises(Failed, match="ENOSPC"):
        rig.begin(ONE)
    rig.begin(TWO)
    for _ in range(5):
        rig.begin(HOST)
    rig.end(ONE, first)
    rig.begin(ONE)
    rig.store.disconnect(ONE)
    rig.connect(ONE, 1)
    rig.begin(ONE)
    assert_sound(rig.store)


def test_permissions() -> None:
    rig = Rig(Quotas(permissions=2))
    rig.write(ONE, "a", "")
    rig.permit(ONE, "a", "n1", "r2")
    with pytest.raises(Failed, match="ENOSPC"):
        rig.permit(ONE, "a", "n1", "r2", "r0")
    rig.permit(HOST, "/local/domain/1/a", "n1", "r2", "r0")


# ---- in transactions ----


def test_what_a_transaction_makes_counts_before_it_is_committed() -> None:
    rig = Rig(Quotas(nodes=10))
    transaction = rig.begin(ONE)
    assert fill(rig, transaction=transaction) == (8, "ENOSPC")
    rig.remove(ONE, "n/0", transaction)
    rig.write(ONE, "n/x", "", transaction)
    rig.end(ONE, transaction)
    assert rig.usage(1).nodes == 10
    assert_sound(rig.store)


def test_two_transactions_that_fit_alone_but_not_together() -> None:
    rig = Rig(Quotas(nodes=10))
    rig.write(ONE, "a", "")
    rig.write(ONE, "b", "")
    transactions = [rig.begin(ONE), rig.begin(ONE)]
    for name, transaction in zip("ab", transactions, strict=True):
        for number in range(5):
            rig.write(ONE, f"{name}/{number}", "", transaction)
    rig.end(ONE, transactions[0])
    with pytest.raises(Failed, match="ENOSPC"):
        rig.end(ONE, transactions[1])
    assert rig.children(ONE, "b") == []
    rig.write(ONE, "b/0", "")
    assert_sound(rig.store)


def test_all_that_transactions_keep_is_in_the_domains_bytes() -> None:
    rig = Rig(Quotas(bytes=100_000))
    transaction = rig.begin(ONE)
    _, error = fill(rig, value="v" * 4000, transaction=transaction)
    assert error == "ENOMEM"
    assert rig.usage(1).bytes > 90_000
    rig.end(ONE, transaction, "F")
    assert rig.usage(1).bytes == len("/local/domain/1")
    assert_sound(rig.store)


def test_looking_at_what_is_and_what_is_not_there_is_bounded_too() -> None:
    rig = Rig(Quotas(bytes=100_000))
    for number in range(20):
        rig.write(ONE, f"n/{number}", "v" * 1000)
    transactions = [rig.begin(ONE) for _ in range(3)]

    def look() -> None:
        for transaction in transactions:
            for number in range(1000):
                try:
                    rig.read(ONE, f"n/{number}", transaction)
                except Failed as error:
                    if str(error) != "ENOENT":
                        raise

    with pytest.raises(Failed, match="ENOMEM"):
        look()
    assert rig.usage(1).bytes <= 100_000
    for transaction in transactions:
        rig.end(ONE, transaction)
    rig.write(ONE, "n/0", "v" * 4000)
    assert_sound(rig.store)


def test_one_transaction_keeps_so_many_bytes_and_another_may_be_begun() -> None:
    rig = Rig(Quotas(transaction_bytes=100_000))
    transaction = rig.begin(ONE)
    number, error = fill(rig, transaction=transaction)
    assert error == "ENOMEM"
    assert 100 < number < 400
    assert rig.usage(1).bytes < 110_000
    rig.end(ONE, transaction)
    assert len(rig.children(ONE, "n")) == number
    transaction = rig.begin(ONE)
    rig.write(ONE, "n/0", "x", transaction)
    rig.end(ONE, transaction)
    transaction = rig.begin(HOST)
    for each in range(2 * number):
        rig.write(HOST, f"/tool/{each}", "", transaction)
    rig.end(HOST, transaction)
    assert_sound(rig.store)


def test_removing_more_than_a_transaction_may_keep_removes_nothing() -> None:
    rig = Rig(Quotas(bytes=60_000))
    for number in range(40):
        rig.write(ONE, f"n/{number}", "v" * 1000)
    transaction = rig.begin(ONE)
    with pytest.raises(Failed, match="ENOMEM"):
        rig.remove(ONE, "n", transaction)
    assert len(rig.children(ONE, "n", transaction)) == 40
    rig.end(ONE, transaction)
    assert len(rig.children(ONE, "n")) == 40
    assert_sound(rig.store)


def test_writing_the_same_node_again_and_again_in_a_transaction_is_not_added_up() -> None:
    rig = Rig(Quotas(bytes=20_000))
    transaction = rig.begin(ONE)
    for number in range(100):
        rig.write(ONE, "a", "v" * (4000 - number % 2 * 3000), transaction)
    rig.end(ONE, transaction)
    assert_sound(rig.store)


def test_two_hundred_vchans_at_once_meet_no_quota() -> None:
    rig = Rig()
    transactions = {}
    for number in range(200):
        client = ClientId(1000 + number)
        rig.connect(client, 1)
        rig.watch(client, f"data/vchan/2/{number}")
        transactions[client] = rig.begin(client)
        rig.write(client, f"data/vchan/2/{number}/x", "v" * 100, transactions[client])
        rig.offer(number, f"/local/domain/1/data/vchan/2/{number}")
    for client, transaction in transactions.items():
        assert rig.children(client, "data/vchan/2", transaction)
        rig.end(client, transaction, "F")
    assert_sound(rig.store)
