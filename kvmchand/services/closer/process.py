# SPDX-License-Identifier: LGPL-2.1-or-later
"""The closer process: closes what our other processes must not wait for.

A thread that closes something may wait for as long as an outsider likes. If one does, another goes
on. When too many wait, the process ends, which closes everything, and main starts the next.
"""

from __future__ import annotations

import os
import socket
import time
from queue import SimpleQueue
from threading import Thread

from kvmchand.runtime import closer as way
from kvmchand.runtime.loop import Timer
from kvmchand.runtime.marker import Marker
from kvmchand.runtime.privileges import drop_privileges
from kvmchand.runtime.worker import Worker, serve
from kvmchand.wire import closer
from kvmchand.wire.packet import Fds, receive_packet

_THREADS_MAX = 64
_PATIENCE = 0.05
"""Seconds without anything closed, after which another thread begins."""


class Closer(Worker):
    """The process's whole state."""

    def __init__(self, main: socket.socket, marker: Marker) -> None:
        super().__init__(main, marker, closer.to_closer, closer.to_main)
        self._held: dict[bytes, Fds] = {}
        """What its sender has not closed yet. Else the sender might be the last to close it."""
        self._queue: SimpleQueue[Fds] = SimpleQueue()
        self._threads = 0
        self._closed = 0.0
        """When a thread has last closed something."""
        self._look: Timer | None = None
        """Looks whether they go on."""

    def run(self) -> None:
        """Serve until main and all others have ended."""
        if self._wait_for_start():
            self._loop.run()
        os._exit(0)  # without a wait for the threads

    def _obey(self, message: object, fds: Fds) -> None:
        match message:
            case closer.Start():
                (fd,) = fds.steal()
                source = socket.socket(fileno=fd)
                self._loop.add(fd, lambda _events: self._on_packet(source))
                drop_privileges(message.user)
                self._start(closer.Started())

    def _on_main(self, _events: int) -> None:
        if not self._hear_main():
            self._loop.remove(self._main.fileno())

    def _on_packet(self, source: socket.socket) -> None:
        tag, fds = receive_packet(source)
        if not tag:
            self._loop.stop()
        elif len(fds):
            self._held[tag] = fds
        elif tag in self._held:
            self._close(self._held.pop(tag))

    def _close(self, fds: Fds) -> None:
        self._queue.put(fds)
        if not self._threads:
            self._add_thread()
        self._watch()

    def _watch(self) -> None:
        if self._look is None or not self._look.is_waiting:
            closed = self._closed
            self._look = self._loop.call_at(time.monotonic() + _PATIENCE, lambda: self._see_to_threads(closed))

    def _see_to_threads(self, closed: float) -> None:
        """Add a thread if none has closed anything since `closed`."""
        if self._queue.empty():
            return
        if closed == self._closed:
            self._add_thread()
        self._watch()

    def _add_thread(self) -> None:
        if self._threads == _THREADS_MAX:
            os._exit(1)
        self._threads += 1
        Thread(target=self._close_all, daemon=True).start()

    def _close_all(self) -> None:
        while True:
            self._queue.get().close()
            self._closed = time.monotonic()


def main(socket_fd: int, marker_fd: int) -> None:
    """Run the process."""
    way.forget()  # else it would wait for itself to end
    serve("kvmchand-closer", Closer, socket_fd, marker_fd)
