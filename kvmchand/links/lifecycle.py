# SPDX-License-Identifier: LGPL-2.1-or-later
"""What follows when a guest starts, reboots or ends, and when a device can't be plugged into it.

A guest's control device is plugged when the guest is found, and again after a while if that failed.
A domain that is not served is no guest: nothing of it is kept but a sentence, for who asks.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from kvmchand.config import Serve
from kvmchand.errors import VchanError
from kvmchand.ids import DeviceId, DomainId
from kvmchand.links.detachments import Detachments
from kvmchand.links.guest import Guest, GuestEvents
from kvmchand.links.guests import Guests
from kvmchand.links.handshake import Handshakes
from kvmchand.links.links import Links
from kvmchand.links.plugs import Plugs
from kvmchand.links.pool import Pool, plug_control
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.services.libvirt import machine_xml
from kvmchand.services.libvirt.coldplug_xml import StartLink
from kvmchand.services.libvirt.hypervisor import HypervisorEvents
from kvmchand.wire import libvirt

_PATIENCE_MAX = 60.0


class Lifecycle(HypervisorEvents):
    """Keeps the table of guests as the hypervisor says."""

    def __init__(
        self,
        loop: Loop,
        links: Links,
        guests: Guests,
        pool: Pool,
        handshakes: Handshakes,
        plugs: Plugs,
        detachments: Detachments,
        events: GuestEvents,
        local_domains: Collection[DomainId],
        serve: Serve,
    ) -> None:
        """Know of no guest yet.

        `local_domains` are numbers that no guest may have. `serve`: which domains are guests.
        """
        self._loop = loop
        self._links = links
        self._guests = guests
        self._pool = pool
        self._handshakes = handshakes
        self._plugs = plugs
        self._detachments = detachments
        self._events = events
        self._local_domains = local_domains
        self._serve = serve

    def on_prepared(self, prepared: libvirt.Prepared) -> None:
        """Make the device that a domain has from its next start."""
        self._pool.cold_plug.prepare(prepared.uuid, StartLink(prepared.socket, prepared.size, prepared.vectors, prepared.kvm))

    def on_unprepared(self, uuid: str) -> None:
        """Withdraw that device."""
        self._pool.cold_plug.withdraw(uuid)

    def on_found(self, found: libvirt.Found) -> None:
        """Give a guest its control device, and open its first session."""
        domain, name = found.domain, found.name
        if domain in self._guests:
            return
        if domain in self._local_domains:
            log.warning(f"domain {domain} ({name}) is not served: its number is a local domain's, so give that another")
            return
        self._pool.stale.add(found)  # they go, whether the domain is served or not
        refusal = machine_xml.refusal(name, machine_xml.Fitness(found.obstacle, found.lack), self._serve)
        if refusal:
            log.info(f"domain {domain} ({name}) is not served: {refusal}")
            self._events.on_unserved(domain, refusal)
            return
        self._pool.add_guest(found)
        try:
            device = plug_control(self._pool, domain)
        except VchanError as error:
            log.warning(f"domain {domain} ({name}) gets no control device: {error.sentence}")
            self._pool.remove_guest(domain)
            self._events.on_unserved(domain, error.sentence)
            return
        guest = Guest(domain, name, found.uuid, device)
        self._guests.add(guest)
        log.info(f"domain {domain} ({name}) is here")
        self._events.on_guest(domain, name, found.uuid)
        self._detachments.bring_back(found)
        self._handshakes.add(guest)

    def on_gone(self, domain: DomainId) -> None:
        """End all that a guest had."""
        self._pool.stale.forget(domain)
        guest = self._guests.get(domain)
        if guest is None:
            self._events.on_unserved_gone(domain)
            return
        log.info(f"domain {domain} ({guest.name}) is gone")
        self._handshakes.end(guest)
        self._handshakes.remove(guest)
        if guest.attachment is not None:
            guest.attachment.cancel()
        if guest.is_detached:
            self._detachments.keep(guest)
        else:
            self._events.on_guest_gone(domain)
        self._guests.remove(guest)
        self._pool.remove_guest(domain)

    def on_undefined(self, uuid: str) -> None:
        """Keep nothing for a domain that will not run again."""
        self._detachments.give_up(uuid)

    def on_rebooted(self, domain: DomainId) -> None:
        """End a guest's session, and open another unless the guest is detached."""
        guest = self._guests.get(domain)
        if guest is not None:
            log.info(f"domain {domain} ({guest.name}) starts anew")
            self._detachments.note_reset(guest)
            self._handshakes.end(guest, hangs_up=False)
            if not guest.is_detached:
                self._handshakes.renew(guest)
            for device in self._links.of(domain):
                device.enabled.discard(domain)  # a reset turns all interrupts off

    def on_paused(self, domain: DomainId, paused: bool) -> None:
        """Log that a guest is paused, or goes on."""
        if domain in self._guests:
            log.info(f"domain {domain} {'is paused' if paused else 'goes on'}")

    def on_attached(self, domain: DomainId, device: DeviceId) -> None:
        """Take the device back if it was given up. That the guest can use it, its daemon says."""
        attached = self._links.devices.get(device)
        if attached is not None and domain in self._guests:
            self._pool.unplugger.take_back(attached, domain)

    def on_detached(self, domain: DomainId, socket: str) -> None:
        """Note that a device has gone, if an earlier daemon left it or the domain is detached."""
        self._pool.stale.note_gone(domain, socket)
        self._detachments.note_gone(domain, socket)

    def on_attach_failed(self, domain: DomainId, device: DeviceId, sentence: str) -> None:
        """Plug a control device again later, and give any other up."""
        said = f"device {device} did not get into domain {domain}: {sentence}"
        failed, guest = self._links.devices.get(device), self._guests.get(domain)
        if guest is None or failed is not guest.control:
            log.warning(said)
            if guest is not None and failed is not None:
                self._pool.note_refused(failed, domain)
                self._plugs.fail(failed, domain, sentence)
            return
        if guest.note_unlinked(sentence):
            log.warning(said)
            log.warning(f"domain {domain} has no vchans without it: it is tried again, and said again only for another reason")
        self._pool.note_refused(failed, domain)
        due = time.monotonic() + guest.patience
        guest.attachment = self._loop.call_at(due, lambda: self._attach_control(guest))
        guest.patience = min(2 * guest.patience, _PATIENCE_MAX)

    def _attach_control(self, guest: Guest) -> None:
        try:
            self._pool.attach(guest.control, guest.domain)
        except VchanError as error:
            log.warning(f"domain {guest.domain} ({guest.name}) gets no control device: {error.sentence}")
