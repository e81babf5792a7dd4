# SPDX-License-Identifier: LGPL-2.1-or-later
"""Links: the devices that pairs of domains share, and which channel has which part of them.

Pure state. A link is one or more ivshmem devices, each with a memory of its own. A channel of the
pair gets a slice: whole pages, and an interrupt vector at each end. A link grows by a device when
no slice is left, and loses a device when its owner removes it. An ivshmem id names a device within
its guest, so it is unique among a guest's devices, and small.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kvmchand.channels.device import Device, Pair, Slice, pair_of
from kvmchand.channels.registry import Side
from kvmchand.errors import LimitReached
from kvmchand.ids import CONTROL_PEER, HOST, HOST_PEER, PAGE, START_PEER, DeviceId, DomainId, Size

_SPARE = (4, 2)
"""How many times the bytes that it is made for a large device may have: each is a hot-plug, and
may take a bridge of its own."""
_ROUTES_MAX = 3072
"""Interrupt routes of our devices, used and lost: KVM has 4096 for a machine, and QEMU ends at the
next one.
"""


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """What one guest may have."""

    max_devices: int
    max_bytes: int
    """Bytes of its devices' memory."""


@dataclass(slots=True)
class Links:
    """The links of all pairs."""

    limits: LinkLimits
    dedicated: bool = False
    """A device for each channel, so that processes of one domain cannot reach each other's."""
    devices: dict[DeviceId, Device] = field(default_factory=dict)
    keepers: dict[DomainId, int] = field(default_factory=dict)
    """Guests that keep every device until they end, because they run without KVM; and how many
    devices of an earlier daemon each has.
    """
    lost_routes: Counter[DomainId] = field(default_factory=Counter)
    """Interrupt routes that a guest's QEMU has lost, with devices that went with MSI-X on."""
    rooms: dict[DomainId, Size] = field(default_factory=dict)
    """For how large a device a guest says that it has a window. Not of guests that do not say."""
    widest: dict[DomainId, str] = field(default_factory=dict)
    """Which bridge of a guest has that window, until a device was put there."""
    foreign_peers: dict[DomainId, set[int]] = field(default_factory=dict)
    """The ivshmem ids of devices that an earlier daemon left in a guest."""
    _last: int = 0

    def add(self, pair: Pair, guests: set[DomainId], size: Size, vectors: int, *, control: bool = False) -> Device:
        """Add a device of the pair, for those of its domains that are guests.

        It is in none of them yet. Raises LimitReached if one of them has no window for it.
        """
        if not control:
            for guest in sorted(guests):
                self.require_window(pair, guest, size)
        peers: dict[DomainId, int] = {}
        for guest in sorted(guests):
            peers[guest] = CONTROL_PEER if control else self._free_peer(guest, set(peers.values()))
        device = self.make(pair, peers, size, vectors, control=control)
        self.devices[device.number] = device
        return device

    def make(self, pair: Pair, peers: dict[DomainId, int], size: Size, vectors: int, *, control: bool = False) -> Device:
        """Return a device that is not part of a link yet."""
        self._last += 1
        return Device(
            DeviceId(self._last),
            pair,
            size,
            vectors,
            peers,
            is_control=control,
            free={0: size // PAGE},
            usable=vectors,
        )

    def take_over(self, device: Device, guest: DomainId) -> None:
        """Make a device that was prepared for a guest part of the guest's link to the host.

        The guest did not have a number then. The device is in the guest, because the administrator
        wanted it, so no limit applies.
        """
        device.pair = pair_of(HOST, guest)
        device.peers = {guest: START_PEER}
        device.attached = {guest}
        device.plugged = {guest}
        self.devices[device.number] = device

    def of(self, guest: DomainId) -> list[Device]:
        """Return the devices that a guest has an ivshmem id on."""
        return [device for device in self.devices.values() if guest in device.peers]

    def attach(self, device: Device, guest: DomainId) -> None:
        """Note that the device goes into the guest. Raises LimitReached if the guest has enough."""
        have = [each for each in self.of(guest) if guest in each.attached | each.plugged and each.peers[guest] != START_PEER]
        self._require_routes(device, guest, have)
        if device.is_control:
            have.clear()  # without it the guest has nothing at all
        else:
            self.require_window(device.pair, guest, device.size)
        left = self.keepers.get(guest, 0)
        useless = left + sum(guest not in each.attached for each in have)
        remedy = ""
        if guest in self.keepers and useless:
            remedy = (
                f"; {useless} of them are of no use any more and stay until it ends, as it runs without KVM: shut it down and "
                "start it again, or run it with KVM (type='kvm')"
            )
        if len(have) + left >= self.limits.max_devices:
            raise LimitReached(f"domain {guest} has {len(have) + left} devices: guest_devices in the host's settings{remedy}")
        if sum(each.size for each in have) + device.size > self.limits.max_bytes:
            most = self.limits.max_bytes
            raise LimitReached(
                f"domain {guest}'s devices would have over {most} bytes: guest_bytes in the host's settings{remedy}"
            )
        device.attached.add(guest)

    def size_for(self, guests: set[DomainId], usual: Size, least: Size) -> Size:
        """Return the size of a device with a slice of `least` bytes, a power of two.

        One that is larger than usual has room for more such slices, if these guests have the room.
        """
        if least <= usual:
            return usual
        sizes = (Size(least * times) for times in _SPARE)
        return next((size for size in sizes if all(self._has_room(guest, size) for guest in guests)), least)

    def _has_room(self, guest: DomainId, size: Size) -> bool:
        used = sum(each.size for each in self.of(guest))
        return size <= self.rooms.get(guest, Size(0)) and used + size <= self.limits.max_bytes // 2

    def require_window(self, pair: Pair, guest: DomainId, size: Size) -> None:
        """Raise LimitReached if a guest says that it has no window for a device of a pair's link.

        The devices of an earlier daemon leave it windows when they go.
        """
        if size > self.rooms.get(guest, size) and not self.foreign_peers.get(guest):
            start = ", or a larger link to the host from its start (kvmchan prepare-domain --link-size)"
            raise LimitReached(
                f"domain {guest} has no window for a device of {size} bytes, only for {self.rooms[guest]}: ask for smaller "
                f"rings, or give the domain another pcie-root-port with a pcie-to-pci-bridge in it{start if HOST in pair else ''}"
            )

    def _require_routes(self, device: Device, guest: DomainId, have: list[Device]) -> None:
        """Raise LimitReached if a guest's QEMU has lost so many routes that it might end."""
        lost = self.lost_routes[guest]
        if lost and lost + sum(each.vectors for each in have) + device.vectors > _ROUTES_MAX:
            raise LimitReached(
                f"domain {guest} gets no more devices: its QEMU has lost {lost} interrupt routes, as devices were taken from it "
                "while their interrupts were on, and would end when it has no more: shut the domain down and start it again"
            )

    def lose_routes(self, guest: DomainId, vectors: int) -> None:
        """Note that a device went, and the guest did not say that its interrupts were off."""
        if guest not in self.keepers:
            self.lost_routes[guest] += vectors

    def forget(self, guest: DomainId) -> None:
        """Forget what is known of a guest that is gone."""
        self.keepers.pop(guest, None)
        self.lost_routes.pop(guest, None)
        self.rooms.pop(guest, None)
        self.widest.pop(guest, None)

    @staticmethod
    def renumber(device: Device, old: DomainId, new: DomainId) -> None:
        """Note that a guest that has a device no more, and may get it again, has another number."""
        device.pair = pair_of(*(new if each == old else each for each in device.pair))
        device.peers = {new if each == old else each: peer for each, peer in device.peers.items()}
        for guests in (device.attached, device.ready, device.enabled, device.plugged):
            guests.discard(old)

    def _free_peer(self, guest: DomainId, taken: set[int]) -> int:
        """Return an id that no device of the guest has, nor the device's other guest."""
        used = {device.peers[guest] for device in self.of(guest)} | taken | {HOST_PEER, CONTROL_PEER, START_PEER}
        used |= self.foreign_peers.get(guest, set())
        return next(number for number in range(CONTROL_PEER + 1, CONTROL_PEER + 2 + len(used)) if number not in used)

    def remove(self, device: Device) -> None:
        """Remove a device."""
        del self.devices[device.number]

    def devices_for(self, pair: Pair) -> list[Device]:
        """Return the devices of which a channel of the pair may get a slice."""
        return [
            device for device in self.devices.values() if device.pair == pair and not (device.is_control or device.is_closing)
        ]

    def allocate(self, device: Device, size: Size, *, wakes: bool = True) -> Slice | None:
        """Return a slice of the device, or None if it has no room. `wakes`: with vectors."""
        if self.dedicated and device.slices:
            return None
        ends = 2 if device.pair[0] == device.pair[1] else 1
        taken = device.take(size, ends=ends if wakes else 0)
        if taken is None:
            return None
        offset, vectors, is_shared = taken
        return Slice(device, offset, size, {Side.SERVER: vectors[0], Side.CLIENT: vectors[-1]} if wakes else {}, is_shared)

    def free(self, freed: Slice) -> bool:
        """Free a slice, or park it while a guest may still have it mapped.

        Returns whether it is free now, to be zeroed.
        """
        device = freed.device
        device.slices -= 1
        is_used = freed.given and not device.attached <= device.ready
        if is_used:
            device.parked.append(freed)
        else:
            device.give_back(freed)
        device.is_closing |= self.dedicated  # a process may still have it mapped
        return not is_used

    def set_ready(self, device: Device, guest: DomainId) -> list[Slice]:
        """Note that the guest can use the device.

        Returns parked slices that are free now, to be zeroed.
        """
        device.ready.add(guest)
        device.enabled.add(guest)
        if not device.attached <= device.ready:
            return []
        freed, device.parked = device.parked, []
        for each in freed:
            device.give_back(each)
        return freed

    def summary(self) -> list[tuple[Pair, int, int, int]]:
        """Return for each link: the pair, its devices, their bytes, and the channels on them."""
        devices: Counter[Pair] = Counter()
        sizes: Counter[Pair] = Counter()
        channels: Counter[Pair] = Counter()
        for device in self.devices.values():
            if not device.is_control:
                devices[device.pair] += 1
                sizes[device.pair] += device.size
                channels[device.pair] += device.slices
        return [(pair, devices[pair], sizes[pair], channels[pair]) for pair in sorted(devices)]
