# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every service process is: a loop, and a socket to main, whose end of it is in kvmchand.ipc. It lives until main ends."""

from __future__ import annotations

import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from kvmchand.linux import libc
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.supervisor import Marker
from kvmchand.wire.codec import Codec
from kvmchand.wire.packet import Fds, receive_packet, send_packet


class Worker(ABC):
    def __init__(self, main: socket.socket, marker: Marker, incoming: Codec, outgoing: Codec) -> None:
        self._main = main
        self._marker = marker
        self._incoming = incoming
        self._outgoing = outgoing
        self._loop = Loop()
        self._is_started = False
        self._heard = 0
        """Packets, of those that the marker counts."""
        self._loop.add(main.fileno(), self._on_main)

    @abstractmethod
    def run(self) -> None:
        """Until main ends."""

    @abstractmethod
    def _obey(self, message: object, fds: Fds) -> None:
        """Does what main says. Descriptors that are not stolen are closed."""

    def _wait_for_start(self) -> bool:
        """Hears main until _start(): nobody else is listened to before we have shed our privileges, and main waits for us while
        it tells us all. False: it has ended."""
        while not self._is_started:
            if not self._hear_main():
                return False
        return True

    def _start(self, message: object) -> None:
        """`message` says that we serve."""
        self._say(message)
        self._is_started = True

    def _on_main(self, _events: int) -> None:
        if not self._hear_main():
            self._loop.stop()

    def _hear_main(self) -> bool:
        """Does what main says next. False: it has ended."""
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
        """Does all that main has said by now, also what still waits to be sent: before it answered somebody whom we hear next.
        False: it has ended."""
        while self._heard < self._marker.sent():
            if not self._hear_main():
                return False
        return True

    def _say(self, message: object, fds: Sequence[int] = ()) -> None:
        try:
            send_packet(self._main, self._outgoing.encode(message), fds)
        except OSError:
            self._loop.stop()  # it has ended


def serve(name: str, make: Callable[[socket.socket, Marker], Worker], socket_fd: int, marker_fd: int) -> None:
    """Runs a service. `name`: what ps shows, of 15 characters at the most."""
    libc.set_process_name(name)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # main's, which ends us
    make(socket.socket(fileno=socket_fd), Marker(marker_fd)).run()
