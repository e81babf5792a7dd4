# SPDX-License-Identifier: LGPL-2.1-or-later
"""What QEMU is told of a device, and in which order."""

from __future__ import annotations

from kvmchand.channels.device import Device
from kvmchand.ids import DeviceId, DomainId, Size
from kvmchand.services.ivshmem.devices import Devices
from kvmchand.services.ivshmem.handshake import handshake

MEMORY = 100
EVENTS = {0: [10, 11], 2: [20, 21], 3: [30, 31]}


HOST, OTHER, OWN = [(0, 10), (0, 11)], [(3, 30), (3, 31)], [(2, 20), (2, 21)]


def told(*, has_kvm: bool) -> list[tuple[int, int | None]]:
    return [(int.from_bytes(data, "little", signed=True), fd) for data, fd in handshake(2, MEMORY, EVENTS, has_kvm=has_kvm)]


def test_with_kvm_the_memory_comes_last_for_then_the_guest_may_see_the_device() -> None:
    assert told(has_kvm=True) == [(0, None), (2, None), *HOST, *OTHER, *OWN, (-1, MEMORY)]


def test_without_kvm_its_own_events_come_last_since_they_need_the_memory() -> None:
    assert told(has_kvm=False) == [(0, None), (2, None), *HOST, *OTHER, (-1, MEMORY), *OWN]


def test_a_device_costs_descriptors_for_its_vectors_and_its_guests() -> None:
    one, two = DomainId(1), DomainId(2)
    device = Device(DeviceId(1), (one, two), Size(1 << 20), 4, {one: 2, two: 3})
    assert Devices.fds(device) == 1 + 3 * 4 + 2 * 2
