# SPDX-License-Identifier: LGPL-2.1-or-later
"""A TCP socket that keeps whoever closes it last waiting, as its other end does not read."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_LINGER = 3600
"""Seconds."""


@contextmanager
def lingering() -> Iterator[socket.socket]:
    """Make such a socket. At the end of the context it lets go of whoever waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        reader, _ = server.accept()
        with sock, reader:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, _LINGER))
            sock.setblocking(False)
            try:
                while True:
                    sock.send(bytes(1 << 16))
            except BlockingIOError:
                pass
            yield sock
            # With bytes unread, this resets the connection.
            reader.close()
