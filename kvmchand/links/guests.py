# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guests, as the host's main process has them: each one's control session and devices, and who in it asks for what.

A guest's devices come and go by the hypervisor and the ivshmem server, its requests by the control process; what follows for
channels is the owner's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from kvmchand.channels.device import Device
from kvmchand.channels.requester import RequesterEvents
from kvmchand.config import Settings
from kvmchand.errors import KvmchanError, LimitReached, NotFound, ProtocolError
from kvmchand.ids import HOST, ClientId, DeviceId, DomainId, Size
from kvmchand.links.guest import Guest, Remote, reply_to
from kvmchand.links.handshake import Handshakes
from kvmchand.links.links import LinkLimits, Links
from kvmchand.links.pool import Pool
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.services.control.sessions import SessionId, Sessions
from kvmchand.services.ivshmem.devices import Devices
from kvmchand.services.libvirt.coldplug_xml import StartLink
from kvmchand.services.libvirt.hypervisor import Hypervisor
from kvmchand.wire import client, control, libvirt, store

_PATIENCE_MAX = 60.0
_IDLE_CLIENTS = 1024
"""Clients that a guest may have beside those with a channel."""


class GuestEvents(RequesterEvents, Protocol):
    def on_guest(self, domain: DomainId, name: str, uuid: str) -> None:
        """A guest runs, from now on."""

    def on_guest_store(self, domain: DomainId, message: object) -> None:
        """What its daemon says of a connection to the store. ProtocolError: it can't be."""

    def on_guest_messages_lost(self, domain: DomainId) -> None:
        """Those of its connections to the store; what clients ask, its daemon will say again."""

    def on_guest_reset(self, domain: DomainId) -> None:
        """Its daemon, or all of it, is gone, or starts anew: every end it has is dead."""

    def on_guest_gone(self, domain: DomainId) -> None:
        """It runs no more."""

    def on_device_lost(self, domain: DomainId, device: Device) -> None:
        """The guest can't use a device any more: its ends there are dead."""

    def on_devices_changed(self) -> None:
        """What was NotYet may be now."""

    def on_device_failed(self, device: Device, error: KvmchanError) -> None:
        """Who waits for that device waits in vain."""


class Guests:
    """A source of requests, and the memory of channels with an end in a guest."""

    def __init__(self, loop: Loop, settings: Settings, owner: GuestEvents, next_generation: Callable[[], int]) -> None:
        self._loop = loop
        self._settings = settings
        self._owner = owner
        limits = settings.limits
        self._links = Links(LinkLimits(limits.guest_devices, limits.guest_bytes), settings.links.dedicated)
        self._guests: dict[DomainId, Guest] = {}
        folder = settings.runtime_dir / "ivshmem"
        self._devices = Devices(loop, folder, self, settings.service_user)
        self._sessions = Sessions(loop, self, settings.service_user, is_host=True, rate=limits.guest_requests)
        self._handshakes = Handshakes(loop, self._devices, self._sessions, next_generation)
        self._hypervisor = Hypervisor(loop, settings.libvirt, folder, self)
        self.pool = Pool(loop, self._links, self._devices, self._hypervisor, settings.links)

    def start(self) -> None:
        self._devices.start()
        self._sessions.start()
        self._hypervisor.start()

    def close(self) -> None:
        self._hypervisor.close()
        self._sessions.close()
        self.pool.cold_plug.close()
        self._devices.close()

    # ---- guests: HypervisorEvents ----

    def on_prepared(self, prepared: libvirt.Prepared) -> None:
        self.pool.cold_plug.prepare(prepared.uuid, StartLink(prepared.socket, prepared.size, prepared.vectors))

    def on_unprepared(self, uuid: str) -> None:
        self.pool.cold_plug.withdraw(uuid)

    def on_found(self, found: libvirt.Found) -> None:
        domain, name = found.domain, found.name
        if domain in self._guests:
            return
        if domain in self._settings.local_domains:
            log.warning(f"domain {domain} ({name}) is not served: its number is a local domain's, so give that another")
            return
        self.pool.add_guest(found)
        try:
            device = self.pool.add(HOST, domain, Size(control.DEVICE_BYTES), 1, control=True)
            self.pool.attach(device, domain)
        except KvmchanError as error:
            log.warning(f"domain {domain} ({name}) gets no control device: {error.sentence}")
            self.pool.remove_guest(domain)
            return
        guest = self._guests[domain] = Guest(domain, name, device)
        log.info(f"domain {domain} ({name}) is here")
        self._owner.on_guest(domain, name, found.uuid)
        self._handshakes.add(guest)

    def _prepare_links(self, guest: Guest) -> None:
        """Those that stand before their first channel: to the host, and of the pairs in the settings."""
        self.pool.prepare(HOST, guest.domain)
        names = {each.name: each.domain for each in self._guests.values() if each.is_greeted}
        for one, other in self._settings.links.pairs:
            if guest.name in (one, other) and one in names and other in names:
                self.pool.prepare(names[one], names[other])

    def on_gone(self, domain: DomainId) -> None:
        guest = self._guests.get(domain)
        if guest is None:
            return
        log.info(f"domain {domain} ({guest.name}) is gone")
        self._end_session(guest)
        self._handshakes.remove(guest)
        if guest.attachment is not None:
            guest.attachment.cancel()
        self._owner.on_guest_gone(domain)
        del self._guests[domain]
        self.pool.remove_guest(domain)

    def on_rebooted(self, domain: DomainId) -> None:
        guest = self._guests.get(domain)
        if guest is not None:
            log.info(f"domain {domain} ({guest.name}) starts anew")
            self._end_session(guest, hangs_up=False)
            self._handshakes.renew(guest)

    def on_paused(self, domain: DomainId, paused: bool) -> None:
        log.info(f"domain {domain} {'is paused' if paused else 'goes on'}")

    def on_attached(self, domain: DomainId, device: DeviceId) -> None:
        pass  # what counts is that the guest can use it, as it will say

    def on_attach_failed(self, domain: DomainId, device: DeviceId, sentence: str) -> None:
        log.warning(f"device {device} did not get into domain {domain}: {sentence}")
        failed, guest = self._links.devices.get(device), self._guests.get(domain)
        if failed is None or guest is None:
            return
        failed.attached.discard(domain)
        if not self._devices.is_connected(failed, domain):
            failed.plugged.discard(domain)  # given up while it was on its way
        if failed is guest.control:
            log.warning(f"domain {domain} has no vchans without it, and it is tried again in {guest.patience:.0f} s")
            due = time.monotonic() + guest.patience
            guest.attachment = self._loop.call_at(due, lambda: self.pool.attach(guest.control, guest.domain))
            guest.patience = min(2 * guest.patience, _PATIENCE_MAX)
        else:
            self._fail(failed, domain, sentence)

    def _fail(self, device: Device, domain: DomainId, sentence: str) -> None:
        """A device does not work in a guest: nothing waits for it any more."""
        guest = self._guests.get(domain)
        if guest is not None and device is not guest.control:
            self.pool.detach(device, domain)
            error = LimitReached(f"domain {domain} can't have the device that this channel needs: {log.printable(sentence)}")
            self._owner.on_device_failed(device, error)

    def on_hypervisor_failure(self, error: KvmchanError) -> None:
        log.warning(f"virtual machines are not served any more: {error.sentence}")

    def on_failure(self, error: KvmchanError) -> None:
        self._owner.on_failure(error)

    # ---- devices: DeviceEvents ----

    def on_served(self, device: Device, domain: DomainId) -> None:
        device.plugged.add(domain)

    def on_unplugged(self, device: Device, domain: DomainId) -> None:
        """Its QEMU has let go of a device, or has ended."""
        self._hypervisor.on_unplugged(domain, device.number)
        self.pool.cold_plug.on_lost(device)
        device.attached.discard(domain)
        device.ready.discard(domain)
        device.plugged.discard(domain)
        guest = self._guests.get(domain)
        if guest is not None and device is guest.control:
            self._end_session(guest)
        elif guest is not None:
            device.is_closing = True
            self._owner.on_device_lost(domain, device)
            self._owner.on_device_failed(device, NotFound("the device that this channel needs was taken away: try again"))
            self.pool.reap(device)

    def on_cut_off(self, device: Device, domain: DomainId) -> None:
        self.pool.cold_plug.on_lost(device)
        log.warning(f"device {device.number} did not get into domain {domain} whole: its QEMU was cut off")
        self._fail(device, domain, "its QEMU was cut off before it had all of the device: try again")

    # ---- sessions: SessionEvents ----

    def _end_session(self, guest: Guest, *, hangs_up: bool = True) -> None:
        """The guest's daemon is gone for us: so are its clients, and every end they have."""
        if guest.session is not None:
            self._handshakes.end(guest, hangs_up=hangs_up)
            for device in self._links.of(guest.domain):
                device.ready.discard(guest.domain)
            guest.remotes.clear()
            self._owner.on_guest_reset(guest.domain)

    def on_control_restarted(self) -> None:
        for session in self._handshakes:
            guest = self._handshakes.get(session)
            if guest is not None:
                self._owner.on_guest_messages_lost(guest.domain)
            self._sessions.send(session, control.Again())

    def tell(self, domain: DomainId, message: object) -> None:
        """Its daemon, if that is there."""
        guest = self._guests.get(domain)
        if guest is not None and guest.session is not None:
            self._sessions.send(guest.session, message)

    def on_session_lost(self, session: SessionId, sentence: str) -> None:
        guest = self._handshakes.get(session)
        if guest is not None:
            self._handshakes.hang_up(guest)  # the guest's daemon starts anew then
            self._lose(guest, sentence)

    def _lose(self, guest: Guest, sentence: str) -> None:
        log.warning(f"the control link to domain {guest.domain} is lost: {sentence}")
        self._end_session(guest, hangs_up=self._handshakes.is_there(guest))
        self._handshakes.renew_if_asked(guest)

    def on_session_message(self, session: SessionId, message: object) -> None:
        guest = self._handshakes.get(session)
        if guest is None:
            return
        try:
            self._obey(guest, session, message)
        except ProtocolError as error:
            self._lose(guest, error.sentence)  # the control process hangs up, after what it was told to say before

    def _obey(self, guest: Guest, session: SessionId, message: object) -> None:
        match message:
            case control.Hello():
                self._greet(guest, session, message)
            case _ if not guest.is_greeted:
                raise ProtocolError("the guest's daemon said something before its hello")
            case control.Ask():
                self._on_ask(guest, session, message)
            case control.Close():
                remote = guest.remotes.get(message.client)
                if remote is None:
                    self._sessions.send(session, control.Closed(message.client))
                else:
                    self._owner.on_close(remote)
            case store.Request() | store.Taken() | store.Ended():
                self._owner.on_guest_store(guest.domain, message)
            case control.Ready():
                changed = [each for each in self._devices_by_peer(guest, message.peer) if guest.domain not in each.ready]
                for device in changed:
                    self.pool.set_ready(device, guest.domain, max(message.vectors, 0))
                if changed:
                    self._owner.on_devices_changed()
            case control.Unusable():
                log.warning(f"domain {guest.domain} can't use a device: {message.sentence}")
                for device in self._devices_by_peer(guest, message.peer):
                    self._fail(device, guest.domain, message.sentence)

    def _devices_by_peer(self, guest: Guest, peer: int) -> list[Device]:
        return [
            device
            for device in self._links.of(guest.domain)
            if device is not guest.control
            and guest.domain in device.attached
            # A guest that can't tell which it is means one that it has not told of yet.
            and (device.peers[guest.domain] == peer or (peer == 0 and guest.domain not in device.ready))
        ]

    def _greet(self, guest: Guest, session: SessionId, hello: control.Hello) -> None:
        if guest.is_greeted:
            self._sessions.send(session, control.Welcome(guest.domain))  # it was lost with a control process
            return
        if hello.version != control.VERSION:
            sentence = (
                f"the host's kvmchand speaks version {control.VERSION}, and the guest's {hello.version}: use the same release"
            )
            self._sessions.send(session, control.Refused(sentence))
            self._handshakes.delay(guest)
            raise ProtocolError(sentence)
        guest.is_greeted = True
        log.info(f"domain {guest.domain} ({guest.name}): its kvmchand is here")
        self._sessions.send(session, control.Welcome(guest.domain))
        self._prepare_links(guest)

    # ---- requests ----

    def _on_ask(self, guest: Guest, session: SessionId, ask: control.Ask) -> None:
        remote = guest.remotes.get(ask.client)
        if remote is None:
            if len(guest.remotes) >= 2 * self._settings.limits.guest_channels + _IDLE_CLIENTS:
                log.warning(f"domain {guest.domain} is refused another client: it has {len(guest.remotes)}")
                error = LimitReached(
                    f"domain {guest.domain} has {len(guest.remotes)} clients: guest_channels in the host's settings"
                )
                self._sessions.send(session, reply_to(ask.client, ask.serial, client.Error(error.code, error.sentence)))
                return
            guest.numbers += 1
            remote = Remote(self._sessions, ClientId(guest.numbers), ask.pid, guest, ask.client)
            guest.remotes[ask.client] = remote
        if not remote.is_new(ask.serial):
            return
        if isinstance(ask.request, client.Hello):
            raise ProtocolError("a client's hello is the guest's own to answer")
        self._owner.on_request(remote, ask.request)

    def listing(self) -> tuple[tuple[client.GuestInfo, ...], tuple[client.LinkInfo, ...]]:
        """What `kvmchan ls` shows of guests and links."""
        guests = tuple(
            client.GuestInfo(guest.domain, guest.name, guest.is_greeted, len(self._links.of(guest.domain)))
            for guest in self._guests.values()
        )
        links = tuple(
            client.LinkInfo(pair[0], pair[1], devices, Size(size), channels)
            for pair, devices, size, channels in self._links.summary()
        )
        return guests, links
