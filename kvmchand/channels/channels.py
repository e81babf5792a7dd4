# SPDX-License-Identifier: LGPL-2.1-or-later
"""The channels, as the host's main process has them: the region of each, who is given an end of it, and what is done for ends
that die. Event channels are among them, and who waits for a vchan to be offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeGuard

from kvmchand.channels import rings
from kvmchand.channels.memory import Allocator
from kvmchand.channels.page import other
from kvmchand.channels.region import Region
from kvmchand.channels.registry import Channel, End, Registry, Side
from kvmchand.channels.requester import Requester
from kvmchand.channels.waiters import Place, Waiters
from kvmchand.errors import LimitReached, NotFound
from kvmchand.ids import ChannelId, ClientId, DomainId, Size
from kvmchand.wire import client
from kvmchand.xenstore import paths

_SMALLEST = rings.choose(0, 0)
"""Of an event channel, which has no use for any."""


class Channels:
    def __init__(
        self,
        registry: Registry,
        allocator: Allocator,
        max_ring: int,
        again: Callable[[Requester, object], None],
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        """Have no channel yet. `again` serves a request once more that has waited; `call_soon` makes a call when nothing else is
        being served."""
        self._registry = registry
        self._allocator = allocator
        self._max_ring = max_ring
        self._again = again
        self._call_soon = call_soon
        self._regions: dict[ChannelId, Region] = {}
        self._waiters: Waiters[tuple[Requester, client.Connect]] = Waiters()
        self._vacant: dict[Place, None] = {}
        """Where there may be a vchan now for those who wait for one."""

    def __len__(self) -> int:
        return len(self._regions)

    def close(self) -> None:
        for region in self._regions.values():
            region.close()
        self._regions.clear()

    # ---- requests ----

    def offer(self, requester: Requester, offer: client.Offer) -> None:
        end = End(requester.number, requester.pid)
        chosen = rings.choose(offer.read_min, offer.write_min, self._max_ring)
        path, peer = self._registry.require_offer(requester.domain, offer.peer, offer.path, end)
        # The region first: should it fail, an offer that this one would take over still stands.
        region = self._allocator.make_region(chosen, requester.domain, peer)
        channel = self._registry.offer(requester.domain, peer, offer.path, chosen, end, once=offer.once)
        self._regions[channel.number] = region
        self._note_vacancy((requester.domain, path))
        self._grant(requester, channel, Side.SERVER)

    def bind(self, requester: Requester, request: client.Bind) -> None:
        end = End(requester.number, requester.pid)
        peer = self._registry.require_bind(requester.domain, request.peer, end)
        region = self._allocator.make_region(_SMALLEST, requester.domain, peer)
        channel = self._registry.bind(requester.domain, peer, _SMALLEST, end)
        self._regions[channel.number] = region
        self._grant(requester, channel, Side.SERVER)

    def connect(self, requester: Requester, request: client.Connect) -> None:
        end = End(requester.number, requester.pid)
        self._join(requester, self._registry.require_connect(requester.domain, request.domain, request.path, end), end)

    def may_wait(self, request: object) -> TypeGuard[client.Connect]:
        """Whether a request that could not be met waits until it can."""
        return isinstance(request, client.Connect) and request.waits and request.domain in self._registry.domains

    def wait(self, requester: Requester, request: client.Connect) -> None:
        """Keeps one that may_wait(). LimitReached."""
        place = DomainId(request.domain), paths.resolve(request.path, requester.domain)
        most, setting = self._registry.limit(requester.domain)
        if self._waiters.count(requester.domain) >= most:
            raise LimitReached(
                f"domain {requester.domain} has {most} clients that wait for vchans: {setting} in the daemon's settings"
            )
        self._waiters.add(requester.number, requester.domain, place, (requester, request))
        requester.mark_busy()

    def join(self, requester: Requester, request: client.Join) -> None:
        end = End(requester.number, requester.pid)
        self._join(requester, self._registry.require_join(requester.domain, request.domain, request.port, end), end)

    def _join(self, requester: Requester, channel: Channel, end: End) -> None:
        region = self._regions[channel.number]
        if not region.has_events():
            self._registry.withdraw(channel)
            raise NotFound(f"the vchan at {channel.path[:80]} is broken, by a client before: its server must offer it anew")
        self._allocator.require_ready(region, requester.domain)
        self._registry.connect(channel, end)
        self._grant(requester, channel, Side.CLIENT)
        if channel.once:
            self._registry.withdraw(channel)

    def _grant(self, requester: Requester, channel: Channel, side: Side) -> None:
        try:
            requester.grant(channel, self._regions[channel.number], side)
        except BaseException:
            self.release(requester.number)
            raise

    def port(self, requester: Requester, request: client.GetPort) -> client.Port:
        """What an event channel is."""
        domain = requester.domain if request.domain < 0 else request.domain
        found = self._registry.port(requester.domain, domain, request.port)
        if found is None:
            return client.Port("closed", DomainId(0), Size(0))
        channel, side = found
        is_server = side is Side.SERVER
        peer = channel.client if is_server else channel.server
        domain = channel.client_domain if is_server else channel.server_domain
        port = Size(client.port_of(channel.number, is_server=not is_server))
        return client.Port("unbound", domain, Size(0)) if peer is None else client.Port("interdomain", domain, port)

    # ---- who waits for an offer ----

    def waiters(self, domain: DomainId) -> int:
        """How many of a domain's clients wait."""
        return self._waiters.count(domain)

    def is_waiting(self, number: ClientId) -> bool:
        return number in self._waiters

    def forget_waiter(self, number: ClientId) -> None:
        self._waiters.take(number)

    def forget_waiters(self, domain: DomainId) -> None:
        """Those of a guest whose daemon is gone."""
        for requester, _ in list(self._waiters):
            if requester.domain == domain:
                self._waiters.take(requester.number)

    def _note_vacancy(self, place: Place) -> None:
        """Serve those who wait at a place, for whom there may be a vchan now."""
        if self._waiters.at(place):
            if not self._vacant:
                self._call_soon(self._welcome)
            self._vacant[place] = None

    def _welcome(self) -> None:
        while self._vacant:
            place = next(iter(self._vacant))
            del self._vacant[place]
            for number in self._waiters.at(place):
                if not self._registry.is_free(*place):
                    break
                self._serve_waiter(number)

    def _serve_waiter(self, number: ClientId) -> None:
        waiter = self._waiters.take(number)
        if waiter is not None:
            waiter[0].mark_idle()
            self._again(*waiter)

    def domain_gone(self, domain: DomainId) -> None:
        """Of a guest's clients none is left. Who waits for what it would offer, or offers it something, waits in vain."""
        for channel in self._registry.offered_to(domain):
            self._registry.withdraw(channel)
            self._regions[channel.number].mark_dead(Side.CLIENT)
        self._registry.remove_domain(domain)
        for number in self._waiters.of(domain):
            self._serve_waiter(number)

    # ---- ends ----

    def region(self, holder: ClientId) -> Region | None:
        """Of the channel that a connection is an end of."""
        held = self._registry.held(holder)
        return self._regions[held[0].number] if held is not None else None

    def is_closed(self, holder: ClientId) -> bool:
        held = self._registry.held(holder)
        return held is not None and self._regions[held[0].number].is_closed(held[1])

    def wake(self, channel: Channel, side: Side) -> None:
        """Sends an event in the name of an end, which need not be there any more."""
        region = self._regions.get(channel.number)
        if region is not None:
            region.signal(other(side))

    def end(self, holder: ClientId) -> None:
        """An end without a close: does for it what it should have done, and releases it."""
        held = self._registry.held(holder)
        if held is not None:
            channel, side = held
            self._regions[channel.number].mark_dead(side)
            self.release(holder)

    def release(self, holder: ClientId) -> None:
        held = self._registry.release(holder)
        if held is None:
            return
        channel, side = held
        if channel.number not in self._registry.channels:
            self._regions.pop(channel.number).close()
        if side is Side.CLIENT:
            self._note_vacancy((channel.server_domain, channel.path))

    # ---- listing ----

    def listed(self, domain: DomainId, first: int) -> Iterator[client.ChannelInfo]:
        """What a domain may see, from a channel's number on."""
        return map(self._describe, self._registry.visible(domain, ChannelId(first - 1)))

    def _describe(self, channel: Channel) -> client.ChannelInfo:
        ready = self._regions[channel.number].ready()
        return client.ChannelInfo(
            channel.number,
            channel.path,
            channel.state.value,
            channel.server_domain,
            channel.client_domain,
            channel.server.pid if channel.server else 0,
            channel.client.pid if channel.client else 0,
            Size(1 << channel.rings.left),
            Size(1 << channel.rings.right),
            Size(ready.server),
            Size(ready.client),
        )
