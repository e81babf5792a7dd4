# SPDX-License-Identifier: LGPL-2.1-or-later
"""A connection to the daemon on which a test asks for what C asks for, and waits for the answer."""

from __future__ import annotations

from kvmchand.ids import Size
from kvmchand.wire import client
from libxenvchan_shim.connection import Connection as Plain
from libxenvchan_shim.connection import Granted
from libxenvchan_shim.protocol import DEADLINE


class Connection(Plain):
    _asked: client.Connect

    def ask_to_connect(self, domain: int, path: str, *, waits: bool) -> None:
        self._asked = client.Connect(domain, path, waits)
        self.send(self._asked)

    def answer(self, *, waits: bool) -> Granted:
        """Take the answer, and ask again as often as that says so."""
        self._sock.settimeout(None if waits else DEADLINE)
        while True:
            granted = self.take_grant_or_vacancy()
            if granted is not None:
                return granted
            self.send(self._asked)

    def bind(self, peer: int) -> Granted:
        self.send(client.Bind(peer))
        return self.take_grant()

    def join(self, domain: int, port: Size) -> Granted:
        self.send(client.Join(domain, port))
        return self.take_grant()

    def share(self, peer: int, pages: int, *, writable: bool) -> tuple[client.Pages, int]:
        self.send(client.Share(peer, pages, writable))
        return self.take_pages()

    def map(self, domain: int, ref: Size, *, writable: bool) -> tuple[client.Pages, int]:
        self.send(client.Map(domain, ref, writable))
        return self.take_pages()

    def notify(self, offset: Size, port: Size, *, clears: bool) -> None:
        self.send(client.Notify(clears, offset, port))
        self.take_done()

    def port(self, domain: int, port: Size) -> client.Port:
        self.send(client.GetPort(domain, port))
        return self.take_port()
