# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bytes of a vchan where they lie in its ring."""

from __future__ import annotations

from collections.abc import Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class Span:
    """Bytes in a ring, as one or two views of them: `pieces`.

    There are two where the bytes go over the ring's end. `len()` is the number of bytes, iterating
    gives the pieces, and bytes() a copy.

    A span is valid until the next look() or reserve(), until consume() or commit() goes on, or its
    vchan closes: these release it, and to use a released view raises ValueError. What is made of a
    view before, a slice or a numpy array, can still be used: it shows what the ring holds by then.
    """

    __slots__ = ("_size", "pieces")

    def __init__(self, pieces: tuple[memoryview, ...]) -> None:
        self.pieces = pieces
        """One or two views, in order. Those of look() are read-only."""
        self._size = sum(map(len, pieces))

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self.pieces)

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces)

    def __repr__(self) -> str:
        try:
            return f"<Span {' + '.join(str(len(each)) for each in self.pieces)} bytes>"
        except ValueError:
            return "<Span, released>"

    def release(self) -> None:
        """Release the views. Raises BufferError while a C function holds one of them."""
        for each in self.pieces:
            each.release()

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
