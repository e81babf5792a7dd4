# SPDX-License-Identifier: LGPL-2.1-or-later
"""The packet that tells a server's end in a guest where it goes on, while it waits for a client.

It may follow the grant on a client's connection, with the descriptor of the memory beside it. The C
data plane reads it (libxenvchan_shim/csrc/dataplane/move.c), which knows no JSON.
"""

from __future__ import annotations

import struct

_MOVE = struct.Struct("=8sQQII")
"""struct kvmchan_move: magic, offset, doorbell, doorbell_value, reserved."""
_MAGIC = b"kvmmove\0"


def encode(offset: int, doorbell: int, doorbell_value: int) -> bytes:
    """Return the packet. The places are those of mmap, as in a Grant."""
    return _MOVE.pack(_MAGIC, offset, doorbell, doorbell_value, 0)
