# SPDX-License-Identifier: LGPL-2.1-or-later
"""Paths of the xenstore-like tree: /local/domain/<id>/…, and who may write where.

The rules are xenstored's (misc/xenstore.txt): letters, digits and -/_@, at most 3072 characters absolute and 2048 relative.
"""

from __future__ import annotations

import string

from kvmchand.errors import AccessDenied, InvalidArgument, TooLong
from kvmchand.ids import DomainId

ABSOLUTE_MAX = 3072
RELATIVE_MAX = 2048
_ALLOWED = frozenset(string.ascii_letters + string.digits + "-/_@")

HOST = DomainId(0)


def home(domain: DomainId) -> str:
    """The node below which a domain may write."""
    return f"/local/domain/{domain}"


def resolve(path: str, caller: DomainId) -> str:
    """The absolute form of what a caller wrote; InvalidArgument or TooLong if it is no path."""
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


def require_writable(path: str, caller: DomainId) -> None:
    """AccessDenied unless the caller may create `path`: domain 0 anywhere, another domain below its own node."""
    if caller != HOST and not path.startswith(home(caller) + "/"):
        raise AccessDenied(f"domain {caller} may not offer a vchan at {path[:80]}: only below {home(caller)}")
