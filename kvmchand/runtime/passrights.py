# SPDX-License-Identifier: LGPL-2.1-or-later
"""Local sockets whose other end is outside, and that are to carry bytes alone.

From Linux 6.16 on a socket can refuse descriptors (SO_PASSRIGHTS in socket(7)). Before, they come
with the bytes, and whoever takes the bytes closes them: for ever, if it was their last holder and
closing waits, as for a TCP socket that lingers. So bytes are looked at first, and are left where
they are if descriptors are beside them.
"""

from __future__ import annotations

import socket
from functools import cache

from kvmchand.errors import ProtocolError
from kvmchand.wire.codec import PACKET_TOO_LONG

_SO_PASSRIGHTS = 83
_SENTENCE = "descriptors came beside its bytes: none belongs there"


@cache
def can_refuse() -> bool:
    """Return whether the kernel lets a socket refuse descriptors."""
    with socket.socket(socket.AF_UNIX) as probe:
        return refuse(probe)


def refuse(sock: socket.socket) -> bool:
    """Let a socket, and all that it accepts, refuse descriptors. Returns False if it can't."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def peek(sock: socket.socket, size: int, flags: int = 0) -> bytes:
    """Return what recv() would, and leave it there.

    Raises OSError as recv(), or ProtocolError if there are descriptors or a packet is longer.
    """
    data, _, status, _ = sock.recvmsg(size, 0, socket.MSG_PEEK | flags)
    if status & socket.MSG_CTRUNC:
        raise ProtocolError(_SENTENCE)
    if status & socket.MSG_TRUNC:
        raise ProtocolError(PACKET_TOO_LONG)
    return data


def receive(sock: socket.socket, size: int, flags: int = 0) -> bytes:
    """Receive bytes. Raises as peek()."""
    data = peek(sock, size, flags)
    sock.recv(size, flags)
    return data
