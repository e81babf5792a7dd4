# SPDX-License-Identifier: LGPL-2.1-or-later
"""The offered vchans, as the store shows them.

An offer is the nodes <path>/ring-ref and <path>/event-channel, which libxenvchan makes on Xen.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from kvmchand.ids import ChannelId, DomainId
from kvmchand.xenstore import access
from kvmchand.xenstore.nodes import QUIET, READ, Tree
from kvmchand.xenstore.quotas import Refused


@dataclass(frozen=True, slots=True)
class Offer:
    """A vchan that a server offers to a client."""

    channel: ChannelId
    path: str
    server: DomainId
    client: DomainId
    ref: int
    port: int

    @property
    def nodes(self) -> dict[str, bytes]:
        """Return the offer's nodes and their values."""
        return {f"{self.path}/ring-ref": b"%d" % self.ref, f"{self.path}/event-channel": b"%d" % self.port}


class Offers:
    """The offers that stand in the store."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.by_channel: dict[ChannelId, Offer] = {}
        self._by_node: dict[str, Offer] = {}

    def add(self, offer: Offer) -> None:
        """Add an offer whose nodes exist."""
        self.by_channel[offer.channel] = offer
        self._by_node.update(dict.fromkeys(offer.nodes, offer))

    def remove(self, offer: Offer) -> None:
        """Remove an offer; its nodes stay."""
        del self.by_channel[offer.channel]
        for path in offer.nodes:
            if self._by_node.get(path) is offer:
                del self._by_node[path]

    def of_node(self, path: str) -> Offer | None:
        """Return the offer that a node belongs to, or None."""
        return self._by_node.get(path)

    # ---- their nodes ----

    def show(self, offer: Offer, on_replaced: Callable[[Offer], None]) -> None:
        """Make the offer's nodes, and add it.

        Calls `on_replaced` with each offer whose nodes these were.

        Raises Refused if the server may not write there, or has no room for the nodes above.
        """
        # Its server may be over a quota: nodes of offers that were overwritten count as its own.
        self._tree.ledger.require_within(offer.server)
        for path in (offer.path, *offer.nodes):
            if self.of_node(path) is None and not access.may_write(self._tree, offer.server, path):
                raise Refused(errno.EACCES)
        for path, value in offer.nodes.items():
            replaced = self.of_node(path)
            if replaced is not None:
                self.remove(replaced)
                on_replaced(replaced)
            if self._tree.look(path) is None:
                access.make(self._tree, offer.server, path, value, free=(offer.path, path))
            access.put(self._tree, path, value, ((0, offer.server), (READ, offer.client)))
            self._count(path, False)
        self.add(offer)

    def forget(self, offer: Offer) -> None:
        """End an offer. Those of its nodes that remain become ordinary nodes."""
        self.remove(offer)
        for path in (offer.path, *offer.nodes):
            if self._tree.look(path) is not None and self.of_node(path) is None:
                self._count(path, True)

    def remove_nodes(self, offer: Offer) -> None:
        """Remove the nodes of an offer that has ended.

        All nodes below its path go with them, if its server may write it.
        """
        for path in (offer.path,) if access.may_write(self._tree, offer.server, offer.path) else offer.nodes:
            if self._tree.look(path) is not None:
                access.remove_tree(self._tree, path)

    def _count(self, path: str, counted: bool) -> None:
        node = self._tree.nodes[path]
        if node.counted != counted:
            sign = 1 if counted else -1
            self._tree.note(path, QUIET)
            self._tree.edit(path).counted = counted
            self._tree.charge(node.owner, sign, sign * (len(path) + len(node.value)))
