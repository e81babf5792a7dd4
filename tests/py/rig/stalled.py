# SPDX-License-Identifier: LGPL-2.1-or-later
"""A pipe that is full, so that a write to it waits until somebody reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stalled() -> Iterator[tuple[int, int]]:
    """Make such a pipe. Yields its ends, the one to read from first."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        for size in (4096, 1):
            try:
                while True:
                    os.write(writing, bytes(size))
            except BlockingIOError:
                pass
        os.set_blocking(writing, True)
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def drain(reading: int) -> bytes:
    """Take what is there."""
    os.set_blocking(reading, False)
    taken = b""
    try:
        while data := os.read(reading, 1 << 16):
            taken += data
    except BlockingIOError:
        pass
    return taken
