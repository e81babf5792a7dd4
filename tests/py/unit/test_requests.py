# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each request of the store's clients, what it answers, and every way in which it is refused."""

from __future__ import annotations

import pytest

from kvmchand.ids import DomainId
from kvmchand.xenstore.nodes import Node
from kvmchand.xenstore.protocol import Kind
from rig.store import HOST, ONE, TWO, Failed, Rig, assert_sound

# ---- what there is from the start ----


def test_the_tree_of_domains(rig: Rig) -> None:
    assert rig.children(HOST, "/") == ["local", "vm", "tool"]
    assert rig.children(HOST, "/local/domain") == ["0", "1", "2"]
    assert rig.children(HOST, "/local/domain/1") == ["domid", "name", "vm"]
    assert rig.children(HOST, "/local/domain/2") == ["domid", "name"]
    assert rig.children(HOST, "/tool") == ["xenstored"]
    assert {path: rig.read(ONE, path) for path in ("domid", "name", "vm")} == {"domid": "1", "name": "one", "vm": "/vm/aaaa-1"}
    assert rig.read(ONE, "/vm/aaaa-1/name") == "one"
    assert rig.read(ONE, "/vm/aaaa-1/uuid") == "aaaa-1"
    assert rig.read(HOST, "name") == "Domain-0"
    assert rig.permissions(HOST, "/") == ["n0"]
    assert rig.permissions(ONE, "/local/domain/1") == ["n1"]
    assert rig.permissions(ONE, "name") == ["n0", "r1"]


def test_a_domain_that_goes_takes_all_that_is_its_along(rig: Rig) -> None:
    rig.write(HOST, "/tool/for-one", "")
    rig.permit(HOST, "/tool/for-one", "n1")
    rig.write(HOST, "/tool/for-both", "")
    rig.permit(HOST, "/tool/for-both", "n0", "r1", "r2")
    rig.watch(HOST, "/tool")
    rig.store.release(DomainId(1))
    rig.store.flush_events()
    assert rig.told(HOST) == ["/tool/for-one"]
    assert rig.children(HOST, "/local/domain") == ["0", "2"]
    assert rig.children(HOST, "/vm") == []
    assert rig.children(HOST, "/tool") == ["xenstored", "for-both"]
    assert rig.permissions(HOST, "/tool/for-both") == ["n0", "r1", "r2"]  # the first of which is void
    rig.store.disconnect(ONE)
    assert DomainId(1) not in rig.store._ledger.usage


def test_a_domain_that_owns_the_root_and_goes_leaves_it_to_the_host(rig: Rig) -> None:
    rig.permit(HOST, "/", "n1", "r2")
    rig.write(ONE, "/made", "x")
    rig.store.release(DomainId(1))
    rig.store.flush_events()
    assert rig.permissions(HOST, "/") == ["n0"]
    assert rig.children(HOST, "/") == ["local", "vm", "tool"]
    assert rig.children(HOST, "/local/domain") == ["0", "2"]
    rig.write(TWO, "a", "x")
    assert_sound(rig.store)


def test_introducing_a_domain_again_changes_nothing_and_another_of_its_number_has_nothing_of_it(rig: Rig) -> None:
    rig.write(ONE, "mine", "x")
    records = len(rig.records)
    rig.store.introduce(DomainId(1), "one", "aaaa-1")
    assert rig.read(ONE, "mine") == "x"
    assert len(rig.records) == records
    rig.store.introduce(DomainId(1), "other", "bbbb")
    assert rig.children(HOST, "/local/domain/1") == ["domid", "name", "vm"]
    assert rig.read(HOST, "/local/domain/1/name") == "other"
    assert rig.children(HOST, "/vm") == ["bbbb"]


# ---- read, write, make, remove ----


def test_what_is_written_is_read_with_every_byte(rig: Rig) -> None:
    value = bytes(range(256)) * 8
    rig.raw(ONE, Kind.WRITE, b"data\0" + value)
    assert rig.raw(ONE, Kind.READ, b"/local/domain/1/data\0") == value
    rig.write(ONE, "data", "")
    assert rig.read(ONE, "data") == ""


def test_writing_makes_the_nodes_above_and_mkdir_leaves_what_is_there(rig: Rig) -> None:
    rig.write(ONE, "a/b/c", "x")
    assert rig.read(ONE, "a") == ""
    assert rig.children(ONE, "a/b") == ["c"]
    assert rig.ask(ONE, Kind.MKDIR, "a/b/c") == "OK\0"
    assert rig.read(ONE, "a/b/c") == "x"
    assert rig.ask(ONE, Kind.MKDIR, "d/e") == "OK\0"
    assert rig.read(ONE, "d/e") == ""


def test_removing_takes_all_below_and_what_is_not_there_is_no_error_if_its_parent_is(rig: Rig) -> None:
    rig.write(ONE, "a/b/c", "x")
    rig.write(ONE, "a/d", "x")
    rig.remove(ONE, "a/b")
    assert rig.children(ONE, "a") == ["d"]
    rig.remove(ONE, "a/b")
    with pytest.raises(Failed, match="ENOENT"):
        rig.remove(ONE, "a/b/c")
    rig.remove(ONE, "a")
    with pytest.raises(Failed, match="ENOENT"):
        rig.read(ONE, "a/d")


def test_the_root_is_not_removed_and_a_domains_node_by_domain_0_only(rig: Rig) -> None:
    with pytest.raises(Failed, match="EINVAL"):
        rig.remove(HOST, "/")
    with pytest.raises(Failed, match="EACCES"):
        rig.remove(ONE, "/local/domain/1")
    rig.permit(ONE, "/local/domain/1", "n1", "b2")
    with pytest.raises(Failed, match="EACCES"):
        rig.remove(TWO, "/local/domain/1")
    rig.remove(HOST, "/local/domain/1")


def test_the_root_can_be_read_and_written(rig: Rig) -> None:
    rig.write(HOST, "/", "value")
    assert rig.read(HOST, "/") == "value"
    with pytest.raises(Failed, match="EACCES"):
        rig.read(ONE, "/")


@pytest.mark.parametrize(
    "path",
    ["", "/a/", "a/", "//", "/a//b", "a b", "/a\n", "\xe9", "@releaseDomain", "/" + "a" * 3072, "a" * 2049, "."],
)
@pytest.mark.parametrize("kind", [Kind.READ, Kind.DIRECTORY, Kind.GET_PERMS, Kind.MKDIR, Kind.RM, Kind.WRITE])
def test_what_is_no_path_is_einval(rig: Rig, kind: Kind, path: str) -> None:
    with pytest.raises(Failed, match="EINVAL"):
        rig.raw(HOST, kind, path.encode("latin-1") + b"\0")


@pytest.mark.parametrize("path", ["/" + "a" * 3071, "a" * 2048, "a-_@Z9/b"])
def test_the_longest_paths_are_paths(rig: Rig, path: str) -> None:
    rig.write(HOST, path, "x")
    assert rig.read(HOST, path) == "x"


@pytest.mark.parametrize("kind", [Kind.READ, Kind.DIRECTORY, Kind.GET_PERMS, Kind.MKDIR, Kind.RM, Kind.GET_DOMAIN_PATH])
@pytest.mark.parametrize("payload", [b"", b"name", b"name\0x", b"name\0name\0"])
def test_one_string_is_what_these_take(rig: Rig, kind: Kind, payload: bytes) -> None:
    with pytest.raises(Failed, match="EINVAL"):
        rig.raw(ONE, kind, payload)


@pytest.mark.parametrize("kind", [Kind.WATCH, Kind.UNWATCH, Kind.DIRECTORY_PART])
@pytest.mark.parametrize("payload", [b"", b"a\0", b"a\0b", b"a\0b\0c\0"])
def test_two_strings_are_what_these_take(rig: Rig, kind: Kind, payload: bytes) -> None:
    with pytest.raises(Failed, match="EINVAL"):
        rig.raw(ONE, kind, payload)


def test_a_write_without_a_nul_is_einval(rig: Rig) -> None:
    for payload in (b"", b"a"):
        with pytest.raises(Failed, match="EINVAL"):
            rig.raw(ONE, Kind.WRITE, payload)


# ---- children ----


def test_children_that_no_reply_can_hold_are_had_in_parts(rig: Rig) -> None:
    names = [f"child-{number:04}" for number in range(1000)]
    for name in names:
        rig.write(ONE, f"many/{name}", "")
    with pytest.raises(Failed, match="E2BIG"):
        rig.children(ONE, "many")
    offset, found, generations = 0, [], set()
    while True:
        generation, *part = rig.ask(ONE, Kind.DIRECTORY_PART, "many", str(offset)).split("\0")
        assert part.pop() == ""
        generations.add(generation)
        offset += sum(len(name) + 1 for name in part)
        found += part
        if part[-1] == "":
            break
    assert found == [*names, ""]
    assert len(generations) == 1
    rig.write(ONE, "many/another", "")
    assert rig.ask(ONE, Kind.DIRECTORY_PART, "many", "0").split("\0")[0] not in generations


def test_a_list_of_children_just_fits_or_just_does_not(rig: Rig) -> None:
    for number in range(64):
        rig.write(ONE, f"many/{number:063}", "")
    assert len(rig.children(ONE, "many")) == 64
    rig.write(ONE, "many/x", "")
    with pytest.raises(Failed, match="E2BIG"):
        rig.children(ONE, "many")


def test_a_part_behind_the_last_child_is_an_empty_name(rig: Rig) -> None:
    assert rig.ask(ONE, Kind.DIRECTORY_PART, "name", "0").split("\0")[1:] == ["", ""]
    assert rig.ask(ONE, Kind.DIRECTORY_PART, "/local/domain/1", "4000000000").split("\0")[1:] == ["", ""]
    for offset in ("", "-1", "x", "1x"):
        with pytest.raises(Failed, match="EINVAL"):
            rig.ask(ONE, Kind.DIRECTORY_PART, "name", offset)


# ---- about domains ----


def test_a_domains_path_is_told_whether_it_is_there_or_not(rig: Rig) -> None:
    assert rig.ask(TWO, Kind.GET_DOMAIN_PATH, "1") == "/local/domain/1\0"
    assert rig.ask(TWO, Kind.GET_DOMAIN_PATH, "77") == "/local/domain/77\0"
    for word in ("", "x", "-1", "1 ", "9" * 10):
        with pytest.raises(Failed, match="EINVAL"):
            rig.ask(TWO, Kind.GET_DOMAIN_PATH, word)


def test_domain_0_may_ask_who_is_there(rig: Rig) -> None:
    assert [rig.ask(HOST, Kind.IS_DOMAIN_INTRODUCED, each) for each in ("0", "1", "7")] == ["T\0", "T\0", "F\0"]
    with pytest.raises(Failed, match="EACCES"):
        rig.ask(ONE, Kind.IS_DOMAIN_INTRODUCED, "1")


@pytest.mark.parametrize("kind", [Kind.INTRODUCE, Kind.RELEASE, Kind.RESUME, Kind.SET_TARGET])
def test_domains_come_and_go_by_the_daemon_only(rig: Rig, kind: Kind) -> None:
    with pytest.raises(Failed, match="ENOSYS"):
        rig.ask(HOST, kind, "1", "2", "3")
    with pytest.raises(Failed, match="EACCES"):
        rig.ask(ONE, kind, "1", "2", "3")


@pytest.mark.parametrize("kind", [Kind.WATCH_EVENT, Kind.ERROR, 20, 23, 0xFFFF, 0xFFFFFFFF])
def test_what_is_no_request_is_enosys(rig: Rig, kind: int) -> None:
    for client in (HOST, ONE):
        with pytest.raises(Failed, match="ENOSYS"):
            rig.raw(client, kind, b"a\0", transaction=99)


def test_control_has_a_check_of_the_tree(rig: Rig) -> None:
    assert rig.ask(HOST, Kind.CONTROL, "check") == "OK\0"
    assert "check" in rig.ask(HOST, Kind.CONTROL, "help")
    rig.store._tree.nodes["/tool"].children["ghost"] = None
    assert "ghost" in rig.ask(HOST, Kind.CONTROL, "check")
    del rig.store._tree.nodes["/tool"].children["ghost"]
    for words in (("memreport",), ("check", "x"), ("help", "x"), ("",)):
        with pytest.raises(Failed, match="EINVAL"):
            rig.ask(HOST, Kind.CONTROL, *words)
    with pytest.raises(Failed, match="EACCES"):
        rig.ask(ONE, Kind.CONTROL, "check")


def test_many_children_are_made_without_copying_any_node(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Node] = []
    copy = Node.copy

    def noted_copy(node: Node) -> Node:
        copied.append(node)
        return copy(node)

    monkeypatch.setattr(Node, "copy", noted_copy)
    for number in range(1000):
        rig.write(ONE, f"many/{number}", "")
    assert copied == []
    transaction = rig.begin(ONE)
    rig.read(ONE, "many", transaction)
    for number in range(1000):
        rig.write(ONE, f"many/more{number}", "")
    assert len(copied) == 1
    rig.remove(ONE, "many")
    assert len(copied) == 1


def test_paths_as_deep_as_they_can_be(rig: Rig) -> None:
    deep = "/local/domain/1" + "/a" * 1528
    rig.watch(ONE, "a")
    rig.write(ONE, deep, "x")
    assert rig.read(ONE, deep) == "x"
    with pytest.raises(Failed, match="EACCES"):
        rig.read(TWO, deep)
    transaction = rig.begin(HOST)  # more than another domain's transaction may keep
    rig.remove(HOST, "/local/domain/1/a/a", transaction)
    rig.end(HOST, transaction)
    assert rig.children(ONE, "a") == []
    assert rig.told(ONE) == [deep.removeprefix("/local/domain/1/"), "a/a"]
