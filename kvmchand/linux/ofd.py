# SPDX-License-Identifier: LGPL-2.1-or-later
"""Locks of an open file description (fcntl(2), F_OFD_SETLK).

Such a lock goes when the last reference to the description goes, and a mapping is a reference. So
it tells whether anybody still has a file mapped, whatever happened to the descriptors.
"""

from __future__ import annotations

import fcntl
import os
import struct

# Linux's <asm-generic/fcntl.h>; the fcntl module names them from Python 3.9 on only where its build
# knew them.
_F_OFD_GETLK = 36
_F_OFD_SETLK = 37
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock, 64 bits: l_type, l_whence, l_start, l_len, l_pid


def lock_byte(fd: int, offset: int, *, exclusive: bool = True) -> None:
    """Lock one byte for the description of `fd`. An exclusive lock needs a descriptor for writing.

    Raises OSError EAGAIN if another description has it.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))


def byte_is_locked(fd: int, offset: int) -> bool:
    """Return whether a description other than that of `fd` has locked the byte."""
    answer = fcntl.fcntl(fd, _F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK
