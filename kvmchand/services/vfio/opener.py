# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a function becomes a device that is open: bound to its driver, in its group, identified."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

from kvmchand.ids import CONTROL_PEER
from kvmchand.linux import pci, vfio
from kvmchand.runtime import log
from kvmchand.services.vfio.device import Device
from kvmchand.services.vfio.iommu_groups import DRIVER, Group, Groups, Later, Unusable, no_module
from kvmchand.wire import control

REVISION = 1
"""The revision of ivshmem with a doorbell (QEMU's ivshmem-spec)."""
_IVPOSITION = 8
_PEER_MAX = 0xFFFF
_COMMAND = 4
_COMMAND_MEMORY, _COMMAND_MASTER = 2, 4
_NO_IOMMU = (
    "there is no vIOMMU: prepare the domain (kvmchan prepare-domain on the host), and, on x86_64, add intel_iommu=on to the "
    "guest's kernel command line"
)
UNCOVERED = (
    "it has no IOMMU group, for the machine's vIOMMU does not cover it: a vIOMMU of model virtio covers no device behind a "
    "pcie-to-pci-bridge, so make it one of model intel in the domain's XML, and prepare the domain anew (kvmchan prepare-domain "
    "on the host)"
)
_TRIES_MAX = 10
"""Attempts to open a device that its driver has not taken yet."""


class Opener:
    """Opens devices. `noiommu`: also those that nothing confines."""

    def __init__(self, groups: Groups, on_failure: Callable[[str], None]) -> None:
        """Call `on_failure` with the name of a group that was opened for a device that was not."""
        self._groups = groups
        self._on_failure = on_failure
        self._tries: dict[str, int] = {}
        self.noiommu = False

    def forget(self, address: str) -> None:
        """Begin anew with whatever is at an address later."""
        self._tries.pop(address, None)

    def open(self, found: pci.Function) -> Device:
        """Return the device, whose descriptor is the caller's.

        Raises Unusable, Later, SysfsError or OSError.
        """
        if found.revision != REVISION:
            raise Unusable(f"it is revision {found.revision} of ivshmem, and only {REVISION} has interrupts: QEMU is too old")
        if len(found.bars) < 3 or not found.bars[2].size:
            raise Unusable(
                "its memory (BAR 2) got no address: the bridge above it has no window for so much, and can't be widened while "
                "anything behind it is in use. Ask for smaller rings, or give the domain another pcie-root-port with a "
                "pcie-to-pci-bridge in it"
            )
        if not found.group:
            self._allow_noiommu()
        if not pci.has_driver(DRIVER):
            raise Unusable(no_module(DRIVER))
        pci.bind(found.address, DRIVER)
        name = self._group_name(found.address)
        group = self._groups.open(name)
        device = Device(found.address, name, -1)
        try:
            device.fd = self._open_device(group, found.address)
            _identify(device)
        except BaseException:
            device.close()
            self._on_failure(name)
            raise
        return device

    def _open_device(self, group: Group, address: str) -> int:
        try:
            return vfio.open_device(group.fd, address)
        except OSError as error:
            if error.errno == errno.ENODEV:
                self._wait_for_driver(address)
            raise

    def _wait_for_driver(self, address: str) -> None:
        """Raise Later, a few times.

        The kernel shows the driver before the driver has taken the device, and says "bind" when it
        has.
        """
        tries = self._tries[address] = self._tries.get(address, 0) + 1
        if tries <= _TRIES_MAX:
            raise Later

    def _allow_noiommu(self) -> None:
        """Let a device without an IOMMU be driven.

        Raises Unusable unless the settings and the kernel allow it.
        """
        self._require_noiommu()
        try:
            if vfio.allow_noiommu():
                log.warning("VFIO's no-IOMMU mode is turned on, as the settings allow: the kernel will count as tainted")
        except FileNotFoundError as error:
            raise Unusable(
                "there is no vIOMMU, and no VFIO in this kernel that does without (CONFIG_VFIO_NOIOMMU): prepare the domain "
                "(kvmchan prepare-domain on the host)"
            ) from error

    def _group_name(self, address: str) -> str:
        """Return the name in /dev/vfio of the group of a function that the driver has."""
        group = pci.function(address).group
        if not group:
            self._wait_for_driver(address)
            raise Unusable(f"{DRIVER} has it, and made no IOMMU group for it: the kernel's log says why")
        if not pci.is_noiommu(group):
            return group
        self._require_noiommu()
        return vfio.NOIOMMU_PREFIX + group

    def _require_noiommu(self) -> None:
        if not self.noiommu:
            raise Unusable(UNCOVERED if pci.has_iommu() else _NO_IOMMU)


def _identify(device: Device) -> None:
    """Find out which device it is, and that its memory and its doorbell can be used."""
    doorbell, memory = vfio.region(device.fd, vfio.BAR0), vfio.region(device.fd, vfio.BAR2)
    if not doorbell.can_mmap or not memory.can_mmap or doorbell.size < 16:
        raise Unusable("its BARs can't be mapped: another function's registers are in the same page")
    if memory.size < pci.PAGE or memory.size & (memory.size - 1):
        raise Unusable(f"its memory has {memory.size} bytes, which can't be")
    config = vfio.region(device.fd, vfio.CONFIG)
    (command,) = struct.unpack("<H", os.pread(device.fd, 2, config.offset + _COMMAND))
    os.pwrite(device.fd, struct.pack("<H", command | _COMMAND_MEMORY | _COMMAND_MASTER), config.offset + _COMMAND)
    (peer,) = struct.unpack("<i", os.pread(device.fd, 4, doorbell.offset + _IVPOSITION))
    if not 0 < peer <= _PEER_MAX:
        raise Unusable(f"its ivshmem id is {peer}, which can't be: is it a device of kvmchand's?")
    device.peer, device.doorbell, device.memory = peer, doorbell.offset, memory
    if peer == CONTROL_PEER and memory.size >= control.DEVICE_BYTES:
        (device.age,) = struct.unpack("<Q", os.pread(device.fd, 8, memory.offset + control.AGE_OFFSET))
