# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hypervisor, as main has it.

That is the libvirt process, the running domains, and the devices on their way into them. A libvirt
process that dies is started again. It is asked again for what was not done, and finds out what
ended meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from kvmchand.errors import Busy, ProtocolError, VchanError
from kvmchand.ids import HOST, DeviceId, DomainId
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.supervisor import ServiceEvents, SupervisedService
from kvmchand.services.libvirt.claim import Claim
from kvmchand.wire import libvirt
from kvmchand.wire.packet import Fds


class HypervisorEvents(Protocol):
    """Hears which domains run, and which devices get into them."""

    def on_found(self, found: libvirt.Found) -> None:
        """React once when a domain runs."""

    def on_gone(self, domain: DomainId) -> None:
        """React when a domain that was found runs no more."""

    def on_prepared(self, prepared: libvirt.Prepared) -> None:
        """React when a domain, running or not, has a device of ours from its start.

        Called again for a known one, and when that device changes.
        """

    def on_unprepared(self, uuid: str) -> None:
        """React when a domain has no such device any more."""

    def on_undefined(self, uuid: str) -> None:
        """React when a domain that does not run has no configuration any more."""

    def on_rebooted(self, domain: DomainId) -> None:
        """React when a domain starts again, in the same QEMU."""

    def on_paused(self, domain: DomainId, paused: bool) -> None:
        """React when a domain is paused, or goes on."""

    def on_attached(self, domain: DomainId, device: DeviceId) -> None:
        """React when QEMU has a device, which the guest may not have noticed yet.

        Comes late where on_attach_failed() came before, as QEMU did not answer in time.
        """

    def on_attach_failed(self, domain: DomainId, device: DeviceId, sentence: str) -> None:
        """React when a device did not get into a domain."""

    def on_detached(self, domain: DomainId, socket: str) -> None:
        """React when a domain that was asked for a device has it no more."""


class Hypervisor(ServiceEvents):
    """The domains that run, and the libvirt process that plugs devices into them."""

    _events: HypervisorEvents
    """The object that start() was given."""

    def __init__(self, loop: Loop, uri: str, folder: Path, fail: Callable[[VchanError], None]) -> None:
        """Know of no domain yet.

        `folder` has the sockets of devices. `fail` is called when the libvirt process has ended for
        good: domains then come and go unnoticed.
        """
        self._uri = uri
        self._folder = folder
        self._domains: dict[DomainId, str] = {}
        self._paused: set[DomainId] = set()
        self._prepared: set[str] = set()
        """By uuid: those that were reported."""
        self._found: set[DomainId] = set()
        self._found_prepared: set[str] = set()
        """Those found since the last connect."""
        self._attaching: dict[tuple[DomainId, DeviceId], libvirt.Attach] = {}
        self._detaching: dict[tuple[DomainId, str], libvirt.Detach] = {}
        """By socket, until they are gone."""
        self._claim = Claim(uri)
        self._is_anothers = False
        """Another daemon serves these domains, as was reported."""
        self._fail = fail
        self._service = SupervisedService(loop, "libvirt", fail, site=True)

    def start(self, events: HypervisorEvents) -> None:
        """Watch the hypervisor. From now on `events` hears of its domains."""
        self._events = events
        self._service.start(self)

    def attach(self, domain: DomainId, device: DeviceId, socket: Path, vectors: int, peer: int, bridge: str) -> None:
        """Plug a device into a domain, behind a bridge if the domain has one at that place.

        on_attached() or on_attach_failed() follows, or on_gone().
        """
        self._detaching.pop((domain, str(socket)), None)
        uuid = self._domains.get(domain, "")
        message = self._attaching[domain, device] = libvirt.Attach(domain, uuid, device, str(socket), vectors, peer, bridge)
        self._service.send(libvirt.to_libvirt.encode(message))

    def detach(self, domain: DomainId, socket: Path) -> None:
        """Ask a guest with KVM to let a device go, of this daemon or an earlier one.

        on_detached() follows when it has. The ivshmem server sees that of this daemon's, too.
        """
        path = str(socket)
        self._attaching = {key: each for key, each in self._attaching.items() if (key[0], each.socket) != (domain, path)}
        message = libvirt.Detach(domain, self._domains.get(domain, ""), path)
        if domain in self._domains:
            self._detaching[domain, path] = message
        self._service.send(libvirt.to_libvirt.encode(message))

    def confirm_detached(self, domain: DomainId, socket: Path) -> None:
        """Stop asking for a device, which the ivshmem server has seen go."""
        self._detaching.pop((domain, str(socket)), None)

    def is_paused(self, domain: DomainId) -> bool:
        """Return whether a domain is paused."""
        return domain in self._paused

    def close(self) -> None:
        """End the libvirt process."""
        self._service.stop()
        self._claim.close()

    # ---- the libvirt process: ServiceEvents ----

    def first_messages(self) -> list[tuple[bytes, Sequence[int]]]:
        """Return what a new libvirt process is told."""
        told: list[object] = [libvirt.Start(self._uri, str(self._folder))]
        told += [*self._attaching.values(), *self._detaching.values()]
        return [(libvirt.to_libvirt.encode(message), ()) for message in told]

    def decode(self, data: bytes, _fds: Fds) -> object:
        """Return the message of a packet."""
        message = libvirt.to_main.decode(data)
        if isinstance(message, libvirt.Found) and message.domain == HOST:
            raise ProtocolError("the host is no guest")
        return message

    def on_message(self, message: object) -> None:
        """React to what the libvirt process said."""
        match message:
            case libvirt.Started():
                self._found.clear()
                self._found_prepared.clear()
            case libvirt.Found() if not self._is_ours():
                pass
            case libvirt.Found():
                self._service.reset_failures()
                self._found.add(message.domain)
                if self._domains.get(message.domain) != message.uuid:
                    self._lose(message.domain)
                    self._domains[message.domain] = message.uuid
                    self._events.on_found(message)
            case libvirt.Listed():
                self._service.reset_failures()
                for domain in self._domains.keys() - self._found:
                    self._lose(domain)
                for uuid in self._prepared - self._found_prepared:
                    self._unprepare(uuid)
                self._found.clear()
                self._found_prepared.clear()
            case libvirt.Prepared():
                self._prepared.add(message.uuid)
                self._found_prepared.add(message.uuid)
                self._events.on_prepared(message)
            case libvirt.Unprepared():
                self._unprepare(message.uuid)
            case libvirt.Undefined():
                self._events.on_undefined(message.uuid)
            case libvirt.Gone():
                self._lose(message.domain)
            case libvirt.Rebooted():
                if message.domain in self._domains:
                    self._events.on_rebooted(message.domain)
            case libvirt.Paused():
                if message.domain in self._domains and message.paused != (message.domain in self._paused):
                    self._paused ^= {message.domain}
                    self._events.on_paused(message.domain, message.paused)
            case libvirt.Attached():
                self._attaching.pop((message.domain, message.device), None)
                if message.domain in self._domains:
                    self._events.on_attached(message.domain, message.device)
            case libvirt.AttachFailed():
                attach = self._attaching.pop((message.domain, message.device), None)
                if attach is not None:
                    self._events.on_attach_failed(message.domain, message.device, message.sentence)
                    self._detaching.pop((message.domain, attach.socket), None)  # it has none to give back
            case libvirt.Detached():
                self._detaching.pop((message.domain, message.socket), None)
                self._events.on_detached(message.domain, message.socket)

    def _is_ours(self) -> bool:
        """Return whether no other daemon serves libvirt's domains. That is found out once."""
        if not self._is_anothers and not self._claim.take():
            self._is_anothers = True
            self._fail(
                Busy(
                    f"another kvmchand, process {self._claim.holder}, serves those of {self._uri}: end one of the two, "
                    "or give this one --no-libvirt"
                )
            )
        return not self._is_anothers

    def _unprepare(self, uuid: str) -> None:
        if uuid in self._prepared:
            self._prepared.discard(uuid)
            self._events.on_unprepared(uuid)

    def _lose(self, domain: DomainId) -> None:
        if self._domains.pop(domain, None) is not None:
            self._paused.discard(domain)
            self._attaching = {key: each for key, each in self._attaching.items() if key[0] != domain}
            self._detaching = {key: each for key, each in self._detaching.items() if key[0] != domain}
            self._events.on_gone(domain)
            if not self._domains:
                self._claim.close()

    def on_death(self, culprit: int | None) -> None:
        """Continue: the next process finds out what has changed."""
        # the next one finds out what has changed
