# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store: a tree of nodes that domains share, as on Xen, in which the vchans that are offered stand, too.

It does no input or output. It lives as long as the process around it, and by its records longer: see Store.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kvmchand.ids import HOST, ChannelId, ClientId, DomainId
from kvmchand.xenstore import access, paths, protocol, records
from kvmchand.xenstore.nodes import EXACT, FIRES, QUIET, READ, WRITE, WRITTEN, Node, Permissions, Tree, rights
from kvmchand.xenstore.offers import Offer, Offers
from kvmchand.xenstore.quotas import Ledger, Quotas, Refused
from kvmchand.xenstore.requests import Client, Requests
from kvmchand.xenstore.watches import Watch, Watches

__all__ = ["Quotas", "Store"]

_HOST_ONLY: Permissions = ((0, HOST),)
_FIRST = ("/local", "/local/domain", "/vm", "/tool", "/tool/xenstored")
_GENERATIONS = 1 << 40
"""Of one start of the store."""


@dataclass(frozen=True, slots=True)
class _Domain:
    name: str
    uuid: str


@dataclass(frozen=True, slots=True)
class _Event:
    """Of a change, or a watch's first, then for that watch only."""

    path: str
    exact: bool = False
    seen_by: tuple[Permissions, ...] = ()
    """Who may read one of these, may know."""
    watch: Watch | None = None


class Store:
    """Whatever is called, its events wait for flush_events(): so the reply to a request can be sent before the events it causes.

    `on_event(client, message)` is called by flush_events() only, and may call disconnect(). `on_withdrawn(channel)` is called
    before the method returns that removed a node of the offer or gave it another value, unless that was the daemon's own
    withdraw(), or an offer() in its place. `record(bytes)` is called before a method returns that has changed anything that
    outlives the process: once, so that a record is a whole change. To start again: replay() the records in their order, then
    introduce(), offer() and connect() what there still is, then settle(), which ends all that was recorded and did not come; and
    only then flush_events().
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
        self._domains: dict[DomainId, _Domain] = {}
        self._clients: dict[ClientId, Client] = {}
        self._offers = Offers()
        self._ledger = Ledger(quotas)
        self._watches = Watches(self._ledger)
        self._tree = Tree(self._ledger)
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
        """There is this domain, and these are its nodes. Again with the same name and uuid: nothing; else it is another one."""
        self._old_domains.discard(domain)
        told = _Domain(name, uuid)
        if self._domains.get(domain) == told:
            return
        if domain in self._domains:
            self._release(domain)
        self._domains[domain] = told
        home = paths.home(domain)
        theirs: Permissions = ((0, HOST), (READ, domain)) if domain != HOST else _HOST_ONLY
        self._put(home, b"", ((0, domain),))
        self._put(f"{home}/domid", b"%d" % domain, theirs)
        self._put(f"{home}/name", name.encode(), theirs)
        if uuid:
            self._put(f"{home}/vm", f"/vm/{uuid}".encode(), theirs)
            self._put(f"/vm/{uuid}", b"", theirs)
            self._put(f"/vm/{uuid}/uuid", uuid.encode(), theirs)
            self._put(f"/vm/{uuid}/name", name.encode(), theirs)
        self._items.append(records.item(records.DOMAIN, domain, uuid, name))
        self._events.append(_Event("@introduceDomain"))
        self._finish()

    def release(self, domain: DomainId) -> None:
        """There is no such domain any more: its nodes go, wherever they are, and what others let it do. Unknown: nothing."""
        self._old_domains.discard(domain)
        if domain in self._domains:
            self._release(domain)
            self._finish()

    def offer(self, channel: ChannelId, path: str, server: DomainId, client: DomainId, ref: int, port: int) -> Refused | None:
        """A vchan is offered at `path`, which is absolute; if another is there, this takes its place. The same again: nothing.

        The nodes do not count, but those that have to be made above `path` do, as the server's: if it has no room for them
        (ENOSPC: nodes, ENOMEM: bytes), or may not write there (EACCES), the offer does not stand in the store, and this is why.
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
            self._show(offer)
        except Refused as error:
            refused = error
        self._finish(shown=offer)
        return refused

    def withdraw(self, channel: ChannelId) -> None:
        """The offer is no more; its path goes, with all that is below. Unknown, or overwritten since: nothing."""
        self._old_offers.discard(channel)
        offer = self._offers.by_channel.get(channel)
        if offer is not None:
            self._withdraw(offer)
            self._finish()

    # ---- clients ----

    def connect(self, client: ClientId, domain: DomainId) -> None:
        """A client that may execute(). One that was there before the start has its watches back."""
        known = self._clients.get(client)
        if known is not None and known.domain != domain:
            self.disconnect(client)
        self._old_clients.discard(client)
        self._clients.setdefault(client, Client(client, domain))

    def disconnect(self, client: ClientId) -> None:
        """Its watches and transactions end. Unknown: nothing."""
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
        """The reply. Its events wait for flush_events()."""
        reply = self._requests.answer(self._clients[client], request)
        self._finish()
        return reply

    def flush_events(self) -> None:
        """Hand out the events of all that was called since the last time, in its order."""
        events, self._events = self._events, []
        for event in events:
            if event.watch is not None:
                self._send(event.watch, event.path)
                continue
            may: dict[DomainId, bool] = {}
            # One client's watches on a node and on one above may have the same token, and so the same event.
            sent: set[tuple[ClientId, bytes, bool]] = set()
            watches = self._watches.at(event.path) if event.exact else self._watches.at_or_above(event.path)
            for watch in watches:
                if watch.domain not in may:
                    may[watch.domain] = not event.path.startswith("/") or any(
                        rights(each, watch.domain) & READ for each in event.seen_by
                    )
                same = (watch.client, watch.token, watch.relative)
                if may[watch.domain] and same not in sent:
                    sent.add(same)
                    self._send(watch, event.path)

    # ---- records ----

    def replay(self, recorded: Iterable[bytes]) -> None:
        """Be as these records say. Only for a store that is new. ValueError if one is none."""
        for record in recorded:
            for letter, fields in records.items(record):
                self._replay(letter, fields)
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
        """What was recorded and has not come again since replay(), is no more. Every watch fires, for what was missed."""
        for client in sorted(self._old_clients):
            self.disconnect(client)
        for channel in sorted(self._old_offers):
            self.withdraw(channel)
        for domain in sorted(self._old_domains):
            self.release(domain)
        for watch in self._watches.all():
            self._tell_first(watch, watch.path)

    def dump(self) -> Iterator[bytes]:
        """The fewest records that say what there is."""
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
        for offer in self._offers.by_channel.values():
            yield records.offer_item(offer)
        for watch in self._watches.all():
            yield records.watch_item(watch)

    def errors(self) -> list[str]:
        """What is wrong within; nothing ever should be."""
        return self._tree.errors()

    # ---- within ----

    def _put(self, path: str, value: bytes, permissions: Permissions) -> None:
        """The node there with this value, whatever was there."""
        node = self._tree.look(path)
        if node is None:
            access.make(self._tree, HOST, path, value)
        elif node.value != value:
            access.replace_value(self._tree, HOST, path, node, value)
        access.replace_permissions(self._tree, path, self._tree.nodes[path], permissions)

    def _count(self, path: str, counted: bool) -> None:
        node = self._tree.nodes[path]
        if node.counted != counted:
            sign = 1 if counted else -1
            self._tree.note(path, QUIET)
            self._tree.edit(path).counted = counted
            self._tree.charge(node.owner, sign, sign * (len(path) + len(node.value)))

    def _show(self, offer: Offer) -> None:
        # Over it already: by offers whose nodes were overwritten, and so are its own now.
        self._ledger.require_within(offer.server)
        for path in (offer.path, *offer.nodes):
            if self._offers.of_node(path) is None and not self._may_write(offer.server, path):
                raise Refused(errno.EACCES)
        for path, value in offer.nodes.items():
            replaced = self._offers.of_node(path)
            if replaced is not None:
                self._offers.remove(replaced)
                self._items.append(records.item(records.NO_OFFER, replaced.channel))
            if self._tree.look(path) is None:
                access.make(self._tree, offer.server, path, value, free=(offer.path, path))
            self._put(path, value, ((0, offer.server), (READ, offer.client)))
            self._count(path, False)
        self._offers.add(offer)
        self._items.append(records.offer_item(offer))

    def _withdraw(self, offer: Offer) -> None:
        self._forget(offer)
        for path in (offer.path,) if self._may_write(offer.server, offer.path) else offer.nodes:
            if self._tree.look(path) is not None:
                access.remove_tree(self._tree, path)

    def _may_write(self, domain: DomainId, path: str) -> bool:
        try:
            access.find(self._tree, domain, path, WRITE)
        except Refused as error:
            return error.number == errno.ENOENT
        return True

    def _forget(self, offer: Offer) -> None:
        """The offer stands no more; what there is of its nodes is like any other."""
        self._offers.remove(offer)
        self._items.append(records.item(records.NO_OFFER, offer.channel))
        for path in (offer.path, *offer.nodes):
            if self._tree.look(path) is not None and self._offers.of_node(path) is None:
                self._count(path, True)

    def _release(self, domain: DomainId) -> None:
        told = self._domains.pop(domain)
        nodes = self._tree.nodes
        going = [paths.home(domain), f"/vm/{told.uuid}" if told.uuid else ""]
        going += [path for path, node in nodes.items() if node.owner == domain != HOST]
        for path in going:
            if path in nodes:
                access.remove_tree(self._tree, path)
        for path, node in list(nodes.items()):
            if domain != HOST and any(named == domain for _, named in node.permissions):
                # Nobody is told: another domain may have let it do something with any number of nodes.
                self._tree.note(path, QUIET)
                self._tree.edit(path).permissions = tuple(each for each in node.permissions if each[1] != domain)
        self._ledger.forget_unused(domain)
        self._items.append(records.item(records.NO_DOMAIN, domain))
        self._events.append(_Event("@releaseDomain"))

    def _finish(self, shown: Offer | None = None) -> None:
        """Of all that was noted: end the offers whose nodes it was, make the records, and have the watches told."""
        withdrawn: list[ChannelId] = []
        nodes, notes = self._tree.nodes, self._tree.notes
        if notes:
            for path, (note, _) in list(notes.items()):
                offer = self._offers.of_node(path) if note & WRITTEN else None
                if offer is not None and offer is not shown:
                    self._forget(offer)
                    withdrawn.append(offer.channel)
            for path in sorted(notes):
                node = nodes.get(path)
                if node is not None:
                    self._items.append(records.node_item(path, node))
                elif path == "/" or paths.parent(path) in nodes:
                    self._items.append(records.item(records.NO_NODE, path))
            for path, (note, seen_by) in notes.items():
                if note & (FIRES | EXACT):
                    self._events.append(_Event(path, not note & FIRES, (*seen_by, *self._tree.seen_by(path))))
            notes.clear()
        if self._items:
            self._record(b"".join(self._items))
            self._items.clear()
        for channel in withdrawn:
            self._on_withdrawn(channel)

    def _tell_first(self, watch: Watch, path: str) -> None:
        self._events.append(_Event(path, watch=watch))

    def _send(self, watch: Watch, path: str) -> None:
        if self._watches.has(watch):
            message = protocol.event(watch.told(path), watch.token)
            if message is not None:
                self._on_event(watch.client, message)

    def _replay(self, letter: str, fields: list[bytes]) -> None:
        if letter == records.NODE:
            self._replay_node(*records.to_node(fields))
        elif letter == records.NO_NODE:
            path = fields[0].decode()
            if path in self._tree.nodes:
                access.remove_tree(self._tree, path)
        elif letter == records.DOMAIN:
            self._domains[DomainId(int(fields[0]))] = _Domain(fields[2].decode(), fields[1].decode())
        elif letter == records.NO_DOMAIN:
            self._domains.pop(DomainId(int(fields[0])), None)
        elif letter == records.OFFER:
            self._offers.add(records.to_offer(fields))
        elif letter == records.NO_OFFER:
            offer = self._offers.by_channel.get(ChannelId(int(fields[0])))
            if offer is not None:
                self._offers.remove(offer)
        elif letter == records.START:
            self._requests.starts = int(fields[0])
        else:
            self._replay_client(letter, fields)

    def _replay_client(self, letter: str, fields: list[bytes]) -> None:
        if letter == records.WATCH:
            watch = records.to_watch(fields)
            self._clients.setdefault(watch.client, Client(watch.client, watch.domain))
            if not self._watches.has(watch):
                self._watches.add(watch)
        elif letter == records.NO_WATCH:
            try:
                self._watches.remove(ClientId(int(fields[0])), fields[1].decode(), fields[2])
            except Refused:
                pass
        else:
            client = self._clients.pop(ClientId(int(fields[0])), None)
            if client is not None:
                self._requests.end_all(client)

    def _replay_node(self, path: str, node: Node) -> None:
        old = self._tree.look(path)
        if old is not None:
            if old.counted:
                self._tree.charge(old.owner, -1, -len(path) - len(old.value))
            node.children, node.names = old.children, old.names
        else:
            self._tree.edit(paths.parent(path)).link(path.rpartition("/")[2])
        self._tree.put(path, node)
        if node.counted:
            self._tree.charge(node.owner, 1, len(path) + len(node.value))
