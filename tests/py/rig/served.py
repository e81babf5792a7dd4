# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that a Rig serves, in bare guests of the test's own: plugged, used and unplugged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmchand.channels.device import Device
from kvmchand.ids import HOST_PEER, DomainId
from rig.bare import BareDevice
from rig.bare_qemu import BareQemu
from rig.deadline import eventually
from rig.ivshmem import ALICE, MIB, Rig

ROOM = 8
"""Devices that the bare guest can have."""
SMALL = MIB // 8
"""Bytes of a device of which the guest has room for so many."""


@pytest.fixture
def qemu(rig: Rig, bare_kernel: Path, tmp_path_factory: pytest.TempPathFactory, accelerator: str) -> Iterator[BareQemu]:
    """A guest that is ready, whose devices `rig` serves. It has none yet."""
    with start(rig, bare_kernel, tmp_path_factory.mktemp("qemu"), accelerator) as made:
        yield made.wait_ready()


def start(rig: Rig, kernel: Path, folder: Path, accelerator: str) -> BareQemu:
    return BareQemu(folder, kernel, accelerator, until_readable=rig.until_readable)


def name_of(device: Device) -> str:
    """Return what QEMU calls a device."""
    return f"device-{device.number}"


def plugged(qemu: BareQemu, rig: Rig, *, vectors: int = 2, size: int = MIB) -> tuple[Device, BareDevice]:
    """Make a device and plug it in. Returns it as its server and as the guest have it."""
    device = rig.device(ALICE, vectors=vectors, size=size, without_kvm=not qemu.kvm)
    return device, appear(qemu, rig, device)


def appear(qemu: BareQemu, rig: Rig, device: Device, domain: DomainId = ALICE) -> BareDevice:
    """Plug a device in, and wait until the guest has it."""
    known = list(qemu.devices)
    plug(qemu, rig, device, domain)
    return qemu.wait_device(lambda each: each.path not in known)


def plug(qemu: BareQemu, rig: Rig, device: Device, domain: DomainId = ALICE) -> None:
    qemu.plug(name_of(device), rig.devices.socket_path(device, domain), device.vectors)
    rig.until_told(("served", device.number, domain))


def unplug(qemu: BareQemu, rig: Rig, device: Device, domain: DomainId = ALICE) -> None:
    eventually(lambda: rig.devices.has_read(device, domain))  # or QEMU 7.2 may end
    qemu.unplug(name_of(device))
    rig.until_told(("unplugged", device.number, domain))


def interrupt(rig: Rig, device: Device, vector: int, domain: DomainId = ALICE) -> None:
    os.eventfd_write(rig.devices.event(device, device.peers[domain], vector), 1)


def await_event(rig: Rig, device: Device, vector: int) -> None:
    """Wait until the guest has rung for the host."""
    rig.until_readable(rig.devices.event(device, HOST_PEER, vector))


def assert_works(rig: Rig, device: Device, there: BareDevice, domain: DomainId = ALICE) -> None:
    """Assert that the first vector and the last interrupt the guest, and can be rung by it."""
    for vector in (0, device.vectors - 1):
        interrupt(rig, device, vector, domain)
        there.wait_interrupts(there.told(vector), 1)
        there.ring(HOST_PEER, vector)
        await_event(rig, device, vector)
        os.eventfd_read(rig.devices.event(device, HOST_PEER, vector))
