# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which domains there are, what they offer, and who is connected. Pure state: the host does what follows from it.

A channel lives from its server's offer until both ends are gone. It stands at its path only while its server is there and no
later offer has taken the path over. An end is held by one client connection. An event channel of its own is a channel too,
which stands at its number and not at a path.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from kvmchand.channels.rings import Rings
from kvmchand.errors import AccessDenied, Busy, LimitReached, NotFound, ProtocolError
from kvmchand.ids import HOST, ChannelId, ClientId, DomainId
from kvmchand.xenstore import paths

_EVENT_CHANNEL = "event-channel:"
"""What an event channel stands at, before its number. No path has a colon."""


class DomainKind(Enum):
    """What answers for a domain."""

    HOST = "host"
    LOCAL = "local"
    GUEST = "guest"


class Side(Enum):
    """An end of a channel, in the order of its live byte's offset from cli_live."""

    CLIENT = 0
    SERVER = 1


class State(Enum):
    """A channel's, as `kvmchan ls` shows it."""

    WAITING = "waiting"
    """The server is there, and no client has come yet."""
    CONNECTED = "connected"
    CLIENT_GONE = "client-gone"
    """The server is there; another client may come while the path is still its."""
    SERVER_GONE = "server-gone"
    """The client may still read what was written."""


@dataclass(slots=True)
class End:
    """Who holds an end, and the process it was given to."""

    holder: ClientId
    pid: int


@dataclass(slots=True)
class Channel:
    number: ChannelId
    path: str
    server_domain: DomainId
    client_domain: DomainId
    rings: Rings
    server: End | None = None
    client: End | None = None
    once: bool = False
    """For one client, and no other after it."""
    had_client: bool = False

    @property
    def is_vchan(self) -> bool:
        """Or an event channel only."""
        return not self.path.startswith(_EVENT_CHANNEL)

    @property
    def state(self) -> State:
        if self.server is None:
            return State.SERVER_GONE
        if self.client is not None:
            return State.CONNECTED
        return State.CLIENT_GONE if self.had_client else State.WAITING


class Observer(Protocol):
    """Who hears of what stands at its path."""

    def on_offered(self, channel: Channel) -> None: ...

    def on_withdrawn(self, channel: Channel) -> None:
        """It stands there no more; a later offer at its path may, that it heard of before."""


@dataclass(slots=True)
class Registry:
    max_channels: int = 65536
    """Per domain: server ends it holds, and as many client ends."""
    guest_channels: int = 65536
    """The same of a guest."""
    domains: dict[DomainId, DomainKind] = field(default_factory=dict)
    channels: dict[ChannelId, Channel] = field(default_factory=dict)
    _offers: dict[str, Channel] = field(default_factory=dict)
    _held: dict[ClientId, tuple[Channel, Side]] = field(default_factory=dict)
    _ends: Counter[tuple[DomainId, Side]] = field(default_factory=Counter)
    _last: int = 0
    observer: Observer | None = None

    def add_domain(self, domain: DomainId, kind: DomainKind) -> None:
        self.domains[domain] = kind

    def remove_domain(self, domain: DomainId) -> None:
        """It is gone; its ends are the caller's to release, before."""
        del self.domains[domain]

    def holders(self, domain: DomainId) -> list[ClientId]:
        """Who holds ends of a domain."""
        return [
            holder
            for holder, (channel, side) in self._held.items()
            if domain == (channel.server_domain if side is Side.SERVER else channel.client_domain)
        ]

    def offered_to(self, domain: DomainId) -> list[Channel]:
        """Channels without a client that are for a domain."""
        return [each for each in self.channels.values() if each.client_domain == domain and each.client is None]

    def require_domain(self, domain: int) -> DomainId:
        """NotFound unless there is such a domain."""
        known = DomainId(domain)
        if known not in self.domains:
            raise NotFound(f"there is no domain {domain}: kvmchan ls shows those there are")
        return known

    def _require_free(self, holder: ClientId) -> None:
        if holder in self._held:
            raise ProtocolError("this connection has a channel already: open one connection a channel")

    def require_offer(self, caller: DomainId, peer: int, path: str, end: End) -> tuple[str, DomainId]:
        """The absolute path and the client's domain of an offer that may be made; an error says why it may not."""
        self._require_free(end.holder)
        absolute = paths.resolve(path, caller)
        paths.require_writable(absolute, caller)
        client_domain = self.require_domain(peer)
        standing = self._offers.get(absolute)
        if standing is not None and caller not in (standing.server_domain, HOST):
            raise AccessDenied(f"{absolute[:80]} is taken by domain {standing.server_domain}, which alone may take it over")
        self._require_room(caller, Side.SERVER)
        return absolute, client_domain

    def offer(self, caller: DomainId, peer: int, path: str, chosen: Rings, end: End, *, once: bool = False) -> Channel:
        """A new channel at `path`, its server end held. An earlier channel there by the same domain, or under domain 0's
        hand by any, keeps its client but loses the path."""
        absolute, client_domain = self.require_offer(caller, peer, path, end)
        channel = self._add(absolute, caller, client_domain, chosen, end)
        channel.once = once
        return channel

    def _add(self, place: str, caller: DomainId, client_domain: DomainId, chosen: Rings, end: End) -> Channel:
        channel = Channel(self.next_number(), place, caller, client_domain, chosen, server=end)
        taken_over = self._offers.get(place)
        self.channels[channel.number] = self._offers[place] = channel
        self._hold(end, channel, Side.SERVER, caller)
        if self.observer is not None and channel.is_vchan:
            self.observer.on_offered(channel)
            if taken_over is not None:
                self.observer.on_withdrawn(taken_over)
        return channel

    def next_number(self) -> ChannelId:
        """Unlike any before."""
        self._last += 1
        return ChannelId(self._last)

    def require_bind(self, caller: DomainId, peer: int, end: End) -> DomainId:
        """The domain that may join, of an event channel that may be made; an error says why it may not."""
        self._require_free(end.holder)
        self._require_room(caller, Side.SERVER)
        return self.require_domain(peer)

    def bind(self, caller: DomainId, peer: int, chosen: Rings, end: End) -> Channel:
        """A new event channel, its server end held."""
        client_domain = self.require_bind(caller, peer, end)
        return self._add(f"{_EVENT_CHANNEL}{self._last + 1}", caller, client_domain, chosen, end)

    def require_connect(self, caller: DomainId, domain: int, path: str, end: End) -> Channel:
        """The channel that `domain` offers `caller` at `path`, and that it may connect to; an error says why it may not."""
        self._require_free(end.holder)
        absolute = paths.resolve(path, caller)
        server_domain = self.require_domain(domain)
        channel = self._offers.get(absolute)
        if channel is None or channel.server_domain != server_domain:
            raise NotFound(f"domain {domain} offers no vchan at {absolute[:80]}: start its server first")
        self._require_open(channel, caller, f"the vchan at {absolute[:80]}")
        return channel

    def is_free(self, domain: DomainId, path: str) -> bool:
        """Whether `domain` offers a vchan at an absolute path that has no client."""
        channel = self._offers.get(path)
        return channel is not None and channel.server_domain == domain and channel.client is None

    def require_join(self, caller: DomainId, domain: int, port: int, end: End) -> Channel:
        """The event channel that is `port` in `domain`, and that `caller` may join; an error says why it may not."""
        self._require_free(end.holder)
        server_domain = self.require_domain(domain)
        channel = self._offers.get(f"{_EVENT_CHANNEL}{port // 2}")
        if channel is None or channel.server_domain != server_domain or port % 2:
            raise NotFound(f"domain {domain} has no event channel {port} that could be joined")
        self._require_open(channel, caller, f"event channel {port} of domain {domain}")
        return channel

    def _require_open(self, channel: Channel, caller: DomainId, what: str) -> None:
        if channel.client_domain != caller:
            raise AccessDenied(f"{what} is for domain {channel.client_domain}, and this is domain {caller}")
        if channel.client is not None:
            raise Busy(f"{what} has a client, process {channel.client.pid}: one at a time")
        self._require_room(caller, Side.CLIENT)

    def connect(self, channel: Channel, end: End) -> None:
        """A channel that require_connect() or require_join() gave has its client end held now."""
        channel.client = end
        channel.had_client = True
        self._hold(end, channel, Side.CLIENT, channel.client_domain)

    def port(self, caller: DomainId, domain: int, port: int) -> tuple[Channel, Side] | None:
        """The end of a channel that is `port` in `domain`; None where there is none. AccessDenied: it is not the caller's to
        know."""
        if caller not in (HOST, domain):
            raise AccessDenied(f"domain {caller} may not ask about the event channels of domain {domain}")
        channel = self.channels.get(ChannelId(port // 2))
        side = Side.CLIENT if port % 2 else Side.SERVER
        if channel is None or domain != (channel.client_domain if port % 2 else channel.server_domain):
            return None
        return (channel, side) if (channel.client if port % 2 else channel.server) is not None else None

    def limit(self, domain: DomainId) -> tuple[int, str]:
        """How many ends of one kind a domain may hold, and the setting that says so."""
        is_guest = self.domains[domain] is DomainKind.GUEST
        return (self.guest_channels, "guest_channels") if is_guest else (self.max_channels, "max_channels")

    def _require_room(self, domain: DomainId, side: Side) -> None:
        most, setting = self.limit(domain)
        if self.ends(domain, side) >= most:
            raise LimitReached(f"domain {domain} has {most} channels: {setting} in the daemon's settings")

    def _hold(self, end: End, channel: Channel, side: Side, domain: DomainId) -> None:
        self._held[end.holder] = (channel, side)
        self._ends[domain, side] += 1

    def ends(self, domain: DomainId, side: Side) -> int:
        """How many ends of one kind a domain holds."""
        return self._ends[domain, side]

    def withdraw(self, channel: Channel) -> None:
        """No new client finds the channel at its path any more."""
        if self._offers.get(channel.path) is channel:
            del self._offers[channel.path]
            if self.observer is not None and channel.is_vchan:
                self.observer.on_withdrawn(channel)

    def held(self, holder: ClientId) -> tuple[Channel, Side] | None:
        return self._held.get(holder)

    def release(self, holder: ClientId) -> tuple[Channel, Side] | None:
        """Ends what a connection holds, if anything. The channel is out of the registry once neither end is held."""
        held = self._held.pop(holder, None)
        if held is None:
            return None
        channel, side = held
        if side is Side.SERVER:
            channel.server = None
            self.withdraw(channel)
        else:
            channel.client = None
        self._ends[channel.server_domain if side is Side.SERVER else channel.client_domain, side] -= 1
        if channel.server is None and channel.client is None:
            del self.channels[channel.number]
        return held

    def visible(self, caller: DomainId, after: ChannelId) -> list[Channel]:
        """The channels numbered above `after` that a domain may list: domain 0 all, another those it is an end of."""
        return [
            channel
            for number, channel in self.channels.items()
            if number > after and caller in (HOST, channel.server_domain, channel.client_domain)
        ]
