# SPDX-License-Identifier: LGPL-2.1-or-later
"""A new store rebuilt from records. It lives while they are replayed."""

from __future__ import annotations

from dataclasses import dataclass

from kvmchand.ids import ChannelId, ClientId, DomainId
from kvmchand.xenstore import access, paths, records
from kvmchand.xenstore.nodes import Node, Tree
from kvmchand.xenstore.offers import Offers
from kvmchand.xenstore.quotas import Refused
from kvmchand.xenstore.requests import Client, Requests
from kvmchand.xenstore.watches import Watches


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain, as the daemon introduced it."""

    name: str
    uuid: str


class Replay:
    """The parts of a store that records change."""

    def __init__(
        self,
        tree: Tree,
        domains: dict[DomainId, Domain],
        clients: dict[ClientId, Client],
        offers: Offers,
        watches: Watches,
        requests: Requests,
    ) -> None:
        self._tree = tree
        self._domains = domains
        self._clients = clients
        self._offers = offers
        self._watches = watches
        self._requests = requests

    def apply(self, record: bytes) -> None:
        """Make the changes of one record. Raises ValueError if it is invalid."""
        for letter, fields in records.items(record):
            self._apply_item(letter, fields)

    def _apply_item(self, letter: str, fields: list[bytes]) -> None:
        if letter == records.NODE:
            self._apply_node(*records.to_node(fields))
        elif letter == records.NO_NODE:
            path = fields[0].decode()
            if path in self._tree.nodes:
                access.remove_tree(self._tree, path)
        elif letter == records.DOMAIN:
            self._domains[DomainId(int(fields[0]))] = Domain(fields[2].decode(), fields[1].decode())
        elif letter == records.NO_DOMAIN:
            self._domains.pop(DomainId(int(fields[0])), None)
        elif letter == records.OFFER:
            self._offers.add(records.to_offer(fields))
        elif letter == records.NO_OFFER:
            offer = self._offers.by_channel.get(ChannelId(int(fields[0])))
            if offer is not None:
                self._offers.remove(offer)
        elif letter == records.SPECIAL:
            name, permissions = records.to_special(fields)
            self._tree.special[name] = permissions
        elif letter == records.START:
            self._requests.starts = int(fields[0])
        else:
            self._apply_to_client(letter, fields)

    def _apply_to_client(self, letter: str, fields: list[bytes]) -> None:
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

    def _apply_node(self, path: str, node: Node) -> None:
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
