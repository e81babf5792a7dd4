# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory files that others hold too, touched through mappings that last for one access.

write(2) and fallocate(2) take the file's lock, which a holder keeps for as long as the memory that
it writes from does not come: for ever, from FUSE or userfaultfd. A mapping takes no such lock. The
files are sealed against shrinking, so it does not fault either.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _mapped(fd: int, offset: int, size: int) -> Iterator[tuple[mmap.mmap, int]]:
    """Map what contains these bytes. Yields the mapping, and where they are in it."""
    at = offset % mmap.ALLOCATIONGRANULARITY
    with mmap.mmap(fd, at + size, offset=offset - at) as mapped:
        yield mapped, at


def read(fd: int, offset: int, size: int) -> bytes:
    """Return bytes of the file. Raises ValueError if it has not as many."""
    with _mapped(fd, offset, size) as (mapped, at):
        return mapped[at : at + size]


def write(fd: int, offset: int, data: bytes) -> None:
    """Overwrite bytes of the file. Raises ValueError if it has not as many."""
    with _mapped(fd, offset, len(data)) as (mapped, at):
        mapped[at : at + len(data)] = data


def zero(fd: int, offset: int, size: int) -> None:
    """Overwrite bytes of the file with zeroes. Raises ValueError if it has not as many."""
    with _mapped(fd, offset, size) as (mapped, at):
        first = ctypes.c_char.from_buffer(mapped, at)
        ctypes.memset(ctypes.addressof(first), 0, size)
        del first  # a mapping with views can't be closed
