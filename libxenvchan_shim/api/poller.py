# SPDX-License-Identifier: LGPL-2.1-or-later
"""The descriptor that select() and its kind watch for a vchan or a listener."""

from __future__ import annotations

import os
import select

from kvmchand.errors import OutOfResources


class Poller:
    """A descriptor that is readable by those that it watches, or because it shows an event."""

    def __init__(self, what: str, *, shows: bool) -> None:
        """Show an event at first, if `shows`. Raises OutOfResources."""
        try:
            self._epoll = select.epoll()
            self._shown = os.eventfd(int(shows), os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            raise OutOfResources(f"no descriptor for {what}: {error.strerror}") from error
        self.watch(self._shown)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._epoll.fileno()

    def watch(self, fd: int) -> None:
        """Be readable when this descriptor is."""
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Watch it no more. Does nothing if another thread is closing either."""
        try:
            self._epoll.unregister(fd)
        except (ValueError, OSError):
            pass

    def show(self) -> None:
        """Show an event."""
        os.eventfd_write(self._shown, 1)

    def take(self) -> bool:
        """Take the event that is shown. Returns whether there was one."""
        try:
            return os.eventfd_read(self._shown) > 0
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Close the descriptors, once."""
        self._epoll.close()
        os.close(self._shown)
