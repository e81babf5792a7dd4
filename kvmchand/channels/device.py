# SPDX-License-Identifier: LGPL-2.1-or-later
"""An ivshmem device between two domains, and the slices of it that channels have.

Pure state. A device exists from when the daemon makes its memory until no channel is on it and no
QEMU has it. A channel gets an interrupt vector of its own while there is one. One that comes later
shares a vector: of each five, one is for sharing. A link's further devices have a few vectors, all
for sharing, so that they leave some to the guest's other devices.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kvmchand.channels.registry import Side
from kvmchand.config import VECTORS_MAX
from kvmchand.ids import HOST_PEER, PAGE, DeviceId, DomainId, Size

Pair = tuple[DomainId, DomainId]
"""The smaller number first; the same twice for a guest that talks to itself."""


def pair_of(one: DomainId, other: DomainId) -> Pair:
    """Return the pair of two domains."""
    return (one, other) if one <= other else (other, one)


_OWN_PER_SHARED = 4
FURTHER_VECTORS = 8
"""Of a link's second device and those that follow."""


def with_shared(vectors: int) -> int:
    """Return how many vectors a device needs on which so many channels get one of their own."""
    return min(VECTORS_MAX, vectors + max(1, vectors // _OWN_PER_SHARED))


@dataclass(slots=True, eq=False)
class Slice:
    """A channel's part of a device, or that of shared pages.

    `vectors`: those that wake each end of a channel. `is_shared`: other channels have these, too.
    `given`: to programs in a guest, which may keep it mapped.
    """

    device: Device
    offset: Size
    size: Size
    vectors: dict[Side, int]
    is_shared: bool = False
    given: bool = False


@dataclass(slots=True, eq=False)
class Device:
    """A device.

    `vectors`: that it is made with. `peers`: the ivshmem id that each guest of the pair has on it,
    or would have. `attached`: the guests that it is in. `free`: runs of free pages, first page to
    count.
    """

    number: DeviceId
    pair: Pair
    size: Size
    vectors: int
    peers: dict[DomainId, int]
    is_control: bool = False
    attached: set[DomainId] = field(default_factory=set)
    ready: set[DomainId] = field(default_factory=set)
    """The guests that say they can use it."""
    enabled: set[DomainId] = field(default_factory=set)
    """The guests that may have its interrupts on: they have said they can use it, and not yet that
    they have let go of it.
    """
    plugged: set[DomainId] = field(default_factory=set)
    """The guests whose QEMU has it, even if they were asked to let it go."""
    free: dict[int, int] = field(default_factory=dict)
    usable: int = 0
    """Vectors that each of its guests can use."""
    only_shared: bool = False
    """No channel gets a vector of its own."""
    owned: set[int] = field(default_factory=set)
    """Vectors that one channel has alone."""
    sharers: Counter[int] = field(default_factory=Counter)
    """How many channels share a vector."""
    slices: int = 0
    parked: list[Slice] = field(default_factory=list)
    """Free, but perhaps still mapped in a guest whose daemon is gone.

    They wait until the guest says again that it can use the device, which it cannot while anybody
    there still has it.
    """
    is_closing: bool = False
    """No channel gets a slice any more; the device goes when the last one is free."""

    def is_ready(self, domain: DomainId) -> bool:
        """Return whether a domain can use it now; the host always can."""
        return domain not in self.peers or domain in self.ready

    def limit_vectors(self, usable: int) -> None:
        """Note that a guest has fewer interrupt vectors than the device."""
        self.usable = min(self.usable, usable)

    def peer_of(self, domain: DomainId) -> int:
        """Return a domain's ivshmem id."""
        return self.peers.get(domain, HOST_PEER)

    def _choose(self, ends: int) -> tuple[list[int], bool] | None:
        """Return a vector for each of these ends, and if they are shared; None if there is none."""
        first_shared = 0 if self.only_shared else self.usable - max(1, self.usable // (_OWN_PER_SHARED + 1))
        own = [vector for vector in range(first_shared) if vector not in self.owned]
        if len(own) >= ends:
            return own[:ends], False
        shared = [vector for vector in range(max(first_shared, 0), self.usable) if vector not in self.owned]
        shared.sort(key=lambda vector: self.sharers[vector])
        return ((shared * ends)[:ends], True) if shared else None

    def take(self, size: int, *, ends: int) -> tuple[Size, list[int], bool] | None:
        """Return an offset, a vector for each of so many ends, and if these are shared.

        None if there is no room.
        """
        pages = -(-size // PAGE)
        chosen = self._choose(ends)
        if chosen is None:
            return None
        # The smallest run that will do, so that large ones stay whole.
        fitting = [(count, first) for first, count in self.free.items() if count >= pages]
        if not fitting:
            return None
        count, first = min(fitting)
        del self.free[first]
        if count > pages:
            self.free[first + pages] = count - pages
        vectors, is_shared = chosen
        if is_shared:
            self.sharers.update(set(vectors))
        else:
            self.owned.update(vectors)
        self.slices += 1
        return Size(first * PAGE), vectors, is_shared

    def give_back(self, freed: Slice) -> None:
        """Free pages and vectors."""
        first, count = freed.offset // PAGE, -(-freed.size // PAGE)
        after = self.free.pop(first + count, None)
        if after is not None:
            count += after
        before = next((start for start, length in self.free.items() if start + length == first), None)
        if before is None:
            self.free[first] = count
        else:
            self.free[before] += count
        if freed.is_shared:
            self.sharers.subtract(set(freed.vectors.values()))
        else:
            self.owned.difference_update(freed.vectors.values())
