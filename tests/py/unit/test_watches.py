# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which watches fire, with what path, for whom, and when."""

from __future__ import annotations

import pytest

from kvmchand.ids import ClientId, DomainId
from kvmchand.xenstore import protocol
from kvmchand.xenstore.protocol import Kind
from rig.store import HOST, ONE, TWO, Failed, Rig

HOME = "/local/domain/1"


def test_the_reply_comes_before_the_events_that_the_request_causes(rig: Rig) -> None:
    for request in (protocol.Request(Kind.WATCH, 1, 0, b"a\0t\0"), protocol.Request(Kind.WRITE, 1, 0, b"a\0x")):
        assert protocol.HEADER.unpack_from(rig.store.execute(ONE, request))[0] == request.kind
        assert rig.events == []
        rig.store.flush_events()
        assert rig.events.pop() == (ONE, "a", "t")
        assert rig.events == []


def test_a_watch_fires_for_its_node_and_all_below(rig: Rig) -> None:
    rig.watch(ONE, f"{HOME}/a", "t")
    rig.watch(ONE, f"{HOME}/a/b/c", "u")
    for path in ("a/b", "a", "ab", "b", "a/b/c/d"):
        rig.write(ONE, path, "x")
    rig.ask(ONE, Kind.MKDIR, "a/new")
    rig.ask(ONE, Kind.MKDIR, "a/new")
    rig.permit(ONE, "a/new", "n1")
    rig.remove(ONE, "a/nothing")
    assert rig.told(ONE) == [f"{HOME}/{path}" for path in ("a/b", "a", "a/b/c/d", "a/b/c/d", "a/new", "a/new")]


def test_a_watch_on_the_root_sees_everything(rig: Rig) -> None:
    rig.watch(HOST, "/")
    rig.write(ONE, "a/b", "x")
    rig.write(HOST, "/", "x")
    assert rig.told(HOST) == [f"{HOME}/a/b", "/"]


def test_what_goes_with_a_node_above_fires_its_own_watches_and_each_fires_once(rig: Rig) -> None:
    rig.write(ONE, "a/b/c", "x")
    rig.write(ONE, "a/d", "x")
    for path in ("a", "a/b", "a/b/c", "a/nothing"):
        rig.watch(ONE, path, path)
    rig.watch(HOST, HOME)
    rig.remove(ONE, "a")
    assert sorted(rig.events) == [
        (HOST, f"{HOME}/a", "t"),
        (ONE, "a", "a"),
        (ONE, "a/b", "a/b"),
        (ONE, "a/b/c", "a/b/c"),
    ]


def test_a_relative_watch_has_relative_events_and_an_absolute_one_absolute(rig: Rig) -> None:
    rig.watch(ONE, "a", "relative")
    rig.watch(ONE, f"{HOME}/a", "absolute")
    rig.write(ONE, "a/b", "x")
    assert sorted(rig.events) == [(ONE, f"{HOME}/a/b", "absolute"), (ONE, "a/b", "relative")]


def test_a_watch_is_once_for_each_path_and_token_of_a_client(rig: Rig) -> None:
    rig.watch(ONE, "a", "t")
    rig.watch(ONE, "a", "u")
    rig.watch(ONE, "b", "t")
    other = ClientId(21)
    rig.connect(other, 1)
    rig.watch(other, "a", "t")
    for path in ("a", f"{HOME}/a"):
        with pytest.raises(Failed, match="EEXIST"):
            rig.ask(ONE, Kind.WATCH, path, "t")
    assert rig.usage(1).watches == 4


def test_a_watch_that_is_taken_back_fires_no_more(rig: Rig) -> None:
    rig.watch(ONE, "a", "t")
    rig.watch(ONE, "a", "u")
    for client, path, token in ((ONE, "a", "v"), (ONE, "b", "t"), (ONE, "a/", "t"), (TWO, f"{HOME}/a", "t")):
        with pytest.raises(Failed, match="ENOENT"):
            rig.ask(client, Kind.UNWATCH, path, token)
    assert rig.ask(ONE, Kind.UNWATCH, f"{HOME}/a", "t") == "OK\0"
    rig.write(ONE, "a", "x")
    assert rig.events == [(ONE, "a", "u")]


def test_one_clients_watches_end_with_it_or_when_it_says_so(rig: Rig) -> None:
    other = ClientId(21)
    rig.connect(other, 1)
    for client in (ONE, other):
        rig.watch(client, "a")
        rig.watch(client, "b")
    assert rig.ask(ONE, Kind.RESET_WATCHES, "") == "OK\0"
    rig.write(ONE, "a", "x")
    assert rig.events == [(other, "a", "t")]
    rig.store.disconnect(other)
    rig.events.clear()
    rig.write(ONE, "a", "x")
    assert rig.events == []
    assert rig.usage(1).watches == 0


def test_a_client_may_go_while_its_events_are_handed_out(rig: Rig) -> None:
    for token in "abc":
        rig.watch(ONE, "a", token)
    rig.watch(HOST, HOME)
    taken: list[ClientId] = []

    def take(client: ClientId, message: bytes) -> None:
        taken.append(client)
        rig.store.disconnect(client)

    rig.store._on_event = take
    rig.store.execute(TWO, protocol.Request(Kind.WRITE, 1, 0, b"a\0x"))
    rig.store.execute(ONE, protocol.Request(Kind.WRITE, 1, 0, b"a\0x"))
    rig.store.execute(ONE, protocol.Request(Kind.WRITE, 1, 0, b"a\0x"))
    rig.store.flush_events()
    assert sorted(taken) == [HOST, ONE]


@pytest.mark.parametrize("path", ["", "a/", "//", "a b", "@" + "a" * 2048, "a" * 2049, "/" + "a" * 3072])
def test_what_is_no_path_can_not_be_watched(rig: Rig, path: str) -> None:
    with pytest.raises(Failed, match="EINVAL"):
        rig.ask(ONE, Kind.WATCH, path, "t")


def test_an_event_that_would_be_too_long_is_not_sent(rig: Rig) -> None:
    token = "t" * 2000
    rig.watch(HOST, "/", token)
    rig.write(HOST, "/" + "a" * 2093, "x")
    assert len(rig.told(HOST)) == 1
    rig.write(HOST, "/" + "a" * 2094, "x")
    assert rig.told(HOST) == []


def test_domains_that_come_and_go_are_told_to_the_host_and_those_it_permits(rig: Rig) -> None:
    """As XSA-115 has it. Anybody may watch."""
    for client in (HOST, ONE, TWO):
        rig.watch(client, "@introduceDomain")
        rig.watch(client, "@releaseDomain")
    rig.permit(HOST, "@releaseDomain", "n0", "r2")
    rig.events.clear()
    rig.store.introduce(DomainId(7), "seven", "")
    rig.store.flush_events()
    assert rig.events == [(HOST, "@introduceDomain", "t")]
    rig.events.clear()
    rig.store.release(DomainId(7))
    rig.store.release(DomainId(7))
    rig.store.flush_events()
    assert sorted(rig.events) == [(HOST, "@releaseDomain", "t"), (TWO, "@releaseDomain", "t")]


def test_only_who_owns_the_right_to_be_told_may_pass_it_on(rig: Rig) -> None:
    for name in ("@introduceDomain", "@releaseDomain"):
        with pytest.raises(Failed, match="EACCES"):
            rig.permit(ONE, name, "n1")
        rig.permit(HOST, name, "n1")
        rig.permit(ONE, name, "n1", "r2")
        with pytest.raises(Failed, match="EACCES"):
            rig.permit(TWO, name, "n2")
    with pytest.raises(Failed, match="EINVAL"):
        rig.permit(HOST, "@other", "n1")


def test_the_right_to_be_told_outlives_the_store_and_ends_with_its_domain(rig: Rig) -> None:
    rig.permit(HOST, "@releaseDomain", "n0", "r2")
    rig.permit(HOST, "@introduceDomain", "n2")
    again = Rig(records=rig.records)
    again.watch(TWO, "@releaseDomain")
    again.store.release(DomainId(1))
    again.store.flush_events()
    assert (TWO, "@releaseDomain", "t") in again.events
    again.store.release(DomainId(2))
    again.store.introduce(DomainId(2), "another", "")
    again.connect(ClientId(22), 2)
    again.watch(ClientId(22), "@introduceDomain")
    again.watch(ClientId(22), "@releaseDomain")
    again.events.clear()
    again.store.introduce(DomainId(7), "seven", "")
    again.store.release(DomainId(7))
    again.store.flush_events()
    assert again.events == []


# ---- who is told ----


@pytest.mark.parametrize(
    ("above", "node", "told"),
    [("n1", "n1", False), ("n1", "r1", True), ("r1", "n1", True), ("n1", "w1", False), ("w1", "n1", False)],
)
def test_who_may_read_the_node_or_the_one_above_is_told(rig: Rig, above: str, node: str, told: bool) -> None:
    rig.write(ONE, "a/b", "x")
    rig.permit(ONE, "a", above)
    rig.permit(ONE, "a/b", node)
    rig.watch(TWO, HOME)
    rig.write(ONE, "a/b", "y")
    assert rig.told(TWO) == ([f"{HOME}/a/b"] if told else [])
    rig.remove(ONE, "a/b")
    assert rig.told(TWO) == ([f"{HOME}/a/b"] if told else [])


def test_who_may_read_a_node_no_more_is_told_so(rig: Rig) -> None:
    rig.write(ONE, "a", "x")
    rig.watch(TWO, HOME)
    for permission, told in (("n1", False), ("r1", True), ("n1", True), ("n1", False)):
        rig.permit(ONE, "a", permission)
        assert rig.told(TWO) == ([f"{HOME}/a"] if told else [])
    transaction = rig.begin(ONE)
    rig.permit(ONE, "a", "r1", transaction=transaction)
    rig.end(ONE, transaction)
    assert rig.told(TWO) == [f"{HOME}/a"]
    transaction = rig.begin(ONE)
    rig.permit(ONE, "a", "n1", transaction=transaction)
    rig.remove(ONE, "a", transaction)
    rig.end(ONE, transaction)
    assert rig.told(TWO) == [f"{HOME}/a"]


def test_five_hundred_watches_elsewhere_are_not_looked_at(rig: Rig) -> None:
    for number in range(500):
        rig.watch(TWO, f"w/{number}")
    looked: list[str] = []
    at = rig.store._watches.at
    rig.store._watches.at = lambda path: looked.append(path) or at(path)  # type: ignore[method-assign, func-returns-value]
    rig.write(ONE, "a", "x")
    assert looked == [f"{HOME}/a", HOME, "/local/domain", "/local", "/"]
    assert sum(len(at(path)) for path in looked) == 0


def test_two_watches_with_one_token_have_one_event_of_a_change(rig: Rig) -> None:
    rig.watch(ONE, "a", "t")
    rig.watch(ONE, "a/b", "t")
    rig.watch(ONE, f"{HOME}/a/b/c", "t")
    rig.write(ONE, "a/b/c", "x")
    assert sorted(rig.told(ONE)) == [f"{HOME}/a/b/c", "a/b/c"]
