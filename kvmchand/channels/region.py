# SPDX-License-Identifier: LGPL-2.1-or-later
"""A channel's shared memory and event channel, as the daemon has them.

The memory of shared pages is here, too. The daemon maps any of it for single accesses only. Each
holder of an end on this machine gets an open file description of its own, with a lock on one byte
that is that holder's, so the daemon can ask whether the holder still has the region mapped. A
region lives until both ends are gone.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack

from kvmchand.channels.device import Slice
from kvmchand.channels.page import Page, Ready, other
from kvmchand.channels.registry import Channel, Side
from kvmchand.channels.rings import Rings
from kvmchand.errors import AccessDenied, OutOfResources
from kvmchand.ids import ClientId, Size
from kvmchand.linux import mapping, ofd
from kvmchand.wire import client


class Region(ABC):
    """A channel's memory and event channel."""

    __slots__ = ("_page", "rings")

    def __init__(self, rings: Rings, page: Page) -> None:
        self.rings = rings
        self._page = page

    @abstractmethod
    def grant(self, channel: Channel, side: Side, holder: ClientId) -> tuple[client.Grant, tuple[int, ...]]:
        """Return an end on this machine, and the descriptors that go with it.

        The first one is the memory, locked as the holder's, which the caller closes. The others
        stay the region's.
        """

    def _grant(self, channel: Channel, events: str) -> client.Grant:
        rings, offset = self.rings, Size(self._page.offset)
        return client.Grant(channel.number, channel.path, rings.left, rings.right, events, offset, Size(0), Size(0))

    @abstractmethod
    def signal(self, side: Side) -> None:
        """Send an end an event."""

    @abstractmethod
    def close(self) -> None:
        """Let the memory and the event channel go."""

    def has_events(self) -> bool:
        """Return whether events can still pass.

        An end that breaks the rules may have shut the event channel down.
        """
        return True

    @property
    def memory(self) -> int:
        """Return the descriptor of the memory, which stays ours."""
        return self._page.fd

    def is_mapped(self, holder: ClientId) -> bool:
        """Return whether any process has what grant() gave this holder, mapped or open.

        A peer that breaks the rules can lock the byte too, and so keep the dead end of its own
        channel.
        """
        return ofd.byte_is_locked(self.memory, holder)

    def is_closed(self, side: Side) -> bool:
        """Return whether an end has marked itself closed."""
        return self._page.live(side) == 0

    def mark_dead(self, side: Side) -> None:
        """Do for an end that died what it would have done.

        Clear its live byte, and notify the other end.
        """
        self._page.set_live(side, 0)
        self.signal(other(side))

    def ready(self) -> Ready:
        """Return how much waits to be read at each end."""
        return self._page.ready(self.rings)


def make_memory(size: int) -> int:
    """Return a memfd of zeroes, sealed against shrinking and growing.

    So no end can take the memory away under the other. Raises OutOfResources.
    """
    with ExitStack() as undo:
        try:
            memory = os.memfd_create("kvmchan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            undo.callback(os.close, memory)
            os.fchmod(memory, 0o600)  # else whoever is given it for reading opens it once more, for writing
            os.ftruncate(memory, size)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except OSError as error:
            raise OutOfResources(f"the daemon can't make {size} bytes of memory: {error.strerror}") from error
        undo.pop_all()
    return memory


def open_memory(memory: int, holder: ClientId, *, writable: bool = True) -> int:
    """Return a new description of the memory, locked as the holder's; the caller closes it.

    Raises OutOfResources, or AccessDenied if the peer has locked the holder's byte.
    """
    try:
        opened = os.open(f"/proc/self/fd/{memory}", (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        raise OutOfResources(f"the daemon can't share memory: {error.strerror}") from error
    try:
        ofd.lock_byte(opened, holder, exclusive=writable)
    except OSError as error:
        os.close(opened)
        raise AccessDenied("the other end has locked this end's place in the memory: it breaks the rules") from error
    return opened


class LocalRegion(Region):
    """A region of two ends on this machine: a memfd, and a socket pair."""

    __slots__ = ("_events", "_had_client")

    def __init__(self, rings: Rings, memory: int, events: dict[Side, socket.socket]) -> None:
        """Take ownership of the descriptors."""
        super().__init__(rings, Page(memory))
        self._events = events
        self._had_client = False

    @classmethod
    def create(cls, rings: Rings) -> LocalRegion:
        """Make a region. Raises OutOfResources."""
        memory = make_memory(rings.size)
        try:
            Page(memory).initialize(rings)
            server, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            os.close(memory)
            raise OutOfResources(f"the daemon can't make a channel of {rings.size} bytes: {error.strerror}") from error
        return cls(rings, memory, {Side.SERVER: server, Side.CLIENT: client})

    def grant(self, channel: Channel, side: Side, holder: ClientId) -> tuple[client.Grant, tuple[int, ...]]:
        """Return an end, and its descriptors: the memory, and its socket."""
        memory = open_memory(self.memory, holder)
        self._had_client |= side is Side.CLIENT
        return self._grant(channel, "socket"), (memory, self._events[side].fileno())

    def has_events(self) -> bool:
        """Return whether the socket pair is whole."""
        if not self._had_client:
            return True
        poll = select.poll()
        for event in self._events.values():
            poll.register(event, select.POLLRDHUP)
        return not poll.poll(0)

    def signal(self, side: Side) -> None:
        """Send an end an event."""
        # Into the other end of the socket pair.
        entrance = self._events[other(side)]
        try:
            entrance.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass  # full: events are pending; or shut down, by an end that harms itself

    def close(self) -> None:
        """Close the descriptors."""
        for event in self._events.values():
            event.close()
        os.close(self.memory)


class SharedMemory:
    """Pages that one domain shares with another, from `offset` of the file `memory` on.

    `slice`: where they are, if a guest is involved.
    """

    __slots__ = ("_close", "memory", "offset", "slice")

    def __init__(self, memory: int, offset: Size, close: Callable[[], None], taken: Slice | None = None) -> None:
        """Use memory that is zero. close() calls `close`."""
        self.memory = memory
        self.offset = offset
        self.slice = taken
        self._close = close

    @classmethod
    def create(cls, size: int) -> SharedMemory:
        """Make pages for two domains on this machine. Raises OutOfResources."""
        memory = make_memory(size)
        return cls(memory, Size(0), lambda: os.close(memory))

    def open(self, holder: ClientId, *, writable: bool) -> int:
        """Return a description for a holder on this machine; the caller closes it.

        It is locked as the holder's.
        """
        return open_memory(self.memory, holder, writable=writable)

    def is_mapped(self, holder: ClientId) -> bool:
        """Return whether any process still has the holder's description.

        See Region.is_mapped().
        """
        return ofd.byte_is_locked(self.memory, holder)

    def clear(self, offset: int) -> None:
        """Clear one byte of the pages."""
        mapping.write(self.memory, self.offset + offset, b"\0")

    def close(self) -> None:
        """Let the memory go."""
        self._close()
