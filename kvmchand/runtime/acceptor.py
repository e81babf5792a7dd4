# SPDX-License-Identifier: LGPL-2.1-or-later
"""A service that accepts on main's listening sockets, and numbers its clients.

The local process and the store processes have this in common.
"""

from __future__ import annotations

import socket
from abc import abstractmethod

from kvmchand.errors import VchanError
from kvmchand.ids import ClientId, DomainId
from kvmchand.runtime import closer
from kvmchand.runtime.listener import Listener, Spare
from kvmchand.runtime.marker import Marker
from kvmchand.runtime.privileges import drop_privileges
from kvmchand.runtime.worker import Worker
from kvmchand.wire import local
from kvmchand.wire.codec import Codec
from kvmchand.wire.packet import Fds


class Acceptor(Worker):
    """A service process that accepts connections."""

    def __init__(self, main: socket.socket, marker: Marker, incoming: Codec, outgoing: Codec) -> None:
        super().__init__(main, marker, incoming, outgoing)
        self._listeners: dict[DomainId, Listener] = {}
        self._next = 1
        self._spare = Spare()

    @abstractmethod
    def _on_accepted(self, number: ClientId, listener: Listener, sock: socket.socket) -> None:
        """Take a new connection that may connect."""

    @abstractmethod
    def _on_refused(self, listener: Listener, sock: socket.socket, error: VchanError) -> None:
        """Tell a connection why it may not connect; it is closed afterwards."""

    @abstractmethod
    def _on_restored(self, number: ClientId, listener: Listener, sock: socket.socket) -> None:
        """Take over a connection of an earlier process."""

    def _obey(self, message: object, fds: Fds) -> None:
        match message:
            case local.Listen():
                (fd,) = fds.steal()
                listener = Listener(socket.socket(fileno=fd), message, self._spare)
                self._listeners[message.domain] = listener
                self._loop.add(fd, lambda _events: self._on_connection(listener))
            case local.Restore():
                (fd,) = fds.steal()
                self._on_restored(message.client, self._listeners[message.domain], socket.socket(fileno=fd))
            case local.Start():
                self._next = message.first_client
                drop_privileges(message.user)
                self._start(local.Started())

    def _on_connection(self, listener: Listener) -> None:
        sock = listener.accept()
        if sock is None:
            return
        try:
            listener.check(sock)
        except VchanError as error:
            self._on_refused(listener, sock, error)
            closer.close(sock)
            return
        number, self._next = ClientId(self._next), self._next + 1
        self._on_accepted(number, listener, sock)
