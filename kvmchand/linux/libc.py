# SPDX-License-Identifier: LGPL-2.1-or-later
"""The C library's functions that we call through ctypes, each declared once."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)


def _raise_on_error(result: int, function: Any, _arguments: tuple[Any, ...]) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")
    return result


def _declare(name: str, *arguments: type) -> Callable[..., int]:
    function = getattr(_libc, name)
    function.argtypes = arguments
    function.restype = ctypes.c_int
    function.errcheck = _raise_on_error
    return function  # type: ignore[no-any-return]


_inotify_init1 = _declare("inotify_init1", ctypes.c_int)
_inotify_add_watch = _declare("inotify_add_watch", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_inotify_rm_watch = _declare("inotify_rm_watch", ctypes.c_int, ctypes.c_int)
_prctl = _declare("prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_fallocate = _declare("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)  # off_t is a long

sendmmsg = _declare("sendmmsg", ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)

IN_CLOSE = 0x18  # IN_CLOSE_WRITE | IN_CLOSE_NOWRITE
_FALLOC_FL_KEEP_SIZE = 0x1
_FALLOC_FL_PUNCH_HOLE = 0x2
_INT = struct.Struct("=i")
_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38


def inotify_init() -> int:
    """Return a new inotify descriptor, non-blocking and close-on-exec.

    Raises OSError EMFILE at the user's max_user_instances.
    """
    return _inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Return the number of a new watch. Raises OSError ENOSPC at the user's max_user_watches."""
    return _inotify_add_watch(fd, os.fsencode(path), mask)


def inotify_rm_watch(fd: int, watch: int) -> None:
    """Remove a watch."""
    _inotify_rm_watch(fd, watch)


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Make `size` bytes from `offset` on read as zero.

    Their whole pages go back to the system, and the file keeps its size. Raises OSError EPERM if it
    is sealed against writing, EOPNOTSUPP if its file system has no holes.
    """
    _fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, size)


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Return pid, user and group of the process that connected, as they were then.

    See unix(7), SO_PEERCRED.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def are_of_one_process(one: socket.socket, other: socket.socket) -> bool:
    """Return whether one process made both connections.

    False if it can't be known, since the process has no number in our namespace.
    """
    pid, _, _ = peer_credentials(one)
    return pid != 0 and pid == peer_credentials(other)[0]


def unread(fd: int) -> int:
    """Return how much a local socket's peer was sent and has not read yet (SIOCOUTQ).

    In bytes of the kernel's memory, so only 0 says how many there are.
    """
    (count,) = _INT.unpack(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(_INT.size)))
    return int(count)


def set_process_name(name: str) -> None:
    """Set what `ps -o comm` shows of this thread; the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(os.fsencode(name)[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0)


def set_no_new_privileges() -> None:
    """Let no later exec of this process gain privileges."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
