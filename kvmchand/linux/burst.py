# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages that are prepared ahead, and sent by one system call.

Whoever kills or stops the sender finds it before all of them or after, and not in between: a
sendmmsg(2) that never waits looks at no signal.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Sequence

from kvmchand.linux.libc import sendmmsg

Message = tuple[bytes, int | None]
"""The bytes, and the descriptor that goes beside them."""

_AT_ONCE = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_AT_A_TIME = 1024
"""Messages that the kernel takes in one call (UIO_MAXIOV)."""
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
_MEMORY_EACH = 768
"""Bytes of the kernel's memory that a short message takes while it waits to be read."""


class _IoVec(ctypes.Structure):
    _fields_ = (("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t))


class _Rights(ctypes.Structure):
    """A cmsghdr of one descriptor."""

    _fields_ = (
        ("cmsg_len", ctypes.c_size_t),
        ("cmsg_level", ctypes.c_int),
        ("cmsg_type", ctypes.c_int),
        ("fd", ctypes.c_int),
        ("padding", ctypes.c_int),
    )


class _MMsgHdr(ctypes.Structure):
    """A mmsghdr, with its msghdr's fields in it."""

    _fields_ = (
        ("msg_name", ctypes.c_void_p),
        ("msg_namelen", ctypes.c_uint),
        ("msg_iov", ctypes.c_void_p),
        ("msg_iovlen", ctypes.c_size_t),
        ("msg_control", ctypes.c_void_p),
        ("msg_controllen", ctypes.c_size_t),
        ("msg_flags", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("msg_len", ctypes.c_uint),
    )


class Burst:
    """Messages for a local stream socket. Their descriptors stay the caller's."""

    def __init__(self, messages: Sequence[Message]) -> None:
        """Lay them out as the kernel takes them."""
        count = len(messages)
        self._headers = (_MMsgHdr * count)()
        self._vectors = (_IoVec * count)()
        self._rights = (_Rights * count)()
        self._bytes = [ctypes.create_string_buffer(data, len(data)) for data, _ in messages]
        for at, (data, fd) in enumerate(messages):
            header, vector, rights = self._headers[at], self._vectors[at], self._rights[at]
            vector.iov_base, vector.iov_len = ctypes.addressof(self._bytes[at]), len(data)
            header.msg_iov, header.msg_iovlen = ctypes.addressof(vector), 1
            if fd is not None:
                rights.cmsg_len, rights.fd = socket.CMSG_LEN(ctypes.sizeof(ctypes.c_int)), fd
                rights.cmsg_level, rights.cmsg_type = socket.SOL_SOCKET, socket.SCM_RIGHTS
                header.msg_control, header.msg_controllen = ctypes.addressof(rights), ctypes.sizeof(rights)

    def __len__(self) -> int:
        return len(self._headers)

    def make_room(self, sock: socket.socket) -> None:
        """Let a socket hold all of the messages, as far as our privileges allow that."""
        size = len(self) * _MEMORY_EACH  # the kernel doubles it
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def send(self, sock: socket.socket, first: int) -> int:
        """Send the messages from `first` on, without waiting.

        Returns which is the first that the socket has no room for yet, or the count of all. Raises
        OSError as sendmsg(2), where none was sent.
        """
        while first < len(self):
            at = ctypes.addressof(self._headers) + first * ctypes.sizeof(_MMsgHdr)
            try:
                first += sendmmsg(sock.fileno(), at, min(len(self) - first, _AT_A_TIME), _AT_ONCE)
            except BlockingIOError:
                break
        return first
