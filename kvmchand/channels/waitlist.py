# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests to connect to a vchan that is not offered yet, or has a client.

Each waits until it can be met, or until its client or the server's domain is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

from kvmchand.channels.registry import Registry
from kvmchand.channels.requester import Requester
from kvmchand.channels.waiters import Place, Waiters
from kvmchand.errors import LimitReached
from kvmchand.ids import ClientId, DomainId
from kvmchand.wire import client
from kvmchand.xenstore import paths


@dataclass(slots=True)
class _Waiting:
    """A request. `is_told`: there may be a vchan, and the client is to ask again."""

    requester: Requester
    request: client.Connect
    again: Callable[[Requester, client.Request], None]
    is_told: bool = False


class Waitlist:
    """Who waits for a vchan, and where there may be one."""

    def __init__(self, registry: Registry, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """Begin empty. `call_soon` makes a call when nothing else is being served."""
        self._registry = registry
        self._call_soon = call_soon
        self._waiters: Waiters[_Waiting] = Waiters()
        self._vacant: dict[Place, None] = {}
        """Where there may be a vchan now for those who wait for one."""

    def __contains__(self, number: ClientId) -> bool:
        """Return whether a client waits for an answer."""
        waiting = self._waiters.get(number)
        return waiting is not None and not waiting.is_told

    def count(self, domain: DomainId) -> int:
        """Return how many of a domain's clients wait."""
        return self._waiters.count(domain)

    def may_wait(self, request: client.Request) -> TypeGuard[client.Connect]:
        """Return whether a request that could not be met waits until it can."""
        return isinstance(request, client.Connect) and request.waits and request.domain in self._registry.domains

    def add(self, requester: Requester, request: client.Connect, again: Callable[[Requester, client.Request], None]) -> None:
        """Have a request wait until `again` serves it once more. Raises LimitReached."""
        place = DomainId(request.domain), paths.resolve(request.path, requester.domain)
        most, setting = self._registry.limit(requester.domain)
        if self._waiters.count(requester.domain) >= most:
            raise LimitReached(
                f"domain {requester.domain} has {most} clients that wait for vchans: {setting} in the daemon's settings"
            )
        self._waiters.add(requester.number, requester.domain, place, _Waiting(requester, request, again))
        requester.mark_busy()

    def forget(self, number: ClientId) -> None:
        """Forget a client's request, if it waits."""
        self._waiters.take(number)

    def forget_domain(self, domain: DomainId) -> None:
        """Forget the requests of a guest whose daemon is gone."""
        for waiting in list(self._waiters):
            if waiting.requester.domain == domain:
                self._waiters.take(waiting.requester.number)

    def note_vacancy(self, place: Place) -> None:
        """Tell those who wait at a place soon that there may be a vchan for them."""
        if self._waiters.at(place):
            if not self._vacant:
                self._call_soon(self._tell)
            self._vacant[place] = None

    def _tell(self) -> None:
        """Tell all of them, as some may have left their wait, and never ask again."""
        vacant, self._vacant = self._vacant, {}
        for place in vacant:
            for number in self._waiters.at(place) if self._registry.offered_at(*place) is not None else ():
                waiting = self._waiters.get(number)
                if waiting is not None and not waiting.is_told:
                    waiting.is_told = True
                    waiting.requester.answer(client.Vacant())

    def leave(self, requester: Requester) -> None:
        """Forget the request of a client that asks again, if it has waited."""
        if self._waiters.take(requester.number) is not None:
            requester.mark_idle()

    def serve_all_for(self, domain: DomainId) -> None:
        """Serve those who wait for a domain's offers: it is gone, and they learn that."""
        for number in self._waiters.of(domain):
            self._serve(number)

    def _serve(self, number: ClientId) -> None:
        waiting = self._waiters.take(number) if number in self else None
        if waiting is not None:
            waiting.requester.mark_idle()
            waiting.again(waiting.requester, waiting.request)
