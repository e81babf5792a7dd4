# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that are detached: they have no device of ours, and what is offered to them waits.

A guest is detached on request, because libvirt saves and migrates no domain that has such devices.
Its channels end at once. Then its devices are unplugged, the control device last.

What others offer to the guest keeps its device, which is plugged again when the guest is attached.
But a QEMU that has lost a device with its interrupts on ends if it gets the same eventfds once more
(KVM still has them: EBUSY, and QEMU 7.2 asserts that there is no error). So the control device is
always another one, and others are given up if the guest's daemon did not let go of them in order.

If the guest ends before that, its number may become another domain's. So what is offered to it is
kept under a number that no domain gets, until a domain with its uuid runs.
"""

from __future__ import annotations

import time

from kvmchand.errors import Busy, InvalidArgument
from kvmchand.ids import START_PEER, DomainId
from kvmchand.links.guest import Guest, GuestEvents
from kvmchand.links.guests import Guests
from kvmchand.links.handshake import Handshakes
from kvmchand.links.links import Links
from kvmchand.links.pool import Pool, plug_control
from kvmchand.links.unplugger import LOOK_INTERVAL, RELEASE_DEADLINE
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.services.ivshmem.devices import Devices
from kvmchand.services.libvirt.hypervisor import Hypervisor
from kvmchand.wire import control, libvirt

_LAST_NUMBER = DomainId(2**31 - 1)
"""The highest that there can be. libvirt counts its domains from 1 on."""


class Detachments:
    """Detaches guests, and attaches them again."""

    def __init__(
        self,
        loop: Loop,
        links: Links,
        guests: Guests,
        pool: Pool,
        devices: Devices,
        hypervisor: Hypervisor,
        handshakes: Handshakes,
        events: GuestEvents,
    ) -> None:
        """Have no guest detached."""
        self._loop = loop
        self._links = links
        self._guests = guests
        self._pool = pool
        self._devices = devices
        self._hypervisor = hypervisor
        self._handshakes = handshakes
        self._events = events
        self._kept: dict[str, DomainId] = {}
        """The numbers that stand for detached guests that have ended, by uuid."""
        self._next = _LAST_NUMBER
        """The next of these numbers."""

    # ---- on request ----

    def _get(self, domain: DomainId) -> Guest:
        guest = self._guests.get(domain)
        if guest is None:
            raise InvalidArgument(f"domain {domain} is no guest, so it has no devices: kvmchan ls shows the guests")
        return guest

    def left(self, domain: DomainId) -> int:
        """Return how many devices a guest still has to let go of, as it is detached."""
        return len(self._get(domain).leaving)

    def detach(self, domain: DomainId) -> None:
        """End a guest's channels, and take its devices out. on_guest_left() follows.

        Asks the guest once more if it is detached and has devices left. Raises InvalidArgument or
        Busy if its devices can't be taken out: nothing has changed then.
        """
        guest = self._get(domain)
        if not guest.is_detached:
            self._require_detachable(guest)
            self._begin(guest)
        elif guest.leaving:
            self._pool.stale.ask_again(domain)
            for device in self._links.of(domain):
                if str(path := self._devices.socket_path(device, domain)) in guest.leaving:
                    self._hypervisor.detach(domain, path)

    def _require_detachable(self, guest: Guest) -> None:
        who = f"domain {guest.domain} ({guest.name})"
        if guest.domain in self._links.keepers:
            raise InvalidArgument(
                f"{who} runs without KVM, and its QEMU would crash if it lost a device: it keeps its devices until it ends, so "
                "libvirt can neither save nor migrate it. Shut it down, or run it with KVM (type='kvm'). Nothing has changed"
            )
        if any(device.peers[guest.domain] == START_PEER for device in self._links.of(guest.domain)):
            raise InvalidArgument(
                f"{who} has a device from its start, which can't be unplugged, so libvirt can neither save nor migrate it: "
                "kvmchan prepare-domain --link-size 0 removes it from the domain's next start on. Nothing has changed"
            )
        if self._hypervisor.is_paused(guest.domain):
            raise Busy(f"{who} is paused, and can't let go of its devices: resume it first (virsh resume). Nothing has changed")

    def _begin(self, guest: Guest) -> None:
        domain = guest.domain
        log.info(f"domain {domain} ({guest.name}) is detached: its channels end, and its devices are unplugged")
        guest.is_detached = True
        if guest.attachment is not None:
            guest.attachment.cancel()
        devices = self._links.of(domain)
        here = [device for device in devices if domain in device.attached | device.plugged]
        guest.leaving = {str(self._devices.socket_path(device, domain)) for device in here} | self._pool.stale.sockets(domain)
        for device in devices:
            device.ready.discard(domain)  # so that the memory stays what it is while the guest has it mapped
        self._guests.tell_daemon(domain, control.Detached())
        self._events.on_guest_leaving(domain)
        for device in devices:
            if device is not guest.control:
                self._pool.unplugger.ask_back(device, domain)
                device.is_closing |= not device.slices
                self._pool.reap(device)
        self._end_session(guest, time.monotonic() + RELEASE_DEADLINE)

    def _end_session(self, guest: Guest, deadline: float) -> None:
        """Take the control device out, once the guest's daemon has let go of all others."""
        now = time.monotonic()
        if now < deadline and any(guest.domain in device.enabled for device in self._links.of(guest.domain)):
            guest.attachment = self._loop.call_at(now + LOOK_INTERVAL, lambda: self._end_session(guest, deadline))
            return
        self.note_reset(guest)
        self._handshakes.refuse(guest, "the host has detached this domain: kvmchan attach, on the host, gives it devices again")
        self._pool.unplugger.ask_back(guest.control, guest.domain)

    def note_reset(self, guest: Guest) -> None:
        """Note that the daemon of a detached guest will let go of nothing any more."""
        if guest.is_detached:
            guest.spoiled |= {device for device in self._links.of(guest.domain) if guest.domain in device.enabled}

    def note_gone(self, domain: DomainId, socket: str) -> None:
        """Note that libvirt says that a device has gone from a guest."""
        guest = self._guests.get(domain)
        if guest is None or socket not in guest.leaving:
            return
        guest.leaving.remove(socket)
        if not guest.leaving:
            log.info(f"domain {domain} ({guest.name}) has no device any more: libvirt can save or migrate it")
            self._events.on_guest_left(domain)

    def attach(self, domain: DomainId) -> None:
        """Give a detached guest devices again. Does nothing if it is not detached.

        Raises Busy if it has not let go of all it had, and as plug_control().
        """
        guest = self._get(domain)
        if not guest.is_detached:
            return
        if guest.leaving:
            raise Busy(
                f"domain {domain} ({guest.name}) still has to let go of {len(guest.leaving)} devices, and gets none before: try "
                "again, or reset it (virsh reset)"
            )
        device = plug_control(self._pool, domain)
        log.info(f"domain {domain} ({guest.name}) is attached again")
        self._handshakes.remove(guest)
        self._give_up_spoiled(guest)
        guest.control = device
        guest.is_detached = False
        self._events.on_guest_attached(domain)
        self._handshakes.add(guest)

    def _give_up_spoiled(self, guest: Guest) -> None:
        for device in (guest.control, *guest.spoiled):
            device.is_closing = True
            self._events.on_device_spoiled(guest.domain, device)
            self._pool.reap(device)
        guest.spoiled.clear()

    # ---- guests that end while they are detached ----

    def keep(self, guest: Guest) -> None:
        """Keep what is offered to a detached guest that has ended."""
        kept = self._kept[guest.uuid] = self._next
        self._next = DomainId(self._next - 1)
        self._events.on_guest_away(guest.domain, kept)
        for device in self._links.of(guest.domain):
            if device.slices and not device.is_closing:
                self._links.renumber(device, guest.domain, kept)
                device.is_closing = True  # it goes if what is offered on it does

    def bring_back(self, found: libvirt.Found) -> None:
        """Offer a guest that runs again what is kept for it."""
        kept = self._kept.get(found.uuid)
        if kept is None:
            return
        if not found.kvm:
            self.give_up(found.uuid)  # its devices were made for a QEMU with KVM
            return
        del self._kept[found.uuid]
        for device in self._links.of(kept):
            self._links.renumber(device, kept, found.domain)
            device.is_closing = False
        self._events.on_guest_returned(found.domain, kept)

    def give_up(self, uuid: str) -> None:
        """Keep nothing any more for a domain that will not run again."""
        kept = self._kept.pop(uuid, None)
        if kept is not None:
            log.info(f"nothing is offered any more to the detached domain {uuid}, which will not run again")
            self._events.on_guest_given_up(kept)
