# SPDX-License-Identifier: LGPL-2.1-or-later
"""What follows when a guest's QEMU gets a device, lets it go, or can't have it."""

from __future__ import annotations

from kvmchand.channels.device import Device
from kvmchand.errors import LimitReached, NotFound
from kvmchand.ids import DomainId
from kvmchand.links.guest import GuestEvents
from kvmchand.links.guests import Guests
from kvmchand.links.handshake import Handshakes
from kvmchand.links.pool import Pool
from kvmchand.runtime import log
from kvmchand.services.ivshmem.devices import DeviceEvents


class Plugs(DeviceEvents):
    """Keeps the pool, and what stands on its devices, as the QEMUs have them."""

    def __init__(self, guests: Guests, pool: Pool, handshakes: Handshakes, events: GuestEvents) -> None:
        """Know of no device yet."""
        self._guests = guests
        self._pool = pool
        self._handshakes = handshakes
        self._events = events

    def on_served(self, device: Device, domain: DomainId) -> None:
        """Note that a QEMU has the device."""
        device.plugged.add(domain)

    def on_unplugged(self, device: Device, domain: DomainId) -> None:
        """End what stands on a device that a QEMU has let go."""
        self._pool.lose(device, domain)
        guest = self._guests.get(domain)
        if guest is not None and device is guest.control:
            self._handshakes.end(guest)
        elif guest is not None:
            self._events.on_device_lost(domain, device)
            if not guest.is_detached:  # else it comes back, and what is offered there waits
                device.is_closing = True
                taken_away = NotFound("the device that this channel needs was taken away: try again")
                self._events.on_device_failed(domain, device, taken_away)
            self._pool.reap(device)

    def on_cut_off(self, device: Device, domain: DomainId) -> None:
        """Take back a device that a QEMU has got in part."""
        self._pool.cold_plug.replace(device)
        log.warning(f"device {device.number} did not get into domain {domain} whole: its QEMU was cut off")
        self.fail(device, domain, "its QEMU was cut off before it had all of the device: try again")

    def fail(self, device: Device, domain: DomainId, sentence: str) -> None:
        """Take back a device that does not work in a guest: nothing may wait for it any more."""
        guest = self._guests.get(domain)
        if guest is not None and device is not guest.control:
            self._pool.detach(device, domain)
            error = LimitReached(f"domain {domain} can't have the device that this channel needs: {log.printable(sentence)}")
            self._events.on_device_failed(domain, device, error)
