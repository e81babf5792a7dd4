# SPDX-License-Identifier: LGPL-2.1-or-later
"""One process's event loop: descriptors, and what to call when they are ready."""

from __future__ import annotations

import select
from collections.abc import Callable

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
HALF_CLOSED = select.EPOLLRDHUP
HUNG_UP = select.EPOLLHUP
EDGE = select.EPOLLET
"""Only when something is new, for who leaves what can't be taken yet."""
_BATCH = 64

Callback = Callable[[int], None]


class Loop:
    """Level-triggered, but for EDGE. A callback gets the ready events; it takes one packet or connection at a
    time, so that all get a turn."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._last: set[int] = set()
        self._running = False

    def add(self, fd: int, callback: Callback, events: int = READABLE, *, last: bool = False) -> None:
        """Watches `fd`, which stays the caller's. `last`: after all others that are ready at the same time."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback
        if last:
            self._last.add(fd)

    def modify(self, fd: int, events: int) -> None:
        """Watches `fd` for other events from now on."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Stops watching; before the descriptor is closed."""
        self._epoll.unregister(fd)
        del self._callbacks[fd]
        self._last.discard(fd)

    def run(self, timeout: Callable[[], float | None] = lambda: None) -> None:
        """Until stop(). `timeout` is asked before each wait: seconds until run() should look again, or None."""
        self._running = True
        while self._running:
            limit = timeout()
            ready = self._epoll.poll(-1 if limit is None else limit, _BATCH)
            if self._last and len(ready) > 1:
                ready.sort(key=lambda each: each[0] in self._last)
                if len(ready) == _BATCH:
                    # There may be more that come before the last.
                    ready = [each for each in ready if each[0] not in self._last]
            for fd, events in ready:
                callback = self._callbacks.get(fd)
                if callback is not None:
                    callback(events)

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        self._epoll.close()
