# SPDX-License-Identifier: LGPL-2.1-or-later
"""Paths of the xenstore-like tree, /local/domain/<id>/…, and who may write where.

The rules are xenstored's (Xen's docs/misc/xenstore.txt): letters, digits and -/_@, at most 3072
characters absolute and 2048 relative.
"""

from __future__ import annotations

import re
import string

from kvmchand.errors import AccessDenied, InvalidArgument, TooLong
from kvmchand.ids import HOST, DomainId

ABSOLUTE_MAX = 3072
RELATIVE_MAX = 2048
_ALLOWED = frozenset(string.ascii_letters + string.digits + "-/_@")
_NODE = re.compile(r"(?:/[a-zA-Z0-9_@-]+)+")

DOMAINS = "/local/domain"


def home(domain: DomainId) -> str:
    """Return the node below which a domain may write."""
    return f"{DOMAINS}/{domain}"


def resolve(path: str, caller: DomainId) -> str:
    """Return the absolute form of the path that a caller wrote.

    Raises InvalidArgument or TooLong if it is not a path.
    """
    if not path:
        raise InvalidArgument("the path is empty: give one like data/vchan/1/2")
    most = ABSOLUTE_MAX if path.startswith("/") else RELATIVE_MAX
    if len(path) > most:
        raise TooLong(f"the path has {len(path)} characters, and {most} are the most")
    wrong = next((character for character in path if character not in _ALLOWED), None)
    if wrong is not None:
        raise InvalidArgument(f"the path {path[:80]!r} has {wrong!r} in it: only letters, digits and -/_@ may be")
    absolute = path if path.startswith("/") else f"{home(caller)}/{path}"
    if absolute.endswith("/") or "//" in absolute:
        raise InvalidArgument(f"the path {path[:80]!r} has an empty part: take the extra '/' out")
    return absolute


def node(path: str, caller: DomainId) -> str:
    """Return the absolute form of any node's name, "/" included. Every xenstore request calls this.

    Raises InvalidArgument if the name is invalid. No result begins with @: such names are watched
    without being nodes.
    """
    most = ABSOLUTE_MAX
    if not path.startswith(("/", "@")):
        most = RELATIVE_MAX + len(home(caller)) + 1
        path = f"{home(caller)}/{path}"
    if (len(path) > most or not _NODE.fullmatch(path)) and path != "/":
        raise InvalidArgument(f"{path[:80]!r} is no node's name: those have letters, digits and -_@ between single '/'")
    return path


def parent(path: str) -> str:
    """Return the node above `path`, which is not "/"."""
    return path[: path.rfind("/")] or "/"


def child(path: str, name: str) -> str:
    """Return the path of a node's child."""
    return f"/{name}" if path == "/" else f"{path}/{name}"


def require_writable(path: str, caller: DomainId) -> None:
    """Raise AccessDenied unless the caller may create `path`.

    Domain 0 may anywhere, another domain below its own node.
    """
    if caller != HOST and not path.startswith(home(caller) + "/"):
        raise AccessDenied(f"domain {caller} may not offer a vchan at {path[:80]}: only below {home(caller)}")
