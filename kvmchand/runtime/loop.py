# SPDX-License-Identifier: LGPL-2.1-or-later
"""One process's event loop, which calls back for ready descriptors and passed deadlines."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
HALF_CLOSED = select.EPOLLRDHUP
HUNG_UP = select.EPOLLHUP
EDGE = select.EPOLLET
"""Report only what is new, for a callback that leaves some of it for later."""
_BATCH = 64
_CANCELLED_MAX = 64
"""Cancelled timers that may stay in the heap whatever its size."""

Callback = Callable[[int], None]


class Timer:
    """A call that a loop makes once, unless it is cancelled before."""

    __slots__ = ("_callback", "_loop")

    def __init__(self, loop: Loop, callback: Callable[[], None]) -> None:
        """Prepare the call. Only Loop.call_at() does this."""
        self._loop = loop
        self._callback: Callable[[], None] | None = callback

    @property
    def is_waiting(self) -> bool:
        """Whether the call was neither made nor cancelled yet."""
        return self._callback is not None

    def cancel(self) -> None:
        """Prevent the call. Does nothing if it was made or cancelled before."""
        if self._callback is not None:
            self._callback = None
            self._loop.count_cancelled()

    def fire(self) -> None:
        """Make the call, unless it was cancelled. Only the loop does this."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Loop:
    """An epoll loop with timers. It is level-triggered, except for descriptors with EDGE.

    Each turn calls the timers that are due, waits, and calls the descriptors that are ready. A
    callback takes one packet or connection at a time, so that every descriptor gets its turn.
    """

    def __init__(self) -> None:
        """Make a loop that watches nothing."""
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._last: set[int] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        """A heap. The number after the deadline is the order of call_at()."""
        self._soon: list[Callable[[], None]] = []
        """What call_soon() was given."""
        self._made = 0
        """Timers so far."""
        self._cancelled = 0
        """Timers in the heap that were cancelled."""
        self._is_stopped = False

    def add(self, fd: int, callback: Callback, events: int = READABLE, *, last: bool = False) -> None:
        """Watch `fd`, which stays the caller's.

        With `last`, call it after all others that are ready at the same time.
        """
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback
        if last:
            self._last.add(fd)

    def modify(self, fd: int, events: int) -> None:
        """Watch `fd` for other events from now on."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Stop watching `fd`. To be called before the descriptor is closed."""
        self._epoll.unregister(fd)
        del self._callbacks[fd]
        self._last.discard(fd)

    def call_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once time.monotonic() has reached `deadline`.

        Earlier deadlines are called first, and equal ones in the order of call_at(). A timer that a
        callback makes is called in the next turn at the earliest, even if its deadline has passed.
        """
        timer = Timer(self, callback)
        self._made += 1
        heappush(self._timers, (deadline, self._made, timer))
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` before the loop waits again. It costs less than a timer."""
        self._soon.append(callback)

    def count_cancelled(self) -> None:
        """Count a cancelled timer, for Timer.cancel(). Most of the heap is not cancelled."""
        self._cancelled += 1
        if self._cancelled > max(_CANCELLED_MAX, len(self._timers) // 2):
            self._timers = [each for each in self._timers if each[2].is_waiting]
            heapify(self._timers)
            self._cancelled = 0

    def run(self) -> None:
        """Make turns until stop()."""
        self._is_stopped = False
        while not self._is_stopped:
            self.turn()

    def turn(self) -> None:
        """Call the timers that are due, wait, and call the descriptors that are ready."""
        if self._soon:
            soon, self._soon = self._soon, []
            for call in soon:
                call()
        wait = self._call_due() if self._timers else -1
        ready = self._epoll.poll(0 if self._is_stopped or self._soon else wait, _BATCH)
        if self._last and len(ready) > 1:
            ready.sort(key=lambda each: each[0] in self._last)
            if len(ready) == _BATCH:
                # There may be more that come before the last.
                ready = [each for each in ready if each[0] not in self._last]
        for fd, events in ready:
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback(events)

    def _call_due(self) -> float:
        """Call the timers that are due. Returns the seconds until the next one is, or -1."""
        now = time.monotonic()
        due: list[Timer] = []
        while self._timers and self._timers[0][0] <= now:
            timer = heappop(self._timers)[2]
            if timer.is_waiting:
                due.append(timer)
            else:
                self._cancelled -= 1
        for timer in due:
            timer.fire()
        while self._timers and not self._timers[0][2].is_waiting:
            heappop(self._timers)
            self._cancelled -= 1
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1

    def stop(self) -> None:
        """End run() after this turn, which does not wait any more."""
        self._is_stopped = True

    def close(self) -> None:
        """Close the loop's own descriptor. What it watched stays open."""
        self._epoll.close()
