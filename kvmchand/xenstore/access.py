# SPDX-License-Identifier: LGPL-2.1-or-later
"""What requests do to nodes, and who may: the same on the tree that all see and on a transaction's."""

from __future__ import annotations

import errno
from collections.abc import Container
from typing import Protocol

from kvmchand.ids import HOST, DomainId
from kvmchand.xenstore import paths
from kvmchand.xenstore.nodes import EXACT, FIRES, OWNER, QUIET, READ, WRITE, WRITTEN, Node, Permissions, rights
from kvmchand.xenstore.quotas import Refused


class View(Protocol):
    """A Tree, or a Transaction on it."""

    def look(self, path: str) -> Node | None: ...
    def note(self, path: str, note: int) -> None: ...
    def require(self, domain: DomainId, nodes: int, size: int) -> None: ...
    def charge(self, domain: DomainId, nodes: int, size: int) -> None: ...
    def edit(self, path: str, more: int = 0) -> Node: ...
    def put(self, path: str, node: Node) -> None: ...
    def drop(self, path: str) -> None: ...


def find(view: View, caller: DomainId, path: str, wanted: int = READ) -> Node:
    """The node, with which the caller may do all that is wanted.

    Refused otherwise: with ENOENT, where the nearest node above would let it know, else with EACCES, so that nobody learns which
    nodes there are where they may not read.
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
    """The node, which is not there yet, and those above it that are missing. Whether the caller may has been asked.

    They have the permissions of the node above; what a domain other than 0 makes is its own. Those named in `free` do not count.
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
    try:
        node = find(view, caller, path, WRITE)
    except Refused as error:
        if error.number != errno.ENOENT:
            raise
        make(view, caller, path, value)
        return
    replace_value(view, caller, path, node, value)


def replace_value(view: View, caller: DomainId, path: str, node: Node, value: bytes) -> None:
    more = len(value) - len(node.value)
    if node.counted and caller != HOST:
        view.require(node.owner, 0, more)
    view.note(path, FIRES | WRITTEN)
    view.edit(path, more).value = value
    if node.counted:
        view.charge(node.owner, 0, more)


def mkdir(view: View, caller: DomainId, path: str) -> None:
    try:
        find(view, caller, path, WRITE)
    except Refused as error:
        if error.number != errno.ENOENT:
            raise
        make(view, caller, path, b"")


def remove(view: View, caller: DomainId, path: str) -> None:
    """The node and all below it: who may write it, may remove it. That it is not there is no error if the node above is."""
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
    """The node, which is there, and all below it."""
    # All are looked at before any goes: a transaction for which that is too much has changed nothing.
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
    node = find(view, caller, path, WRITE | OWNER)
    if caller != HOST and permissions[0][1] != node.owner:
        raise Refused(errno.EPERM)
    replace_permissions(view, path, node, permissions)


def replace_permissions(view: View, path: str, node: Node, permissions: Permissions) -> None:
    view.note(path, FIRES)
    if node.counted and permissions[0][1] != node.owner:
        size = len(path) + len(node.value)
        view.charge(node.owner, -1, -size)
        view.charge(permissions[0][1], 1, size)
    view.edit(path).permissions = permissions
