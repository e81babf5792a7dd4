# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page that main and a service share.

The service notes there whose bytes it reads, and that it is alive; main, how many packets it has
sent.
"""

from __future__ import annotations

import mmap
import time

BEAT = 10.0
"""Seconds between two notes of a service that it is alive."""
_NOBODY = 0


class Marker:
    """The page that main and a service share."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, mmap.PAGESIZE)
        self._words = memoryview(self._page).cast("Q")  # each written in one piece

    def set(self, number: int) -> None:
        """Note that the service reads the bytes of `number`, which is not 0."""
        self._words[0] = number

    def clear(self) -> None:
        """Note that the service reads nobody's bytes."""
        self._words[0] = _NOBODY

    def get(self) -> int | None:
        """Return whose bytes the service reads, or None."""
        number = self._words[0]
        return number if number != _NOBODY else None

    def count_sent(self) -> None:
        """Count another packet that main has for the service, sent or waiting."""
        self._words[1] += 1

    def sent(self) -> int:
        """Return how many packets main has had for the service."""
        return self._words[1]

    def beat(self) -> None:
        """Note that the service is alive now."""
        self._words[2] = time.monotonic_ns()

    def silence(self) -> float:
        """Return for how many seconds the service has not noted that."""
        return (time.monotonic_ns() - self._words[2]) / 1e9

    def close(self) -> None:
        """Unmap the page."""
        self._words.release()
        self._page.close()
