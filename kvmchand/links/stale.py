# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that an earlier daemon left in guests with KVM, from when a guest is found until they go.

The guest's daemon drops them when it sees the new control device, and says so by its hello. So they
are unplugged then. Where no daemon comes, they are unplugged after a while, and their interrupts
may be on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvmchand.ids import DomainId
from kvmchand.links.links import Links
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop, Timer
from kvmchand.services.libvirt.hypervisor import Hypervisor
from kvmchand.wire import control, libvirt

_HELLO_DEADLINE = 2.0
"""Seconds in which a guest's daemon has to come before its stale devices are unplugged."""
_GONE_DEADLINE = 2.0
"""Seconds in which they have to go before the guest gets the devices of its links."""


@dataclass(slots=True)
class _Stale:
    """A guest's stale devices, by their sockets."""

    devices: dict[str, libvirt.StaleDevice]
    timer: Timer
    is_asked: bool = False
    is_off: bool = False
    """The guest's daemon has dropped them."""
    then: list[Callable[[], None]] = field(default_factory=list)


class StaleDevices:
    """The stale devices of all guests."""

    def __init__(self, loop: Loop, links: Links, hypervisor: Hypervisor, tell: Callable[[DomainId, object], bool]) -> None:
        """Know of none yet. `tell` is as for Unplugger."""
        self._loop = loop
        self._links = links
        self._hypervisor = hypervisor
        self._tell = tell
        self._stale: dict[DomainId, _Stale] = {}

    def add(self, domain: DomainId, found: Sequence[libvirt.StaleDevice]) -> None:
        """Note what a guest that was found has."""
        if found:
            log.info(f"domain {domain} has {len(found)} devices of an earlier daemon: they are unplugged")
            timer = self._loop.call_at(time.monotonic() + _HELLO_DEADLINE, lambda: self._ask(domain))
            self._stale[domain] = _Stale({each.socket: each for each in found}, timer)
            self._links.foreign_peers[domain] = {each.peer for each in found}

    def greet(self, domain: DomainId, then: Callable[[], None]) -> None:
        """Unplug them, as the guest's daemon has come. Calls `then` when they are gone, or late."""
        stale = self._stale.get(domain)
        if stale is None:
            then()
            return
        stale.is_off = True
        stale.then.append(then)
        self._ask(domain)

    def release(self, domain: DomainId, peer: int) -> None:
        """Let the guest's daemon drop a device that it has taken for one of ours."""
        if domain in self._stale or domain in self._links.keepers:
            self._tell(domain, control.Release(peer))

    def _ask(self, domain: DomainId) -> None:
        stale = self._stale[domain]
        stale.timer.cancel()
        stale.timer = self._loop.call_at(time.monotonic() + _GONE_DEADLINE, lambda: self._go_on(stale))
        for each in stale.devices.values() if not stale.is_asked else ():
            self._hypervisor.detach_stale(domain, each.socket)
        stale.is_asked = True

    def note_gone(self, domain: DomainId, socket: str) -> None:
        """Note that one has gone."""
        stale = self._stale.get(domain)
        gone = stale.devices.pop(socket, None) if stale is not None else None
        if stale is None or gone is None:
            return
        if not stale.is_off:
            self._links.lose_routes(domain, gone.vectors)
        self._links.foreign_peers[domain] = {each.peer for each in stale.devices.values()}
        if not stale.devices:
            del self._stale[domain]
            stale.timer.cancel()
            self._go_on(stale)

    @staticmethod
    def _go_on(stale: _Stale) -> None:
        then, stale.then = stale.then, []
        for each in then:
            each()

    def forget(self, domain: DomainId) -> None:
        """Forget those of a guest that is gone."""
        stale = self._stale.pop(domain, None)
        self._links.foreign_peers.pop(domain, None)
        if stale is not None:
            stale.timer.cancel()
