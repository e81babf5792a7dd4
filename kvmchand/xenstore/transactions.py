# SPDX-License-Identifier: LGPL-2.1-or-later
"""A transaction: the tree as one client sees it, from its first look at each node to its end.

It keeps the nodes that it has looked at, which nobody changes any more (Node.shared), and its own
copies of those that it has changed. It can be committed if all the nodes it looked at are still the
same. A transaction that cannot be committed may have seen nodes that do not fit together: a node
without the one above it, or one that is not among its parent's children. What it keeps counts in
its domain's bytes.
"""

from __future__ import annotations

from kvmchand.ids import HOST, DomainId
from kvmchand.xenstore.nodes import QUIET, Node, Tree
from kvmchand.xenstore.quotas import Usage

ENTRY_BYTES = 256
"""Memory of one node that was looked at, beside its names and value."""


class Transaction:
    """A view of the tree with changes of its own."""

    def __init__(self, tree: Tree, domain: DomainId) -> None:
        self.tree = tree
        self.domain = domain
        self.held = 0
        """Bytes that it takes of the domain's quota."""
        self._seen: dict[str, Node | None] = {}
        self._own: dict[str, Node | None] = {}
        self._notes: dict[str, int] = {}
        self._charges: dict[DomainId, Usage] = {}

    def look(self, path: str) -> Node | None:
        """Return the node at a path as the transaction sees it, or None.

        Raises Refused for lack of room.
        """
        if path in self._own:
            return self._own[path]
        if path in self._seen:
            return self._seen[path]
        node = self.tree.look(path)
        size = ENTRY_BYTES + len(path) + (0 if node is None else len(node.value) + node.names)
        self._require(size)
        self._hold(size)
        if node is not None:
            node.shared = True
        self._seen[path] = node
        return node

    def note(self, path: str, note: int) -> None:
        """Note a change, for the commit."""
        self._notes[path] = self._notes.get(path, QUIET) | note

    def require(self, domain: DomainId, nodes: int, size: int) -> None:
        """Raise Refused unless the domain, and this transaction, may use this much more."""
        charged = self._charges.get(domain)
        self.tree.ledger.require(domain, nodes + charged.nodes if charged and nodes > 0 else nodes)
        # Until the commit it is the transaction's domain that has the bytes.
        self._require(max(size, 1))

    def charge(self, domain: DomainId, nodes: int, size: int) -> None:
        """Count nodes and bytes, for the commit."""
        usage = self._charges.setdefault(domain, Usage())
        usage.nodes += nodes
        usage.bytes += size

    def edit(self, path: str, more: int = 0) -> Node:
        """Return the transaction's own copy of a node, to be made `more` bytes larger."""
        node = self._own.get(path)
        if node is None:
            seen = self._seen[path]
            assert seen is not None, f"{path} is edited, and was not looked at"
            node = self._own[path] = seen.copy()
            self._hold(ENTRY_BYTES + len(path) + len(node.value) + node.names)
        self._hold(more)
        node.generation = self.tree.next_generation()
        return node

    def put(self, path: str, node: Node) -> None:
        """Put a node at a path, for the commit."""
        self._hold(ENTRY_BYTES + len(path) + len(node.value))
        node.generation = self.tree.next_generation()
        self._own[path] = node

    def drop(self, path: str) -> None:
        """Remove the node at a path, for the commit."""
        self._own[path] = None

    def is_current(self) -> bool:
        """Return whether all nodes it looked at are still the same."""
        return all(self.tree.look(path) is node for path, node in self._seen.items())

    def commit(self) -> None:
        """Make its changes visible to all. The transaction must be current.

        Raises Refused if a quota has no room, and then changes nothing.
        """
        ledger = self.tree.ledger
        if self.domain != HOST:
            for domain, usage in self._charges.items():
                held = self.held if domain == self.domain else 0
                ledger.require(domain, usage.nodes, usage.bytes - held if usage.bytes > 0 else 0)
        for path, note in self._notes.items():
            self.tree.note(path, note)
        for path, node in self._own.items():
            if node is not None:
                self.tree.put(path, node)
            elif self.tree.look(path) is not None:
                self.tree.drop(path)
        for domain, usage in self._charges.items():
            ledger.add(domain, usage.nodes, usage.bytes)

    def _require(self, size: int) -> None:
        self.tree.ledger.require_held(self.domain, self.held + size)
        self.tree.ledger.require(self.domain, 0, size)

    def _hold(self, size: int) -> None:
        self.tree.ledger.add(self.domain, 0, size)
        self.held += size
