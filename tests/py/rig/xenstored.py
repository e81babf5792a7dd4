# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian's xenstored on stand-ins for the hypervisor (tests/c/standins/xenstored.c): the store that
ours is compared with.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kvmchand.xenstore import protocol
from kvmchand.xenstore.protocol import Kind
from rig.clients import StoreClient
from rig.deadline import eventually
from rig.paths import C_BUILD, REFERENCE
from rig.words import set_word, word

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = REFERENCE / "lib" / "xen-4.17" / "bin" / "xenstored"
STANDIN = C_BUILD / "libstandin-xenstored.so"
_NAMES = ("libxenctrl.so.4.17", "libxenevtchn.so.1", "libxengnttab.so.1")
DOMAINS = (0, 1, 2)


class _Page:
    """A domain's end of its xenstore page (Xen's xen/io/xs_wire.h): a ring of 1 KiB each way."""

    RING = 1024
    REQUESTS, REPLIES, INDICES = 0, 1024, 2048

    def __init__(self, path: Path, kick: int, port: int, process: subprocess.Popen[bytes]) -> None:
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self._kick, self._port, self._process = kick, port, process

    def _await(self, condition: Callable[[], bool]) -> None:
        eventually(lambda: condition() or self._process.poll() is not None)
        if not condition():
            raise EOFError("xenstored has ended")

    def _index(self, which: int) -> int:
        return word(self._page, self.INDICES + 4 * which)

    def _advance(self, which: int, value: int) -> None:
        set_word(self._page, self.INDICES + 4 * which, value)
        os.write(self._kick, struct.pack("=I", self._port))

    def send(self, data: bytes) -> None:
        while data:
            self._await(lambda: self._index(1) - self._index(0) < self.RING)
            produced = self._index(1)
            room = min(self.RING - (produced - self._index(0)), self.RING - produced % self.RING)
            part, data = data[:room], data[room:]
            start = self.REQUESTS + produced % self.RING
            self._page[start : start + len(part)] = part
            self._advance(1, produced + len(part))

    def recv(self, most: int) -> bytes:
        """Return at least one byte."""
        self._await(lambda: self._index(3) != self._index(2))
        consumed = self._index(2)
        count = min(most, self._index(3) - consumed, self.RING - consumed % self.RING)
        start = self.REPLIES + consumed % self.RING
        data = bytes(self._page[start : start + count])
        self._advance(2, consumed + count)
        return data

    def close(self) -> None:
        self._page.close()


class XenstoredClient(StoreClient):
    """Domain 0's by the socket; another domain's by its page."""

    def __init__(self, folder: Path, domain: int, kick: int, process: subprocess.Popen[bytes]) -> None:
        self._ring: _Page | None = None
        if domain == 0:
            super().__init__(folder / "socket")
        else:
            self.events = []
            self._ring = _Page(folder / f"ring-{domain}", kick, domain, process)

    def say(self, data: bytes) -> None:
        if self._ring is None:
            super().say(data)
        else:
            self._ring.send(data)

    def _take(self, size: int) -> bytes:
        if self._ring is None:
            return super()._take(size)
        data = b""
        while len(data) < size:
            data += self._ring.recv(size - len(data))
        return data

    def close(self) -> None:
        if self._ring is None:
            self.sock.close()
        else:
            self._ring.close()


class Xenstored:
    """A running one, with a client in each domain."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in _NAMES:
            (folder / name).symlink_to(STANDIN)
        for domain in DOMAINS:
            (folder / f"ring-{domain}").write_bytes(bytes(mmap.PAGESIZE))
        (folder / "xsd_port").write_text("77")
        os.mkfifo(folder / "kick")
        self._kick = os.open(folder / "kick", os.O_RDWR)
        environment = {"XEN_STANDIN_DIR": str(folder), "XENSTORED_RUNDIR": str(folder), "LD_LIBRARY_PATH": str(folder)}
        self.process = subprocess.Popen([PROGRAM, "-N"], env=environment, stdin=subprocess.DEVNULL)
        eventually(lambda: self._listens() or self.process.poll() is not None)
        self.clients = {0: XenstoredClient(folder, 0, self._kick, self.process)}
        for domain in DOMAINS[1:]:
            self.clients[0].ask(Kind.INTRODUCE, str(domain), "1", str(domain))
            self.clients[domain] = XenstoredClient(folder, domain, self._kick, self.process)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.folder / "socket")) == 0

    def ask(self, domain: int, kind: int, payload: bytes, transaction: int) -> tuple[int, bytes]:
        """Return the kind and the payload of the reply. Events are kept."""
        client = self.clients[domain]
        client.say(protocol.HEADER.pack(kind, 0, transaction, len(payload)) + payload)
        while True:
            answered, data = client.hear()
            if answered != Kind.WATCH_EVENT:
                return answered, data
            client.events.append(client._event(data))

    def take_events(self, domain: int) -> Sequence[tuple[str, str]]:
        """Return what the domain was told since the last time."""
        self.ask(domain, Kind.GET_DOMAIN_PATH, b"0\0", 0)  # what was told before has come by then
        client = self.clients[domain]
        events, client.events = client.events, []
        return events

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        os.close(self._kick)
        self.process.kill()
        self.process.wait()


@contextmanager
def running(folder: Path) -> Iterator[Xenstored]:
    store = Xenstored(folder)
    try:
        yield store
    finally:
        store.close()
