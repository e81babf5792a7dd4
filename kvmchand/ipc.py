# SPDX-License-Identifier: LGPL-2.1-or-later
"""A service process as main sees it: how it is started, and how it ended.

A service is a fresh interpreter with two descriptors: its socket to main, and a page shared with main in which it notes
whose bytes it is reading, so that main knows whose they were should it crash.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

from kvmchand.ids import ClientId

_MARK = struct.Struct("=Q")
_NOBODY = ClientId(0)
_END_DEADLINE = 0.5
"""Seconds a service has to end after its socket has. Main stands still meanwhile."""
_ENTRY = Path(__file__).parent / "services" / "__main__.py"


class Marker:
    """The page in which a service notes whose bytes it is reading."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, mmap.PAGESIZE)

    def set(self, client: ClientId) -> None:
        _MARK.pack_into(self._page, 0, client)

    def clear(self) -> None:
        _MARK.pack_into(self._page, 0, _NOBODY)

    def get(self) -> ClientId | None:
        client = ClientId(_MARK.unpack_from(self._page)[0])
        return client if client != _NOBODY else None

    def close(self) -> None:
        self._page.close()


class Service:
    """A running service, as main sees it. Its end is the end of `sock`."""

    def __init__(self, name: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        page = os.memfd_create(f"kvmchand-{name}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(page, mmap.PAGESIZE)
            self.marker = Marker(page)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_ENTRY), name, str(theirs.fileno()), str(page)],
                pass_fds=(theirs.fileno(), page),
                stdin=subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(page)
        self.sock = ours

    def kill(self) -> None:
        """Ends the service for certain; stop() tidies up."""
        self._process.kill()

    def stop(self) -> str:
        """Ends the service, if it has not ended by itself; how it ended."""
        self.sock.close()
        self.marker.close()
        try:
            status = self._process.wait(timeout=_END_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
