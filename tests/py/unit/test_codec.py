# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages to bytes and back, and everything that is no message: a ProtocolError, whatever the
bytes.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from kvmchand.errors import ProtocolError
from kvmchand.ids import ClientId, Size
from kvmchand.wire import client, control, ivshmem, libvirt, local, store, vfio
from kvmchand.wire.codec import PACKET_MAX, TEXT_MAX, Codec

PROTOCOLS: list[tuple[Codec, dict[str, type]]] = [
    (client.requests, client.REQUESTS),
    (client.replies, client.REPLIES),
    (local.to_local, local.TO_LOCAL),
    (local.to_main, local.TO_MAIN),
    (ivshmem.to_ivshmem, ivshmem.TO_IVSHMEM),
    (ivshmem.to_main, ivshmem.TO_MAIN),
    (libvirt.to_libvirt, libvirt.TO_LIBVIRT),
    (libvirt.to_main, libvirt.TO_MAIN),
    (vfio.to_vfio, vfio.TO_VFIO),
    (vfio.to_main, vfio.TO_MAIN),
    (store.to_store, store.TO_STORE),
    (store.from_store, store.FROM_STORE),
    (store.to_forwarder, store.TO_FORWARDER),
    (store.from_forwarder, store.FROM_FORWARDER),
    (control.to_host, control.TO_HOST),
    (control.to_guest, control.TO_GUEST),
    (control.to_control, control.TO_CONTROL),
    (control.to_main, control.TO_MAIN),
]
KINDS = [(codec, kind, cls) for codec, kinds in PROTOCOLS for kind, cls in kinds.items()]
RECORDS: dict[str, type] = {
    each.__name__: each
    for each in (
        client.DomainInfo,
        libvirt.StaleDevice,
        client.GuestInfo,
        client.LinkInfo,
        client.DeviceInfo,
        client.ChannelInfo,
        client.Grant,
        client.Pages,
    )
}
MESSAGES = {"Request": client.REQUESTS, "ClientReply": client.REPLIES}
"""What may stand in a field, by its annotation."""

# Of each type: what is just allowed, and what is just not.
TYPES: dict[str, tuple[list[Any], list[Any]]] = {
    "int": ([-(2**31), -1, 0, 1, 2**31 - 1], [-(2**31) - 1, 2**31]),
    "Size": ([0, 1, 2**63 - 1], [-1, 2**63]),
    "DomainId": ([0, 2**31 - 1], [-1, 2**31]),
    "ChannelId": ([0, 2**63 - 1], [-1, 2**63]),
    "ClientId": ([0, 2**63 - 1], [-1, 2**63]),
    "DeviceId": ([0, 2**63 - 1], [-1, 2**63]),
    "str": (["", "x", 'ä"\\\n\0\u2028', "x" * 4096, "ä" * 2048], ["x" * 4097, "ä" * 2049, "\ud800"]),
    "bytes": ([b"", b"x", bytes(range(256)), bytes(24000), b"\n{}\n"], []),
    "bool": ([True, False], []),
}
NUMBERS = ("int", "Size", "DomainId", "ChannelId", "ClientId", "DeviceId")


def head_of(packet: bytes) -> dict[str, Any]:
    """The JSON object of a packet."""
    decoded: dict[str, Any] = json.loads(packet.partition(b"\n")[0])
    return decoded


def packet_of(codec: Codec, value: dict[str, Any], cls: type) -> bytes:
    """A packet with `value` for its object, and the bytes behind it that a sample of `cls` has."""
    return json.dumps(value).encode() + b"\n" + codec.encode(make(cls)).partition(b"\n")[2]


def wrong_types(kind: str) -> list[Any]:
    """Values that are of none of the types, or of another than `kind`."""
    values: list[Any] = [None, 1.0, {}, float("nan"), [None]]
    if kind not in (*NUMBERS, "bytes"):
        values += [0, 1]
    if kind != "str":
        values += ["", "1", "true", '{"type":"done"}']
    if kind != "bool":
        values += [True, False]
    if not kind.startswith("tuple"):
        values += [[], [1]]
    return values


def fields_of(cls: type) -> dict[str, str]:
    return {name: str(kind) for name, kind in cls.__annotations__.items()}


def sample(kind: str, which: int = 1) -> Any:
    """A value that a field of this type may have."""
    if kind.startswith("tuple["):
        record = RECORDS[kind.removeprefix("tuple[").removesuffix(", ...]")]
        return tuple(make(record, each) for each in range(min(which, 3)))  # not the longest: a packet holds few of these
    if kind in RECORDS:
        return make(RECORDS[kind], which)
    if kind in MESSAGES:
        kinds = list(MESSAGES[kind].values())
        return make(kinds[which % len(kinds)], which)
    allowed = TYPES[kind][0]
    return allowed[which % len(allowed)]


def make(cls: type, which: int = 1) -> Any:
    return cls(*[sample(kind, which) for kind in fields_of(cls).values()])


def object_of(codec: Codec, cls: type) -> dict[str, Any]:
    """A message of `cls` as JSON decodes it."""
    return head_of(codec.encode(make(cls)))


def refuse(codec: Codec, value: Any) -> str:
    """Decoding this fails; with which sentence."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    with pytest.raises(ProtocolError) as caught:
        codec.decode(data)
    assert len(caught.value.sentence) < 200
    assert caught.value.sentence.isprintable()
    return caught.value.sentence


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize(("codec", "kind", "cls"), KINDS)
def test_a_message_comes_back_the_same(codec: Codec, kind: str, cls: type, which: int) -> None:
    message = make(cls, which)
    data = codec.encode(message)
    assert head_of(data)["type"] == kind
    assert codec.decode(data) == message


@pytest.mark.parametrize(("codec", "kind", "cls"), KINDS)
def test_a_field_is_missing(codec: Codec, kind: str, cls: type) -> None:
    for name in fields_of(cls):
        value = object_of(codec, cls)
        del value[name]
        sentence = refuse(codec, packet_of(codec, value, cls))
        assert kind in sentence
        assert name in sentence


@pytest.mark.parametrize(("codec", "kind", "cls"), KINDS)
def test_a_field_is_too_many(codec: Codec, kind: str, cls: type) -> None:
    sentence = refuse(codec, packet_of(codec, {**object_of(codec, cls), "surplus": 1}, cls))
    assert kind in sentence
    assert "surplus" in sentence


@pytest.mark.parametrize(("codec", "kind", "cls"), KINDS)
def test_a_field_is_of_another_type(codec: Codec, kind: str, cls: type) -> None:
    for name, annotation in fields_of(cls).items():
        for wrong in wrong_types(annotation):
            sentence = refuse(codec, packet_of(codec, {**object_of(codec, cls), name: wrong}, cls))
            assert kind in sentence
            assert name in sentence


@pytest.mark.parametrize(("codec", "kind", "cls"), KINDS)
def test_a_field_is_just_in_and_just_out_of_its_range(codec: Codec, kind: str, cls: type) -> None:
    for name, annotation in fields_of(cls).items():
        if annotation not in TYPES or annotation == "bytes":
            continue
        allowed, refused = TYPES[annotation]
        for value in allowed:
            decoded = codec.decode(packet_of(codec, {**object_of(codec, cls), name: value}, cls))
            assert getattr(decoded, name) == value
        for value in refused:
            assert name in refuse(codec, packet_of(codec, {**object_of(codec, cls), name: value}, cls))


@pytest.mark.parametrize(("codec", "kind", "cls"), KINDS)
def test_the_bytes_that_follow_are_as_many_as_the_message_says(codec: Codec, kind: str, cls: type) -> None:
    head = object_of(codec, cls)
    field = next((name for name, annotation in fields_of(cls).items() if annotation == "bytes"), None)
    if field is None:
        assert "bytes behind" in refuse(codec, json.dumps(head).encode() + b"\nx")
        return
    for size, following in (
        (0, b"x"),
        (1, b""),
        (2, b"x"),
        (1, b"xx"),
        (-1, b""),
        (PACKET_MAX + 1, b"x"),
        (True, b"x"),
        ("x", b"x"),
    ):
        sentence = refuse(codec, json.dumps({**head, field: size}).encode() + b"\n" + following)
        assert kind in sentence
        assert field in sentence
    for following in (b"", b"x", b"\n", b"\n\n{}", bytes(range(256))):
        data = json.dumps({**head, field: len(following)}).encode() + b"\n" + following
        assert getattr(codec.decode(data), field) == following


def test_a_message_in_another_is_judged_as_strictly() -> None:
    good = object_of(local.to_main, local.Ask)
    bad: list[Any] = [
        None,
        1,
        "",
        [],
        {},
        '{"type":"list","after":0}',
        {"type": "list"},
        {"type": "list", "after": -1},
        {"type": "list", "after": 0, "surplus": 1},
        {"type": "done"},
        {"type": ["list"], "after": 0},
        {"type": "ask", "client": 1, "request": {"type": "list", "after": 0}},
    ]
    for wrong in bad:
        assert "'request'" in refuse(local.to_main, {**good, "request": wrong})
    asked = local.to_main.decode(json.dumps({**good, "request": {"type": "list", "after": 7}}).encode())
    assert asked.request == client.List(Size(7))


def test_a_record_in_a_list_is_judged_as_strictly() -> None:
    good = object_of(client.replies, client.Listing)
    (domain,) = good["domains"]
    for wrong in ({}, {**domain, "surplus": 1}, {**domain, "domain": "0"}, {**domain, "domain": True}, 1, None, [domain]):
        refuse(client.replies, {**good, "domains": [domain, wrong]})
    assert len(client.replies.decode(json.dumps({**good, "domains": [domain] * 3}).encode()).domains) == 3


@pytest.mark.parametrize(("codec", "_kinds"), PROTOCOLS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"\0",
        b"hello",
        b"{",
        b"}",
        b'{"type":"hello","version":1',
        b'{"type":"hello","version":1}}',
        b'{"type":"hello","version":1}{"type":"hello","version":1}',
        b"{'type':'hello','version':1}",
        b'{"type":"hello","version":01}',
        b'{"type":"hello","version":' + b"9" * 10000 + b"}",
        b'{"type":"hello","version":1e999}',
        b'{"type":"hello","version":NaN}',
        b'{"type":"hel\xfflo","version":1}',
        b"\xef\xbb\xbf" + b'{"type":"hello","version":1}',
        '{"type":"hello","version":1}'.encode("utf-16"),
        '{"type":"hello","version":1}'.encode("utf-32"),
        b'{"type":"hello","type":"list","version":1}',
        b"null",
        b"1",
        b'"hello"',
        b"[]",
        b'["hello", 1]',
        b"{}",
        b'{"version":1}',
        b'{"type":null}',
        b'{"type":1}',
        b'{"type":["hello"]}',
        b'{"type":{"hello":1}}',
        b'{"type":"Hello","version":1}',
        b'{"type":"hello ","version":1}',
        b'{"type":""}',
        b'{"type":"\\ud800"}',
        b'{"type":"\\u0000\\n"}',
        b"[" * PACKET_MAX,
        b'{"a":' * (PACKET_MAX // 5),
    ],
)
def test_what_is_no_message(codec: Codec, _kinds: dict[str, type], data: bytes) -> None:
    refuse(codec, data)


@pytest.mark.parametrize(("codec", "kinds"), PROTOCOLS)
def test_a_message_of_another_protocol_is_unknown(codec: Codec, kinds: dict[str, type]) -> None:
    for other, kind, cls in KINDS:
        if kind not in kinds:
            assert kind in refuse(codec, other.encode(make(cls)))


def test_nesting_at_every_depth_near_the_recursion_limit() -> None:
    for depth in range(900, 1100):
        for nested in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
            refuse(client.requests, nested)
            refuse(client.requests, b'{"type":' + nested + b"}")
            refuse(client.requests, b'{"type":"hello","version":' + nested + b"}")


def test_a_record_is_made_of_each_field_once_and_never_changes() -> None:
    made = client.Join(1, Size(7))
    assert made == client.Join(domain=1, port=Size(7)) == client.Join(1, port=Size(7))
    assert made != client.Join(2, Size(7))
    assert made != client.Hello(1)
    assert hash(made) == hash(client.Join(1, Size(7)))
    assert repr(made) == "Join(domain=1, port=7)"
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((), {}),
        ((1,), {}),
        ((1, 7, 2), {}),
        ((1,), {"domain": 1}),
        ((1, 7), {"port": 7}),
        ((1, 7), {"surplus": 1}),
    ]
    for values, named in wrong:
        with pytest.raises(TypeError):
            client.Join(*values, **named)
    with pytest.raises(AttributeError):
        made.port = Size(8)  # type: ignore[misc]


def test_a_packet_has_packet_max_bytes_at_most() -> None:
    data = client.requests.encode(client.Hello(1))
    assert client.requests.decode(data.ljust(PACKET_MAX)) == client.Hello(1)
    assert str(PACKET_MAX) in refuse(client.requests, data.ljust(PACKET_MAX + 1))


def test_the_longest_path_fits_into_a_packet_in_its_longest_spelling() -> None:
    offer = client.Offer(2**31 - 1, "\1" * TEXT_MAX, Size(2**63 - 1), Size(2**63 - 1), False)
    ask = control.Ask(ClientId(2**63 - 1), 2**31 - 1, 2**31 - 1, offer)
    packet = control.to_host.encode(ask)
    assert len(packet) > 6 * TEXT_MAX
    assert len(control.LENGTH.pack(len(packet)) + packet) < 1 << min(control.LEFT_ORDER, control.RIGHT_ORDER)
    received = control.to_main.encode(control.Received(Size(2**63 - 1), packet))
    assert len(received) <= PACKET_MAX - 2048, "what stands around a request has no room"


def test_encoding_what_was_decoded_makes_it_no_longer() -> None:
    texts = ["x", "ä", "€", "\U0001f600", '"', "\\", "/", "\n", "\t", "\1", "\x7f", "\u2028", "\0"]
    for text in texts:
        for ascii_only in (True, False):
            spelled = json.dumps({"type": "connect", "domain": 0, "path": text * 1000, "waits": True}, ensure_ascii=ascii_only)
            assert len(client.requests.encode(client.requests.decode(spelled.encode()))) <= len(spelled.encode())


def test_a_message_that_is_too_long_is_not_encoded() -> None:
    room = PACKET_MAX - len(control.to_control.encode(control.Send(Size(1), bytes(10000)))) + 10000
    assert len(control.to_control.encode(control.Send(Size(1), bytes(room)))) == PACKET_MAX
    with pytest.raises(ProtocolError, match=f"'send' has {PACKET_MAX + 1} bytes"):
        control.to_control.encode(control.Send(Size(1), bytes(room + 1)))


def test_text_of_which_no_bytes_can_be_made_is_sent_with_a_mark_in_its_place() -> None:
    error = client.replies.decode(client.replies.encode(client.Error("invalid", "no file \udcff")))
    assert error.sentence == "no file ?"


def test_random_bytes_are_a_message_or_a_protocol_error() -> None:
    chosen = random.Random(1)
    valid = [(codec, codec.encode(make(cls, which))) for codec, _, cls in KINDS for which in range(3)]
    scraps = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\ud800", b"null", b"1e9", b"-", b"\xff", b"\0", b"type"]
    for _ in range(20000):
        codec, data = chosen.choice(valid)
        mutated = bytearray(data[:2000])
        for _ in range(chosen.randrange(1, 5)):
            at = chosen.randrange(len(mutated) + 1)
            match chosen.randrange(4):
                case 0:
                    mutated[at:at] = chosen.choice(scraps)
                case 1:
                    del mutated[at : at + chosen.randrange(8)]
                case 2:
                    mutated[at : at + 1] = chosen.randbytes(1)
                case _:
                    start = chosen.randrange(len(data))
                    mutated[at:at] = data[start : start + chosen.randrange(40)]
        decode_or_protocol_error(codec, bytes(mutated))
        decode_or_protocol_error(codec, chosen.randbytes(chosen.randrange(60)))


def test_random_json_is_a_message_or_a_protocol_error() -> None:
    chosen = random.Random(2)
    leaves: list[Any] = [None, True, False, 0, -1, 2**31, 2**64, 1.5, "", "x", "x" * 5000, "\ud800", [], {}]
    for _ in range(20000):
        codec, kind, cls = chosen.choice(KINDS)
        value: dict[str, Any] = {"type": kind if chosen.random() < 0.9 else chosen.choice(leaves)}
        for name in fields_of(cls):
            if chosen.random() < 0.95:
                value[name] = chosen.choice(leaves) if chosen.random() < 0.3 else object_of(codec, cls)[name]
        if chosen.random() < 0.1:
            value[chosen.choice(["x", "", "\ud800", "version"])] = chosen.choice(leaves)
        decode_or_protocol_error(codec, json.dumps(value).encode())


def decode_or_protocol_error(codec: Codec, data: bytes) -> None:
    try:
        message = codec.decode(data)
    except ProtocolError as error:
        assert error.sentence
    else:
        codec.encode(message)  # it is a message of the protocol's
