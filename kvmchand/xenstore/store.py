# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store: a tree of nodes that domains share, as on Xen, which also shows the offered vchans.

It does no input or output. Its state lives as long as the process, and longer through its records:
see Store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kvmchand.ids import HOST, ChannelId, ClientId, DomainId
from kvmchand.xenstore import access, paths, protocol, records
from kvmchand.xenstore.nodes import EXACT, FIRES, QUIET, READ, VOID, WRITTEN, Permissions, Tree, rights, void
from kvmchand.xenstore.offers import Offer, Offers
from kvmchand.xenstore.quotas import Ledger, Quotas, Refused
from kvmchand.xenstore.replay import Domain, Replay
from kvmchand.xenstore.requests import Client, Requests
from kvmchand.xenstore.watches import Watch, Watches

__all__ = ["Quotas", "Store"]

_HOST_ONLY: Permissions = ((0, HOST),)
_FIRST = ("/local", "/local/domain", "/vm", "/tool", "/tool/xenstored")
_GENERATIONS = 1 << 40
"""Generations of one start of the store."""


@dataclass(frozen=True, slots=True)
class _Event:
    """An event of a change; or a watch's first event, which only that watch gets."""

    path: str
    exact: bool = False
    seen_by: tuple[Permissions, ...] = ()
    """A domain that may read one of these may be notified."""
    watch: Watch | None = None


class Store:
    """The store.

    The events of every call wait for flush_events(), so that a reply is sent before the events that
    its request causes.

    Only flush_events() calls `on_event(client, message)`, which may call disconnect().
    `on_withdrawn(channel)` is called before the method returns that removed or changed a node of an
    offer, except for the daemon's own withdraw() and an offer() in its place. `record(bytes)` is
    called once before a method returns that changed anything that outlives the process, so that a
    record is a complete change.

    To start again: replay() the records in order; introduce(), offer() and connect() all that still
    exists; settle(), which ends everything that was recorded and did not come again; and only then
    flush_events().
    """

    def __init__(
        self,
        quotas: Quotas,
        on_event: Callable[[ClientId, bytes], None],
        on_withdrawn: Callable[[ChannelId], None],
        record: Callable[[bytes], None],
    ) -> None:
        self._on_event = on_event
        self._on_withdrawn = on_withdrawn
        self._record = record
        self._items: list[bytes] = []
        self._events: list[_Event] = []
        self._domains: dict[DomainId, Domain] = {}
        self._clients: dict[ClientId, Client] = {}
        self._ledger = Ledger(quotas)
        self._watches = Watches(self._ledger)
        self._tree = Tree(self._ledger)
        self._offers = Offers(self._tree)
        self._requests = Requests(self._tree, self._ledger, self._watches, self._domains, self._items.append, self._tell_first)
        # What was recorded, and has not come again yet.
        self._old_domains: set[DomainId] = set()
        self._old_offers: set[ChannelId] = set()
        self._old_clients: set[ClientId] = set()
        for path in _FIRST:
            access.make(self._tree, HOST, path, b"")
        self._tree.notes.clear()

    # ---- what the daemon tells ----

    def introduce(self, domain: DomainId, name: str, uuid: str) -> None:
        """Add a domain and its nodes.

        A domain with another name or uuid replaces the one of that number.
        """
        self._old_domains.discard(domain)
        told = Domain(name, uuid)
        if self._domains.get(domain) == told:
            return
        if domain in self._domains:
            self._release(domain)
        self._domains[domain] = told
        home = paths.home(domain)
        theirs: Permissions = ((0, HOST), (READ, domain)) if domain != HOST else _HOST_ONLY
        access.put(self._tree, home, b"", ((0, domain),))
        access.put(self._tree, f"{home}/domid", b"%d" % domain, theirs)
        access.put(self._tree, f"{home}/name", name.encode(), theirs)
        if uuid:
            access.put(self._tree, f"{home}/vm", f"/vm/{uuid}".encode(), theirs)
            access.put(self._tree, f"/vm/{uuid}", b"", theirs)
            access.put(self._tree, f"/vm/{uuid}/uuid", uuid.encode(), theirs)
            access.put(self._tree, f"/vm/{uuid}/name", name.encode(), theirs)
        self._items.append(records.item(records.DOMAIN, domain, uuid, name))
        self._tell_all("@introduceDomain")
        self._finish()

    def release(self, domain: DomainId) -> None:
        """Remove a domain: its nodes, wherever they are, and the rights that others gave it.

        An unknown domain is ignored.
        """
        self._old_domains.discard(domain)
        if domain in self._domains:
            self._release(domain)
            self._finish()

    def offer(self, channel: ChannelId, path: str, server: DomainId, client: DomainId, ref: int, port: int) -> Refused | None:
        """Show an offered vchan at an absolute path; it replaces an offer there.

        A known offer is ignored.

        Its nodes do not count, but the nodes that have to be made above `path` count as the
        server's. If the server has no room for them (ENOSPC: nodes, ENOMEM: bytes) or may not write
        there (EACCES), the store does not show the offer, and the reason is returned.
        """
        self._old_offers.discard(channel)
        offer = Offer(channel, path, server, client, ref, port)
        known = self._offers.by_channel.get(channel)
        if known == offer:
            return None
        if known is not None:
            self._withdraw(known)
        refused = None
        try:
            self._offers.show(offer, self._keep_end)
            self._items.append(records.offer_item(offer))
        except Refused as error:
            refused = error
        self._finish(shown=offer)
        return refused

    def withdraw(self, channel: ChannelId) -> None:
        """End an offer and remove its path with all below.

        An unknown or overwritten offer is ignored.
        """
        self._old_offers.discard(channel)
        offer = self._offers.by_channel.get(channel)
        if offer is not None:
            self._withdraw(offer)
            self._finish()

    # ---- clients ----

    def connect(self, client: ClientId, domain: DomainId) -> None:
        """Add a client that may execute().

        A client known from before a restart has its watches back.
        """
        known = self._clients.get(client)
        if known is not None and known.domain != domain:
            self.disconnect(client)
        self._old_clients.discard(client)
        self._clients.setdefault(client, Client(client, domain))

    def disconnect(self, client: ClientId) -> None:
        """End a client's watches and transactions. An unknown client is ignored."""
        self._old_clients.discard(client)
        gone = self._clients.pop(client, None)
        if gone is None:
            return
        had_watches = bool(self._watches.of(client))
        self._requests.end_all(gone)
        self._ledger.forget_unused(gone.domain)
        if had_watches:
            self._items.append(records.item(records.NO_CLIENT, client))
        self._finish()

    def execute(self, client: ClientId, request: protocol.Request) -> bytes:
        """Return the reply to a request. Its events wait for flush_events()."""
        reply = self._requests.answer(self._clients[client], request)
        self._finish()
        return reply

    def flush_events(self) -> None:
        """Hand out the events of all calls since the last time, in order."""
        events, self._events = self._events, []
        for event in events:
            if event.watch is not None:
                self._send(event.watch, event.path)
                continue
            may: dict[DomainId, bool] = {}
            # One client's watches on a node and on one above may have the same token, and so the
            # same event.
            sent: set[tuple[ClientId, bytes, bool]] = set()
            watches = self._watches.at(event.path) if event.exact else self._watches.at_or_above(event.path)
            for watch in watches:
                if watch.domain not in may:
                    may[watch.domain] = any(rights(each, watch.domain) & READ for each in event.seen_by)
                same = (watch.client, watch.token, watch.relative)
                if may[watch.domain] and same not in sent:
                    sent.add(same)
                    self._send(watch, event.path)

    # ---- records ----

    def replay(self, recorded: Iterable[bytes]) -> None:
        """Rebuild a new store from records. Raises ValueError if one is invalid."""
        state = Replay(self._tree, self._domains, self._clients, self._offers, self._watches, self._requests)
        for record in recorded:
            state.apply(record)
        self._tree.notes.clear()
        self._old_domains = set(self._domains)
        self._old_offers = set(self._offers.by_channel)
        self._old_clients = set(self._clients)
        self._requests.starts += 1
        # A client that is listing children must not take the last start's number for this one's.
        self._tree.generation += self._requests.starts * _GENERATIONS
        for node in self._tree.nodes.values():
            node.generation += self._requests.starts * _GENERATIONS
        self._items.append(records.item(records.START, self._requests.starts))
        self._finish()

    def settle(self) -> None:
        """End what was recorded and has not come again since replay().

        Every watch fires, for changes it may have missed.
        """
        for client in sorted(self._old_clients):
            self.disconnect(client)
        for channel in sorted(self._old_offers):
            self.withdraw(channel)
        for domain in sorted(self._old_domains):
            self.release(domain)
        for watch in self._watches.all():
            self._tell_first(watch, watch.path)

    def dump(self) -> Iterator[bytes]:
        """Yield the fewest records that describe the present state."""
        yield records.item(records.START, self._requests.starts)
        for domain, told in self._domains.items():
            yield records.item(records.DOMAIN, domain, told.uuid, told.name)
        gone = [path for path in _FIRST if path not in self._tree.nodes]
        for path in gone:
            yield records.item(records.NO_NODE, path)
        going = ["/"]
        for path in going:
            node = self._tree.nodes[path]
            yield records.node_item(path, node)
            going.extend(paths.child(path, name) for name in node.children)
        for name, permissions in self._tree.special.items():
            yield records.special_item(name, permissions)
        for offer in self._offers.by_channel.values():
            yield records.offer_item(offer)
        for watch in self._watches.all():
            yield records.watch_item(watch)

    def errors(self) -> list[str]:
        """Return what is wrong inside; always empty unless we have a bug."""
        return self._tree.errors()

    # ---- within ----

    def _withdraw(self, offer: Offer) -> None:
        self._offers.forget(offer)
        self._keep_end(offer)
        self._offers.remove_nodes(offer)

    def _keep_end(self, offer: Offer) -> None:
        """Record that an offer is no more."""
        self._items.append(records.item(records.NO_OFFER, offer.channel))

    def _release(self, domain: DomainId) -> None:
        told = self._domains.pop(domain)
        nodes = self._tree.nodes
        if domain != HOST and nodes["/"].owner == domain:  # which can't go with it
            access.replace_permissions(self._tree, "/", nodes["/"], _HOST_ONLY)
        going = [paths.home(domain), f"/vm/{told.uuid}" if told.uuid else ""]
        going += [path for path, node in nodes.items() if node.owner == domain != HOST]
        for path in going:
            if path in nodes:
                access.remove_tree(self._tree, path)
        for path, node in list(nodes.items()):
            if domain != HOST and any(named == domain and not each & VOID for each, named in node.permissions):
                # Nobody is told: another domain may have let it do something with any number of
                # nodes.
                self._tree.note(path, QUIET)
                self._tree.edit(path).permissions = void(node.permissions, lambda named: named == domain)
        for name, permissions in self._tree.special.items():
            if domain != HOST and any(named == domain for _, named in permissions):
                owned = permissions[0][1] == domain
                left = _HOST_ONLY if owned else void(permissions, lambda named: named == domain)
                self._tree.special[name] = left
                self._items.append(records.special_item(name, left))
        self._ledger.forget_unused(domain)
        self._items.append(records.item(records.NO_DOMAIN, domain))
        self._tell_all("@releaseDomain")

    def _finish(self, shown: Offer | None = None) -> None:
        """End a change: end the offers it overwrote, record it, and queue the events."""
        withdrawn: list[ChannelId] = []
        nodes, notes = self._tree.nodes, self._tree.notes
        if notes:
            for path, (note, _) in list(notes.items()):
                offer = self._offers.of_node(path) if note & WRITTEN else None
                if offer is not None and offer is not shown:
                    self._offers.forget(offer)
                    self._keep_end(offer)
                    withdrawn.append(offer.channel)
            for path in sorted(notes):
                node = nodes.get(path)
                if node is not None:
                    self._items.append(records.node_item(path, node))
                elif path == "/" or paths.parent(path) in nodes:
                    self._items.append(records.item(records.NO_NODE, path))
            for path, (note, seen_by) in notes.items():
                # What a transaction makes and removes was never there.
                if note & (FIRES | EXACT) and (seen_by or path in nodes):
                    self._events.append(_Event(path, not note & FIRES, (*seen_by, *self._tree.seen_by(path))))
            notes.clear()
        if self._items:
            self._record(b"".join(self._items))
            self._items.clear()
        for channel in withdrawn:
            self._on_withdrawn(channel)

    def _tell_all(self, name: str) -> None:
        self._events.append(_Event(name, exact=True, seen_by=(self._tree.special[name],)))

    def _tell_first(self, watch: Watch, path: str) -> None:
        self._events.append(_Event(path, watch=watch))

    def _send(self, watch: Watch, path: str) -> None:
        if self._watches.has(watch):
            message = protocol.event(watch.told(path), watch.token)
            if message is not None:
                self._on_event(watch.client, message)
