# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ivshmem process: watches the connections of the QEMUs that have devices.

In the ivshmem protocol only the server speaks, and main has said everything. So all that a QEMU can
do is to end its connection: it has let go of the device. One that says anything loses its
connection, and nothing else does.

When main has ended, this process is the last that has the devices' events and listeners: it tells
everyone, and leaves no QEMU waiting: it ends when all have read what they were told.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

from kvmchand.ids import DeviceId
from kvmchand.linux.eventfd import signal_event
from kvmchand.runtime import closer, log
from kvmchand.runtime.marker import Marker
from kvmchand.runtime.privileges import drop_privileges
from kvmchand.runtime.worker import Worker, serve
from kvmchand.services.ivshmem.handshake import refuse_all
from kvmchand.services.ivshmem.unread import wait_read
from kvmchand.wire import ivshmem
from kvmchand.wire.packet import AT_ONCE, Fds


@dataclass(slots=True, eq=False)
class Device:
    """A device: the events of all its peers, its listeners, and its connections by number.

    close() closes all of these.
    """

    events: list[int] = field(default_factory=list)
    listeners: list[socket.socket] = field(default_factory=list)
    connections: dict[int, socket.socket] = field(default_factory=dict)

    def abandon(self) -> list[socket.socket]:
        """Send an event to everyone, and refuse the QEMUs that wait.

        Returns the connections that may not be read to the end yet.
        """
        for event in self.events:
            signal_event(event)
        refused = [each for listener in self.listeners for each in refuse_all(listener)]
        return [*self.connections.values(), *refused]

    def close(self) -> None:
        """Close the descriptors. Main ends the connections."""
        for event in self.events:
            os.close(event)
        for listener in self.listeners:
            closer.close(listener)
        for connection in self.connections.values():
            closer.close(connection)


class Ivshmem(Worker):
    """The process's whole state."""

    def __init__(self, main: socket.socket, marker: Marker) -> None:
        super().__init__(main, marker, ivshmem.to_ivshmem, ivshmem.to_main)
        self._devices: dict[DeviceId, Device] = {}

    def run(self) -> None:
        """Serve until main ends."""
        if self._wait_for_start():
            self._loop.run()
        wait_read([each for device in self._devices.values() for each in device.abandon()])

    # ---- main ----

    def _obey(self, message: object, fds: Fds) -> None:
        match message:
            case ivshmem.Device():
                self._devices[message.device] = Device()
            case ivshmem.Events():
                self._devices[message.device].events += fds.steal()
            case ivshmem.Listener():
                (fd,) = fds.steal()
                self._devices[message.device].listeners.append(socket.socket(fileno=fd))
            case ivshmem.Connection():
                (fd,) = fds.steal()
                self._watch(self._devices[message.device], message.connection, socket.socket(fileno=fd))
            case ivshmem.Remove():
                device = self._devices.pop(message.device)
                for connection in device.connections.values():
                    self._loop.remove(connection.fileno())
                device.close()
            case ivshmem.Start():
                drop_privileges(message.user)
                self._start(ivshmem.Started())

    # ---- QEMUs ----

    def _watch(self, device: Device, number: int, connection: socket.socket) -> None:
        device.connections[number] = connection
        self._loop.add(connection.fileno(), lambda _events: self._on_ready(device, number))

    def _on_ready(self, device: Device, number: int) -> None:
        connection = device.connections[number]
        self._marker.set(number)
        try:
            said = connection.recv(1, socket.MSG_PEEK | AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        finally:
            self._marker.clear()
        if said:
            log.warning(
                "a QEMU said something, which the ivshmem protocol does not have: its connection is ended", whose="a QEMU"
            )
        del device.connections[number]
        self._loop.remove(connection.fileno())
        closer.hang_up(connection)
        self._say(ivshmem.Gone(number))


def main(socket_fd: int, marker_fd: int) -> None:
    """Run the process."""
    serve("kvmchand-ivshm", Ivshmem, socket_fd, marker_fd)
