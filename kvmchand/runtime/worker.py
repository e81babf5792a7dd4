# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every service process is: a loop, and a socket to main. It lives until main ends.

Main's end of the socket is in kvmchand.runtime.supervisor.
"""

from __future__ import annotations

import json.decoder  # noqa: F401 # what says that bytes are no JSON, when we may not read files any more
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from kvmchand.linux import libc
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.marker import BEAT, Marker
from kvmchand.wire.codec import Codec
from kvmchand.wire.packet import Fds, receive_packet, send_packet


class Worker(ABC):
    """A service process."""

    def __init__(self, main: socket.socket, marker: Marker, incoming: Codec, outgoing: Codec) -> None:
        self._main = main
        self._marker = marker
        self._incoming = incoming
        self._outgoing = outgoing
        self._loop = Loop()
        self._is_started = False
        self._heard = 0
        """Packets heard, of those that the marker counts."""
        self._loop.add(main.fileno(), self._on_main)
        self._beat()

    @abstractmethod
    def run(self) -> None:
        """Serve until main ends."""

    @abstractmethod
    def _obey(self, message: object, fds: Fds) -> None:
        """Do what main says. Descriptors that are not stolen are closed."""

    def _beat(self) -> None:
        self._marker.beat()
        self._loop.call_at(time.monotonic() + BEAT, self._beat)

    def _wait_for_start(self) -> bool:
        """Hear only main until _start(). Returns False if main has ended.

        Nobody else is heard before we have dropped our privileges, and main waits while it tells us
        everything.
        """
        while not self._is_started:
            if not self._hear_main():
                return False
        return True

    def _start(self, message: object) -> None:
        """Say that we serve, with `message`."""
        self._say(message)
        self._is_started = True

    def _on_main(self, _events: int) -> None:
        if not self._hear_main():
            self._loop.stop()

    def _hear_main(self) -> bool:
        """Do what main says next. Returns False if main has ended."""
        try:
            data, fds = receive_packet(self._main)
        except ConnectionResetError:
            return False
        if not data:
            return False
        self._heard += 1
        with fds:
            self._obey(self._incoming.decode(data), fds)
        return True

    def _catch_up(self) -> bool:
        """Do everything that main has said by now, including what still waits to be sent.

        Main may have answered somebody whom we hear next. Returns False if main has ended.
        """
        while self._heard < self._marker.sent():
            if not self._hear_main():
                return False
        return True

    def _say(self, message: object, fds: Sequence[int] = ()) -> None:
        data = self._outgoing.encode(message)  # what is too long for main is its sender's fault
        try:
            send_packet(self._main, data, fds)
        except OSError:
            self._loop.stop()  # it has ended


def serve(name: str, make: Callable[[socket.socket, Marker], Worker], socket_fd: int, marker_fd: int) -> None:
    """Run a service. `name`: what ps shows, at most 15 characters."""
    libc.set_process_name(name)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # main's, which ends us
    make(socket.socket(fileno=socket_fd), Marker(marker_fd)).run()
