# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shared page at a region's start, as the daemon reads and writes it.

libxenvchan_shim/csrc/dataplane/attach.c has the same layout.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from kvmchand.channels.registry import Side
from kvmchand.channels.rings import Rings
from kvmchand.linux import mapping

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
    """The page at `offset` of the memory file `fd`, which stays the caller's."""

    fd: int
    offset: int = 0

    def _read(self, at: int, size: int) -> bytes:
        return mapping.read(self.fd, self.offset + at, size)

    def _write(self, at: int, data: bytes) -> None:
        mapping.write(self.fd, self.offset + at, data)

    def initialize(self, rings: Rings) -> None:
        """Write what a server's arrival leaves, on zeroed memory, before anyone can connect."""
        header = _HEADER.pack(rings.left, rings.right, CLIENT_NONE_YET, _SERVER_THERE, _NOTIFY_WRITE, 0)
        self._write(_HEADER_OFFSET, header)

    def live(self, side: Side) -> int:
        """Return an end's live byte."""
        return self._read(_LIVE_OFFSET[side], 1)[0]

    def set_live(self, side: Side, value: int) -> None:
        """Set an end's live byte."""
        self._write(_LIVE_OFFSET[side], bytes([value]))

    def ready(self, rings: Rings) -> Ready:
        """Return how much waits to be read at each end."""
        left_cons, left_prod = _INDEXES.unpack(self._read(LEFT_INDEXES, _INDEXES.size))
        right_cons, right_prod = _INDEXES.unpack(self._read(RIGHT_INDEXES, _INDEXES.size))
        left, right = (left_prod - left_cons) % 2**32, (right_prod - right_cons) % 2**32
        return Ready(
            server=left if left <= 1 << rings.left else 0,
            client=right if right <= 1 << rings.right else 0,
        )


class DevicePage(Page):
    """The page in a device of a guest's, as VFIO gives it.

    VFIO's calls wait for no holder of the device, and its mappings fault once the device is gone.
    """

    __slots__ = ()

    def _read(self, at: int, size: int) -> bytes:
        return os.pread(self.fd, size, self.offset + at)

    def _write(self, at: int, data: bytes) -> None:
        os.pwrite(self.fd, data, self.offset + at)
