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
from dataclasses import dataclass

from kvmchand import log
from kvmchand.config import Settings
from kvmchand.core import rings
from kvmchand.core.paths import ABSOLUTE_MAX, HOST
from kvmchand.core.registry import Channel, DomainKind, End, Registry, Side
from kvmchand.errors import Busy, InternalError, KvmchanError, LimitReached, NotFound, OutOfResources, ProtocolError
from kvmchand.ids import ChannelId, ClientId, DomainId, Size
from kvmchand.ipc import Service
from kvmchand.lifeline import Lifelines
from kvmchand.linux import libc
from kvmchand.loop import HALF_CLOSED, HUNG_UP, Loop
from kvmchand.privsep import raise_descriptor_limit, require_user
from kvmchand.region import Region
from kvmchand.sockets import Sockets
from kvmchand.wire import client, internal
from kvmchand.wire.codec import PACKET_MAX
from kvmchand.wire.packet import Fds, receive_packet, send_packet

_IDLE_CLIENTS = 1024
"""Connections a domain may have beside those of its channels."""
_GENERATION = 1 << 40
"""Clients that one local process may number: more than it ever will."""
_RESTARTS_MAX = 5
"""Restarts of a service in a row that got nowhere, after which the daemon gives up."""
_CHANNEL_BYTES = 320
_DOMAIN_BYTES = 40
_CHANNEL_BYTES_MAX = _CHANNEL_BYTES + ABSOLUTE_MAX
"""How much room each takes in a listing: a channel without its path, a domain, and a channel with the longest path."""
_CHANNEL_FDS = 3
"""Descriptors that main has of a channel, beside one for each connection."""
_SPARE_FDS = 64
"""Kept for the daemon itself, the restart of a service included. Without a free one main could not take a connection over, and
so could not even tell its client."""


@dataclass(slots=True)
class Client:
    """Main's side of a client: a duplicate of its connection, on which it is answered."""

    number: ClientId
    sock: socket.socket
    domain: DomainId
    pid: int


class Host:
    """The process's whole state. close() leaves nothing of it on the machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = Loop()
        self._registry = Registry(settings.limits.max_channels)
        self._regions: dict[ChannelId, Region] = {}
        self._clients: dict[ClientId, Client] = {}
        self._idle: dict[DomainId, dict[ClientId, Client]] = {}
        """The clients without a channel, the oldest first."""
        self._generation = 0
        """Of the local process. It numbers its clients, from _GENERATION times this on."""
        self._local: Service | None = None
        self._local_failures = 0
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
        self._start_local()

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Established channels outlive it, but nothing else does."""
        self._loop.run(self._lifelines.until_next_look)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        if self._local is not None:
            self._local.stop()
            self._local = None
        for each in self._clients.values():
            each.sock.close()
        self._clients.clear()
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

    # ---- the local process ----

    def _start_local(self) -> None:
        service = self._local = Service("local")
        self._generation += 1
        max_clients = 2 * self._settings.limits.max_channels + 2 * _IDLE_CLIENTS
        told: list[tuple[object, list[int]]] = []
        told += [(listen, [sock.fileno()]) for listen, sock in self._sockets.to_listen(max_clients)]
        told += [(internal.Restore(each.number, each.domain), [each.sock.fileno()]) for each in self._clients.values()]
        told += [(internal.Start(ClientId(self._generation * _GENERATION), self._settings.service_user), [])]
        try:
            for message, fds in told:
                send_packet(service.sock, internal.to_local.encode(message), fds)
        except OSError:
            pass  # it has ended already, as its socket will say
        # After the connections: whoever has died is found dead before anyone else's request is looked at.
        self._loop.add(service.sock.fileno(), self._on_local, last=True)

    def _on_local(self, _events: int) -> None:
        service = self._local
        if service is None:
            return
        try:
            data, fds = receive_packet(service.sock)
            if not data:
                self._on_local_death(service)
                return
            with fds:
                asked = self._understand(data, fds)
        except (OSError, KeyError, UnicodeEncodeError) as error:
            # It is not what we started any more: somebody's bytes have taken it over.
            log.warning(f"the local process is killed, for what it says can't be: {error}")
            service.kill()
            self._on_local_death(service)
            return
        if asked is not None:
            self._local_failures = 0
            self._answer(*asked)

    def _understand(self, data: bytes, fds: Fds) -> tuple[Client, object] | None:
        """Who asks what by a message of the local process, if anyone does."""
        message = internal.to_main.decode(data)
        if isinstance(message, internal.Started):
            log.info(f"ready: {self._sockets}")
            _notify("READY=1")
            return None
        request: object = client.requests.decode(message.request.encode())
        asking = self._clients.get(message.client)
        if asking is None:
            if len(fds) != 1:
                return None  # it hung up meanwhile
            if message.client // _GENERATION != self._generation:
                raise ProtocolError(f"{message.client} is no number for a new client")
            asking = self._adopt(message.client, fds)
        return asking, request

    def _on_local_death(self, service: Service) -> None:
        self._loop.remove(service.sock.fileno())
        culprit = service.marker.get()
        how = service.stop()
        self._local_failures += 1
        log.warning(f"the local process ended ({how})")
        if culprit is not None and culprit in self._clients:
            log.warning(f"client {culprit} is dropped, for its bytes ended the local process")
            self._drop(self._clients[culprit])
        if self._local_failures > _RESTARTS_MAX:
            self._local = None
            self._failure = InternalError(f"the local process ended {self._local_failures} times in a row: see the log above")
            self._loop.stop()
            return
        self._start_local()

    # ---- clients ----

    def _adopt(self, number: ClientId, fds: Fds) -> Client:
        """Takes over a connection, the one descriptor in `fds`. OSError or KeyError: it is none of a client of ours."""
        sock = socket.socket(fileno=fds.borrow()[0])
        fds.steal()
        try:
            # Both from the socket itself and not from what the local process says.
            domain = self._sockets.domain_of(sock)
            pid, _, _ = libc.peer_credentials(sock)
            adopted = Client(number, sock, domain, pid)
            self._loop.add(sock.fileno(), lambda events: self._on_hang_up(adopted, events), HALF_CLOSED)
        except BaseException:
            sock.close()
            raise
        self._clients[number] = adopted
        idle = self._idle.setdefault(domain, {})
        idle[number] = adopted
        if len(idle) > _IDLE_CLIENTS:
            self._drop(next(iter(idle.values())))
        return adopted

    def _on_hang_up(self, gone: Client, events: int) -> None:
        if not events & HUNG_UP:
            # It closes its channel, has told its peer so, or should have, and waits for us to end the connection.
            held = self._registry.held(gone.number)
            if held is not None and self._regions[held[0].number].has_hung_up(held[1]):
                self._release(gone.number)
            else:
                self._end(gone.number)
            self._forget(gone)
            return
        held = self._registry.held(gone.number)
        self._forget(gone)
        if held is None:
            return
        region = self._regions[held[0].number]
        if region.is_mapped(gone.number):
            # It closed its descriptors, or a child of it did, but the channel is in use: wait for the mapping's end.
            self._lifelines.watch(gone.number, region)
        else:
            self._end(gone.number)

    def _forget(self, gone: Client) -> None:
        del self._clients[gone.number]
        self._idle[gone.domain].pop(gone.number, None)
        self._loop.remove(gone.sock.fileno())
        gone.sock.close()

    def _drop(self, dropped: Client) -> None:
        """Ends a connection from our side, and with it what it holds."""
        try:
            dropped.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # gone already
        self._forget(dropped)
        self._end(dropped.number)

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

    def _answer(self, asking: Client, request: object) -> None:
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
            try:
                send_packet(asking.sock, client.replies.encode(reply), fds, socket.MSG_DONTWAIT)
            except OSError:
                ends = True  # it does not read its answers, or is gone; then so is what it asked for
            if ends:
                self._drop(asking)

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
        self._idle[asking.domain].pop(asking.number, None)
        if side is Side.CLIENT:
            region.signal(Side.CLIENT)  # as on Xen, an event is pending when a client has connected
        return client.Granted(channel.number, channel.path, channel.rings.left, channel.rings.right), (memory, event)

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
