# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's main process on a host: owns every descriptor, applies the registry's rules, and starts the services.

It parses no outside byte: what clients say comes from the local process and the link process, encoded anew. It answers local
clients itself, so that regions pass through no other process.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from kvmchand import listing, log
from kvmchand.clients import Clients
from kvmchand.config import Settings
from kvmchand.core import rings
from kvmchand.core.links import Device
from kvmchand.core.paths import HOST
from kvmchand.core.registry import Channel, DomainKind, End, Registry, Side
from kvmchand.errors import Busy, InternalError, KvmchanError, LimitReached, NotFound, OutOfResources, ProtocolError, TimedOut
from kvmchand.guests import Guests
from kvmchand.ids import ChannelId, ClientId, DomainId, Size
from kvmchand.lifeline import Lifelines
from kvmchand.linux import libc
from kvmchand.loop import Loop
from kvmchand.pool import NotYet
from kvmchand.privsep import raise_descriptor_limit, require_user
from kvmchand.process import notify, stopped_by_signals
from kvmchand.region import LocalRegion, Region
from kvmchand.sockets import Sockets
from kvmchand.source import Asker
from kvmchand.wire import client
from kvmchand.wire.codec import PACKET_MAX

_LISTING_MAX = PACKET_MAX - 1024
"""Bytes of what a listing lists: the packet's own names stand around it."""
_LISTING_MAX_IN_GUEST = 12 * 1024
"""Bytes of a listing that goes as a packet within packets."""
_CHANNEL_FDS = 3
"""Descriptors that main has of a channel, beside one for each connection."""
_SPARE_FDS = 64
"""Kept for the daemon itself, the restart of a service included. Without a free one main could not take a connection over, and
so could not even tell its client."""


_DEVICE_DEADLINE = 30.0
"""Seconds that a request waits for a device to come into a guest."""


@dataclass(slots=True)
class Pending:
    """A request that waits for one of `devices`."""

    asking: Asker
    request: object
    deadline: float
    reason: str
    devices: list[Device]


class Host:
    """The process's whole state. close() leaves nothing of it on the machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = Loop()
        self._registry = Registry(settings.limits.max_channels, settings.limits.guest_channels)
        self._regions: dict[ChannelId, Region] = {}
        self._pending: dict[ClientId, Pending] = {}
        self._guests: Guests | None = None
        self._failure: KvmchanError | None = None
        self._undo = ExitStack()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        settings = self._settings
        raise_descriptor_limit()
        require_user(settings.service_user)
        self._sockets = Sockets(settings.runtime_dir, settings.socket)
        self._undo.callback(self._sockets.close)
        self._lifelines = Lifelines(self._end)
        self._undo.callback(self._lifelines.close)
        self._loop.add(self._lifelines.fd, self._lifelines.on_event)
        self._undo.enter_context(stopped_by_signals(self._loop))
        self._registry.add_domain(HOST, DomainKind.HOST)
        self._sockets.listen(HOST, client.SOCKET_NAME)
        for domain in settings.local_domains:
            self._registry.add_domain(domain, DomainKind.LOCAL)
            self._sockets.listen(domain, client.socket_name(domain))
        self._clients = Clients(self._loop, self._sockets, self, settings.service_user, settings.limits.max_channels)
        self._undo.callback(self._clients.close)
        if settings.libvirt:
            self._guests = Guests(self._loop, settings, self, self._clients.next_generation)
            self._undo.callback(self._guests.close)
            self._guests.start()
        self._clients.start()

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Established channels outlive it, but nothing else does."""
        self._loop.run(self._until_next_look)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        for region in self._regions.values():
            region.close()
        self._regions.clear()
        self._undo.close()
        self._loop.close()

    def _until_next_look(self) -> float | None:
        waits = [self._lifelines.until_next_look()]
        if self._guests is not None:
            waits.append(self._guests.until_next_look())
        now = time.monotonic()
        for waiting in list(self._pending.values()):
            if waiting.deadline <= now:
                self._refuse(waiting, TimedOut(waiting.reason))
            else:
                waits.append(waiting.deadline - now)
        return min((each for each in waits if each is not None), default=None)

    # ---- clients, here and in guests: source.Owner ----

    def on_ready(self) -> None:
        log.info(f"ready: {self._sockets}")
        notify("READY=1")

    def on_failure(self, error: KvmchanError) -> None:
        self._failure = error
        self._loop.stop()

    def on_close(self, closing: Asker) -> None:
        self._pending.pop(closing.number, None)
        held = self._registry.held(closing.number)
        if held is not None and self._regions[held[0].number].has_hung_up(held[1]):
            self._release(closing.number)
        else:
            self._end(closing.number)
        closing.source.forget(closing)

    def on_loss(self, number: ClientId) -> None:
        self._pending.pop(number, None)
        held = self._registry.held(number)
        if held is None:
            return
        region = self._regions[held[0].number]
        if region.is_mapped(number):
            # It closed its descriptors, or a child of it did, but the channel is in use: wait for the mapping's end.
            self._lifelines.watch(number, region)
        else:
            self._end(number)

    def on_drop(self, number: ClientId) -> None:
        self._pending.pop(number, None)
        self._end(number)

    def _end(self, holder: ClientId) -> None:
        """An end without a close: does for it what it should have done, and releases it."""
        held = self._registry.held(holder)
        if held is not None:
            channel, side = held
            self._regions[channel.number].bury(side)
            self._release(holder)

    def _release(self, holder: ClientId) -> None:
        held = self._registry.release(holder)
        if held is not None and held[0].number not in self._registry.channels:
            self._regions.pop(held[0].number).close()

    # ---- guests: guests.Owner ----

    def on_guest(self, domain: DomainId) -> None:
        self._registry.add_domain(domain, DomainKind.GUEST)

    def on_guest_reset(self, domain: DomainId) -> None:
        for waiting in [each for each in self._pending.values() if each.asking.domain == domain]:
            del self._pending[waiting.asking.number]
        for holder in self._registry.holders(domain):
            self._end(holder)

    def on_guest_gone(self, domain: DomainId) -> None:
        self.on_guest_reset(domain)
        for channel in self._registry.offered_to(domain):
            # Its client will never come.
            self._registry.withdraw(channel)
            self._regions[channel.number].bury(Side.CLIENT)
        self._registry.remove_domain(domain)

    def on_device_lost(self, domain: DomainId, device: Device) -> None:
        for holder in self._registry.holders(domain):
            held = self._registry.held(holder)
            if held is not None and self._is_on(device, held[0]):
                self._end(holder)

    def _is_on(self, device: Device, channel: Channel) -> bool:
        return self._guests is not None and self._guests.pool.is_on(device, self._regions[channel.number])

    def on_devices_changed(self) -> None:
        for waiting in list(self._pending.values()):
            del self._pending[waiting.asking.number]
            self._ask(waiting.asking, waiting.request, waiting.deadline)

    def on_device_failed(self, device: Device, error: KvmchanError) -> None:
        for waiting in list(self._pending.values()):
            if device in waiting.devices and all(each.is_closing for each in waiting.devices):
                self._refuse(waiting, error)

    def _refuse(self, waiting: Pending, error: KvmchanError) -> None:
        del self._pending[waiting.asking.number]
        waiting.asking.source.answer(waiting.asking, client.Error(error.code, error.sentence))

    # ---- requests ----

    def on_request(self, asking: Asker, request: object) -> None:
        if asking.number in self._pending:
            # One at a time, as the protocol has it; a guest's daemon may say anything.
            error = ProtocolError("a request came before the answer to the one before")
            asking.source.answer(asking, client.Error(error.code, error.sentence))
            return
        self._ask(asking, request, time.monotonic() + _DEVICE_DEADLINE)

    def _ask(self, asking: Asker, request: object, deadline: float) -> None:
        """Answers a request, now or when a device that it needs has come."""
        try:
            self._require_fds(0)
            try:
                self._serve(asking, request)
            except (Busy, LimitReached):
                self._lifelines.look()  # who is dead must not stand in the way
                self._serve(asking, request)
        except NotYet as waiting:
            self._pending[asking.number] = Pending(asking, request, deadline, waiting.sentence, waiting.devices)
        except KvmchanError as error:
            # Who has no channel must not stay where descriptors are short.
            idle = self._registry.held(asking.number) is None
            ends = isinstance(error, ProtocolError) or (idle and isinstance(error, OutOfResources))
            if asking.source.answer(asking, client.Error(error.code, error.sentence)) and ends:
                asking.source.drop(asking)

    def _serve(self, asking: Asker, request: object) -> None:
        match request:
            case client.Offer():
                self._offer(asking, request)
            case client.Connect():
                self._connect(asking, request)
            case client.List():
                asking.source.answer(asking, self._list(asking, request.after))
            case _:
                raise InternalError(f"no answer to {type(request).__name__}")

    def _require_fds(self, wanted: int) -> int:
        """OutOfResources unless so many descriptors are free; how many would be left."""
        taken = len(self._clients) + _CHANNEL_FDS * len(self._regions) + len(self._registry.domains) + _SPARE_FDS
        taken += self._guests.pool.fds if self._guests is not None else 0
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if taken + wanted > most:
            raise OutOfResources(f"the daemon needs more than the {most} descriptors it may have: raise its limit (LimitNOFILE)")
        return most - taken - wanted

    def _require_share(self, domain: DomainId, left: int) -> None:
        """LimitReached where a domain has more channels than there is room left for: so none takes it all. The host may."""
        channels = self._registry.ends(domain, Side.SERVER)
        if domain != HOST and channels > left // (_CHANNEL_FDS + 2):
            raise LimitReached(
                f"domain {domain} has {channels} channels, its share of the daemon's descriptors: raise LimitNOFILE"
            )

    def _offer(self, asking: Asker, offer: client.Offer) -> None:
        self._require_share(asking.domain, self._require_fds(_CHANNEL_FDS))
        end = End(asking.number, asking.pid)
        chosen = rings.choose(offer.read_min, offer.write_min, self._settings.limits.max_ring)
        _, peer = self._registry.require_offer(asking.domain, offer.peer, offer.path, end)
        # The region first: should it fail, an offer that this one would take over still stands.
        region = self._make_region(chosen, asking.domain, peer)
        channel = self._registry.offer(asking.domain, peer, offer.path, chosen, end)
        self._regions[channel.number] = region
        self._grant(asking, channel, region, Side.SERVER)

    def _make_region(self, chosen: rings.Rings, server: DomainId, peer: DomainId) -> Region:
        if self._guests is not None and (self._guests.pool.is_guest(server) or self._guests.pool.is_guest(peer)):
            return self._guests.pool.make_region(chosen, server, peer)
        return LocalRegion.create(chosen)

    def _connect(self, asking: Asker, request: client.Connect) -> None:
        end = End(asking.number, asking.pid)
        channel = self._registry.require_connect(asking.domain, request.domain, request.path, end)
        region = self._regions[channel.number]
        if not region.has_events():
            self._registry.withdraw(channel)
            raise NotFound(f"the vchan at {channel.path[:80]} is broken, by a client before: its server must offer it anew")
        if self._guests is not None:
            self._guests.pool.require_ready(region, asking.domain)
        self._registry.connect(asking.domain, request.domain, request.path, end)
        self._grant(asking, channel, region, Side.CLIENT)

    def _grant(self, asking: Asker, channel: Channel, region: Region, side: Side) -> None:
        try:
            asking.source.grant(asking, channel, region, side)
        except BaseException:
            self._release(asking.number)
            raise

    def _list(self, asking: Asker, cursor: Size) -> client.Listing:
        domains = [client.DomainInfo(number, kind.value) for number, kind in sorted(self._registry.domains.items())]
        guests, links = self._guests.listing() if self._guests is not None and asking.domain == HOST else ((), ())

        def channels(first: int) -> Iterator[listing.Placed]:
            for channel in self._registry.visible(asking.domain, ChannelId(first - 1)):
                yield channel.number, self._describe(channel), listing.CHANNEL_BYTES + listing.text_bytes(channel.path)

        most = _LISTING_MAX_IN_GUEST if asking.source is self._guests else _LISTING_MAX
        return listing.page([*map(listing.placed, (domains, guests, links)), channels], cursor, most)

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


def serve(settings: Settings) -> None:
    """Runs the host's daemon until it is told to stop."""
    libc.set_process_name("kvmchand")
    host = Host(settings)
    try:
        host.run()
    finally:
        host.close()
