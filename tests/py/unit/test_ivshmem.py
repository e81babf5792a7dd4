# SPDX-License-Identifier: LGPL-2.1-or-later
"""What QEMU is told of a device, and in which order."""

from __future__ import annotations

from kvmchand.channels.device import Device
from kvmchand.ids import DeviceId, DomainId, Size
from kvmchand.services.ivshmem.devices import Devices
from kvmchand.services.ivshmem.process import handshake

MEMORY = 100
EVENTS = {0: [10, 11], 2: [20, 21], 3: [30, 31]}


def test_a_handshake_is_the_version_the_id_the_memory_the_others_and_last_itself() -> None:
    assert handshake(2, MEMORY, EVENTS) == [
        (0, None),
        (2, None),
        (-1, MEMORY),
        (0, 10),
        (0, 11),
        (3, 30),
        (3, 31),
        (2, 20),
        (2, 21),
    ]


def test_a_device_costs_descriptors_for_its_vectors_and_its_guests() -> None:
    one, two = DomainId(1), DomainId(2)
    device = Device(DeviceId(1), (one, two), Size(1 << 20), 4, {one: 2, two: 3})
    assert Devices.fds(device) == 1 + 3 * 4 + 2 * 2
