# SPDX-License-Identifier: LGPL-2.1-or-later
"""The xenstore wire format."""

from __future__ import annotations

import errno
import re
import struct

import pytest

from kvmchand.errors import InvalidArgument, ProtocolError
from kvmchand.xenstore import protocol
from kvmchand.xenstore.protocol import Kind, Request
from rig.paths import REFERENCE

READ = struct.pack("=IIII", Kind.READ, 7, 9, 4) + b"abc\0"


def test_a_request_is_taken_when_it_is_whole() -> None:
    for cut in range(len(READ)):
        assert protocol.take(READ[:cut]) is None
    assert protocol.take(READ) == (Request(Kind.READ, 7, 9, b"abc\0"), len(READ))
    assert protocol.take(bytearray(READ + b"next")) == (Request(Kind.READ, 7, 9, b"abc\0"), len(READ))


def test_a_request_may_be_of_any_kind_and_without_payload() -> None:
    assert protocol.take(struct.pack("=IIII", 0xFFFF, 1, 2, 0)) == (Request(0xFFFF, 1, 2, b""), 16)


def test_the_longest_request_is_taken_and_a_longer_one_refused_by_its_header() -> None:
    payload = b"x" * protocol.PAYLOAD_MAX
    assert protocol.take(struct.pack("=IIII", 2, 0, 0, 4096) + payload) == (Request(2, 0, 0, payload), 16 + 4096)
    for length in (4097, 0xFFFFFFFF):
        with pytest.raises(ProtocolError, match=str(length)):
            protocol.take(struct.pack("=IIII", 2, 0, 0, length))


def test_a_reply_repeats_what_was_asked() -> None:
    request = Request(Kind.WRITE, 3, 4, b"")
    assert protocol.reply(request, b"OK\0") == struct.pack("=IIII", Kind.WRITE, 3, 4, 3) + b"OK\0"
    assert protocol.reply(request, b"", Kind.READ) == struct.pack("=IIII", Kind.READ, 3, 4, 0)


def test_an_error_has_its_name_and_one_without_a_name_is_einval() -> None:
    request = Request(Kind.READ, 3, 4, b"")
    for number, name in ((errno.ENOENT, b"ENOENT\0"), (errno.EPERM, b"EPERM\0"), (errno.EPROTO, b"EINVAL\0"), (-1, b"EINVAL\0")):
        assert protocol.error_reply(request, number) == struct.pack("=IIII", Kind.ERROR, 3, 4, len(name)) + name


def test_a_reply_that_is_too_long_is_e2big() -> None:
    request = Request(Kind.DIRECTORY, 1, 0, b"")
    assert len(protocol.reply(request, b"x" * 4096)) == 16 + 4096
    assert protocol.reply(request, b"x" * 4097) == protocol.error_reply(request, errno.E2BIG)


def test_an_event_has_path_and_token_and_is_not_sent_where_it_is_too_long() -> None:
    assert protocol.event("/a", b"t") == struct.pack("=IIII", Kind.WATCH_EVENT, 0, 0, 5) + b"/a\0t\0"
    assert protocol.event("/" + "a" * 3071, b"t" * 1022) is not None
    assert protocol.event("/" + "a" * 3071, b"t" * 1023) is None


@pytest.mark.parametrize("payload", [b"", b"a", b"a\0b", b"a\0b\0c\0", b"\0", b"a\0b\0c"])
def test_two_strings_are_two_with_a_nul_each(payload: bytes) -> None:
    assert protocol.strings(b"a\0b\0", 2) == [b"a", b"b"]
    with pytest.raises(InvalidArgument):
        protocol.strings(payload, 2)


def test_names_are_ascii() -> None:
    assert protocol.text(b"abc") == "abc"
    with pytest.raises(InvalidArgument):
        protocol.text(b"\xff")


def test_numbers_and_names_are_those_of_xens_header() -> None:
    header = REFERENCE / "include/xen/io/xs_wire.h"
    if not header.exists():
        pytest.skip("Xen's headers are not here; ./run setup fetches them")
    text = header.read_text()
    names = re.findall(r"^    XS_(\w+)( = XS_SET_TARGET \+ 2)?,", text, re.MULTILINE)
    number, expected = -1, {}
    for name, jump in names:
        if name == "TYPE_COUNT":
            break
        number += 2 if jump else 1
        expected[name] = number
    assert {kind.name: kind.value for kind in Kind} == expected
    errors = re.findall(r"XSD_ERROR\((\w+)\)", text)[1:]
    assert [errno.errorcode[number] for number in protocol._ERRORS] == errors
    assert f"XENSTORE_PAYLOAD_MAX {protocol.PAYLOAD_MAX}\n" in text
