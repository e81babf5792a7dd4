# SPDX-License-Identifier: LGPL-2.1-or-later
"""One packet of a SOCK_SEQPACKET socket: its bytes, and the descriptors beside it.

Received descriptors are close-on-exec and are owned here before anything is judged, so that none
leaks.
"""

from __future__ import annotations

import os
import sys
from _socket import CMSG_LEN, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, SCM_RIGHTS, SOL_SOCKET

from kvmchand.errors import OutOfResources, ProtocolError
from kvmchand.wire.codec import FDS_LOST, PACKET_MAX, PACKET_TOO_LONG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Sequence

AT_ONCE = MSG_DONTWAIT
"""A flag for those who can't wait. It is an int, where socket's MSG_DONTWAIT is an enum, whose `|`
takes as long as the rest of the call."""
_FD_SIZE = 4
_FDS_MAX = 253
"""The kernel's SCM_MAX_FD. Room for fewer would make it drop some, after which we couldn't tell
what came."""


class Fds:
    """Owned descriptors in transit: what is not stolen is closed."""

    def __init__(self, fds: Sequence[int] = ()) -> None:
        self._fds = list(fds)

    @classmethod
    def duplicates(cls, fds: Sequence[int]) -> Fds:
        """Duplicate descriptors, which stay the caller's.

        Raises OSError if there are no more to have.
        """
        made = cls()
        try:
            for fd in fds:
                made.add(os.dup(fd))
        except BaseException:
            made.close()
            raise
        return made

    def __len__(self) -> int:
        return len(self._fds)

    def add(self, fd: int) -> None:
        """Take ownership of one more."""
        self._fds.append(fd)

    def borrow(self) -> list[int]:
        """Return the numbers; the descriptors stay ours."""
        return list(self._fds)

    def steal(self) -> list[int]:
        """Return the numbers; the caller closes them."""
        fds, self._fds = self._fds, []
        return fds

    def close(self) -> None:
        """Close what was not stolen."""
        for fd in self.steal():
            os.close(fd)

    def __enter__(self) -> Fds:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def send_packet(sock: socket, data: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
    """Send one packet.

    Raises OSError as sendmsg, but never SIGPIPE. The descriptors stay the caller's.
    """
    beside = [(SOL_SOCKET, SCM_RIGHTS, b"".join([fd.to_bytes(_FD_SIZE, sys.byteorder) for fd in fds]))] if fds else []
    sock.sendmsg([data], beside, MSG_NOSIGNAL | flags)


def receive_packet(sock: socket, flags: int = 0) -> tuple[bytes, Fds]:
    """Receive one packet; b"" at the end.

    Raises OSError as recvmsg; OutOfResources if this process can't have all the descriptors that
    came with the packet, or ProtocolError if it is too long.
    """
    data, beside, status, _ = sock.recvmsg(PACKET_MAX, CMSG_LEN(_FDS_MAX * _FD_SIZE), MSG_CMSG_CLOEXEC | flags)
    numbers: list[int] = []
    for level, kind, payload in beside:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            whole = len(payload) - len(payload) % _FD_SIZE
            numbers += [int.from_bytes(payload[at : at + _FD_SIZE], sys.byteorder) for at in range(0, whole, _FD_SIZE)]
    fds = Fds(numbers)
    if status & (MSG_TRUNC | MSG_CTRUNC):
        fds.close()
        if status & MSG_TRUNC:
            raise ProtocolError(PACKET_TOO_LONG)
        raise OutOfResources(FDS_LOST)
    return data, fds
