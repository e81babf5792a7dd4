# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store's records: changes in a form that outlives the process.

A record is one complete change, made of items: a 4-byte length, then a letter and fields with NULs
between them. The last field may contain NULs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kvmchand.ids import ChannelId, ClientId, DomainId
from kvmchand.xenstore.nodes import VOID, Node, Permissions, format_permissions, parse_permissions
from kvmchand.xenstore.offers import Offer
from kvmchand.xenstore.watches import Watch

_LENGTH = struct.Struct("<I")
_VOID = "!"
"""Behind a permission that is void."""

NODE, NO_NODE, DOMAIN, NO_DOMAIN, OFFER, NO_OFFER, WATCH, NO_WATCH, NO_CLIENT, START, SPECIAL = "NnDdOoWwcSP"
"""START counts the starts of the store; transaction ids and generations are made from it."""

_FIELDS = {
    NODE: 4,
    NO_NODE: 1,
    DOMAIN: 3,
    NO_DOMAIN: 1,
    OFFER: 6,
    NO_OFFER: 1,
    WATCH: 5,
    NO_WATCH: 3,
    NO_CLIENT: 1,
    START: 1,
    SPECIAL: 2,
}


def item(letter: str, *fields: bytes | str | int) -> bytes:
    """Encode one item."""
    parts = [each if isinstance(each, bytes) else str(each).encode() for each in fields]
    body = letter.encode() + b"\0".join(parts)
    return _LENGTH.pack(len(body)) + body


def items(record: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Yield the letter and fields of each item of a record. Raises ValueError if it is invalid."""
    at = 0
    while at < len(record):
        if len(record) - at < _LENGTH.size:
            raise ValueError("a record of the store ends within an item")
        (length,) = _LENGTH.unpack_from(record, at)
        at += _LENGTH.size
        body = record[at : at + length]
        at += length
        letter = body[:1].decode("latin-1")
        fields = body[1:].split(b"\0", _FIELDS.get(letter, 0) - 1)
        if len(body) != length or len(fields) != _FIELDS.get(letter):
            raise ValueError("a record of the store has an item that is none")
        yield letter, fields


def node_item(path: str, node: Node) -> bytes:
    """Encode a node."""
    return item(NODE, path, _permissions(node.permissions), int(node.counted), node.value)


def to_node(fields: list[bytes]) -> tuple[str, Node]:
    """Return the path and the node of a NODE item."""
    path, permissions, counted, value = fields
    return path.decode(), Node(value, _to_permissions(permissions), counted == b"1")


def special_item(name: str, permissions: Permissions) -> bytes:
    """Encode the permissions of a name that is not a node."""
    return item(SPECIAL, name, _permissions(permissions))


def to_special(fields: list[bytes]) -> tuple[str, Permissions]:
    """Return the name and the permissions of a SPECIAL item."""
    name, permissions = fields
    return name.decode(), _to_permissions(permissions)


def _permissions(permissions: Permissions) -> str:
    shown = zip(format_permissions(permissions), permissions, strict=True)
    return ",".join(f"{each}{_VOID if rights & VOID else ''}" for each, (rights, _) in shown)


def _to_permissions(field: bytes) -> Permissions:
    strings = field.decode().split(",")
    plain = parse_permissions([each.removesuffix(_VOID) for each in strings])
    return tuple(
        (rights | VOID if each.endswith(_VOID) else rights, domain) for each, (rights, domain) in zip(strings, plain, strict=True)
    )


def offer_item(offer: Offer) -> bytes:
    """Encode an offer."""
    return item(OFFER, offer.channel, offer.path, offer.server, offer.client, offer.ref, offer.port)


def to_offer(fields: list[bytes]) -> Offer:
    """Return the offer of an OFFER item."""
    channel, path, server, client, ref, port = fields
    return Offer(ChannelId(int(channel)), path.decode(), DomainId(int(server)), DomainId(int(client)), int(ref), int(port))


def watch_item(watch: Watch) -> bytes:
    """Encode a watch."""
    return item(WATCH, watch.client, watch.domain, int(watch.relative), watch.path, watch.token)


def to_watch(fields: list[bytes]) -> Watch:
    """Return the watch of a WATCH item."""
    client, domain, relative, path, token = fields
    return Watch(ClientId(int(client)), DomainId(int(domain)), path.decode(), token, relative == b"1")
