# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each client holds: an end of a channel, or shared pages.

It lasts until the client closes it or is gone. But as long as a program has the memory mapped, the
loss of its connection is not its end.
"""

from __future__ import annotations

from kvmchand.channels.channels import Channels
from kvmchand.channels.device import Device
from kvmchand.channels.lifelines import Lifelines
from kvmchand.channels.memory import Allocator
from kvmchand.channels.region import Region, SharedMemory
from kvmchand.channels.registry import Registry
from kvmchand.channels.sharing import Sharing
from kvmchand.ids import ClientId, DomainId
from kvmchand.runtime.loop import Loop


class Holdings:
    """The ends and pages that clients hold."""

    def __init__(self, loop: Loop, registry: Registry, allocator: Allocator, channels: Channels, sharing: Sharing) -> None:
        """Watch nothing yet. The channels and pages stay the caller's to close."""
        self._registry = registry
        self._allocator = allocator
        self._channels = channels
        self._sharing = sharing
        self._lifelines = Lifelines(loop.call_at, self.end)
        loop.add(self._lifelines.fd, self._lifelines.take_events)

    def close(self) -> None:
        """Watch no memory any more."""
        self._lifelines.close()

    def __contains__(self, holder: ClientId) -> bool:
        return self._registry.ends.held(holder) is not None or self._sharing.held(holder) is not None

    def _memory(self, holder: ClientId) -> Region | SharedMemory | None:
        return self._channels.region(holder) or self._sharing.held(holder)

    def _of(self, domain: DomainId) -> list[ClientId]:
        return self._registry.ends.holders(domain) + self._sharing.holders(domain)

    def look(self) -> None:
        """End what dead programs hold, so it is in nobody's way."""
        self._lifelines.look()

    def close_end(self, holder: ClientId) -> None:
        """Release what a client closes: an end in order, if its program has marked it closed."""
        if self._channels.is_closed(holder):
            self._channels.release(holder)
        else:
            self.end(holder)

    def lose(self, holder: ClientId) -> None:
        """End what a client whose connection is gone holds, once no program has it mapped."""
        memory = self._memory(holder)
        if memory is None:
            return
        if memory.is_mapped(holder):
            # A program, or its child, may have closed descriptors that it did not open.
            self._lifelines.watch(holder, memory)
        else:
            self.end(holder)

    def end(self, holder: ClientId) -> None:
        """End what a client holds without a close."""
        held = self._registry.ends.held(holder)
        if held is not None and not held[0].is_vchan and self._sharing.will_wake(*held):
            # Its other end hears of it when the byte is cleared, as on Xen.
            self._channels.release(holder)
        else:
            self._channels.end(holder)
        self._sharing.end(holder)

    def end_all(self, domain: DomainId) -> None:
        """End what all clients of a domain hold."""
        for holder in self._of(domain):
            self.end(holder)

    def end_on(self, device: Device, domain: DomainId) -> None:
        """End what clients of a domain hold on a device."""
        for holder in self._of(domain):
            memory = self._memory(holder)
            if memory is not None and self._allocator.is_on(device, memory):
                self.end(holder)
