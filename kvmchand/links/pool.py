# SPDX-License-Identifier: LGPL-2.1-or-later
"""The devices that links are made of: made, plugged into guests, shared out in slices, and removed.

A device goes into a guest only when that guest itself, or the host, needs it: so no guest can fill
another's slots.
"""

from __future__ import annotations

from collections.abc import Callable

from kvmchand.channels.device import FURTHER_VECTORS, Device, Slice, pair_of, with_shared
from kvmchand.channels.page import Page
from kvmchand.channels.region import Region, SharedMemory
from kvmchand.channels.registry import Side
from kvmchand.channels.rings import SHARE, Rings
from kvmchand.config import LinkSettings
from kvmchand.errors import InternalError, NotFound, VchanError
from kvmchand.ids import HOST, PAGE, DomainId, Size
from kvmchand.links.coldplug import ColdPlug
from kvmchand.links.links import Links
from kvmchand.links.slices import SliceRegion
from kvmchand.links.stale import StaleDevices
from kvmchand.links.unplugger import Unplugger
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.services.ivshmem.devices import Devices
from kvmchand.services.libvirt.hypervisor import Hypervisor
from kvmchand.wire import control, libvirt

_SESSION_FDS = 3
"""Of a guest's control session, beside its device's."""
_ENDS = 2
"""Vectors of its own that a channel within a guest takes."""


class NotYet(Exception):
    """A request has to wait for one of `devices`; `sentence` says why."""

    def __init__(self, domain: DomainId, devices: list[Device]) -> None:
        """Say that a domain has to take a device first."""
        self.devices = devices
        self.sentence = f"domain {domain} has not taken the device that this channel needs: is kvmchand guest running in it?"
        super().__init__(self.sentence)


def _device_of(memory: Region | SharedMemory) -> Device | None:
    """Return the device that memory is on, or None if it is on this machine only."""
    if isinstance(memory, SharedMemory):
        return memory.slice.device if memory.slice is not None else None
    return memory.slice.device if isinstance(memory, SliceRegion) else None


def plug_control(pool: Pool, guest: DomainId) -> Device:
    """Put another control device into a guest. Raises as Pool.add() and Pool.attach()."""
    device = pool.add(HOST, guest, Size(control.DEVICE_BYTES), control=True)
    _attach_or_give_up(pool, device, guest)
    return device


def _attach_or_give_up(pool: Pool, device: Device, domain: DomainId) -> None:
    """Put a device into a guest, or remove it if that can't be. Raises as Pool.attach()."""
    try:
        pool.attach(device, domain)
    except BaseException:
        device.is_closing = True
        pool.reap(device)
        raise


class Pool:
    """The devices of all links, and the slices of them that channels have."""

    def __init__(
        self,
        loop: Loop,
        links: Links,
        devices: Devices,
        hypervisor: Hypervisor,
        settings: LinkSettings,
        tell: Callable[[DomainId, object], bool],
    ) -> None:
        """Have no device yet. `tell` is as for Unplugger."""
        self._links = links
        self._devices = devices
        self._hypervisor = hypervisor
        self._settings = settings
        self._guests: set[DomainId] = set()
        self.unplugger = Unplugger(loop, links, devices, hypervisor, tell, self.reap)
        self.stale = StaleDevices(loop, links, hypervisor, tell)
        self.cold_plug = ColdPlug(links, devices)

    # ---- guests ----

    def add_guest(self, found: libvirt.Found) -> None:
        """Note that a guest runs, with the device that it may have from its start."""
        guest = found.domain
        self._guests.add(guest)
        if not found.kvm:
            self._links.keepers[guest] = len(found.stale)
        present = self.cold_plug.take(found.uuid, guest)
        if present is not None:
            log.info(f"domain {guest} has {present.size} bytes from its start")

    def remove_guest(self, guest: DomainId) -> None:
        """Remove a guest that is gone, and its devices with it."""
        self._guests.discard(guest)
        self.unplugger.forget(guest)
        for device in self._links.of(guest):
            self.cold_plug.replace(device)
            device.attached.discard(guest)
            device.plugged.discard(guest)
            device.is_closing = True
            self.reap(device)
        self._links.forget(guest)

    def is_guest(self, domain: DomainId) -> bool:
        """Return whether the domain is a guest."""
        return domain in self._guests

    # ---- devices ----

    def add(self, one: DomainId, other: DomainId, size: Size, *, control: bool = False) -> Device:
        """Make a device for two domains, in neither yet. Raises OutOfResources or LimitReached."""
        pair = pair_of(one, other)
        is_further = bool(self._links.devices_for(pair)) and not control
        if control:
            vectors = 1
        elif self._settings.dedicated:
            vectors = with_shared(_ENDS)
        else:
            vectors = FURTHER_VECTORS if is_further else with_shared(self._settings.vectors)
        device = self._links.add(pair, set(pair) & self._guests, size, vectors, control=control)
        device.only_shared = is_further and not self._settings.dedicated
        try:
            self._devices.create(device, without_kvm=self._links.keepers)
        except BaseException:
            self._links.remove(device)
            raise
        return device

    def attach(self, device: Device, domain: DomainId) -> None:
        """Put a device into a guest, if it is not in it. Raises LimitReached."""
        if domain in device.peers and domain not in device.attached:
            self._links.attach(device, domain)
            path = self._devices.socket_path(device, domain)
            bridge = "" if device.is_control else self._links.widest.pop(domain, "")
            self._hypervisor.attach(domain, device.number, path, device.vectors, device.peers[domain], bridge)

    def prepare(self, one: DomainId, other: DomainId) -> None:
        """Make a link between two domains ahead of its first channel."""
        try:
            devices = self._links.devices_for(pair_of(one, other))
            device = devices[0] if devices else self.add(one, other, self._settings.size)
            for domain in device.peers:
                self.attach(device, domain)
        except VchanError as error:
            log.warning(f"domains {one} and {other} get no link yet: {error.sentence}")

    def detach(self, device: Device, domain: DomainId) -> None:
        """Give up a device that a guest can't have, or can't use.

        No channel gets a slice of it any more, and it is unplugged. A guest without KVM keeps it
        until it ends.
        """
        device.is_closing = True
        self.unplugger.ask_back(device, domain)
        self.reap(device)

    def note_refused(self, device: Device, domain: DomainId) -> None:
        """Note that a device did not get into a guest."""
        device.attached.discard(domain)
        if not self._devices.is_connected(device, domain):
            device.plugged.discard(domain)  # given up while it was on its way

    def lose(self, device: Device, domain: DomainId) -> None:
        """Note that a guest's QEMU has let go of a device, or has ended."""
        self._hypervisor.confirm_detached(domain, self._devices.socket_path(device, domain))
        self.unplugger.note_gone(device, domain)
        self.cold_plug.replace(device)
        device.attached.discard(domain)
        device.ready.discard(domain)
        device.plugged.discard(domain)

    def reap(self, device: Device) -> None:
        """Remove a device that no channel is on and none will be.

        It counts until every guest has let it go: else one that lets none go could have any number.
        """
        if not device.is_closing or device.slices or device.number not in self._links.devices:
            return
        for domain in device.attached & self._guests:
            self.unplugger.ask_back(device, domain)
        if device.plugged or self.unplugger.is_waiting(device) or device.number not in self._links.devices:
            return  # it may have gone while we asked
        self._links.remove(device)
        self._devices.remove(device)

    # ---- channels ----

    def spare(self, server: DomainId, peer: DomainId) -> int:
        """Return the bytes that a channel should have at the most, so that others find room.

        That is a part of what is free on the device that has most, or on a new one.
        """
        if self._settings.dedicated:
            return self._settings.size
        free = [sum(device.free.values()) * PAGE for device in self._links.devices_for(pair_of(server, peer))]
        return max(free, default=self._settings.size) // SHARE

    def make_region(self, rings: Rings, server: DomainId, peer: DomainId) -> SliceRegion:
        """Make a region for a channel of a guest. Raises NotYet, LimitReached or OutOfResources."""
        taken = self._take(rings.size, server, peer)
        device = taken.device
        peers = {Side.SERVER: device.peer_of(server), Side.CLIENT: device.peer_of(peer)}
        events = {side: self._devices.event(device, each, taken.vectors[side]) for side, each in peers.items()}
        bells = {side: each << 16 | taken.vectors[side] for side, each in peers.items()}
        page = Page(self._devices.memory(device), taken.offset)
        return SliceRegion(rings, page, events, bells, taken, self._free)

    def make_pages(self, size: Size, owner: DomainId, peer: DomainId) -> SharedMemory:
        """Make memory for pages that a guest shares or maps. Raises as make_region()."""
        taken = self._take(size, owner, peer, wakes=False)
        return SharedMemory(self._devices.memory(taken.device), taken.offset, lambda: self._free(taken), taken)

    def _take(self, size: Size, owner: DomainId, peer: DomainId, *, wakes: bool = True) -> Slice:
        """Return a slice that `owner` can use."""
        devices = self._links.devices_for(pair_of(owner, peer))
        for device in devices:
            taken = self._links.allocate(device, size, wakes=wakes) if device.is_ready(owner) else None
            if taken is not None:
                return taken
        coming = [device for device in devices if not device.is_ready(owner)]
        if not coming:
            least = Size(1 << (size - 1).bit_length())
            wanted = self._links.size_for({owner, peer} & self._guests, self._settings.size, least)
            device = self.add(owner, peer, wanted)
            if device.is_ready(owner):
                taken = self._links.allocate(device, size, wakes=wakes)
                if taken is None:
                    raise InternalError(f"a new device of {device.size} bytes has no room for {size}")
                return taken
            coming = [device]
        for device in coming:
            _attach_or_give_up(self, device, owner)
        raise NotYet(owner, coming)

    def require_ready(self, memory: Region | SharedMemory, caller: DomainId) -> None:
        """Raise NotYet unless the caller can use the device that this memory is on."""
        device = _device_of(memory)
        if device is not None and not device.is_ready(caller):
            if device.is_closing:
                raise NotFound("the device with this memory is being taken away: its server must offer it anew")
            self.attach(device, caller)
            raise NotYet(caller, [device])

    def set_ready(self, device: Device, domain: DomainId, vectors: int) -> None:
        """Note that a guest can use a device, and how many of its vectors."""
        device.limit_vectors(vectors)
        for freed in self._links.set_ready(device, domain):
            self._devices.zero(device, freed.offset, freed.size)

    def is_on(self, device: Device, memory: Region | SharedMemory) -> bool:
        """Return whether the memory is a slice of the device."""
        return _device_of(memory) is device

    def _free(self, freed: Slice) -> None:
        if self._links.free(freed):
            self._devices.zero(freed.device, freed.offset, freed.size)
        self.reap(freed.device)

    @property
    def fds(self) -> int:
        """Descriptors that the guests and their devices cost."""
        sessions = _SESSION_FDS * len(self._guests)
        return sessions + self.cold_plug.fds + sum(self._devices.fds(device) for device in self._links.devices.values())
