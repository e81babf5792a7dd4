# SPDX-License-Identifier: LGPL-2.1-or-later
"""A device that the vfio process drives: what it has open of it.

It lives from when the device is opened until the device is let go or the process ends.
"""

from __future__ import annotations

import mmap
import os
import time

from kvmchand.ids import CONTROL_PEER
from kvmchand.linux import vfio
from kvmchand.services.vfio.iommu_groups import Unusable

_TIMED_BYTES = 64 * 1024
_TIMED_READS = 20
"""The fastest counts. On a busy host most are interrupted; uncached they take some 60 ms in all."""


class Device:
    """A device.

    `fd` is -1 if it is not used: it is unusable, or being unplugged. `peer`: its ivshmem id.
    `is_let_go`: main has closed it, and waits to hear that it is gone. `memory` and `doorbell`:
    where BAR 2 and BAR 0 are in `fd`. `age`: a later control device's is higher.
    """

    def __init__(self, address: str, group: str, fd: int, *, peer: int = 0, is_let_go: bool = False) -> None:
        self.address = address
        self.group = group
        self.fd = fd
        self.peer = peer
        self.is_let_go = is_let_go
        self.memory = vfio.Region(0, 0, False)
        self.doorbell = 0
        self.age = 0
        self.events: list[int] = []
        self.unplug = -1
        """Signalled when the device must be let go."""

    def rank(self) -> tuple[bool, int]:
        """Return what sorts devices in the order of their use: the newest control device first.

        The host's daemon is at its other end.
        """
        return self.peer != CONTROL_PEER, -self.age

    def is_newer_control(self, other: Device) -> bool:
        """Return whether this is a control device, and of a later daemon than the other."""
        return self.fd >= 0 and self.peer == CONTROL_PEER and self.age > other.age

    def close(self) -> None:
        """Close the descriptors."""
        fd, self.fd = self.fd, -1
        vfio.close_device(fd, self.events)


def wire_vectors(device: Device) -> None:
    """Let the device's vectors signal eventfds.

    As many as it has, or as the machine has room for.
    """
    count = vfio.irq_count(device.fd, vfio.MSIX_IRQ)
    if count < 1:
        raise Unusable("it has no interrupts (MSI-X)")
    device.events = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
    while True:
        try:
            most = vfio.set_irqs(device.fd, vfio.MSIX_IRQ, device.events)
        except OSError as error:
            if len(device.events) == 1:
                raise Unusable(f"its interrupts can't be had: {error.strerror}: give the guest more processors") from error
            most = len(device.events) // 2
        if most == 0:
            return
        for event in device.events[most:]:
            os.close(event)
        del device.events[most:]


def time_reads(fd: int, memory: vfio.Region) -> int:
    """Return the MB/s of reading the memory as a program would."""
    size = min(memory.size, _TIMED_BYTES)
    with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ, offset=memory.offset) as mapped:
        best = 0.0
        for _ in range(_TIMED_READS):
            start = time.perf_counter()
            mapped[:size]
            best = max(best, size / (time.perf_counter() - start))
    return int(best / 1e6)
