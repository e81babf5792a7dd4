# SPDX-License-Identifier: LGPL-2.1-or-later
"""What callers give to be sent, to be filled, or as a size: checked, and as C takes it."""

from __future__ import annotations

import ctypes
import operator

from kvmchand.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Buffer

_byref = ctypes.byref
_byte_in = ctypes.c_char.from_buffer


def size_of(value: object, name: str) -> int:
    """Return a number of bytes.

    Raises TypeError if it is no int, and InvalidArgument if it is negative.
    """
    try:
        size = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None
    if size < 0:
        raise InvalidArgument(f"{name} is {size}: give a number of bytes, 0 or more")
    return size


def view_of(data: Buffer, name: str) -> memoryview:
    """Return a view of the bytes in a buffer.

    Raises TypeError if it is none, or not contiguous.
    """
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"{name} must be a bytes-like object, not {type(data).__name__}") from None
    if not view.c_contiguous:
        raise TypeError(f"{name} must be contiguous in memory: copy it, as with bytes({name})")
    return view.cast("B") if view.nbytes else view


class Source:
    """Bytes that are to be sent, from the first that is not sent on."""

    __slots__ = ("_most", "_view", "size")

    def __init__(self, data: Buffer, most: int) -> None:
        """Take the bytes of `data`. No call moves more than `most` of them."""
        self._view = view_of(data, "data")
        self._most = most
        self.size = self._view.nbytes

    def piece(self) -> tuple[Any, int]:
        """Return the next piece as C takes it, valid while it is referred to, and its size."""
        size = min(self.size, self._most)
        if self._view.readonly:
            # ctypes has no address of what it may not write to.
            return self._view[:size].tobytes(), size
        return _byref(_byte_in(self._view)), size

    def pass_by(self, count: int) -> None:
        """Go on after `count` bytes that were sent."""
        self.size -= count
        self._view = self._view[count:]

    def release(self) -> None:
        """Let go of the caller's buffer."""
        self._view.release()


def target(buffer: Buffer, most: int) -> tuple[Any, int]:
    """Return a buffer to fill as C takes it, and its size, at most `most`.

    Raises TypeError if it is none, is not contiguous, or is read-only.
    """
    view = view_of(buffer, "buffer")
    if view.readonly:
        raise TypeError(f"buffer must be writable, as a bytearray is, not {type(buffer).__name__}")
    size = min(view.nbytes, most)
    return (_byref(_byte_in(view)), size) if size else (None, 0)
