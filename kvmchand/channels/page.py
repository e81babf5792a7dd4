# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shared page at a region's start, which the daemon reads and writes through a descriptor.

It is never mapped. libxenvchan_shim/csrc/dataplane/attach.c has the same layout.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from kvmchand.channels.registry import Side
from kvmchand.channels.rings import Rings

_HEADER = struct.Struct("=HHBBBB")  # left_order, right_order, cli_live, srv_live, cli_notify, srv_notify
_HEADER_OFFSET = 16
_SERVER_THERE, _NOTIFY_WRITE = 1, 1
CLIENT_NONE_YET = 2
"""The client's live byte where none has come."""
_INDEXES = struct.Struct("=II")  # cons, prod
LEFT_INDEXES, RIGHT_INDEXES = 252, 508
_LIVE_OFFSET = {Side.CLIENT: 20, Side.SERVER: 21}


@dataclass(frozen=True, slots=True)
class Ready:
    """Bytes waiting to be read at each end; 0 if the indexes are invalid."""

    server: int
    client: int


def other(side: Side) -> Side:
    """Return the other side."""
    return Side.SERVER if side is Side.CLIENT else Side.CLIENT


@dataclass(frozen=True, slots=True)
class Page:
    """The page at `offset` of the file `fd`, which stays the caller's."""

    fd: int
    offset: int = 0

    def initialize(self, rings: Rings) -> None:
        """Write what a server's arrival leaves, on zeroed memory, before anyone can connect."""
        header = _HEADER.pack(rings.left, rings.right, CLIENT_NONE_YET, _SERVER_THERE, _NOTIFY_WRITE, 0)
        os.pwrite(self.fd, header, self.offset + _HEADER_OFFSET)

    def live(self, side: Side) -> int:
        """Return an end's live byte."""
        return os.pread(self.fd, 1, self.offset + _LIVE_OFFSET[side])[0]

    def set_live(self, side: Side, value: int) -> None:
        """Set an end's live byte."""
        os.pwrite(self.fd, bytes([value]), self.offset + _LIVE_OFFSET[side])

    def ready(self, rings: Rings) -> Ready:
        """Return how much waits to be read at each end."""
        left_cons, left_prod = _INDEXES.unpack(os.pread(self.fd, _INDEXES.size, self.offset + LEFT_INDEXES))
        right_cons, right_prod = _INDEXES.unpack(os.pread(self.fd, _INDEXES.size, self.offset + RIGHT_INDEXES))
        left, right = (left_prod - left_cons) % 2**32, (right_prod - right_cons) % 2**32
        return Ready(
            server=left if left <= 1 << rings.left else 0,
            client=right if right <= 1 << rings.right else 0,
        )
