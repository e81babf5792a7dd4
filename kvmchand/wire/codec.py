# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages to bytes and back: one JSON object a packet, `type` naming the message. Pure.

A message is a Record, and its annotations are the schema. Decoding believes nothing: the object has exactly the
fields of its class, each of its type and in its range, or a ProtocolError says which is not.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from json import JSONDecoder, JSONEncoder

from kvmchand.errors import ProtocolError

TYPE_CHECKING = False  # typing is not needed at run time, and takes time to import
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Packet = str  # a packet inside a packet
    Text = str  # of which bytes are made

PACKET_MAX = 32 * 1024
"""Bytes of one packet: a path of xenstore's longest (3072) in JSON's longest spelling (6 for 1), and room."""
SERVICE_PACKET_MAX = 64 * 1024
"""The same between main and its services, where packets stand within packets, each of their quotes spelled anew."""


def _integer(least: int, most: int) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"an integer from {least} to {most}")
        return value

    return check


def _text_of(most: int) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not str or len(value) > most:
            raise ValueError(f"a string of at most {most} characters")
        return value

    return check


def _whole(most: int) -> Callable[[Any], Any]:
    """JSON can spell half of a surrogate pair, of which no bytes can be made."""
    is_text = _text_of(most)

    def check(value: Any) -> Any:
        try:
            is_text(value).encode()
        except UnicodeEncodeError:
            raise ValueError("a string of whole characters") from None
        return value

    return check


def _data(value: Any) -> Any:
    """Bytes stand in base64."""
    try:
        return a2b_base64(_text_of(PACKET_MAX)(value).encode("ascii"), strict_mode=True)
    except ValueError:
        raise ValueError("bytes in base64") from None


def _flag(value: Any) -> Any:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


# How a decoded value is judged, by the annotation of its field.
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "int": _integer(-(2**31), 2**31 - 1),
    "Size": _integer(0, 2**63 - 1),
    "DomainId": _integer(0, 2**31 - 1),
    "ChannelId": _integer(0, 2**63 - 1),
    "ClientId": _integer(0, 2**63 - 1),
    "DeviceId": _integer(0, 2**63 - 1),
    "str": _text_of(4096),
    "bool": _flag,
    "Packet": _whole(PACKET_MAX),
    "Text": _whole(4096),
    "bytes": _data,
}


_from_json = JSONDecoder().decode


class _Plan:
    """How one record stands in JSON."""

    def __init__(self, cls: type, checks: Mapping[str, Callable[[Any], Any]]) -> None:
        self.cls = cls
        self.fields = [(name, checks[kind]) for name, kind in cls.__annotations__.items()]

    def build(self, value: Any) -> Any:
        if type(value) is not dict:
            raise ValueError("an object")
        values = []
        for name, check in self.fields:
            if name not in value:
                raise ValueError(f"a field '{name}'")
            try:
                values.append(check(value[name]))
            except ValueError as error:
                raise ValueError(f"in '{name}' {error}") from None
        if len(value) != len(values):
            unknown = sorted(set(value) - {name for name, _ in self.fields})
            raise ValueError(f"no field {str(unknown[0])[:40]!r}")
        return self.cls(*values)

    def show(self, message: Any) -> dict[str, Any]:
        return {name: getattr(message, name) for name, _ in self.fields}


class Codec:
    """The messages of one protocol. `records` are those that stand inside messages, in tuples; `most`: bytes of a packet."""

    def __init__(self, kinds: Mapping[str, type], records: tuple[type, ...] = (), most: int = PACKET_MAX) -> None:
        checks = dict(_CHECKS)
        self._records: dict[type, _Plan] = {}
        for cls in records:
            plan = self._records[cls] = _Plan(cls, checks)
            checks[f"tuple[{cls.__name__}, ...]"] = _tuple_check(plan)
        self._by_kind = {kind: _Plan(cls, checks) for kind, cls in kinds.items()}
        self._to_json = JSONEncoder(separators=(",", ":"), default=self._show_value).encode
        self._most = most
        self._by_class = {cls: (kind, self._by_kind[kind]) for kind, cls in kinds.items()}

    def encode(self, message: Any) -> bytes:
        kind, plan = self._by_class[type(message)]
        return self._to_json({"type": kind, **plan.show(message)}).encode()

    def _show_value(self, value: Any) -> Any:
        if type(value) is bytes:
            return b2a_base64(value, newline=False).decode()
        return self._records[type(value)].show(value)

    def decode(self, data: bytes) -> Any:
        """The message in one packet; ProtocolError if it is none of this protocol's."""
        if len(data) > self._most:
            raise ProtocolError(f"a packet has more than {self._most} bytes")
        try:
            value = _from_json(data.decode())
        except (ValueError, RecursionError):
            raise ProtocolError("a packet is not JSON") from None
        kind = value.pop("type", None) if type(value) is dict else None
        plan = self._by_kind.get(kind) if type(kind) is str else None
        if plan is None:
            raise ProtocolError(f"unknown message {str(kind)[:40]!r}")
        try:
            return plan.build(value)
        except ValueError as error:
            raise ProtocolError(f"the message '{kind}' must have {error}") from None


def _tuple_check(plan: _Plan) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not list:
            raise ValueError("a list")
        return tuple([plan.build(each) for each in value])

    return check
