# SPDX-License-Identifier: LGPL-2.1-or-later
"""Main's side of the closer process, which runs only where a socket can't refuse descriptors."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from kvmchand.errors import VchanError
from kvmchand.runtime import closer as way
from kvmchand.runtime import passrights
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.supervisor import ServiceEvents, SupervisedService
from kvmchand.wire import closer
from kvmchand.wire.packet import Fds


class Closer(ServiceEvents):
    """The process, and the socket pair over which all our processes reach whichever runs."""

    def __init__(self, loop: Loop, user: str, fail: Callable[[VchanError], None]) -> None:
        """Start it, where it is needed. `fail` is called when it has ended for good."""
        self._user = user
        self._service = SupervisedService(loop, "closer", fail)
        self._socks: tuple[socket.socket, ...] = ()
        if passrights.can_refuse():
            return
        self._socks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        way.use(self._socks[0])
        self._service.start(self)

    def first_messages(self) -> list[tuple[bytes, Sequence[int]]]:
        """Return what a new process is told."""
        return [(closer.to_closer.encode(closer.Start(self._user)), [self._socks[1].fileno()])]

    def decode(self, data: bytes, _fds: Fds) -> object:
        """Return what the process says."""
        return closer.to_main.decode(data)

    def on_message(self, _message: object) -> None:
        """React to its start: that it ends now and then is no failure."""
        self._service.reset_failures()

    def on_death(self, _culprit: int | None) -> None:
        """React to nothing: what it was given is closed."""

    def close(self) -> None:
        """End the process. What is closed from now on may wait."""
        way.forget()
        for sock in self._socks:
            sock.close()  # it ends when it has read everything
        self._service.stop()
