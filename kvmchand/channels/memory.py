# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory for two domains: on this machine, or on a device of their link if one is a guest."""

from __future__ import annotations

from typing import Protocol

from kvmchand.channels.device import Device
from kvmchand.channels.region import LocalRegion, Region, SharedMemory
from kvmchand.channels.rings import Rings
from kvmchand.ids import DomainId, Size

_ENDLESS = 1 << 62
"""Bytes, where memory is bounded by other rules."""


class GuestMemory(Protocol):
    """Memory that a guest can reach, too."""

    def is_guest(self, domain: DomainId) -> bool:
        """Return whether the domain is a guest."""

    def spare(self, server: DomainId, peer: DomainId) -> int:
        """Return the bytes that a channel should have at the most, so that others find room."""

    def make_region(self, rings: Rings, server: DomainId, peer: DomainId) -> Region:
        """Make a channel's region. Raises NotYet, LimitReached or OutOfResources."""

    def make_pages(self, size: Size, owner: DomainId, peer: DomainId) -> SharedMemory:
        """Make the memory of shared pages. Raises as make_region()."""

    def require_ready(self, memory: Region | SharedMemory, caller: DomainId) -> None:
        """Raise NotYet unless the caller can use the memory."""

    def is_on(self, device: Device, memory: Region | SharedMemory) -> bool:
        """Return whether the memory is a slice of the device."""


class Allocator:
    """Makes memory for two domains, wherever they are."""

    def __init__(self, pool: GuestMemory | None) -> None:
        """Make memory on this machine only if no guests are served, and `pool` is None."""
        self._pool = pool

    def _pool_of(self, one: DomainId, other: DomainId) -> GuestMemory | None:
        is_local = self._pool is None or not (self._pool.is_guest(one) or self._pool.is_guest(other))
        return None if is_local else self._pool

    def spare(self, server: DomainId, peer: DomainId) -> int:
        """Return the bytes that a channel should have at the most, so that others find room."""
        pool = self._pool_of(server, peer)
        return _ENDLESS if pool is None else pool.spare(server, peer)

    def make_region(self, rings: Rings, server: DomainId, peer: DomainId) -> Region:
        """Make a channel's region. Raises NotYet, LimitReached or OutOfResources."""
        pool = self._pool_of(server, peer)
        return LocalRegion.create(rings) if pool is None else pool.make_region(rings, server, peer)

    def make_pages(self, size: Size, owner: DomainId, peer: DomainId) -> SharedMemory:
        """Make the memory of shared pages. Raises as make_region()."""
        pool = self._pool_of(owner, peer)
        return SharedMemory.create(size) if pool is None else pool.make_pages(size, owner, peer)

    def require_ready(self, memory: Region | SharedMemory, caller: DomainId) -> None:
        """Raise NotYet unless the caller can use the memory."""
        if self._pool is not None:
            self._pool.require_ready(memory, caller)

    def is_on(self, device: Device, memory: Region | SharedMemory) -> bool:
        """Return whether the memory is a slice of the device."""
        return self._pool is not None and self._pool.is_on(device, memory)
