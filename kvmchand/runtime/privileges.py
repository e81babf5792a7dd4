# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a process of the daemon may do: the descriptors it may open, and the user it runs as."""

from __future__ import annotations

import grp
import os
import pwd
import resource

from kvmchand.errors import InvalidArgument
from kvmchand.linux import libc


def raise_descriptor_limit() -> None:
    """Raise the limit of descriptors as far as the kernel allows: each channel takes some."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Not by pathlib, which takes a service long to import.
    with open("/proc/sys/fs/nr_open", encoding="ascii") as file:  # noqa: PTH123
        most = int(file.read())
    for limit in (max(hard, most), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return
        except (OSError, ValueError):
            continue


def require_user(name: str) -> None:
    """Raise InvalidArgument if drop_privileges() would fail."""
    if os.geteuid() == 0:
        _account(name)


def _account(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise InvalidArgument(f"there is no user {name!r}: set service_user in the daemon's settings") from None


def drop_privileges(user: str) -> None:
    """Become `user` for good, if we are root."""
    libc.set_no_new_privileges()
    if os.geteuid() != 0:
        return
    account = _account(user)
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)


def group_number(name: str) -> int:
    """Return the number of a group. Raises InvalidArgument if it does not exist."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidArgument(f"there is no group {name!r}: set socket.group in the daemon's settings") from None
