# SPDX-License-Identifier: LGPL-2.1-or-later
"""The messages between a guest's main and its vfio process, over a socket pair of their own.

Main keeps a duplicate of every descriptor, so that a vfio process that is started again gets them
back.
"""

from __future__ import annotations

from kvmchand.wire.codec import Codec
from kvmchand.wire.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmchand.ids import Size

EVENTS_PER_PACKET = 128
"""Descriptors that one Events carries, at the most: the kernel passes 253."""


class Start(Record):
    """main → vfio: all that was there before is sent; drive the ivshmem devices, now and later.

    `noiommu`: also where nothing confines them.
    """

    noiommu: bool


class Started(Record):
    """vfio → main: serving; Devices follow."""


class Group(Record):
    """Both ways: an IOMMU group that is open.

    Its descriptor, and that of the container it is in, are beside this.
    """

    name: str


class GroupClosed(Record):
    """vfio → main: no device of the group is open any more, nor is the group."""

    name: str


class Device(Record):
    """Both ways: a device is usable.

    `peer`: its ivshmem id (IVPosition), which is unique among a guest's devices. Its VFIO
    descriptor is beside this; `memory` and `doorbell` are where BAR 2 and BAR 0 are in that, for
    mmap and pread. `address`: its PCI address. `vectors`: those that work; as many descriptors
    follow in Events. `speed`: MB/s of reading its memory.
    """

    address: str
    group: str
    peer: int
    size: Size
    vectors: int
    memory: Size
    doorbell: Size
    speed: Size


class Events(Record):
    """Both ways, after Device: the eventfds of its next vectors are beside this."""

    address: str


class LetGo(Record):
    """main → vfio: a device that was usable, and that main has closed.

    It is not to be driven again; Removed follows when it is gone.
    """

    address: str


class Release(Record):
    """main → vfio: let go of a device that is usable, whose interrupts the machine gets back first.

    It is not to be driven again. Reply: Removed.
    """

    address: str


class Room(Record):
    """vfio → main: there is a window for one more device whose memory is this large, at the most.

    Comes after the devices that are there, and whenever that has changed. `bridge`: where, as in
    the control link's Room.
    """

    size: Size
    bridge: str


class Removed(Record):
    """vfio → main: the device is being unplugged, and waits for all to let go of it; or is gone."""

    address: str


class Unusable(Record):
    """vfio → main: a device, or all of them if `address` is empty, can't be used.

    `sentence`: what is missing, and what to do.
    """

    address: str
    sentence: str


TO_VFIO: dict[str, type] = {
    "start": Start,
    "group": Group,
    "device": Device,
    "events": Events,
    "let-go": LetGo,
    "release": Release,
}
TO_MAIN: dict[str, type] = {
    "started": Started,
    "group": Group,
    "group-closed": GroupClosed,
    "device": Device,
    "events": Events,
    "removed": Removed,
    "room": Room,
    "unusable": Unusable,
}

to_vfio = Codec(TO_VFIO)
to_main = Codec(TO_MAIN)
