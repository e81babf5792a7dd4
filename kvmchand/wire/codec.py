# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pure: messages to bytes and back.

A packet is one JSON object, whose `type` names the message. Where the message has bytes, its field
has their number, and they follow the object behind a newline. A message is a Record, and its
annotations are the schema. Decoding believes nothing: the object has exactly the fields of its
class, each of its type and in its range, or a ProtocolError says which has not.
"""

from __future__ import annotations

from kvmchand.errors import ProtocolError
from kvmchand.wire.jsontext import from_json, to_json

TYPE_CHECKING = False  # typing is not needed at run time, and takes time to import
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Check = Callable[[Any], Any]

TEXT_MAX = 4096
"""Bytes of a string. The longest is a path, of which xenstore allows 3072: a longer one gets an
error with a reason."""
PACKET_MAX = 28 * 1024
"""Bytes of a packet, on every socket and in the control ring, whose smaller side (32 KiB) holds one
with its length.

The longest request has one string of TEXT_MAX bytes, in JSON's longest spelling (6 bytes for 1). 4
KiB are left for what stands around it. Encoding what was decoded never makes it longer, so whatever
one process takes, the next one takes too."""
PACKET_TOO_LONG = f"a packet has more than {PACKET_MAX} bytes"
FDS_LOST = "no more descriptors can be open for those that came: close some, or raise the limit (ulimit -n)"
"""Of a packet whose descriptors this process can't have."""


def _integer(least: int, most: int) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"an integer from {least} to {most}")
        return value

    return check


def _text(value: Any) -> Any:
    """JSON can spell half of a surrogate pair, of which no bytes can be made."""
    try:
        if type(value) is str and len(value.encode()) <= TEXT_MAX:
            return value
    except UnicodeEncodeError:
        raise ValueError("a string of whole characters") from None
    raise ValueError(f"a string of at most {TEXT_MAX} bytes")


def _flag(value: Any) -> Any:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


# How a decoded value is judged, by the annotation of its field.
_CHECKS: dict[str, Check] = {
    "int": _integer(-(2**31), 2**31 - 1),
    "Size": _integer(0, 2**63 - 1),
    "DomainId": _integer(0, 2**31 - 1),
    "ChannelId": _integer(0, 2**63 - 1),
    "ClientId": _integer(0, 2**63 - 1),
    "DeviceId": _integer(0, 2**63 - 1),
    "str": _text,
    "bool": _flag,
    "bytes": _integer(0, PACKET_MAX),
}


class _Plan:
    """Judges one record that stands in JSON, and makes JSON of it."""

    def __init__(self, cls: type, inner: Mapping[str, type | Codec]) -> None:
        self.cls = cls
        self.data: str | None = None
        """The field of the bytes that follow, if there is one."""
        self.fields: list[tuple[str, Check, Check | None]] = []
        """Of each field, what judges it, and what makes JSON of it where it is none itself."""
        for name, kind in cls.__annotations__.items():
            if kind == "bytes":
                self.data = name
            self.fields.append((name, *self._field(kind, inner)))

    def _field(self, kind: str, inner: Mapping[str, type | Codec]) -> tuple[Check, Check | None]:
        if kind in _CHECKS:
            return _CHECKS[kind], len if kind == "bytes" else None
        if kind.startswith("tuple["):
            check, show = self._field(kind.removeprefix("tuple[").removesuffix(", ...]"), inner)
            return _list_of(check), lambda values: [show(each) if show else each for each in values]
        found = inner[kind]
        if isinstance(found, Codec):
            return found.build_inner, found.show
        plan = _Plan(found, inner)
        return plan.build, plan.show

    def build(self, value: Any, following: bytes = b"") -> Any:
        if type(value) is not dict:
            raise ValueError("an object")
        values = []
        for name, check, _ in self.fields:
            if name not in value:
                raise ValueError(f"a field '{name}'")
            try:
                values.append(self._judge(name, check, value[name], following))
            except ValueError as error:
                raise ValueError(f"in '{name}' {error}") from None
        if len(value) != len(values):
            unknown = sorted(set(value) - {name for name, _, _ in self.fields})
            raise ValueError(f"no field {str(unknown[0])[:40]!r}")
        if self.data is None and following:
            raise ValueError("no bytes behind it")
        return self.cls(*values)

    def _judge(self, name: str, check: Check, value: Any, following: bytes) -> Any:
        judged = check(value)
        if name != self.data:
            return judged
        if judged != len(following):
            raise ValueError(f"the number of bytes that follow, {len(following)}")
        return following

    def show(self, message: Any) -> dict[str, Any]:
        shown = {}
        for name, _, show in self.fields:
            value = getattr(message, name)
            shown[name] = show(value) if show else value
        return shown


class Codec:
    """The messages of one protocol."""

    def __init__(self, kinds: Mapping[str, type], inner: Mapping[str, type | Codec] | None = None) -> None:
        """`inner`: by annotation, the record or protocol that stands in a field."""
        self._kinds = kinds
        self._names = {cls: kind for kind, cls in kinds.items()}
        self._inner = inner or {}
        self._plans: dict[str, _Plan] = {}

    def _plan(self, kind: str) -> _Plan | None:
        """Plan each message when it first comes: a program's first call needs three."""
        plan = self._plans.get(kind)
        if plan is None and kind in self._kinds:
            plan = self._plans[kind] = _Plan(self._kinds[kind], self._inner)
        return plan

    def _plan_for(self, message: Any) -> tuple[str, _Plan]:
        kind = self._names[type(message)]
        plan = self._plan(kind)
        assert plan is not None
        return kind, plan

    def encode(self, message: Any) -> bytes:
        """Return a message as a packet. Raises ProtocolError if it is too long for one."""
        data = to_json(self.show(message)).encode(errors="replace")
        kind, plan = self._plan_for(message)
        if plan.data is not None:
            data = b"%s\n%s" % (data, getattr(message, plan.data))
        if len(data) > PACKET_MAX:
            raise ProtocolError(f"the message '{kind}' has {len(data)} bytes; at most {PACKET_MAX} are allowed")
        return data

    def decode(self, packet: bytes) -> Any:
        """Return the message of a packet. Raises ProtocolError if it is none of this protocol's."""
        if len(packet) > PACKET_MAX:
            raise ProtocolError(PACKET_TOO_LONG)
        head, _, following = packet.partition(b"\n")
        try:
            value = from_json(head.decode())
        except (ValueError, RecursionError):
            raise ProtocolError("a packet is not JSON") from None
        kind = _kind_of(value)
        plan = self._plan(kind)
        if plan is None:
            raise ProtocolError(f"unknown message {kind[:40]!r}")
        try:
            return plan.build(value, following)
        except ValueError as error:
            raise ProtocolError(f"the message '{kind}' must have {error}") from None

    def show(self, message: Any) -> dict[str, Any]:
        """Return what stands in JSON for a message."""
        kind, plan = self._plan_for(message)
        return {"type": kind, **plan.show(message)}

    def build_inner(self, value: Any) -> Any:
        """Return the message that stands in another's JSON.

        Raises ValueError if there is none of this protocol's.
        """
        kind = _kind_of(value)
        plan = self._plan(kind)
        if plan is None:
            raise ValueError(f"a message that is known, not {kind[:40]!r}")
        try:
            return plan.build(value)
        except ValueError as error:
            raise ValueError(f"a valid '{kind}', with {error}") from None


def _kind_of(value: Any) -> str:
    """Take the name of the message out of what was decoded; "" where it has none."""
    kind = value.pop("type", "") if type(value) is dict else ""
    return kind if type(kind) is str else ""


def _list_of(check: Check) -> Check:
    def check_all(value: Any) -> Any:
        if type(value) is not list:
            raise ValueError("a list")
        return tuple([check(each) for each in value])

    return check_all
