# SPDX-License-Identifier: LGPL-2.1-or-later
"""The channels, as the host's main process has them.

Each has a region, and ends that clients are given. What an end that dies should have done is done
for it. Event channels are among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from kvmchand.channels import rings
from kvmchand.channels.device import Device
from kvmchand.channels.memory import Allocator
from kvmchand.channels.page import other
from kvmchand.channels.region import Region
from kvmchand.channels.registry import Channel, End, Occupied, Registry, Side
from kvmchand.channels.requester import Requester
from kvmchand.channels.rings import Sizes
from kvmchand.channels.waitlist import Waitlist
from kvmchand.errors import NotFound
from kvmchand.ids import ChannelId, ClientId, DomainId, Size
from kvmchand.wire import client

_SMALLEST = rings.choose(0, 0)
"""Of an event channel, which has no use for any."""


class Directory(Protocol):
    """Shows programs what is offered: the store."""

    def publish(self, channel: Channel) -> None:
        """Show a vchan at its path."""

    def unpublish(self, channel: Channel) -> None:
        """Show a vchan no more. Does nothing if it is not shown."""


class Channels:
    """The channels, and what is done with them."""

    def __init__(
        self,
        registry: Registry,
        allocator: Allocator,
        sizes: Sizes,
        directory: Directory,
        waitlist: Waitlist,
    ) -> None:
        """Have no channel yet. `waitlist` hears where there may be a vchan for those who wait."""
        self._registry = registry
        self._allocator = allocator
        self._sizes = sizes
        self._directory = directory
        self._waitlist = waitlist
        self._regions: dict[ChannelId, Region] = {}
        self._clients: dict[ChannelId, Requester] = {}
        """Those at client ends."""

    def __len__(self) -> int:
        return len(self._regions)

    def close(self) -> None:
        """Close all regions."""
        for region in self._regions.values():
            region.close()
        self._regions.clear()

    # ---- requests ----

    def offer(self, requester: Requester, offer: client.Offer) -> None:
        """Make a vchan, and answer with its server end. Raises VchanError, or NotYet."""
        end = End(requester.number, requester.pid)
        permit = self._registry.permit_offer(requester.domain, offer.peer, offer.path, end)
        spare = min(self._registry.spare(requester.domain), self._allocator.spare(requester.domain, permit.client_domain))
        chosen = self._sizes.choose(offer.read_min, offer.write_min, permit.path, spare)
        self._registry.require_bytes(requester.domain, chosen.size)
        # The region first: should it fail, an offer that this one would take over still stands.
        region = self._allocator.make_region(chosen, requester.domain, permit.client_domain)
        channel = self._registry.add(permit, chosen, once=offer.once)
        self._regions[channel.number] = region
        self._directory.publish(channel)
        if permit.replaced is not None:
            self._directory.unpublish(permit.replaced)
        self._waitlist.note_vacancy((requester.domain, permit.path))
        self._grant(requester, channel, Side.SERVER)

    def bind(self, requester: Requester, request: client.Bind) -> None:
        """Make an event channel, and answer with its server end. Raises as offer()."""
        end = End(requester.number, requester.pid)
        permit = self._registry.permit_bind(requester.domain, request.peer, end)
        self._registry.require_bytes(requester.domain, _SMALLEST.size)
        region = self._allocator.make_region(_SMALLEST, requester.domain, permit.client_domain)
        channel = self._registry.add(permit, _SMALLEST)
        self._regions[channel.number] = region
        self._grant(requester, channel, Side.SERVER)

    def connect(self, requester: Requester, request: client.Connect) -> None:
        """Answer with the client end of a vchan. Raises as offer()."""
        end = End(requester.number, requester.pid)
        try:
            channel = self._registry.require_connect(requester.domain, request.domain, request.path, end)
        except Occupied as error:
            if not self._take_back(error.channel):
                raise
            channel = self._registry.require_connect(requester.domain, request.domain, request.path, end)
        self._join(requester, channel, end)

    def _take_back(self, channel: Channel) -> bool:
        """Take a vchan back from a client that left the call in which it was granted.

        Returns whether its place is free. To the server nobody has come.
        """
        holder = self._clients[channel.number]
        is_unread = holder.take_back()
        if is_unread is False:
            return False
        if is_unread:
            self.release(holder.number)
        else:
            # It uses the memory, and so nobody else may.
            self.withdraw(channel)
        holder.drop()
        return is_unread is True

    def join(self, requester: Requester, request: client.Join) -> None:
        """Answer with the client end of an event channel. Raises as offer()."""
        end = End(requester.number, requester.pid)
        self._join(requester, self._registry.require_join(requester.domain, request.domain, request.port, end), end)

    def _join(self, requester: Requester, channel: Channel, end: End) -> None:
        region = self._regions[channel.number]
        if not region.has_events():
            self.withdraw(channel)
            raise NotFound(f"the vchan at {channel.path[:80]} is broken, by a client before: its server must offer it anew")
        self._allocator.require_ready(region, requester.domain)
        self._registry.connect(channel, end)
        self._clients[channel.number] = requester
        self._grant(requester, channel, Side.CLIENT)
        if channel.once:
            self.withdraw(channel)

    def withdraw(self, channel: Channel) -> None:
        """Let no new client find a channel at its path."""
        self._registry.withdraw(channel)
        self._directory.unpublish(channel)

    def _grant(self, requester: Requester, channel: Channel, side: Side) -> None:
        try:
            requester.grant(channel, self._regions[channel.number], side)
        except BaseException:
            self.release(requester.number)
            raise

    def port(self, requester: Requester, request: client.GetPort) -> client.Port:
        """Return what an event channel is.

        Raises AccessDenied if it is not the client's to know.
        """
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

    # ---- ends ----

    def give_up_on(self, domain: DomainId, device: Device | None = None) -> None:
        """Withdraw what is offered to a domain, and tell the servers.

        The domain is gone, or it can't use `device`, and what is elsewhere stays.
        """
        for channel in self._registry.offered_to(domain):
            region = self._regions[channel.number]
            if device is None or self._allocator.is_on(device, region):
                self.withdraw(channel)
                region.mark_dead(Side.CLIENT)

    def region(self, holder: ClientId) -> Region | None:
        """Return the region of the channel that a client holds an end of."""
        held = self._registry.ends.held(holder)
        return self._regions[held[0].number] if held is not None else None

    def is_closed(self, holder: ClientId) -> bool:
        """Return whether a client holds an end that its program has marked closed."""
        held = self._registry.ends.held(holder)
        return held is not None and self._regions[held[0].number].is_closed(held[1])

    def wake(self, channel: Channel, side: Side) -> None:
        """Send an event in the name of an end, which may be gone already."""
        region = self._regions.get(channel.number)
        if region is not None:
            region.signal(other(side))

    def end(self, holder: ClientId) -> None:
        """Release an end without a close, and do for it what it should have done."""
        held = self._registry.ends.held(holder)
        if held is not None:
            channel, side = held
            self._regions[channel.number].mark_dead(side)
            self.release(holder)

    def release(self, holder: ClientId) -> None:
        """Release the end that a client holds, if any."""
        held = self._registry.release(holder)
        if held is None:
            return
        channel, side = held
        if channel.number not in self._registry.channels:
            self._regions.pop(channel.number).close()
        if side is Side.SERVER:
            self._directory.unpublish(channel)
        else:
            del self._clients[channel.number]
            self._waitlist.note_vacancy((channel.server_domain, channel.path))

    # ---- listing ----

    def listed(self, domain: DomainId, first: int) -> Iterator[client.ChannelInfo]:
        """Yield what a domain may see, from a channel's number on."""
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
