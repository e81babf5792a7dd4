# SPDX-License-Identifier: LGPL-2.1-or-later
"""The messages between main and the ivshmem process, over a socket pair of their own.

Main makes each device, and gives it to the QEMUs that connect. The ivshmem process watches their
connections. When main has ended, it sends everyone an event, and refuses the QEMUs that main had
not accepted.
"""

from __future__ import annotations

from kvmchand.wire.codec import Codec
from kvmchand.wire.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmchand.ids import DeviceId

EVENTS_PER_PACKET = 128
"""Descriptors that one Events carries, at the most: the kernel passes 253."""


class Device(Record):
    """main → ivshmem: a new device."""

    device: DeviceId


class Events(Record):
    """main → ivshmem: some of the device's eventfds are beside this, at most EVENTS_PER_PACKET."""

    device: DeviceId


class Listener(Record):
    """main → ivshmem: a QEMU that gets the device connects to the listening socket beside this."""

    device: DeviceId


class Connection(Record):
    """main → ivshmem: a QEMU has connected, and is told of the device by main.

    `connection`: a number that no other has. Its socket is beside this. After a restart, comes
    again.
    """

    connection: int
    device: DeviceId


class Remove(Record):
    """main → ivshmem: the device is no more: close everything of it. No answer."""

    device: DeviceId


class Start(Record):
    """main → ivshmem: all that was there before is sent; drop privileges and serve."""

    user: str


class Started(Record):
    """ivshmem → main: serving."""


class Gone(Record):
    """ivshmem → main: a QEMU ended its connection, or was dropped for breaking the protocol."""

    connection: int


TO_IVSHMEM: dict[str, type] = {
    "device": Device,
    "events": Events,
    "listener": Listener,
    "connection": Connection,
    "remove": Remove,
    "start": Start,
}
TO_MAIN: dict[str, type] = {
    "started": Started,
    "gone": Gone,
}

to_ivshmem = Codec(TO_IVSHMEM)
to_main = Codec(TO_MAIN)
