# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what with the store's nodes, and what others are told of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from kvmchand.ids import ClientId, DomainId
from kvmchand.xenstore.protocol import Kind
from rig.store import HOST, ONE, TWO, Failed, Rig


def may(action: Callable[[], object]) -> bool:
    try:
        action()
    except Failed as error:
        assert str(error) == "EACCES"
        return False
    return True


PATH = "/local/domain/1/node"


@pytest.mark.parametrize(
    ("permissions", "reads", "writes"),
    [
        (["n1"], False, False),
        (["r1"], True, False),
        (["w1"], False, True),
        (["b1"], True, True),
        (["n1", "n2"], False, False),
        (["n1", "r2"], True, False),
        (["n1", "w2"], False, True),
        (["n1", "b2"], True, True),
        (["b1", "n2"], False, False),
        (["b1", "r2"], True, False),
        (["n1", "r2", "b2"], True, False),
        (["n1", "b0"], False, False),
    ],
)
def test_the_first_entry_is_for_all_who_have_none_of_their_own(
    rig: Rig, permissions: list[str], reads: bool, writes: bool
) -> None:
    rig.write(ONE, PATH, "x")
    rig.permit(ONE, PATH, *permissions)
    assert rig.permissions(ONE, PATH) == permissions
    for read in (Kind.READ, Kind.DIRECTORY, Kind.GET_PERMS):
        assert may(partial(rig.ask, TWO, read, PATH)) == reads
    assert may(lambda: rig.ask(TWO, Kind.DIRECTORY_PART, PATH, "0")) == reads
    assert may(lambda: rig.write(TWO, PATH, "y")) == writes
    assert may(lambda: rig.ask(TWO, Kind.MKDIR, PATH)) == writes
    assert may(lambda: rig.ask(TWO, Kind.MKDIR, PATH + "/below")) == writes
    assert not may(lambda: rig.permit(TWO, PATH, "n2"))
    for client in (HOST, ONE):
        assert rig.read(client, PATH) == ("y" if writes else "x")
    for client in (HOST, ONE):
        rig.write(client, PATH, "z")
    assert may(lambda: rig.remove(TWO, PATH)) == writes


@pytest.mark.parametrize("above", ["n1", "r1", "w1", "b1"])
@pytest.mark.parametrize("depth", ["/a", "/a/b/c"])
def test_of_what_is_not_there_one_is_told_as_the_nearest_node_above_permits(rig: Rig, above: str, depth: str) -> None:
    rig.write(ONE, PATH, "")
    rig.permit(ONE, PATH, above)
    with pytest.raises(Failed, match="ENOENT" if above in ("r1", "b1") else "EACCES"):
        rig.read(TWO, PATH + depth)
    with pytest.raises(Failed, match="ENOENT" if above in ("w1", "b1") else "EACCES"):
        rig.permit(TWO, PATH + depth, "n2")
    with pytest.raises(Failed, match="ENOENT"):
        rig.read(ONE, PATH + depth)


def test_a_node_that_may_not_be_read_is_told_as_one_that_is_not_there(rig: Rig) -> None:
    rig.write(ONE, "secret", "x")
    answers = []
    for path in ("/local/domain/1/secret", "/local/domain/1/nothing"):
        for kind in (Kind.READ, Kind.DIRECTORY, Kind.GET_PERMS, Kind.RM, Kind.MKDIR):
            with pytest.raises(Failed) as caught:
                rig.ask(TWO, kind, path)
            answers.append(str(caught.value))
    assert set(answers) == {"EACCES"}


def test_what_a_domain_makes_is_its_own_and_what_domain_0_makes_is_of_the_node_above(rig: Rig) -> None:
    rig.write(HOST, "/tool/shared", "")
    rig.permit(HOST, "/tool/shared", "n0", "b1", "r2")
    rig.write(ONE, "/tool/shared/a/b", "")
    assert rig.permissions(ONE, "/tool/shared/a") == ["n1", "b1", "r2"]
    assert rig.permissions(ONE, "/tool/shared/a/b") == ["n1", "b1", "r2"]
    rig.write(HOST, "/tool/shared/a/c", "")
    assert rig.permissions(HOST, "/tool/shared/a/c") == ["n1", "b1", "r2"]


def test_only_domain_0_gives_a_node_away(rig: Rig) -> None:
    rig.write(ONE, "a", "x")
    with pytest.raises(Failed, match="EPERM"):
        rig.permit(ONE, "a", "n2")
    rig.permit(HOST, "/local/domain/1/a", "n2", "r1")
    assert rig.usage(2).nodes == 2
    with pytest.raises(Failed, match="EACCES"):
        rig.permit(ONE, "a", "n1")


@pytest.mark.parametrize("words", [(), ("n",), ("1n",), ("x1",), ("n-1",), ("n1 ",), ("n1", ""), ("n" + "9" * 10,), ("",)])
def test_permissions_that_are_none_are_einval(rig: Rig, words: tuple[str, ...]) -> None:
    with pytest.raises(Failed, match="EINVAL"):
        rig.permit(HOST, "/tool", *words)


def test_a_domain_that_is_not_there_gets_no_right(rig: Rig) -> None:
    rig.write(ONE, "a", "x")
    rig.permit(ONE, "a", "n1", "r9", "r2")
    assert rig.permissions(ONE, "a") == ["n1", "r9", "r2"]
    rig.store.introduce(DomainId(9), "nine", "")
    rig.connect(ClientId(19), 9)
    with pytest.raises(Failed, match="EACCES"):
        rig.read(ClientId(19), "/local/domain/1/a")
    rig.permit(ONE, "a", "n1", "r9")
    assert rig.read(ClientId(19), "/local/domain/1/a") == "x"
    rig.store.release(DomainId(9))
    with pytest.raises(Failed, match="ENOENT"):
        rig.permit(HOST, "/local/domain/1/a", "n9")


@pytest.mark.parametrize(
    ("client", "path"), [(ONE, "/local/domain/2/x"), (TWO, "/x"), (ONE, "/local/domain/0/x"), (ONE, "/vm/x")]
)
def test_a_domain_writes_nowhere_but_below_its_own_node(rig: Rig, client: ClientId, path: str) -> None:
    with pytest.raises(Failed, match="EACCES"):
        rig.write(client, path, "")
    with pytest.raises(Failed, match="EACCES"):
        rig.ask(client, Kind.MKDIR, path)
