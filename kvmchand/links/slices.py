# SPDX-License-Identifier: LGPL-2.1-or-later
"""A channel's region that is a slice of a device.

It lives until both ends are gone; the device outlives it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from kvmchand.channels.device import Slice
from kvmchand.channels.page import Page, other
from kvmchand.channels.region import Region, open_memory
from kvmchand.channels.registry import Channel, Side
from kvmchand.channels.rings import Rings
from kvmchand.errors import OutOfResources
from kvmchand.ids import ClientId
from kvmchand.linux.eventfd import drain_event, share_event, signal_event
from kvmchand.wire import client


class SliceRegion(Region):
    """A region with an end in a guest.

    It is a slice of a link's device, whose memory and eventfds are the device's.
    """

    __slots__ = ("_bells", "_events", "_free", "_shared", "slice")

    def __init__(
        self,
        rings: Rings,
        page: Page,
        events: dict[Side, int],
        bells: dict[Side, int],
        taken: Slice,
        free: Callable[[Slice], None],
    ) -> None:
        """Initialize memory that is zero.

        `events`: what wakes each side. `bells`: what a guest writes to the doorbell to do so.
        """
        super().__init__(rings, page)
        self._events = events
        self._bells = bells
        self._free = free
        self.slice = taken
        self._shared: dict[Side, select.epoll] = {}
        """What waits for an event of the host's that other channels get, too."""
        page.initialize(rings)
        if not taken.is_shared:
            for event in events.values():
                drain_event(event)

    def grant(self, channel: Channel, side: Side, holder: ClientId) -> tuple[client.Grant, tuple[int, ...]]:
        """Return an end on this machine, the memory, its eventfd and the peer's."""
        memory = open_memory(self.memory, holder)
        kind = "shared eventfd" if self.slice.is_shared else "eventfd"
        try:
            return self._grant(channel, kind), (memory, self._awaited(side), self._events[other(side)])
        except OSError as error:
            os.close(memory)
            raise OutOfResources(f"the daemon can't share an event: {error.strerror}") from error

    def _awaited(self, side: Side) -> int:
        """Return what a side waits for. Raises OSError."""
        if not self.slice.is_shared:
            return self._events[side]
        if side not in self._shared:
            self._shared[side] = share_event(self._events[side])
        return self._shared[side].fileno()

    def bell(self, side: Side) -> int:
        """Return what a guest at that side writes to the doorbell to wake the other."""
        return self._bells[other(side)]

    def signal(self, side: Side) -> None:
        """Send an end an event."""
        signal_event(self._events[side])

    def close(self) -> None:
        """Free the slice."""
        for shared in self._shared.values():
            shared.close()
        self._free(self.slice)
