# SPDX-License-Identifier: LGPL-2.1-or-later
"""A channel's region that is a slice of a device.

It lives until both ends are gone; the device outlives it.
"""

from __future__ import annotations

from collections.abc import Callable

from kvmchand.channels.device import Slice
from kvmchand.channels.page import Page, other
from kvmchand.channels.region import Region, open_memory
from kvmchand.channels.registry import Channel, Side
from kvmchand.channels.rings import Rings
from kvmchand.ids import ClientId
from kvmchand.linux.eventfd import drain_event, signal_event
from kvmchand.wire import client


class SliceRegion(Region):
    """A region with an end in a guest.

    It is a slice of a link's device, whose memory and eventfds are the device's.
    """

    __slots__ = ("_bells", "_events", "_free", "slice")

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
        page.initialize(rings)
        for event in events.values():
            drain_event(event)

    def grant(self, channel: Channel, side: Side, holder: ClientId) -> tuple[client.Grant, tuple[int, ...]]:
        """Return an end on this machine, the memory, its eventfd and the peer's."""
        memory = open_memory(self.memory, holder)
        return self._grant(channel, "eventfd"), (memory, self._events[side], self._events[other(side)])

    def bell(self, side: Side) -> int:
        """Return what a guest at that side writes to the doorbell to wake the other."""
        return self._bells[other(side)]

    def signal(self, side: Side) -> None:
        """Send an end an event."""
        signal_event(self._events[side])

    def close(self) -> None:
        """Free the slice."""
        self._free(self.slice)
