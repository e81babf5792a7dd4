# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store process of a guest: forwards programs' requests to the host's store.

Of a request it understands only where it ends. Each connection has one request and one Output under
way at a time.
"""

from __future__ import annotations

import socket

from kvmchand.runtime.marker import Marker
from kvmchand.runtime.worker import serve
from kvmchand.services.store.streams import Stream, Streams, Taken
from kvmchand.wire import store
from kvmchand.wire.packet import Fds


class Forward(Streams):
    """The process's whole state."""

    def __init__(self, main: socket.socket, marker: Marker) -> None:
        super().__init__(main, marker, store.to_forwarder, store.from_forwarder)

    def _obey(self, message: object, fds: Fds) -> None:
        match message:
            case store.Output():
                self._on_told(message)
            case _:
                super()._obey(message, fds)

    def _on_told(self, told: store.Output) -> None:
        stream = self._streams.get(told.client)
        if stream is None:
            return  # it went meanwhile
        if told.answers:
            stream.is_asking = False
            self._wake(stream)
        self._guard(stream, lambda stream: stream.put(told.data))
        if not stream.is_waiting:
            self._say_taken(stream)

    def _on_output(self, stream: Stream) -> None:
        if not stream.is_waiting:
            self._say_taken(stream)

    def _say_taken(self, stream: Stream) -> None:
        if stream.number in self._streams:
            self._say(store.Taken(stream.number))

    def _on_request(self, sender: Stream, taken: Taken) -> None:
        sender.is_asking = True
        self._say(store.Request(sender.number, taken.data))


def main(socket_fd: int, marker_fd: int) -> None:
    """Run the process."""
    serve("kvmchand-store", Forward, socket_fd, marker_fd)
