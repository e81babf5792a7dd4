# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's main process on a host: owns every descriptor, applies the registry's rules, and starts the services.

It parses no outside byte: what clients say comes from the local process, encoded anew. It answers clients itself, so that
regions pass through no other process.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from contextlib import ExitStack

from kvmchand import log
from kvmchand.clients import Client, Clients
from kvmchand.config import Settings
from kvmchand.core import rings
from kvmchand.core.paths import ABSOLUTE_MAX, HOST
from kvmchand.core.registry import Channel, DomainKind, End, Registry, Side
from kvmchand.errors import Busy, InternalError, KvmchanError, LimitReached, NotFound, OutOfResources, ProtocolError
from kvmchand.ids import ChannelId, ClientId, DomainId, Size
from kvmchand.lifeline import Lifelines
from kvmchand.linux import libc
from kvmchand.loop import Loop
from kvmchand.privsep import raise_descriptor_limit, require_user
from kvmchand.region import Region
from kvmchand.sockets import Sockets
from kvmchand.wire import client
from kvmchand.wire.codec import PACKET_MAX

_CHANNEL_BYTES = 320
_DOMAIN_BYTES = 40
_CHANNEL_BYTES_MAX = _CHANNEL_BYTES + ABSOLUTE_MAX
"""How much room each takes in a listing: a channel without its path, a domain, and a channel with the longest path."""
_CHANNEL_FDS = 3
"""Descriptors that main has of a channel, beside one for each connection."""
_SPARE_FDS = 64
"""Kept for the daemon itself, the restart of a service included. Without a free one main could not take a connection over, and
so could not even tell its client."""


class Host:
    """The process's whole state. close() leaves nothing of it on the machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = Loop()
        self._registry = Registry(settings.limits.max_channels)
        self._regions: dict[ChannelId, Region] = {}
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
        self._wake_on_signals()
        self._registry.add_domain(HOST, DomainKind.HOST)
        self._sockets.listen(HOST, client.SOCKET_NAME)
        for domain in settings.local_domains:
            self._registry.add_domain(domain, DomainKind.LOCAL)
            self._sockets.listen(domain, client.socket_name(domain))
        self._clients = Clients(self._loop, self._sockets, self, settings.service_user, settings.limits.max_channels)
        self._undo.callback(self._clients.close)
        self._clients.start()

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Established channels outlive it, but nothing else does."""
        self._loop.run(self._lifelines.until_next_look)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        for region in self._regions.values():
            region.close()
        self._regions.clear()
        self._undo.close()
        self._loop.close()

    # ---- setting up ----

    def _wake_on_signals(self) -> None:
        reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._undo.callback(reading.close)
        self._undo.callback(writing.close)
        writing.setblocking(False)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, before)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._undo.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        self._loop.add(reading.fileno(), lambda _events: self._loop.stop())

    # ---- clients: Owner ----

    def on_ready(self) -> None:
        log.info(f"ready: {self._sockets}")
        _notify("READY=1")

    def on_failure(self, error: KvmchanError) -> None:
        self._failure = error
        self._loop.stop()

    def on_close(self, closing: Client) -> None:
        held = self._registry.held(closing.number)
        if held is not None and self._regions[held[0].number].has_hung_up(held[1]):
            self._release(closing.number)
        else:
            self._end(closing.number)
        self._clients.forget(closing)

    def on_loss(self, number: ClientId) -> None:
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

    # ---- requests ----

    def on_request(self, asking: Client, request: object) -> None:
        reply: object
        fds: tuple[int, ...] = ()
        ends = False
        with ExitStack() as undo:
            try:
                self._require_fds(0)
                try:
                    reply, fds = self._serve(asking, request, undo)
                except (Busy, LimitReached):
                    self._lifelines.look()  # who is dead must not stand in the way
                    reply, fds = self._serve(asking, request, undo)
            except KvmchanError as error:
                reply, fds = client.Error(error.code, error.sentence), ()
                # Who has no channel must not stay where descriptors are short.
                idle = self._registry.held(asking.number) is None
                ends = isinstance(error, ProtocolError) or (idle and isinstance(error, OutOfResources))
            if self._clients.answer(asking, reply, fds) and ends:
                self._clients.drop(asking)

    def _serve(self, asking: Client, request: object, undo: ExitStack) -> tuple[object, tuple[int, ...]]:
        match request:
            case client.Offer():
                return self._offer(asking, request, undo)
            case client.Connect():
                return self._connect(asking, request, undo)
            case client.List():
                return self._list(asking, request.after), ()
        raise InternalError(f"no answer to {type(request).__name__}")

    def _require_fds(self, wanted: int) -> int:
        """OutOfResources unless so many descriptors are free; how many would be left."""
        taken = len(self._clients) + _CHANNEL_FDS * len(self._regions) + len(self._registry.domains) + _SPARE_FDS
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

    def _offer(self, asking: Client, offer: client.Offer, undo: ExitStack) -> tuple[client.Granted, tuple[int, ...]]:
        self._require_share(asking.domain, self._require_fds(_CHANNEL_FDS))
        end = End(asking.number, asking.pid)
        chosen = rings.choose(offer.read_min, offer.write_min, self._settings.limits.max_ring)
        # The region first: should it fail, an offer that this one would take over still stands.
        region = Region.create(chosen)
        try:
            channel = self._registry.offer(asking.domain, offer.peer, offer.path, chosen, end)
        except BaseException:
            region.close()
            raise
        self._regions[channel.number] = region
        return self._grant(asking, channel, region, Side.SERVER, undo)

    def _connect(self, asking: Client, request: client.Connect, undo: ExitStack) -> tuple[client.Granted, tuple[int, ...]]:
        end = End(asking.number, asking.pid)
        channel = self._registry.connect(asking.domain, request.domain, request.path, end)
        region = self._regions[channel.number]
        if not region.has_events():
            self._registry.withdraw(channel)
            self._release(asking.number)
            raise NotFound(f"the vchan at {channel.path[:80]} is broken, by a client before: its server must offer it anew")
        return self._grant(asking, channel, region, Side.CLIENT, undo)

    def _grant(
        self, asking: Client, channel: Channel, region: Region, side: Side, undo: ExitStack
    ) -> tuple[client.Granted, tuple[int, ...]]:
        try:
            memory, event = region.grant(side, asking.number)
        except BaseException:
            self._release(asking.number)
            raise
        undo.callback(os.close, memory)
        self._clients.settle(asking)
        if side is Side.CLIENT:
            region.signal(Side.CLIENT)  # as on Xen, an event is pending when a client has connected
        left, right = channel.rings.left, channel.rings.right
        granted = client.Granted(channel.number, channel.path, left, right, "socket", Size(0), Size(0), Size(0))
        return granted, (memory, event)

    def _list(self, asking: Client, after: ChannelId) -> client.Listing:
        domains = tuple(client.DomainInfo(number, kind.value) for number, kind in sorted(self._registry.domains.items()))
        channels: list[client.ChannelInfo] = []
        room = PACKET_MAX - _CHANNEL_BYTES_MAX - _DOMAIN_BYTES * len(domains)
        for channel in self._registry.visible(asking.domain, after):
            if room < 0:
                return client.Listing(domains, tuple(channels), more=True)
            channels.append(self._describe(channel))
            room -= len(channel.path) + _CHANNEL_BYTES
        return client.Listing(domains, tuple(channels), more=False)

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


def _notify(state: str) -> None:
    """Tells the service manager, if there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.send(state.encode())
    except OSError as error:
        log.warning(f"the service manager at {address} can't be told {state}: {error.strerror}")


def serve(settings: Settings) -> None:
    """Runs the host's daemon until it is told to stop."""
    libc.set_process_name("kvmchand")
    host = Host(settings)
    try:
        host.run()
    finally:
        host.close()
