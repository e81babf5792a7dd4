# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices on their way out of guests, each with the same care, whatever the reason.

1. The guest's daemon lets go of the device, which turns its interrupts off. A QEMU that loses a
   device with MSI-X on never frees its routes (ivshmem_exit, QEMU 7.2), and ends when it has no
   more. Where a guest does not confirm that, its lost routes are counted.
2. QEMU has read all that it was told. One that still reads of a device that it has lost crashes,
   because it has freed what it reads into.
3. The guest is asked to eject the device, and again if it does not.

A guest without KVM keeps its devices until it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from kvmchand.channels.device import Device
from kvmchand.ids import DomainId
from kvmchand.links.links import Links
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop, Timer
from kvmchand.services.ivshmem.devices import Devices
from kvmchand.services.libvirt.hypervisor import Hypervisor
from kvmchand.wire import control

LOOK_INTERVAL = 0.02
"""Seconds between two looks at whether a device may go: nothing tells us that a QEMU has read what
it was sent."""
RELEASE_DEADLINE = 2.0
"""Seconds in which a guest's daemon has to let go of a device."""
EJECT_DEADLINE, _EJECT_DEADLINE_MAX = 10.0, 320.0
"""Seconds in which a guest has to eject a device before it is asked again; doubles each time."""


class Ejection:
    """A device that a guest was asked to eject, until cancel()."""

    def __init__(self, loop: Loop, domain: DomainId, device: str, ask: Callable[[], None]) -> None:
        """Ask for the first time. `device`: what the log calls it."""
        self._loop = loop
        self._domain = domain
        self._device = device
        self._ask = ask
        self._patience = EJECT_DEADLINE
        self._wait()

    def _wait(self) -> None:
        self._ask()
        self._timer = self._loop.call_at(time.monotonic() + self._patience, self._ask_again)

    def _ask_again(self) -> None:
        if self._patience == EJECT_DEADLINE:
            log.warning(
                f"domain {self._domain} has not let go of {self._device} in {EJECT_DEADLINE:.0f} s: it counts for guest_devices "
                "until the guest lets it go, is reset or ends"
            )
        self._patience = min(2 * self._patience, _EJECT_DEADLINE_MAX)
        self._wait()

    def cancel(self) -> None:
        """Ask no more."""
        self._timer.cancel()


@dataclass(slots=True, eq=False)
class _Leaving:
    """A device on its way out of a guest. `release_by`: when we wait for its daemon no more."""

    device: Device
    domain: DomainId
    release_by: float
    ejection: Ejection | None = None
    """Set once the guest was asked to eject it."""

    def cancel(self) -> None:
        """Ask no more."""
        if self.ejection is not None:
            self.ejection.cancel()


class Unplugger:
    """Unplugs devices, as soon as that is safe."""

    def __init__(
        self,
        loop: Loop,
        links: Links,
        devices: Devices,
        hypervisor: Hypervisor,
        tell: Callable[[DomainId, object], bool],
        on_unplugging: Callable[[Device], None],
    ) -> None:
        """Unplug nothing yet.

        `tell` sends a message to a guest's daemon, and returns whether there is one.
        `on_unplugging` is called with each device that had to wait.
        """
        self._loop = loop
        self._links = links
        self._devices = devices
        self._hypervisor = hypervisor
        self._tell = tell
        self._on_unplugging = on_unplugging
        self._leaving: list[_Leaving] = []
        self._look: Timer | None = None

    def ask_back(self, device: Device, domain: DomainId) -> None:
        """Unplug a device from a guest that it is in, now or as soon as that is safe."""
        if domain not in device.attached:
            return
        device.attached.discard(domain)
        device.ready.discard(domain)
        if self._is_leaving(device, domain):
            return
        if domain in self._links.keepers:
            device.plugged.add(domain)  # or it is on its way
            log.info(
                f"domain {domain}, which runs without KVM, keeps device {device.number} until it ends: nothing uses it any more, "
                "and it counts for guest_devices"
            )
            return
        told = domain in device.enabled and self._tell(domain, control.Release(device.peers[domain]))
        release_by = time.monotonic() + RELEASE_DEADLINE if told else 0.0
        self._leaving.append(_Leaving(device, domain, release_by))
        self._unplug()

    def take_back(self, device: Device, domain: DomainId) -> None:
        """Unplug a device that got into a guest late, when it had been given up."""
        if domain not in device.attached and not device.is_control:
            device.attached.add(domain)
            self.ask_back(device, domain)

    def note_released(self, device: Device, domain: DomainId) -> bool:
        """Note that a guest's daemon has let go of a device. Returns whether that was asked for."""
        device.enabled.discard(domain)
        is_asked = self._is_leaving(device, domain)
        self._look_again()
        return is_asked

    def note_gone(self, device: Device, domain: DomainId) -> None:
        """Note that a guest's QEMU has let go of a device, or has ended."""
        asked = [each for each in self._leaving if each.device is device and each.domain == domain]
        for each in asked:
            each.cancel()
            self._leaving.remove(each)
        if domain in device.enabled:
            device.enabled.discard(domain)
            self._links.lose_routes(domain, device.vectors)
            if asked:
                log.info(
                    f"domain {domain} did not say that it let go of device {device.number}: {device.vectors} routes may be lost"
                )

    def forget(self, domain: DomainId) -> None:
        """Unplug nothing from a guest that is gone."""
        for each in self._leaving:
            if each.domain == domain:
                each.cancel()
        self._leaving = [each for each in self._leaving if each.domain != domain]

    def _is_leaving(self, device: Device, domain: DomainId) -> bool:
        return any(each.device is device and each.domain == domain for each in self._leaving)

    def is_waiting(self, device: Device) -> bool:
        """Return whether any guest is still to be asked to eject a device."""
        return any(each.device is device and each.ejection is None for each in self._leaving)

    def _unplug(self) -> None:
        self._devices.drain()  # a QEMU may have connected that we have not been told of yet
        now = time.monotonic()
        for each in [each for each in self._leaving if each.ejection is None]:
            is_held = each.domain in each.device.enabled and now < each.release_by
            if each in self._leaving and not is_held and self._devices.has_read(each.device, each.domain):
                self._ask(each)
        if any(each.ejection is None for each in self._leaving) and (self._look is None or not self._look.is_waiting):
            self._look = self._loop.call_at(now + LOOK_INTERVAL, self._look_again)

    def _ask(self, leaving: _Leaving) -> None:
        device, domain = leaving.device, leaving.domain
        path = self._devices.socket_path(device, domain)
        leaving.ejection = Ejection(self._loop, domain, f"device {device.number}", lambda: self._hypervisor.detach(domain, path))

    def _look_again(self) -> None:
        waiting = {each.device for each in self._leaving if each.ejection is None}
        self._unplug()
        for device in waiting:
            self._on_unplugging(device)
