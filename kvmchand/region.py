# SPDX-License-Identifier: LGPL-2.1-or-later
"""A channel's shared memory, and its event channel, as the daemon holds them.

The region is a memfd: zeroed, and sealed against shrinking and growing, so that no end can take the memory away under the
other. The daemon never maps it. Each holder of an end gets an open file description of its own, with a lock on one byte that
is that holder's, so the daemon can ask whether it still has the region mapped. Lives until both ends are gone.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
from contextlib import ExitStack

from kvmchand.core.registry import Side
from kvmchand.core.rings import Rings
from kvmchand.errors import AccessDenied, OutOfResources
from kvmchand.ids import ClientId
from kvmchand.linux import ofd
from kvmchand.page import Page, Ready, other


class Region:
    """One channel's memory and event channel. The descriptors in here are ours until close()."""

    __slots__ = ("_events", "_had_client", "_memory", "rings")

    def __init__(self, rings: Rings, memory: int, events: dict[Side, socket.socket]) -> None:
        self.rings = rings
        self._memory = memory
        self._events = events
        self._had_client = False

    @classmethod
    def create(cls, rings: Rings) -> Region:
        with ExitStack() as undo:
            try:
                memory = os.memfd_create("kvmchan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                undo.callback(os.close, memory)
                os.ftruncate(memory, rings.size)
                Page(memory).initialize(rings)
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
                server, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            except OSError as error:
                raise OutOfResources(f"the daemon can't make a channel of {rings.size} bytes: {error.strerror}") from error
            undo.pop_all()
        return cls(rings, memory, {Side.SERVER: server, Side.CLIENT: client})

    def grant(self, side: Side, holder: ClientId) -> tuple[int, int]:
        """New descriptors for an end: the memory, locked as the holder's (the caller closes it), and the end's event
        channel (stays ours)."""
        try:
            memory = os.open(f"/proc/self/fd/{self._memory}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise OutOfResources(f"the daemon can't share a channel's memory: {error.strerror}") from error
        try:
            ofd.lock_byte(memory, holder)
        except OSError as error:
            os.close(memory)
            raise AccessDenied("the channel's other end has locked this end's place: it breaks the rules") from error
        self._had_client |= side is Side.CLIENT
        return memory, self._events[side].fileno()

    @property
    def memory(self) -> int:
        """The descriptor of the memory; stays ours."""
        return self._memory

    def is_mapped(self, holder: ClientId) -> bool:
        """Whether any process still has what grant() gave this holder, mapped or open. A peer that breaks the rules can lock
        the byte too, and so keep the dead end of its own channel."""
        return ofd.byte_is_locked(self._memory, holder)

    def has_events(self) -> bool:
        """Whether events can still pass: an end that breaks the rules may have shut the event channel down."""
        if not self._had_client:
            return True
        poll = select.poll()
        for event in self._events.values():
            poll.register(event, select.POLLRDHUP)
        return not poll.poll(0)

    def has_hung_up(self, side: Side) -> bool:
        """Whether an end says itself that it is gone."""
        return Page(self._memory).live(side) == 0

    def bury(self, side: Side) -> None:
        """Does for an end that died what it would have done itself: its live byte to 0, and an event to the other."""
        Page(self._memory).set_live(side, 0)
        self.signal(other(side))

    def signal(self, side: Side) -> None:
        """Sends an end an event, which goes in at the other end of the socket pair."""
        entrance = self._events[Side.SERVER if side is Side.CLIENT else Side.CLIENT]
        try:
            entrance.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass  # full: events are pending; or shut down, by an end that harms itself

    def ready(self) -> Ready:
        return Page(self._memory).ready(self.rings)

    def close(self) -> None:
        for event in self._events.values():
            event.close()
        memory, self._memory = self._memory, -1
        if memory >= 0:
            os.close(memory)
