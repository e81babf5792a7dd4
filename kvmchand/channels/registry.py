# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which domains exist, what they offer, and who is connected. Pure state.

A channel lives from its server's offer until both ends are gone. It has its path only while its
server exists and no later offer has taken the path over. An end is held by one client connection.
An event channel of its own is a channel too, which has its number in place of a path.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from kvmchand.channels.rings import SHARE, Rings
from kvmchand.errors import AccessDenied, Busy, LimitReached, NotFound, ProtocolError
from kvmchand.ids import HOST, ChannelId, ClientId, DomainId
from kvmchand.xenstore import paths

_EVENT_CHANNEL = "event-channel:"
"""What an event channel has for a path, before its number. No path has a colon."""


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
    """A vchan, or an event channel of its own."""

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
        """Whether it is a vchan, and not just an event channel."""
        return not self.path.startswith(_EVENT_CHANNEL)

    def domain(self, side: Side) -> DomainId:
        """Return whose an end is."""
        return self.server_domain if side is Side.SERVER else self.client_domain

    @property
    def state(self) -> State:
        """How far the channel has come."""
        if self.server is None:
            return State.SERVER_GONE
        if self.client is not None:
            return State.CONNECTED
        return State.CLIENT_GONE if self.had_client else State.WAITING


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make a channel. It counts only until anything else in the registry changes."""

    path: str
    """The absolute path of a vchan; empty for an event channel."""
    server_domain: DomainId
    client_domain: DomainId
    server: End
    replaced: Channel | None = None
    """The channel that loses the path."""


@dataclass(slots=True)
class Ends:
    """Who holds which end, and how many ends each domain has."""

    _held: dict[ClientId, tuple[Channel, Side]] = field(default_factory=dict)
    _counts: Counter[tuple[DomainId, Side]] = field(default_factory=Counter)

    def require_free(self, holder: ClientId) -> None:
        """Raise ProtocolError if a connection holds an end already."""
        if holder in self._held:
            raise ProtocolError("this connection has a channel already: open one connection a channel")

    def held(self, holder: ClientId) -> tuple[Channel, Side] | None:
        """Return the end that a connection holds."""
        return self._held.get(holder)

    def holders(self, domain: DomainId) -> list[ClientId]:
        """Return who holds ends of a domain."""
        return [holder for holder, (channel, side) in self._held.items() if domain == channel.domain(side)]

    def count(self, domain: DomainId, side: Side) -> int:
        """Return how many ends of one kind a domain holds."""
        return self._counts[domain, side]

    def hold(self, end: End, channel: Channel, side: Side) -> None:
        """Note who holds an end."""
        self._held[end.holder] = (channel, side)
        self._counts[channel.domain(side), side] += 1

    def release(self, holder: ClientId) -> tuple[Channel, Side] | None:
        """Forget what a connection holds, and return it."""
        held = self._held.pop(holder, None)
        if held is not None:
            channel, side = held
            self._counts[channel.domain(side), side] -= 1
        return held


class Occupied(Busy):
    """The channel has a client."""

    def __init__(self, sentence: str, channel: Channel) -> None:
        super().__init__(sentence)
        self.channel = channel


@dataclass(slots=True)
class Registry:
    """The domains, their channels, and the rules for both."""

    max_channels: int = 65536
    """Server ends that a domain may hold, and as many client ends."""
    guest_channels: int = 65536
    """The same of a guest."""
    max_bytes: int = 1 << 40
    """Bytes of the channels that a domain has offered. A guest's links have limits of their own."""
    domains: dict[DomainId, DomainKind] = field(default_factory=dict)
    unserved: dict[DomainId, str] = field(default_factory=dict)
    """Domains that run and are not among these, with the sentence that says why."""
    detached: set[DomainId] = field(default_factory=set)
    """Domains whose guests can't offer or connect to anything for now."""
    channels: dict[ChannelId, Channel] = field(default_factory=dict)
    ends: Ends = field(default_factory=Ends)
    _offers: dict[str, Channel] = field(default_factory=dict)
    _last: int = 0
    _bytes: Counter[DomainId] = field(default_factory=Counter)
    """Of the channels that each domain has offered."""

    # ---- domains ----

    def add_domain(self, domain: DomainId, kind: DomainKind) -> None:
        """Note that a domain exists."""
        self.domains[domain] = kind

    def remove_domain(self, domain: DomainId) -> None:
        """Forget a domain whose ends have been released."""
        del self.domains[domain]
        self.detached.discard(domain)

    def require_domain(self, domain: int, caller: DomainId) -> DomainId:
        """Return the domain's number.

        Raises NotFound if there is no such domain, or it is not served. Only the host's clients are
        told why: the reason names the domain, and says what its machine is like.
        """
        known = DomainId(domain)
        if known in self.domains:
            return known
        if known in self.unserved:
            reason = self.unserved[known] if caller == HOST else "the host's log says why"
            raise NotFound(f"domain {domain} is not served: {reason}")
        raise NotFound(f"there is no domain {domain}: kvmchan ls shows those there are")

    def limit(self, domain: DomainId) -> tuple[int, str]:
        """Return how many ends of one kind a domain may hold, and the setting that says so."""
        is_guest = self.domains[domain] is DomainKind.GUEST
        return (self.guest_channels, "guest_channels") if is_guest else (self.max_channels, "max_channels")

    def _require_room(self, domain: DomainId, side: Side) -> None:
        most, setting = self.limit(domain)
        if self.ends.count(domain, side) >= most:
            raise LimitReached(f"domain {domain} has {most} channels: {setting} in the daemon's settings")

    def spare(self, domain: DomainId) -> int:
        """Return the bytes that a channel of the domain should have at the most.

        A guest's are bounded by its links.
        """
        is_guest = self.domains[domain] is DomainKind.GUEST
        return self.max_bytes if is_guest else (self.max_bytes - self._bytes[domain]) // SHARE

    def require_bytes(self, domain: DomainId, size: int) -> None:
        """Raise LimitReached if the domain can't offer a channel of so many bytes."""
        if self.domains[domain] is not DomainKind.GUEST and self._bytes[domain] + size > self.max_bytes:
            raise LimitReached(
                f"domain {domain}'s channels would have over {self.max_bytes} bytes: max_bytes in the daemon's settings"
            )

    # ---- servers ----

    def permit_offer(self, caller: DomainId, peer: int, path: str, end: End) -> Permit:
        """Permit a vchan that `peer` may connect to.

        Raises an error that says why it is refused.
        """
        self.ends.require_free(end.holder)
        absolute = paths.resolve(path, caller)
        paths.require_writable(absolute, caller)
        client_domain = self.require_domain(peer, caller)
        standing = self._offers.get(absolute)
        if standing is not None and caller not in (standing.server_domain, HOST):
            raise AccessDenied(f"{absolute[:80]} is taken by domain {standing.server_domain}, which alone may take it over")
        self._require_room(caller, Side.SERVER)
        return Permit(absolute, caller, client_domain, end, standing)

    def permit_bind(self, caller: DomainId, peer: int, end: End) -> Permit:
        """Permit an event channel that `peer` may join. Raises as permit_offer()."""
        self.ends.require_free(end.holder)
        self._require_room(caller, Side.SERVER)
        return Permit("", caller, self.require_domain(peer, caller), end)

    def add(self, permit: Permit, chosen: Rings, *, once: bool = False) -> Channel:
        """Add a permitted channel, its server end held.

        A channel that it replaces keeps its client but loses the path.
        """
        self._last += 1
        number, path = ChannelId(self._last), permit.path or f"{_EVENT_CHANNEL}{self._last}"
        channel = Channel(number, path, permit.server_domain, permit.client_domain, chosen, server=permit.server, once=once)
        self.channels[number] = self._offers[path] = channel
        self._bytes[permit.server_domain] += chosen.size
        self.ends.hold(permit.server, channel, Side.SERVER)
        return channel

    def offered_to(self, domain: DomainId) -> list[Channel]:
        """Return the channels without a client that are for a domain."""
        return [each for each in self.channels.values() if each.client_domain == domain and each.client is None]

    def withdraw(self, channel: Channel) -> None:
        """Let no new client find the channel at its path."""
        if self._offers.get(channel.path) is channel:
            del self._offers[channel.path]

    # ---- clients ----

    def require_connect(self, caller: DomainId, domain: int, path: str, end: End) -> Channel:
        """Return the channel that `domain` offers `caller` at `path`, for connect().

        Raises an error that says why the caller may not connect.
        """
        self.ends.require_free(end.holder)
        absolute = paths.resolve(path, caller)
        server_domain = self.require_domain(domain, caller)
        channel = self._offers.get(absolute)
        if channel is None or channel.server_domain != server_domain:
            remedy = "it is detached: kvmchan attach" if server_domain in self.detached else "start its server first"
            raise NotFound(f"domain {domain} offers no vchan at {absolute[:80]}: {remedy}")
        self._require_open(channel, caller, f"the vchan at {absolute[:80]}")
        return channel

    def require_join(self, caller: DomainId, domain: int, port: int, end: End) -> Channel:
        """Return the event channel that is `port` in `domain`, for connect().

        Raises an error that says why the caller may not join it.
        """
        self.ends.require_free(end.holder)
        server_domain = self.require_domain(domain, caller)
        channel = self._offers.get(f"{_EVENT_CHANNEL}{port // 2}")
        if channel is None or channel.server_domain != server_domain or port % 2:
            raise NotFound(f"domain {domain} has no event channel {port} that could be joined")
        self._require_open(channel, caller, f"event channel {port} of domain {domain}")
        return channel

    def _require_open(self, channel: Channel, caller: DomainId, what: str) -> None:
        if channel.client_domain != caller:
            raise AccessDenied(f"{what} is for domain {channel.client_domain}, and this is domain {caller}")
        if channel.client is not None:
            raise Occupied(f"{what} has a client, process {channel.client.pid}: one at a time", channel)
        self._require_room(caller, Side.CLIENT)

    def connect(self, channel: Channel, end: End) -> None:
        """Give the client end of a channel that require_connect() or require_join() returned."""
        channel.client = end
        channel.had_client = True
        self.ends.hold(end, channel, Side.CLIENT)

    def offered_at(self, domain: DomainId, path: str) -> Channel | None:
        """Return the vchan that `domain` offers at an absolute path, if it has no client."""
        channel = self._offers.get(path)
        return channel if channel is not None and channel.server_domain == domain and channel.client is None else None

    # ---- both ----

    def release(self, holder: ClientId) -> tuple[Channel, Side] | None:
        """End what a connection holds, and return it. A channel with no end left is forgotten."""
        held = self.ends.release(holder)
        if held is None:
            return None
        channel, side = held
        if side is Side.SERVER:
            channel.server = None
            self.withdraw(channel)
        else:
            channel.client = None
        if channel.server is None and channel.client is None:
            del self.channels[channel.number]
            self._bytes[channel.server_domain] -= channel.rings.size
        return held

    def port(self, caller: DomainId, domain: int, port: int) -> tuple[Channel, Side] | None:
        """Return the end of a channel that is `port` in `domain`, if there is one.

        Raises AccessDenied if it is not the caller's to know.
        """
        if caller not in (HOST, domain):
            raise AccessDenied(f"domain {caller} may not ask about the event channels of domain {domain}")
        channel = self.channels.get(ChannelId(port // 2))
        side = Side.CLIENT if port % 2 else Side.SERVER
        if channel is None or domain != channel.domain(side):
            return None
        return (channel, side) if (channel.client if port % 2 else channel.server) is not None else None

    def visible(self, caller: DomainId, after: ChannelId) -> list[Channel]:
        """Return the channels numbered above `after` that a domain may list.

        Domain 0 may list all, another those that it has an end of.
        """
        return [
            channel
            for number, channel in self.channels.items()
            if number > after and caller in (HOST, channel.server_domain, channel.client_domain)
        ]
