# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's main process on a host.

It owns every descriptor, decides, and starts the services. It parses no outside byte: what clients
say comes from the local process and the control process, encoded again. It answers local clients
itself, so that regions pass through no other process.

This module builds the process from its parts, from the bottom up. It starts the services last, and
tells each who hears what it says. Requests arrive in host/requests.py.
"""

from __future__ import annotations

from contextlib import ExitStack
from uuid import UUID

from kvmchand.channels.channels import Channels
from kvmchand.channels.grants import Grants
from kvmchand.channels.memory import Allocator
from kvmchand.channels.registry import DomainKind, Registry
from kvmchand.channels.rings import Sizes
from kvmchand.channels.sharing import Sharing
from kvmchand.channels.waitlist import Waitlist
from kvmchand.config import Settings
from kvmchand.errors import VchanError
from kvmchand.host.detaching import Detaching
from kvmchand.host.guests import GuestDesk
from kvmchand.host.holdings import Holdings
from kvmchand.host.listing import Lister
from kvmchand.host.requests import Desk
from kvmchand.host.room import Room
from kvmchand.host.store import StoreDesk
from kvmchand.ids import HOST, PAGE
from kvmchand.links.machines import Machines
from kvmchand.linux import libc
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.privileges import raise_descriptor_limit, require_user
from kvmchand.runtime.signals import keep_watchdog, notify, open_stdio, stopped_by_signals
from kvmchand.runtime.sockets import Sockets
from kvmchand.services.closer.closer import Closer
from kvmchand.services.local.clients import Clients
from kvmchand.services.store.store import Store
from kvmchand.wire import client


class Host:
    """The whole process. close() leaves nothing of it on the machine."""

    def __init__(self, settings: Settings) -> None:
        """Build the process, and start its services. Raises VchanError if that is impossible."""
        self._failure: VchanError | None = None
        self._undo = ExitStack()
        self._loop = Loop()
        self._undo.callback(self._loop.close)
        try:
            self._build(settings)
        except BaseException:
            self.close()
            raise

    def _build(self, settings: Settings) -> None:
        loop, limits, user = self._loop, settings.limits, settings.service_user
        raise_descriptor_limit()
        require_user(user)
        self._undo.callback(Closer(loop, user, self._fail).close)
        self._sockets = Sockets(settings.runtime_dir, settings.socket)
        self._undo.callback(self._sockets.close)
        self._undo.enter_context(stopped_by_signals(loop))
        self._sockets.listen(HOST, client.SOCKET_NAME, client.STORE_SOCKET_NAME)
        for domain in settings.local_domains:
            self._sockets.listen(domain, client.socket_name(domain), client.store_socket_name(domain))

        clients = Clients(loop, self._sockets, user, limits.max_channels, self._on_ready, self._fail)
        self._undo.callback(clients.close)
        store = Store(loop, self._sockets, user, clients.next_generation, self._fail)
        self._undo.callback(store.close)
        machines = Machines(loop, settings, self._fail) if settings.libvirt else None
        if machines is not None:
            self._undo.callback(machines.close)
        pool, guests = (machines.pool, machines.guests) if machines is not None else (None, None)

        registry = Registry(limits.max_channels, limits.guest_channels, limits.max_bytes)
        allocator = Allocator(pool)
        waitlist = Waitlist(registry, loop.call_soon)
        channels = Channels(registry, allocator, Sizes(settings.rings, limits.max_ring), store, waitlist)
        sharing = Sharing(registry, Grants(limits.max_shared // PAGE, limits.max_channels), allocator, channels.wake)
        holdings = Holdings(loop, registry, allocator, channels, sharing)
        self._undo.callback(holdings.close)
        self._undo.callback(sharing.close)
        self._undo.callback(channels.close)
        if machines is not None:
            self._undo.callback(machines.leave_memory)

        room = Room(registry, channels, sharing, waitlist, (clients, store), pool)
        lister, detaching = Lister(registry, channels, guests), Detaching(loop, registry, machines)
        desk = Desk(loop, registry, channels, sharing, waitlist, holdings, room, lister, detaching)
        guest_desk = GuestDesk(registry, channels, waitlist, holdings, desk, detaching, store)

        registry.add_domain(HOST, DomainKind.HOST)
        for domain in settings.local_domains:
            registry.add_domain(domain, DomainKind.LOCAL)
        for domain in registry.domains:
            store.introduce(domain, f"Domain-{domain}", str(UUID(int=domain)))
        store.start(StoreDesk(registry, channels, room, guests))
        if machines is not None:
            machines.start(desk, guest_desk, clients.next_generation)
        clients.start(desk)

    def _on_ready(self) -> None:
        log.info(f"ready: {self._sockets}")
        notify("READY=1")

    def _fail(self, error: VchanError) -> None:
        self._failure = error
        self._loop.stop()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Established channels outlive it, but nothing else does."""
        keep_watchdog(self._loop)
        self._loop.run()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the services, and undo all else in the reverse of its order."""
        self._undo.close()


def serve(settings: Settings) -> None:
    """Run the host's daemon until it is told to stop."""
    open_stdio()
    libc.set_process_name("kvmchand")
    host = Host(settings)
    try:
        host.run()
    finally:
        host.close()
