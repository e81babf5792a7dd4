# SPDX-License-Identifier: LGPL-2.1-or-later
"""A connection to the daemon on which a test asks for what C asks for, and waits for the answer."""

from __future__ import annotations

from kvmchand.ids import Size
from kvmchand.wire import client
from libxenvchan_shim.connection import Connection as Plain
from libxenvchan_shim.connection import Granted
from libxenvchan_shim.protocol import DEADLINE, carried


class Connection(Plain):
    _asked: client.Connect

    def offer(self, peer: int, path: str, read_min: Size, write_min: Size, *, once: bool = False) -> Granted:
        """Offer a vchan. `once`: no other client can come after the first."""
        self.send(client.Offer(peer, carried(path), read_min, write_min, once))
        return self.take_grant()

    def connect(self, domain: int, path: str, *, waits: bool = False) -> Granted:
        """Connect to a vchan.

        `waits`: block while `domain` exists and offers nothing at `path`, or has another client
        there.
        """
        self.ask_to_connect(domain, carried(path), waits=waits)
        granted = self.answer(waits=waits)
        self.refuse_taken_back(granted)
        return granted

    def ask_to_connect(self, domain: int, path: str, *, waits: bool) -> None:
        self._asked = client.Connect(domain, path, waits)
        self.send(self._asked)

    def answer(self, *, waits: bool) -> Granted:
        """Take the answer, and ask again as often as that says so."""
        self.settimeout(None if waits else DEADLINE)
        while (granted := self.take_grant_or_vacancy()) is None:
            self.send(self._asked)
        self.settimeout(DEADLINE)
        return granted

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

    def domains(self, first: int) -> client.Domains:
        self.send(client.GetDomains(first))
        return self.take_domains()
