# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store's nodes, their permissions, and the tree that they make. Changes are noted, for watches and the journal."""

from __future__ import annotations

import re

from kvmchand.errors import InvalidArgument
from kvmchand.ids import HOST, DomainId
from kvmchand.xenstore import paths
from kvmchand.xenstore.quotas import Ledger

READ, WRITE, OWNER = 1, 2, 4
"""What a domain may do with a node. Plain numbers: each request asks for them."""

Permissions = tuple[tuple[int, DomainId], ...]
"""The first is the owner, and what domains that are not named may do; the others, what that domain may do."""

QUIET, FIRES, EXACT, WRITTEN = 0, 1, 2, 4
"""What is noted of a change, for those who are to be told. QUIET: made on the way to another, whose watches fire. FIRES: for
the watches of the node and of all above it. EXACT: for the node's own, as it went with one above it. WRITTEN: another value, or
none."""

_LETTERS = {"n": 0, "r": READ, "w": WRITE, "b": READ | WRITE}
_LETTER_OF = {rights: letter for letter, rights in _LETTERS.items()}
_PERMISSION = re.compile(r"([nrwb])([0-9]{1,9})")


def parse_permissions(strings: list[str]) -> Permissions:
    """Of strings like n0 and r1; InvalidArgument if one is not."""
    found = []
    for string in strings:
        match = _PERMISSION.fullmatch(string)
        if match is None:
            raise InvalidArgument(f"the permission {string[:20]!r} is none: they are like n0, r1, w2 and b3")
        found.append((_LETTERS[match[1]], DomainId(int(match[2]))))
    return tuple(found)


def format_permissions(permissions: Permissions) -> list[str]:
    return [f"{_LETTER_OF[rights]}{domain}" for rights, domain in permissions]


def rights(permissions: Permissions, domain: DomainId) -> int:
    if domain == HOST or permissions[0][1] == domain:
        return READ | WRITE | OWNER
    for each, named in permissions[1:]:
        if named == domain:
            return each
    return permissions[0][0]


class Node:
    __slots__ = ("children", "counted", "generation", "names", "permissions", "shared", "value")

    def __init__(self, value: bytes, permissions: Permissions, counted: bool = True) -> None:
        self.value = value
        self.permissions = permissions
        self.counted = counted
        """In its owner's quotas. What an offer makes is not."""
        self.children: dict[str, None] = {}
        self.names = 0
        """Bytes of a list of the children: their names, a NUL after each."""
        self.generation = 0
        """Another one after each change of value, permissions or children."""
        self.shared = False
        """A transaction has looked at it: it must not change. Who changes the node, puts a copy in its place."""

    @property
    def owner(self) -> DomainId:
        return self.permissions[0][1]

    def copy(self) -> Node:
        made = Node(self.value, self.permissions, self.counted)
        made.children, made.names, made.generation = dict(self.children), self.names, self.generation
        return made

    def link(self, name: str) -> None:
        if name not in self.children:
            self.children[name] = None
            self.names += len(name) + 1

    def unlink(self, name: str) -> None:
        if name in self.children:
            del self.children[name]
            self.names -= len(name) + 1

    def listing(self) -> bytes:
        return "".join(f"{name}\0" for name in self.children).encode("ascii")


class Tree:
    """The nodes that all see. Every change has been noted before it is made."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.nodes: dict[str, Node] = {"/": Node(b"", ((0, HOST),))}
        self.generation = 0
        self.notes: dict[str, tuple[int, tuple[Permissions, ...]]] = {}
        """By path: what is to be told, and the permissions by which it was seen before the change."""
        self.charge(HOST, 1, 1)

    def look(self, path: str) -> Node | None:
        return self.nodes.get(path)

    def note(self, path: str, note: int) -> None:
        known = self.notes.get(path)
        self.notes[path] = (note, self.seen_by(path)) if known is None else (known[0] | note, known[1])

    def seen_by(self, path: str) -> tuple[Permissions, ...]:
        """The permissions of the node and of the one above: who may read either, may know of a change of it."""
        both = (self.nodes.get(path), self.nodes.get(paths.parent(path)))
        return tuple(node.permissions for node in both if node is not None)

    def require(self, domain: DomainId, nodes: int, size: int) -> None:
        self.ledger.require(domain, nodes, size)

    def charge(self, domain: DomainId, nodes: int, size: int) -> None:
        self.ledger.add(domain, nodes, size)

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def edit(self, path: str, more: int = 0) -> Node:
        """The node, to be changed; by `more` bytes larger."""
        node = self.nodes[path]
        if node.shared:
            node = self.nodes[path] = node.copy()
        node.generation = self.next_generation()
        return node

    def put(self, path: str, node: Node) -> None:
        """A node there that is new, or another. Its parent and the ledger are the caller's to see to."""
        node.generation = self.next_generation()
        self.nodes[path] = node

    def drop(self, path: str) -> None:
        """The node there no more. Its parent and the ledger are the caller's to see to."""
        del self.nodes[path]

    def errors(self) -> list[str]:
        """What is wrong with the tree or the ledger's numbers of it; nothing ever should be."""
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
