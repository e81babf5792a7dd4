# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether devices find room behind this guest's bridges, and how bridges get more of it.

Bridges are widened when the daemon starts, before it uses what is behind them. A device that finds
no room comes again, and the kernel then makes room for it. Both need an idle bridge.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvmchand.ids import Size
from kvmchand.linux import bridges, pci
from kvmchand.linux.bridges import Bridge
from kvmchand.runtime import log
from kvmchand.wire.vfio import Room

IVSHMEM = (0x1AF4, 0x1110)
_ROOMS = (64 << 20, 4 << 20)
"""What a bridge should have room for, and what it should have if there is not so much: a channel
with the largest rings of Xen takes a device of 4 MiB."""
_UNALIGNED = 4
"""A window that is so many times larger has room for a device, wherever the kernel puts it."""
_ROOM_MAX = 1 << 34
"""What an idle bridge may get: the largest device."""
_BARS = 3
"""Of a device."""


def is_ivshmem(function: pci.Function) -> bool:
    """Return whether a function is an ivshmem device with a doorbell.

    One without has the same numbers, and is somebody else's.
    """
    return (function.vendor, function.device) == IVSHMEM and function.has_msix


def _is_idle(function: pci.Function) -> bool:
    return is_ivshmem(function) and not function.driver


class Windows:
    """The bridges of a guest, and what was tried with them."""

    def __init__(self) -> None:
        """Have tried nothing yet."""
        self._tried: set[str] = set()
        """The functions that came again to find room."""
        self._stuck: set[str] = set()
        """The bridges' functions of the root complex that got no more room."""

    def widen(self) -> None:
        """Widen the idle bridges that are narrow: what is behind them goes and comes again."""
        if bridges.ON_PORTS:
            return
        try:
            for room in _ROOMS:
                narrow = [each for each in bridges.bridges(_is_idle) if each.is_idle and each.room < room]
                if narrow:
                    bridges.widen(narrow, _UNALIGNED * room)
        except pci.SysfsError as error:
            log.info(f"no bridge is widened before a device needs that: {error}")

    def make_room(self, new: Iterable[pci.Function]) -> bool:
        """Have devices come again, with their bridges, that have no addresses.

        Returns whether any did: what was seen of functions before counts no more.
        """
        lacking = {each.address for each in new if not all(bar.size for bar in each.bars[:_BARS])}
        self._tried -= {each.address for each in new} - lacking
        if not lacking:
            return False
        try:
            tops = {each: pci.way(each)[0] for each in lacking}
            self._stuck |= {tops[each] for each in lacking & self._tried}
            again = {each.top for each in bridges.bridges(_is_idle) if each.is_idle} & set(tops.values()) - self._stuck
            self._tried |= {each for each in lacking if tops[each] in again}
            if again:
                bridges.find_anew(sorted(again))
        except pci.SysfsError as error:
            log.info(f"a device without addresses does not come again: {error}")
            return False
        return bool(again)

    def room(self) -> Room | None:
        """Return for how large a device there is room, and where, or None if that can't be told."""
        try:
            found = bridges.bridges(_is_idle)
        except pci.SysfsError:
            return None  # something goes just now, as an event says
        rooms = {each.place: self._room_of(each) for each in found}
        best = max(rooms, key=rooms.__getitem__, default=None)
        return None if best is None else Room(rooms[best], best)

    def _room_of(self, bridge: Bridge) -> Size:
        return Size(_ROOM_MAX if bridge.is_idle and bridge.top not in self._stuck else bridge.room)
