# SPDX-License-Identifier: LGPL-2.1-or-later
"""What requests do to nodes, and which domain may do it.

The functions work on the tree and on a transaction's view of it alike.
"""

from __future__ import annotations

import errno
from collections.abc import Container
from typing import Protocol

from kvmchand.ids import HOST, DomainId
from kvmchand.xenstore import paths
from kvmchand.xenstore.nodes import EXACT, FIRES, OWNER, QUIET, READ, WRITE, WRITTEN, Node, Permissions, Tree, rights
from kvmchand.xenstore.quotas import Refused


class View(Protocol):
    """A Tree, or a Transaction on one. The methods are documented there."""

    def look(self, path: str) -> Node | None:
        """Return the node at a path, or None."""

    def note(self, path: str, note: int) -> None:
        """Note a change of a node, before it is made."""

    def require(self, domain: DomainId, nodes: int, size: int) -> None:
        """Raise Refused unless the domain may use this many more nodes and bytes."""

    def charge(self, domain: DomainId, nodes: int, size: int) -> None:
        """Count nodes and bytes as used by a domain."""

    def edit(self, path: str, more: int = 0) -> Node:
        """Return the node for a change that makes it `more` bytes larger."""

    def put(self, path: str, node: Node) -> None:
        """Put a node at a path."""

    def drop(self, path: str) -> None:
        """Remove the node at a path."""


def find(view: View, caller: DomainId, path: str, wanted: int = READ) -> Node:
    """Return the node at `path`, if the caller may do all that is wanted with it.

    Otherwise raises Refused: ENOENT if the nearest existing node above lets the caller know, else
    EACCES, so that nobody learns which nodes exist where they may not read.
    """
    node = view.look(path)
    if node is not None and rights(node.permissions, caller) & wanted == wanted:
        return node
    if node is not None:
        raise Refused(errno.EACCES)
    while (above := view.look(path)) is None:
        path = paths.parent(path)
    raise Refused(errno.ENOENT if rights(above.permissions, caller) & wanted else errno.EACCES)


def make(view: View, caller: DomainId, path: str, value: bytes, free: Container[str] = ()) -> Node:
    """Make the node at `path`, and the missing nodes above it. Does not check that the caller may.

    They inherit the permissions of the node above; nodes made by a domain other than 0 belong to
    it. Paths in `free` do not count in the quotas.
    """
    missing = []
    at = path
    while (above := view.look(at)) is None:
        missing.append(at)
        at = paths.parent(at)
    permissions = above.permissions
    if caller != HOST:
        permissions = ((permissions[0][0], caller), *permissions[1:])
    owner, made = permissions[0][1], above
    if caller != HOST:
        counted = [each for each in missing if each not in free]
        view.require(owner, len(counted), sum(map(len, counted)) + (0 if path in free else len(value)))
    for each in reversed(missing):
        is_last = each is path
        view.note(each, FIRES | WRITTEN if is_last else QUIET)
        made = Node(value if is_last else b"", permissions, each not in free)
        view.put(each, made)
        view.edit(paths.parent(each)).link(each.rpartition("/")[2])
        if made.counted:
            view.charge(owner, 1, len(each) + len(made.value))
    return made


def write(view: View, caller: DomainId, path: str, value: bytes) -> None:
    """Write a value, and make the node if it does not exist. Raises Refused."""
    try:
        node = find(view, caller, path, WRITE)
    except Refused as error:
        if error.number != errno.ENOENT:
            raise
        make(view, caller, path, value)
        return
    replace_value(view, caller, path, node, value)


def replace_value(view: View, caller: DomainId, path: str, node: Node, value: bytes) -> None:
    """Replace the value of a node that exists. Raises Refused if a quota has no room."""
    more = len(value) - len(node.value)
    if node.counted and caller != HOST:
        view.require(node.owner, 0, more)
    view.note(path, FIRES | WRITTEN)
    view.edit(path, more).value = value
    if node.counted:
        view.charge(node.owner, 0, more)


def mkdir(view: View, caller: DomainId, path: str) -> None:
    """Make a node with an empty value, unless it exists. Raises Refused."""
    try:
        find(view, caller, path, WRITE)
    except Refused as error:
        if error.number != errno.ENOENT:
            raise
        make(view, caller, path, b"")


def remove(view: View, caller: DomainId, path: str) -> None:
    """Remove a node and all below it. Raises Refused.

    Any domain that may write the node may remove it. A node that does not exist is no error if the
    node above it exists.
    """
    try:
        find(view, caller, path, WRITE)
    except Refused as error:
        if error.number == errno.ENOENT and view.look(paths.parent(path)) is not None:
            return
        raise
    if path == "/":
        raise Refused(errno.EINVAL)
    if paths.parent(path) == paths.DOMAINS and caller != HOST:
        # A domain's own node, which the domain could not make again.
        raise Refused(errno.EACCES)
    remove_tree(view, path)


def remove_tree(view: View, path: str) -> None:
    """Remove a node that exists, and all below it."""
    # All are looked at before any goes: a transaction for which that is too much has changed
    # nothing.
    above = view.look(paths.parent(path))
    going = [path]
    for each in going:
        node = view.look(each)
        if node is not None:
            going.extend(paths.child(each, name) for name in node.children)
    for each in going:
        view.note(each, (FIRES if each is path else EXACT) | WRITTEN)
    for each in reversed(going):
        node = view.look(each)
        if node is not None:
            view.drop(each)
            if node.counted:
                view.charge(node.owner, -1, -len(each) - len(node.value))
    if above is not None:
        view.edit(paths.parent(path)).unlink(path.rpartition("/")[2])


def set_permissions(view: View, caller: DomainId, path: str, permissions: Permissions) -> None:
    """Replace a node's permissions. Only domain 0 may change the owner. Raises Refused."""
    node = find(view, caller, path, WRITE | OWNER)
    if caller != HOST and permissions[0][1] != node.owner:
        raise Refused(errno.EPERM)
    replace_permissions(view, path, node, permissions)


def replace_permissions(view: View, path: str, node: Node, permissions: Permissions) -> None:
    """Replace a node's permissions, and count it for its new owner."""
    view.note(path, FIRES)
    if node.counted and permissions[0][1] != node.owner:
        size = len(path) + len(node.value)
        view.charge(node.owner, -1, -size)
        view.charge(permissions[0][1], 1, size)
    view.edit(path).permissions = permissions


def put(tree: Tree, path: str, value: bytes, permissions: Permissions) -> None:
    """Make a node have this value and these permissions, whether it exists or not."""
    node = tree.look(path)
    if node is None:
        make(tree, HOST, path, value)
    elif node.value != value:
        replace_value(tree, HOST, path, node, value)
    replace_permissions(tree, path, tree.nodes[path], permissions)


def may_write(view: View, domain: DomainId, path: str) -> bool:
    """Return whether a domain may write a node, or make it."""
    try:
        find(view, domain, path, WRITE)
    except Refused as error:
        return error.number == errno.ENOENT
    return True
