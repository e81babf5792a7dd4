# SPDX-License-Identifier: LGPL-2.1-or-later
"""Paths of the tree: what is one, what it resolves to, and who may write there."""

from __future__ import annotations

import string

import pytest

from kvmchand.errors import AccessDenied, InvalidArgument, TooLong
from kvmchand.ids import HOST, DomainId
from kvmchand.xenstore import paths

ALLOWED = string.ascii_letters + string.digits + "-/_@"


@pytest.mark.parametrize(
    ("path", "caller", "absolute"),
    [
        ("a", 0, "/local/domain/0/a"),
        ("data/vchan/1/2", 7, "/local/domain/7/data/vchan/1/2"),
        ("/a", 7, "/a"),
        ("/local/domain/3/a", 7, "/local/domain/3/a"),
        ("@x", 0, "/local/domain/0/@x"),
        (ALLOWED.replace("/", ""), 1, f"/local/domain/1/{ALLOWED.replace('/', '')}"),
    ],
)
def test_a_path_resolves(path: str, caller: int, absolute: str) -> None:
    assert paths.resolve(path, DomainId(caller)) == absolute


@pytest.mark.parametrize("path", ["", "/", "a/", "/a/", "a//b", "//a", "//"])
def test_a_path_has_no_empty_part(path: str) -> None:
    with pytest.raises(InvalidArgument):
        paths.resolve(path, HOST)


@pytest.mark.parametrize("code", [each for each in range(128) if chr(each) not in ALLOWED] + [0x80, 0xE9, 0x2F, 0xD800, 0x1F600])
def test_only_xenstores_characters_may_be_in_a_path(code: int) -> None:
    path = f"a{chr(code)}b"
    if chr(code) in ALLOWED:
        paths.resolve(path, HOST)
        return
    with pytest.raises(InvalidArgument) as caught:
        paths.resolve(path, HOST)
    assert repr(chr(code)) in caught.value.sentence


@pytest.mark.parametrize(
    ("path", "fits"),
    [
        ("a" * paths.RELATIVE_MAX, True),
        ("a" * (paths.RELATIVE_MAX + 1), False),
        ("/" + "a" * (paths.ABSOLUTE_MAX - 1), True),
        ("/" + "a" * paths.ABSOLUTE_MAX, False),
    ],
)
def test_a_path_has_xenstores_length_at_most(path: str, fits: bool) -> None:
    if fits:
        assert paths.resolve(path, HOST).endswith(path)
        return
    with pytest.raises(TooLong) as caught:
        paths.resolve(path, HOST)
    assert str(len(path)) in caught.value.sentence


def test_the_limits_are_xenstores() -> None:
    assert (paths.ABSOLUTE_MAX, paths.RELATIVE_MAX) == (3072, 2048)


@pytest.mark.parametrize(
    ("path", "caller", "writable"),
    [
        ("/local/domain/1/a", 1, True),
        ("/local/domain/1/a/b", 1, True),
        ("/local/domain/1", 1, False),
        ("/local/domain/10/a", 1, False),
        ("/local/domain/1/a", 10, False),
        ("/local/domain/0/a", 1, False),
        ("/local/domain/2/a", 1, False),
        ("/a", 1, False),
        ("/local/domain/1/a", 0, True),
        ("/local/domain/9/a", 0, True),
        ("/a", 0, True),
    ],
)
def test_a_domain_writes_below_its_own_node_and_domain_0_anywhere(path: str, caller: int, writable: bool) -> None:
    if writable:
        paths.require_writable(path, DomainId(caller))
        return
    with pytest.raises(AccessDenied):
        paths.require_writable(path, DomainId(caller))
