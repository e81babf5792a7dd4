# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ends whose connection is gone while their memory is still mapped.

A program may close every descriptor it did not open itself; its channels must go on. The kernel
reports when a description of the memory goes (inotify: IN_CLOSE at the last reference, mappings
included), and the lock on it says whose it was. An end is watched from the loss of its connection
until its mapping goes.
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
"""Seconds after a report at which we look again.

The kernel reports that a description goes, and takes its locks after that.
"""


class Mapped(Protocol):
    """Memory that holders have mapped."""

    @property
    def memory(self) -> int:
        """Its descriptor."""

    def is_mapped(self, holder: ClientId) -> bool:
        """Return whether any process of the holder's still has the memory mapped."""


class Timer(Protocol):
    """A call that is to be made."""

    def cancel(self) -> None:
        """Prevent the call."""


CallAt = Callable[[float, Callable[[], None]], Timer]
"""Makes a call once time.monotonic() has reached a deadline."""


class Lifelines:
    """Watches ends, and calls `on_end` with the holder of each whose mapping has gone."""

    def __init__(self, call_at: CallAt, on_end: Callable[[ClientId], None]) -> None:
        """Watch nothing yet. Raises OSError if the kernel has no inotify instance left."""
        self._call_at = call_at
        self._on_end = on_end
        self._watched: dict[ClientId, tuple[Mapped, int]] = {}
        self._counts: Counter[int] = Counter()
        """Of the ends by watch: those on one device share it."""
        self._reported = 0.0
        self._next_look: Timer | None = None
        self.fd = libc.inotify_init()

    def watch(self, holder: ClientId, memory: Mapped) -> None:
        """Watch an end.

        May call `on_end` at once: if the kernel gives no watch, the end counts as gone.
        """
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
        if not self._watched and self._next_look is not None:
            self._next_look.cancel()
        self._on_end(holder)

    def take_events(self, _events: int) -> None:
        """Look at the ends, since the kernel has reported something of their memory."""
        try:
            os.read(self.fd, _EVENTS_BYTES)
        except BlockingIOError:
            return
        # Which watch it was does not matter: a device's says nothing of the end, and an overflow
        # nothing at all.
        if self._watched:
            self._look_later()
            self.look()

    def _look_later(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        self._reported = time.monotonic()
        self._plan_look(0)

    def _plan_look(self, number: int) -> None:
        self._next_look = self._call_at(self._reported + _LOOKS[number], lambda: self._look_again(number))

    def _look_again(self, number: int) -> None:
        if number + 1 < len(_LOOKS):
            self._plan_look(number + 1)
        self.look()

    def look(self) -> None:
        """End those whose mapping has gone."""
        gone = [holder for holder, (memory, _) in self._watched.items() if not memory.is_mapped(holder)]
        for holder in gone:
            self._end(holder)

    def close(self) -> None:
        """Watch nothing any more."""
        os.close(self.fd)
