# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ends whose connection is gone while their memory is still mapped.

A program may close every descriptor it did not open itself; its channels must go on. The kernel reports when a description of
the memory goes (inotify: IN_CLOSE at the last reference, mappings included), and the lock on it says whose it was. An
end is watched from the loss of its connection until its mapping goes.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from kvmchand.ids import ClientId
from kvmchand.linux import libc

_EVENTS_BYTES = 64 * 1024
_LOOKS = (0.001, 0.01, 0.1, 1.0)
"""Seconds after a report at which we look again: the kernel reports that a description goes, and after that takes its locks."""


class Mapped(Protocol):
    """Memory that holders have mapped."""

    @property
    def memory(self) -> int:
        """Its descriptor."""

    def is_mapped(self, holder: ClientId) -> bool: ...


class Lifelines:
    """Calls `on_end` with the holder of each watched end whose mapping has gone."""

    def __init__(self, on_end: Callable[[ClientId], None]) -> None:
        self._on_end = on_end
        self._watched: dict[ClientId, tuple[Mapped, int]] = {}
        self._counts: Counter[int] = Counter()
        """Of the ends by watch: those on one device share it."""
        self._looks: list[float] = []
        self.fd = libc.inotify_init()

    def watch(self, holder: ClientId, memory: Mapped) -> None:
        """Takes over an end. May call `on_end` at once. Where the kernel gives no watch, the end counts as gone."""
        try:
            watch = libc.inotify_add_watch(self.fd, f"/proc/self/fd/{memory.memory}", libc.IN_CLOSE)
        except OSError:
            self._on_end(holder)
            return
        self._watched[holder] = (memory, watch)
        self._counts[watch] += 1
        self._look_later()
        if not memory.is_mapped(holder):
            self._end(holder)  # it went before it was watched

    def _end(self, holder: ClientId) -> None:
        _, watch = self._watched.pop(holder)
        self._counts[watch] -= 1
        if not self._counts[watch]:
            del self._counts[watch]
            libc.inotify_rm_watch(self.fd, watch)
        self._on_end(holder)

    def on_event(self, _events: int) -> None:
        try:
            os.read(self.fd, _EVENTS_BYTES)
        except BlockingIOError:
            return
        # Which watch it was does not matter: a device's says nothing of the end, and an overflow nothing at all.
        self._look_later()
        self.look()

    def until_next_look(self) -> float | None:
        """Looks, if it is time to. Seconds until it is again, or None."""
        while self._looks and self._watched:
            left = self._looks[0] - time.monotonic()
            if left > 0:
                return left
            del self._looks[0]
            self.look()
        return None

    def _look_later(self) -> None:
        now = time.monotonic()
        self._looks = [now + each for each in _LOOKS]

    def look(self) -> None:
        """Ends those whose mapping has gone."""
        gone = [holder for holder, (memory, _) in self._watched.items() if not memory.is_mapped(holder)]
        for holder in gone:
            self._end(holder)

    def close(self) -> None:
        os.close(self.fd)
