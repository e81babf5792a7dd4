# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that domains have from their start, for their links to the host.

They may be larger than what firmware leaves room for to hot-plug. A domain's XML names the socket,
and its QEMU gets the device while it starts, before the domain has a number. So the device is made
when the XML is seen, and the domain takes it over when it is found running. A QEMU that goes leaves
its successor to get a new device: memory that programs may still have mapped is never used again.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmchand.channels.device import Device
from kvmchand.errors import InvalidArgument, OutOfResources, VchanError
from kvmchand.ids import START_PEER, DomainId
from kvmchand.links.links import Links
from kvmchand.runtime import log
from kvmchand.services.ivshmem.devices import Devices
from kvmchand.services.ivshmem.ports import Listener
from kvmchand.services.libvirt.coldplug_xml import SIZE_MAX, StartLink

_UNBORN = DomainId(-1)
"""Stands for the domain's number while it has none."""


@dataclass(slots=True)
class _Prepared:
    uuid: str
    plan: StartLink
    listener: Listener
    device: Device | None = None
    """The one that the next QEMU gets, or the one that starts now has."""
    taken: Device | None = None
    """The one that the running domain has."""


class ColdPlug:
    """The devices of domains that may start, and of those that have started with one."""

    def __init__(self, links: Links, devices: Devices) -> None:
        self._links = links
        self._devices = devices
        self._prepared: dict[str, _Prepared] = {}
        """By the domain's uuid."""

    def prepare(self, uuid: str, plan: StartLink) -> None:
        """Serve the domain's next start, or log why the domain will not start."""
        known = self._prepared.get(uuid)
        if known is not None and known.plan == plan:
            return
        self.withdraw(uuid)
        try:
            if plan.size > SIZE_MAX or any(each.plan.socket == plan.socket for each in self._prepared.values()):
                raise InvalidArgument("its device is too large, or another domain's: kvmchan prepare-domain makes it right")
            made = _Prepared(uuid, plan, self._listen(plan.socket))
        except VchanError as error:
            log.warning(f"domain {uuid} can't be served when it starts: {error.sentence}")
            return
        self._prepared[uuid] = made
        self._renew(made)

    def _listen(self, name: str) -> Listener:
        try:
            return self._devices.listen(name)
        except OSError as error:
            raise OutOfResources(f"there can be no socket {name}: {error.strerror}") from error

    def _renew(self, made: _Prepared) -> None:
        plan = made.plan
        made.device = self._links.make((_UNBORN, _UNBORN), {_UNBORN: START_PEER}, plan.size, plan.vectors)
        try:
            self._devices.create(made.device, made.listener, without_kvm=() if plan.has_kvm else (_UNBORN,))
        except VchanError as error:
            log.warning(f"domain {made.uuid} can't be served when it starts: {error.sentence}")
            made.device = None
            self.withdraw(made.uuid)  # its QEMU shall be refused, and not wait

    def withdraw(self, uuid: str) -> None:
        """Serve no start of a domain any more. A domain that runs keeps its own device."""
        made = self._prepared.pop(uuid, None)
        if made is not None:
            if made.device is not None:
                self._devices.remove(made.device)
            made.listener.close()

    def take(self, uuid: str, domain: DomainId) -> Device | None:
        """Return the device of a domain that has just been found, if its QEMU was served one."""
        self._devices.drain()  # of a QEMU that started we have been told before libvirt could say so
        made = self._prepared.get(uuid)
        if made is None or made.device is None or not self._devices.is_connected(made.device, _UNBORN):
            return None
        taken, made.device = made.device, None
        self._links.take_over(taken, domain)
        made.taken = taken
        return taken

    def replace(self, device: Device) -> None:
        """Make a device for the domain's next QEMU in place of one whose QEMU has gone.

        Does nothing for a device that no domain has from its start.
        """
        for made in list(self._prepared.values()):
            if device is made.taken:
                made.taken = None
                self._renew(made)
            elif device is made.device:
                self._devices.remove(device)
                self._renew(made)

    @property
    def fds(self) -> int:
        """Descriptors that this costs, beside the devices that were taken."""
        return sum(1 + (self._devices.fds(each.device) if each.device else 0) for each in self._prepared.values())

    def close(self) -> None:
        """Serve no start any more."""
        for uuid in list(self._prepared):
            self.withdraw(uuid)
