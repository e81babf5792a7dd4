# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store's records: what they say is what there is, in whatever order it came about."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from kvmchand.ids import ChannelId, ClientId, DomainId
from kvmchand.xenstore.protocol import Kind
from kvmchand.xenstore.store import Quotas, Store
from rig.store import HOST, ONE, TWO, Failed, Rig, assert_sound, state


def replayed(records: list[bytes]) -> Store:
    made = Store(Quotas(), lambda *_: None, lambda _: None, lambda _: None)
    made.replay(records)
    assert_sound(made)
    return made


def some_steps(rig: Rig, random_: random.Random) -> None:
    pick = random_.choice
    paths = ["a", "b", "a/x", "a/x/y", "b/z", "ch", "ch/ring-ref", "ch/event-channel", "/local/domain/1/a", "/tool/t"]
    open_: list[tuple[ClientId, int]] = []

    def offer() -> None:
        rig.offer(random_.randrange(4), "/local/domain/1/" + pick(["ch", "a", "b/z"]), 1, 2)

    def end() -> None:
        client, number = open_.pop(random_.randrange(len(open_)))
        rig.end(client, number, pick("TTF"))

    def number_of(client: ClientId) -> int:
        return pick([0, *(number for each, number in open_ if each == client)])

    def reconnect(client: ClientId) -> None:
        open_[:] = [each for each in open_ if each[0] != client]
        rig.store.disconnect(client)
        rig.connect(client, client - 10)

    def another(domain: int) -> None:
        if random_.random() < 0.2:
            rig.store.release(DomainId(domain))
        if random_.random() < 0.9:
            rig.store.introduce(DomainId(domain), pick(["one", "two"]), pick(["", "u"]))

    actions: list[Callable[[ClientId], object]] = [
        lambda client: rig.write(client, pick(paths), "v" * random_.randrange(9), number_of(client)),
        lambda client: rig.write(client, pick(paths), "v" * random_.randrange(9), number_of(client)),
        lambda client: rig.ask(client, Kind.MKDIR, pick(paths), transaction=number_of(client)),
        lambda client: rig.remove(client, pick(paths), number_of(client)),
        lambda client: rig.permit(client, pick(paths), pick(["n1", "b1", "n0", "n2"]), "r2", transaction=number_of(client)),
        lambda client: rig.ask(client, Kind.WATCH, pick([*paths, "@releaseDomain"]), pick("tu")),
        lambda client: rig.ask(client, Kind.UNWATCH, pick(paths), pick("tu")),
        lambda client: open_.append((client, rig.begin(client))),
        lambda client: end() if open_ else None,
        lambda client: offer(),
        lambda client: rig.withdraw(random_.randrange(4)),
        lambda client: reconnect(client) if random_.random() < 0.1 else None,
        lambda client: another(pick([1, 2])) if random_.random() < 0.1 else None,
    ]
    for _ in range(120):
        try:
            pick(actions)(pick([HOST, ONE, TWO]))
        except Failed:
            pass


@pytest.mark.parametrize("seed", range(40))
def test_records_and_the_fewest_records_say_what_there_is(seed: int) -> None:
    rig = Rig()
    some_steps(rig, random.Random(seed))
    assert_sound(rig.store)
    assert state(replayed(rig.records)) == state(rig.store)
    dumped = list(rig.store.dump())
    assert state(replayed(dumped)) == state(rig.store)
    assert len(list(replayed(dumped).dump())) == len(dumped)
    # What comes after a dump follows it.
    after = len(rig.records)
    some_steps(rig, random.Random(-seed))
    assert state(replayed(dumped + rig.records[after:])) == state(rig.store)


def test_a_commit_is_one_record() -> None:
    rig = Rig()
    transaction = rig.begin(ONE)
    for name in "abc":
        rig.write(ONE, f"{name}/x", "v", transaction)
    before = len(rig.records)
    rig.end(ONE, transaction)
    assert len(rig.records) == before + 1


def test_what_changes_nothing_is_not_recorded() -> None:
    rig = Rig()
    before = len(rig.records)
    rig.read(ONE, "name")
    rig.remove(ONE, "nothing")
    rig.begin(ONE)
    for action in (lambda: rig.write(ONE, "/x", ""), lambda: rig.ask(ONE, Kind.UNWATCH, "a", "t")):
        with pytest.raises(Failed):
            action()
    rig.withdraw(99)
    assert len(rig.records) == before


# ---- a start again ----


def test_after_a_start_all_is_as_before_and_every_watch_fires() -> None:
    old = Rig()
    old.write(ONE, "a", "x")
    old.offer()
    old.watch(TWO, "/local/domain/1", "t")
    rig = Rig(records=old.records)
    rig.offer()
    rig.store.settle()
    rig.store.flush_events()
    assert state(rig.store) == state(old.store)
    assert rig.events == [(TWO, "/local/domain/1", "t")]
    assert rig.withdrawn == []
    assert_sound(rig.store)
    rig.permit(ONE, "a", "r1")
    assert (TWO, "/local/domain/1/a", "t") in rig.events


def test_what_went_meanwhile_is_gone_once_it_is_settled() -> None:
    old = Rig()
    old.store.introduce(DomainId(7), "seven", "")
    old.connect(ClientId(70), 7)
    old.watch(ClientId(70), "a")
    old.write(HOST, "/tool/x", "")
    old.permit(HOST, "/tool/x", "n0", "r7")
    old.offer(5)
    old.offer(6, "/local/domain/1/other")
    rig = Rig(records=old.records)
    rig.offer(6, "/local/domain/1/other")
    rig.watch(HOST, "/local/domain")
    rig.events.clear()
    rig.store.settle()
    rig.store.flush_events()
    assert rig.children(HOST, "/local/domain") == ["0", "1", "2"]
    assert rig.permissions(HOST, "/tool/x") == ["n0", "r7"]  # which gives nobody a right
    rig.store.introduce(DomainId(7), "another", "")
    rig.connect(ClientId(71), 7)
    with pytest.raises(Failed, match="EACCES"):
        rig.read(ClientId(71), "/tool/x")
    rig.store.disconnect(ClientId(71))
    rig.store.release(DomainId(7))
    assert rig.children(ONE, "/local/domain/1") == ["domid", "name", "vm", "other"]
    assert "/local/domain/1/ch" in rig.told(HOST)
    assert rig.withdrawn == []
    assert DomainId(7) not in rig.store._ledger.usage
    assert_sound(rig.store)


def test_a_number_that_another_domain_or_offer_has_now_has_nothing_of_the_old() -> None:
    old = Rig()
    old.store.introduce(DomainId(7), "seven", "u-7")
    old.write(HOST, "/local/domain/7/old", "")
    old.offer(5)
    rig = Rig(records=old.records)
    rig.store.introduce(DomainId(7), "again", "u-8")
    rig.offer(5, "/local/domain/1/elsewhere")
    rig.store.settle()
    assert rig.children(HOST, "/local/domain/7") == ["domid", "name", "vm"]
    assert rig.children(ONE, "/local/domain/1") == ["domid", "name", "vm", "elsewhere"]
    assert_sound(rig.store)


def test_a_client_that_comes_again_as_another_domains_has_no_watch_of_it() -> None:
    old = Rig()
    old.watch(ONE, "a")
    rig = Rig(records=old.records)
    rig.connect(ONE, 2)
    rig.store.settle()
    assert list(rig.store._watches.all()) == []
    assert_sound(rig.store)


def test_a_transaction_of_before_the_start_is_to_be_tried_again() -> None:
    old = Rig()
    number = old.begin(ONE)
    rig = Rig(records=old.records)
    for kind, word in ((Kind.READ, "name"), (Kind.WRITE, "a"), (Kind.TRANSACTION_END, "T")):
        with pytest.raises(Failed, match="EAGAIN"):
            rig.ask(ONE, kind, word, transaction=number)
    new = rig.begin(ONE)
    assert new != number
    rig.end(ONE, new)
    with pytest.raises(Failed, match="ENOENT"):
        rig.end(ONE, new)
    again = Rig(records=list(rig.store.dump()))
    with pytest.raises(Failed, match="EAGAIN"):
        again.end(ONE, new)


def test_a_list_in_parts_that_a_start_came_between_is_seen_to_be_another() -> None:
    old = Rig()
    before = old.ask(ONE, Kind.DIRECTORY_PART, "/local/domain/1", "0").split("\0")[0]
    numbers = set()
    rig = Rig(records=old.records)
    for _ in range(50):
        numbers.add(rig.ask(ONE, Kind.DIRECTORY_PART, "/local/domain/1", "0").split("\0")[0])
        rig.write(ONE, f"a{len(numbers)}", "")
    assert before not in numbers


def test_smaller_quotas_than_before_end_nothing() -> None:
    old = Rig()
    for number in range(10):
        old.write(ONE, f"n{number}", "x")
        old.watch(ONE, f"n{number}")
    rig = Rig(Quotas(nodes=3, watches=3, bytes=10), records=old.records)
    rig.store.settle()
    assert state(rig.store) == state(old.store)
    with pytest.raises(Failed, match="ENOSPC"):
        rig.write(ONE, "more", "")
    rig.remove(ONE, "n1")


@pytest.mark.parametrize("record", [b"x", b"\1\0\0\0", b"\1\0\0\0?", b"\5\0\0\0Na\0b\0", b"\2\0\0\0Dx"])
def test_what_is_no_record_is_refused(record: bytes) -> None:
    with pytest.raises(ValueError, match="record of the store"):
        replayed([record])


def test_channels_are_known_by_their_numbers() -> None:
    old = Rig()
    old.offer(5)
    assert list(replayed(old.records)._offers.by_channel) == [ChannelId(5)]


def test_nodes_of_the_start_that_were_removed_stay_removed() -> None:
    rig = Rig()
    rig.remove(HOST, "/tool")
    rig.remove(HOST, "/local")
    for records in (rig.records, list(rig.store.dump())):
        assert state(replayed(records)) == state(rig.store)
    again = Rig(records=rig.records)
    assert again.children(HOST, "/") == ["vm"]
    again.offer(server=0)
    again.store.settle()
    assert again.read(TWO, "/local/domain/1/ch/ring-ref") == "105"
    assert_sound(again.store)
