# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices on their way out of guests.

A QEMU that still reads of a device that it has lost crashes, because it has freed what it reads
into (ivshmem_exit, QEMU 7.2). So a device is unplugged only when its QEMU has read all of it. A
guest without KVM keeps its devices until it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kvmchand.channels.device import Device
from kvmchand.ids import DomainId
from kvmchand.links.links import Links
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop, Timer
from kvmchand.services.ivshmem.devices import Devices
from kvmchand.services.libvirt.hypervisor import Hypervisor

_LOOK_INTERVAL = 0.02
"""Seconds between two looks at whether a QEMU has read what it was sent: nothing tells us."""


class Unplugger:
    """Unplugs devices, as soon as that is safe."""

    def __init__(
        self, loop: Loop, links: Links, devices: Devices, hypervisor: Hypervisor, on_unplugging: Callable[[Device], None]
    ) -> None:
        """Unplug nothing yet.

        `on_unplugging` is called with each device that had to wait for its QEMU.
        """
        self._loop = loop
        self._links = links
        self._devices = devices
        self._hypervisor = hypervisor
        self._on_unplugging = on_unplugging
        self._unread: list[tuple[Device, DomainId]] = []
        """Devices whose QEMU in that guest may not have read what it was sent of them."""
        self._look: Timer | None = None

    def ask_back(self, device: Device, domain: DomainId) -> None:
        """Unplug a device from a guest that it is in.

        Now, or as soon as its QEMU has read all of it.
        """
        if domain not in device.attached:
            return
        device.attached.discard(domain)
        device.ready.discard(domain)
        if domain in self._links.keepers:
            device.plugged.add(domain)  # or it is on its way
            log.info(
                f"domain {domain}, which runs without KVM, keeps device {device.number} until it ends: nothing uses it any more, "
                "and it counts for guest_devices"
            )
            return
        self._unread.append((device, domain))
        self._unplug()

    def forget(self, domain: DomainId) -> None:
        """Unplug nothing from a guest that is gone."""
        self._unread = [each for each in self._unread if each[1] != domain]

    def is_waiting(self, device: Device) -> bool:
        """Return whether a device is still to be unplugged from any guest."""
        return any(each is device for each, _ in self._unread)

    def _unplug(self) -> None:
        self._devices.drain()  # a QEMU may have connected that we have not been told of yet
        for device, domain in list(self._unread):
            if (device, domain) in self._unread and self._devices.has_read(device, domain):
                self._unread.remove((device, domain))
                self._hypervisor.detach(domain, device.number, self._devices.socket_path(device, domain))
        if self._unread and (self._look is None or not self._look.is_waiting):
            self._look = self._loop.call_at(time.monotonic() + _LOOK_INTERVAL, self._look_again)

    def _look_again(self) -> None:
        waiting = {device for device, _ in self._unread}
        self._unplug()
        for device in waiting:
            self._on_unplugging(device)
