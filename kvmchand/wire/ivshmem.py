# SPDX-License-Identifier: LGPL-2.1-or-later
"""The messages between main and the ivshmem process, over a socket pair of their own.

Main makes each device's memory, event descriptors and listening sockets; the ivshmem process speaks
to QEMU with them. Each QEMU that a device is in has a listening socket of its own there, by which
it is known.
"""

from __future__ import annotations

from kvmchand.wire.codec import Codec
from kvmchand.wire.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmchand.ids import DeviceId

EVENTS_PER_PACKET = 128
"""Descriptors that one Peer carries, at the most: the kernel passes 253."""


class Device(Record):
    """main → ivshmem: a new device. Its memory is beside this."""

    device: DeviceId


class Peer(Record):
    """main → ivshmem: a peer of the device, by its ivshmem id.

    Beside this are its next eventfds, one a vector from 0 on: several of these carry them, each at
    most EVENTS_PER_PACKET. A peer without a Slot is the host itself.
    """

    device: DeviceId
    peer: int


class Slot(Record):
    """main → ivshmem: QEMU `peer`, by its ivshmem id, connects to the listening socket beside this.

    Comes when all of the device's peers have. `once`: after the first connection the socket is not
    this device's any more.
    """

    device: DeviceId
    peer: int
    once: bool


class Restore(Record):
    """main → ivshmem, after a restart: the connection beside this is of QEMU `peer`."""

    device: DeviceId
    peer: int


class Remove(Record):
    """main → ivshmem: the device is no more: close everything of it. No answer."""

    device: DeviceId


class Start(Record):
    """main → ivshmem: all that was there before is sent; drop privileges and serve."""

    user: str


class Started(Record):
    """ivshmem → main: serving."""


class Connected(Record):
    """ivshmem → main: a QEMU connected.

    A duplicate of its connection is beside this, which main keeps for a Restore.
    """

    device: DeviceId
    peer: int


class Served(Record):
    """ivshmem → main: that QEMU has been sent all it needs: the device can work."""

    device: DeviceId
    peer: int


class Gone(Record):
    """ivshmem → main: that QEMU ended its connection, or was dropped for breaking the protocol."""

    device: DeviceId
    peer: int


TO_IVSHMEM: dict[str, type] = {
    "device": Device,
    "peer": Peer,
    "slot": Slot,
    "restore": Restore,
    "remove": Remove,
    "start": Start,
}
TO_MAIN: dict[str, type] = {
    "started": Started,
    "connected": Connected,
    "served": Served,
    "gone": Gone,
}

to_ivshmem = Codec(TO_IVSHMEM)
to_main = Codec(TO_MAIN)
