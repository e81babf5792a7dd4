# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store's nodes, their permissions, and the tree they make.

The tree notes every change, for watches and for the journal.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from kvmchand.errors import InvalidArgument
from kvmchand.ids import HOST, DomainId
from kvmchand.xenstore import paths
from kvmchand.xenstore.quotas import Ledger

READ, WRITE, OWNER = 1, 2, 4
"""What a domain may do with a node. Plain numbers, because every request checks them."""
VOID = 8
"""An entry whose domain did not exist, or has gone. It is shown, as xenstored shows it, but another
domain of that number gets no rights by it."""

Permissions = tuple[tuple[int, DomainId], ...]
"""The first entry is the owner and the rights of domains that are not named; each other entry is a
domain and its rights.
"""

QUIET, FIRES, EXACT, WRITTEN = 0, 1, 2, 4
"""What the tree notes of a change, for the clients to be notified. QUIET: a step of another change,
whose watches fire. FIRES: the watches of the node and of all nodes above it fire. EXACT: the node's
own watches fire, because it was removed with a node above it. WRITTEN: the value changed or is
gone.
"""

SPECIAL = ("@introduceDomain", "@releaseDomain")
"""Names that have events and permissions and are not nodes: domains that come and go."""

_LETTERS = {"n": 0, "r": READ, "w": WRITE, "b": READ | WRITE}
_LETTER_OF = "nrwb"
_PERMISSION = re.compile(r"([nrwb])([0-9]{1,9})")


def parse_permissions(strings: list[str]) -> Permissions:
    """Parse strings such as n0 and r1. Raises InvalidArgument if one is invalid."""
    found = []
    for string in strings:
        match = _PERMISSION.fullmatch(string)
        if match is None:
            raise InvalidArgument(f"the permission {string[:20]!r} is none: they are like n0, r1, w2 and b3")
        found.append((_LETTERS[match[1]], DomainId(int(match[2]))))
    return tuple(found)


def format_permissions(permissions: Permissions) -> list[str]:
    """Return the strings of permissions, as parse_permissions() takes them."""
    return [f"{_LETTER_OF[rights & ~VOID]}{domain}" for rights, domain in permissions]


def void(permissions: Permissions, is_gone: Callable[[DomainId], bool]) -> Permissions:
    """Return the permissions with the rights of all domains void that are gone."""
    return tuple((rights | VOID if is_gone(domain) else rights, domain) for rights, domain in permissions)


def rights(permissions: Permissions, domain: DomainId) -> int:
    """Return what a domain may do with a node of these permissions."""
    if domain == HOST or permissions[0][1] == domain:
        return READ | WRITE | OWNER
    for each, named in permissions[1:]:
        if named == domain and not each & VOID:
            return each
    return permissions[0][0]


class Node:
    """A node: its value, permissions and children."""

    __slots__ = ("children", "counted", "generation", "names", "permissions", "shared", "value")

    def __init__(self, value: bytes, permissions: Permissions, counted: bool = True) -> None:
        self.value = value
        self.permissions = permissions
        self.counted = counted
        """Whether it counts in its owner's quotas. Nodes made by an offer do not."""
        self.children: dict[str, None] = {}
        self.names = 0
        """Bytes of the list of its children: each name and a NUL."""
        self.generation = 0
        """Differs after each change of value, permissions or children."""
        self.shared = False
        """A transaction has looked at it, so it must not change: a change puts a copy in its place.
        """

    @property
    def owner(self) -> DomainId:
        """Return the domain that owns the node."""
        return self.permissions[0][1]

    def copy(self) -> Node:
        """Return a copy that may be changed."""
        made = Node(self.value, self.permissions, self.counted)
        made.children, made.names, made.generation = dict(self.children), self.names, self.generation
        return made

    def link(self, name: str) -> None:
        """Add a child's name."""
        if name not in self.children:
            self.children[name] = None
            self.names += len(name) + 1

    def unlink(self, name: str) -> None:
        """Remove a child's name."""
        if name in self.children:
            del self.children[name]
            self.names -= len(name) + 1

    def listing(self) -> bytes:
        """Return the names of the children, each with a NUL."""
        return "".join(f"{name}\0" for name in self.children).encode("ascii")


class Tree:
    """The nodes as all clients see them. Every change is noted before it is made."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.nodes: dict[str, Node] = {"/": Node(b"", ((0, HOST),))}
        self.generation = 0
        self.special: dict[str, Permissions] = dict.fromkeys(SPECIAL, ((0, HOST),))
        """Who is told of what is watched by these names, and may change that."""
        self.notes: dict[str, tuple[int, tuple[Permissions, ...]]] = {}
        """For each changed path: what to notify, and the permissions that governed who saw it
        before; none if it did not exist.
        """
        self.charge(HOST, 1, 1)

    def look(self, path: str) -> Node | None:
        """Return the node at a path, or None."""
        return self.nodes.get(path)

    def note(self, path: str, note: int) -> None:
        """Note a change of a node, before it is made."""
        known = self.notes.get(path)
        if known is None:
            known = (note, self.seen_by(path) if path in self.nodes else ())
        self.notes[path] = (known[0] | note, known[1])

    def seen_by(self, path: str) -> tuple[Permissions, ...]:
        """Return the permissions of the node and of the node above it.

        A domain that may read either of them may learn of a change.
        """
        both = (self.nodes.get(path), self.nodes.get(paths.parent(path)))
        return tuple(node.permissions for node in both if node is not None)

    def require(self, domain: DomainId, nodes: int, size: int) -> None:
        """Raise Refused unless the domain may use this many more nodes and bytes."""
        self.ledger.require(domain, nodes, size)

    def charge(self, domain: DomainId, nodes: int, size: int) -> None:
        """Count nodes and bytes as used by a domain; they may be negative."""
        self.ledger.add(domain, nodes, size)

    def next_generation(self) -> int:
        """Return a number that no node has had."""
        self.generation += 1
        return self.generation

    def edit(self, path: str, more: int = 0) -> Node:
        """Return the node for a change that makes it `more` bytes larger."""
        node = self.nodes[path]
        if node.shared:
            node = self.nodes[path] = node.copy()
        node.generation = self.next_generation()
        return node

    def put(self, path: str, node: Node) -> None:
        """Put a node at a path. The caller updates its parent and the ledger."""
        node.generation = self.next_generation()
        self.nodes[path] = node

    def drop(self, path: str) -> None:
        """Remove the node at a path. The caller updates its parent and the ledger."""
        del self.nodes[path]

    def errors(self) -> list[str]:
        """Return what is wrong with the tree, for the CONTROL request.

        Always empty unless we have a bug.
        """
        wrong = [f"{path} is not its parent's child" for path in self.nodes if path != "/" and not self._is_linked(path)]
        for path, node in self.nodes.items():
            wrong += [
                f"{path} has a child {name} that is not there"
                for name in node.children
                if paths.child(path, name) not in self.nodes
            ]
            if node.names != len(node.listing()):
                wrong.append(f"{path} counts its children's names wrongly")
        return wrong

    def _is_linked(self, path: str) -> bool:
        above = self.nodes.get(paths.parent(path))
        return above is not None and path.rpartition("/")[2] in above.children
