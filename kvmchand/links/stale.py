# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that an earlier daemon left in domains, from when a domain is found until they go.

The guest's daemon drops them when it sees the new control device, and says so by its hello. So they
are unplugged then. Where no daemon comes, they are unplugged after a while, and their interrupts
may be on. A domain without KVM keeps them until it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kvmchand.ids import DomainId
from kvmchand.links.links import Links
from kvmchand.links.unplugger import Ejection
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
    """Asks for them, and later goes on without waiting for them."""
    ejections: dict[str, Ejection] = field(default_factory=dict)
    is_off: bool = False
    """The guest's daemon has dropped them."""
    then: Callable[[], None] | None = None
    """What waits for them."""

    def go_on(self) -> None:
        """Let go on what waits."""
        then, self.then = self.then, None
        if then is not None:
            then()

    def cancel(self) -> None:
        """Ask no more, and let nothing go on."""
        self.timer.cancel()
        for ejection in self.ejections.values():
            ejection.cancel()


class StaleDevices:
    """The stale devices of all domains."""

    def __init__(self, loop: Loop, links: Links, hypervisor: Hypervisor, tell: Callable[[DomainId, object], bool]) -> None:
        """Know of none yet. `tell` is as for Unplugger."""
        self._loop = loop
        self._links = links
        self._hypervisor = hypervisor
        self._tell = tell
        self._stale: dict[DomainId, _Stale] = {}

    def add(self, found: libvirt.Found) -> None:
        """Note what a domain that was found has."""
        domain, count = found.domain, len(found.stale)
        if not count:
            return
        self._note_peers(domain, found.stale)
        if not found.kvm:
            log.info(f"domain {domain}, which runs without KVM, keeps {count} devices of an earlier daemon until it ends")
            return
        log.info(f"domain {domain} has {count} devices of an earlier daemon: they are unplugged")
        timer = self._loop.call_at(time.monotonic() + _HELLO_DEADLINE, lambda: self._ask(domain))
        self._stale[domain] = _Stale({each.socket: each for each in found.stale}, timer)

    def _note_peers(self, domain: DomainId, devices: Iterable[libvirt.StaleDevice]) -> None:
        self._links.foreign_peers[domain] = {each.peer for each in devices}

    def greet(self, domain: DomainId, then: Callable[[], None]) -> None:
        """Unplug them, as the guest's daemon has come. Calls `then` when they are gone, or late."""
        stale = self._stale.get(domain)
        if stale is None:
            then()
            return
        stale.is_off = True
        stale.then = then
        self._ask(domain)

    def sockets(self, domain: DomainId) -> set[str]:
        """Return the sockets of those that a domain still has."""
        stale = self._stale.get(domain)
        return set(stale.devices) if stale is not None else set()

    def ask_again(self, domain: DomainId) -> None:
        """Ask a domain for those that it still has."""
        for socket in self.sockets(domain):
            self._hypervisor.detach(domain, Path(socket))

    def release(self, domain: DomainId, peer: int) -> None:
        """Let the guest's daemon drop a device that it has taken for one of ours."""
        if self._links.foreign_peers.get(domain):
            self._tell(domain, control.Release(peer))

    def _ask(self, domain: DomainId) -> None:
        stale = self._stale[domain]
        stale.timer.cancel()
        stale.timer = self._loop.call_at(time.monotonic() + _GONE_DEADLINE, stale.go_on)
        for socket in stale.devices.keys() - stale.ejections.keys():
            stale.ejections[socket] = self._eject(domain, socket)

    def _eject(self, domain: DomainId, socket: str) -> Ejection:
        what = "a device of an earlier daemon"
        return Ejection(self._loop, domain, what, lambda: self._hypervisor.detach(domain, Path(socket)))

    def note_gone(self, domain: DomainId, socket: str) -> None:
        """Note that a device has gone. Does nothing unless it is one of these."""
        stale = self._stale.get(domain)
        gone = stale.devices.pop(socket, None) if stale is not None else None
        if stale is None or gone is None:
            return
        ejection = stale.ejections.pop(socket, None)
        if ejection is not None:
            ejection.cancel()
        if not stale.is_off:
            self._links.lose_routes(domain, gone.vectors)
        self._note_peers(domain, stale.devices.values())
        if not stale.devices:
            del self._stale[domain]
            stale.cancel()
            stale.go_on()

    def forget(self, domain: DomainId) -> None:
        """Forget those of a domain that is gone."""
        stale = self._stale.pop(domain, None)
        self._links.foreign_peers.pop(domain, None)
        if stale is not None:
            stale.cancel()
