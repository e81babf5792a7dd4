# SPDX-License-Identifier: LGPL-2.1-or-later
"""VFIO containers, groups and devices, through ioctl.

See <linux/vfio.h> and Linux's Documentation/driver-api/vfio.rst. Every function raises OSError with
the kernel's errno. All descriptors stay the caller's.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import NamedTuple

_TYPE, _BASE = ord(";"), 100


def _io(number: int) -> int:
    """Return _IO(VFIO_TYPE, VFIO_BASE + number)."""
    return _TYPE << 8 | (_BASE + number)


GET_API_VERSION = _io(0)
CHECK_EXTENSION = _io(1)
SET_IOMMU = _io(2)
GROUP_GET_STATUS = _io(3)
GROUP_SET_CONTAINER = _io(4)
GROUP_GET_DEVICE_FD = _io(6)
DEVICE_GET_INFO = _io(7)
DEVICE_GET_REGION_INFO = _io(8)
DEVICE_GET_IRQ_INFO = _io(9)
DEVICE_SET_IRQS = _io(10)

API_VERSION = 0
TYPE1_IOMMU, TYPE1V2_IOMMU, NOIOMMU_IOMMU = 1, 3, 8
GROUP_VIABLE = 1
REGION_MMAP = 4
BAR0, BAR2, CONFIG = 0, 2, 7
MSIX_IRQ, REQ_IRQ = 2, 4
_IRQ_DATA_NONE, _IRQ_DATA_EVENTFD, _IRQ_ACTION_TRIGGER = 1 << 0, 1 << 2, 1 << 5

GROUP_STATUS = struct.Struct("=II")  # argsz, flags
REGION_INFO = struct.Struct("=IIIIQQ")  # argsz, flags, index, cap_offset, size, offset
IRQ_INFO = struct.Struct("=IIII")  # argsz, flags, index, count
IRQ_SET = struct.Struct("=IIIII")  # argsz, flags, index, start, count


NOIOMMU_PREFIX = "noiommu-"
"""Begins the names in /dev/vfio of groups that VFIO made for devices without an IOMMU."""
_ALLOW_NOIOMMU = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")


class Region(NamedTuple):
    """A BAR or the configuration space.

    `offset` is its place in the device's descriptor, for pread, pwrite and mmap.
    """

    size: int
    offset: int
    can_mmap: bool


def allow_noiommu() -> bool:
    """Let VFIO take devices without an IOMMU from now on. Returns whether it did not before.

    Using such a device taints the kernel. ENOENT: the module vfio is missing, or was built without
    that mode (CONFIG_VFIO_NOIOMMU).
    """
    if _ALLOW_NOIOMMU.read_text().strip() == "Y":
        return False
    _ALLOW_NOIOMMU.write_text("Y")
    return True


def open_container() -> int:
    """Open a new container.

    ENOENT, ENODEV: the module vfio is missing. ENOSYS: its version is another.
    """
    fd = os.open("/dev/vfio/vfio", os.O_RDWR | os.O_CLOEXEC)
    if fcntl.ioctl(fd, GET_API_VERSION) != API_VERSION:
        os.close(fd)
        raise OSError(38, "VFIO has another version")
    return fd


def open_group(name: str) -> int:
    """Open a group by its name in /dev/vfio.

    EBUSY: the group, or one of its devices, is open elsewhere. EPERM: a group without an IOMMU,
    which needs CAP_SYS_RAWIO.
    """
    return os.open(f"/dev/vfio/{name}", os.O_RDWR | os.O_CLOEXEC)


def is_viable(group: int) -> bool:
    """Return whether every device of the group belongs to VFIO or to no driver."""
    status = fcntl.ioctl(group, GROUP_GET_STATUS, GROUP_STATUS.pack(GROUP_STATUS.size, 0))
    return bool(GROUP_STATUS.unpack(status)[1] & GROUP_VIABLE)


def join(group: int, container: int) -> None:
    """Put a group into a container.

    EPERM: the container has groups of the other kind, with or without an IOMMU.
    """
    fcntl.ioctl(group, GROUP_SET_CONTAINER, struct.pack("=i", container))


def has_iommu(container: int, kind: int) -> bool:
    """Return whether a container's kernel can confine devices this way."""
    return fcntl.ioctl(container, CHECK_EXTENSION, kind) > 0


def set_iommu(container: int, kind: int) -> None:
    """Set a container's IOMMU, after its first group has joined.

    ENODEV: no such IOMMU, or the module vfio_iommu_type1 is missing.
    """
    fcntl.ioctl(container, SET_IOMMU, kind)


def open_device(group: int, address: str) -> int:
    """Open a device of the group. ENODEV: its driver is not vfio-pci."""
    fd: int = fcntl.ioctl(group, GROUP_GET_DEVICE_FD, bytearray(os.fsencode(address) + b"\0"), True)
    os.set_inheritable(fd, False)
    return fd


def region(device: int, index: int) -> Region:
    """Return one of a device's regions."""
    info = fcntl.ioctl(device, DEVICE_GET_REGION_INFO, REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
    _, flags, _, _, size, offset = REGION_INFO.unpack(info)
    return Region(size, offset, bool(flags & REGION_MMAP))


def irq_count(device: int, index: int) -> int:
    """Return how many interrupts of a kind a device has."""
    info = fcntl.ioctl(device, DEVICE_GET_IRQ_INFO, IRQ_INFO.pack(IRQ_INFO.size, 0, index, 0))
    count: int = IRQ_INFO.unpack(info)[3]
    return count


def set_irqs(device: int, index: int, events: list[int]) -> int:
    """Let each interrupt of a kind signal an eventfd, all at once.

    Returns 0, or how many there could be if these are too many. ENOSPC: the machine has too few
    interrupt vectors left.
    """
    data = struct.pack(f"={len(events)}i", *events)
    header = IRQ_SET.pack(IRQ_SET.size + len(data), _IRQ_DATA_EVENTFD | _IRQ_ACTION_TRIGGER, index, 0, len(events))
    room: int = fcntl.ioctl(device, DEVICE_SET_IRQS, bytearray(header + data), True)
    return room


def close_device(fd: int, events: list[int]) -> None:
    """Close a device, unless `fd` is negative, and empty `events`, its vectors' eventfds."""
    while events:
        os.close(events.pop())
    if fd >= 0:
        os.close(fd)


def disable_irqs(device: int, index: int) -> None:
    """Turn all interrupts of a kind off, so that the machine has their vectors back."""
    fcntl.ioctl(device, DEVICE_SET_IRQS, IRQ_SET.pack(IRQ_SET.size, _IRQ_DATA_NONE | _IRQ_ACTION_TRIGGER, index, 0, 0))
