# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests to detach a guest, or to attach it again: who may ask, and who waits for an answer."""

from __future__ import annotations

import time
from dataclasses import dataclass

from kvmchand.channels.registry import Registry
from kvmchand.channels.requester import Requester
from kvmchand.errors import AccessDenied, InvalidArgument, TimedOut
from kvmchand.ids import HOST, ClientId, DomainId
from kvmchand.links.detachments import Detachments
from kvmchand.links.machines import Machines
from kvmchand.runtime.loop import Loop, Timer
from kvmchand.wire import client

DETACH_DEADLINE = 20.0
"""Seconds in which a guest has to let go of its devices; then who asked is told that it has not."""


@dataclass(slots=True)
class _Waiting:
    """A client that waits until a guest has no device any more, until `patience` ends."""

    requester: Requester
    domain: DomainId
    patience: Timer


class Detaching:
    """Detaches and attaches guests for the host's administrator."""

    def __init__(self, loop: Loop, registry: Registry, machines: Machines | None) -> None:
        """Have no request yet. `machines` is None if no guests are served."""
        self._loop = loop
        self._registry = registry
        self._machines = machines
        self._waiting: dict[ClientId, _Waiting] = {}

    def __contains__(self, number: ClientId) -> bool:
        """Return whether a client waits for an answer."""
        return number in self._waiting

    def _known(self, requester: Requester, domain: int) -> tuple[Detachments, DomainId]:
        if not requester.is_admin:
            raise AccessDenied("only root on the host, or the user whom kvmchand host runs as, may detach and attach domains")
        known = self._registry.require_domain(domain, HOST)
        if self._machines is None:
            raise InvalidArgument("this kvmchand serves no virtual machines: it was started without libvirt")
        return self._machines.detachments, known

    def detach(self, requester: Requester, domain: int) -> None:
        """Detach a guest, and answer when it has no device any more, or has not let go in time."""
        detachments, known = self._known(requester, domain)
        detachments.detach(known)
        if not detachments.left(known):
            requester.answer(client.Done())
            return
        due = time.monotonic() + DETACH_DEADLINE
        patience = self._loop.call_at(due, lambda: self._give_up(requester, detachments.left(known)))
        self._waiting[requester.number] = _Waiting(requester, known, patience)

    def _give_up(self, requester: Requester, left: int) -> None:
        domain = self._waiting.pop(requester.number).domain
        error = TimedOut(
            f"domain {domain} is detached, and its channels have ended, but its guest has not let go of {left} devices in "
            f"{DETACH_DEADLINE:.0f} s: programs there that do not close their ends keep them. It is asked again: say kvmchan "
            "detach once more to wait for it"
        )
        requester.answer(client.Error(error.code, error.sentence))

    def attach(self, requester: Requester, domain: int) -> None:
        """Attach a guest again, and answer."""
        detachments, known = self._known(requester, domain)
        detachments.attach(known)
        requester.answer(client.Done())

    def finish(self, domain: DomainId) -> None:
        """Answer those who wait for a guest to have no device any more."""
        for waiting in [each for each in self._waiting.values() if each.domain == domain]:
            self.forget(waiting.requester.number)
            waiting.requester.answer(client.Done())

    def forget(self, number: ClientId) -> None:
        """Forget a client's request, if it waits."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.patience.cancel()
