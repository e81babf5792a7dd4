# SPDX-License-Identifier: LGPL-2.1-or-later
"""JSON as text, to values and back.

It is what the json module does, by the C functions of that module. Importing json takes longer than
all else that a program's first libxenvchan call imports, for json needs re, enum and functools.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Decoding:
    """The options of the C scanner: json.JSONDecoder's defaults."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float  # NaN, Infinity and -Infinity are Python's spellings, too


def _refuse(value: object) -> None:
    raise TypeError(f"{type(value).__name__} is no value of JSON")


_SPACES = " \t\n\r"
_LEVELS = 32
"""Levels of lists and objects within each other, many times what a message has."""
_LOOSE_MAX = 100
"""Brackets that may be left, as strings may have some, too."""
_OTHERS = bytes(each for each in range(256) if each not in b"[]{}")


def _is_deep(text: str) -> bool:
    """Return whether text may have so many levels that the C scanner would use up a small stack."""
    if text.count("[") + text.count("{") <= _LEVELS:
        return False
    brackets = text.encode(errors="replace").translate(None, _OTHERS)
    for _ in range(_LEVELS):
        if len(brackets) <= _LOOSE_MAX:
            return False
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return len(brackets) > _LOOSE_MAX


try:
    from _json import encode_basestring, make_encoder, make_scanner

    _scan = make_scanner(_Decoding)  # type: ignore[arg-type, unused-ignore] # it wants a JSONDecoder
    _encode = make_encoder(None, _refuse, encode_basestring, None, ":", ",", False, False, False)

    def to_json(value: Any) -> str:
        """Return a value as JSON without spaces, all characters as they are."""
        return "".join(_encode(value, 0))

    def _decode(text: str) -> Any:
        text = text.strip(_SPACES)
        try:
            value, end = _scan(text, 0)
        except (StopIteration, ImportError) as error:  # it imports json to say what is wrong
            raise ValueError("no JSON") from error
        if end != len(text):
            raise ValueError("more than JSON")
        return value

except (ImportError, AttributeError, TypeError):  # another Python, whose json has other functions
    from json import JSONDecoder, JSONEncoder

    to_json = JSONEncoder(  # type: ignore[assignment]
        separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode
    _decode = JSONDecoder().decode  # type: ignore[assignment]


def from_json(text: str) -> Any:
    """Return the value of JSON. Raises ValueError if it is none, or has too many levels."""
    if _is_deep(text):
        raise ValueError("lists within lists, too many")
    return _decode(text)
