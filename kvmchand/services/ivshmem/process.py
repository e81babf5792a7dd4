# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ivshmem process: the server side of QEMU's ivshmem protocol, for all devices.

It makes nothing itself: memory, event descriptors and listening sockets come from main, and it
hands them to the QEMU that gets a device. In this protocol (QEMU's docs/specs/ivshmem-spec, version
0) only the server speaks: each message is an 8-byte number with at most one descriptor. A peer's id
comes once for each vector, with the eventfd of that vector. A QEMU that says anything loses its
connection, and nothing else does.

In its handshake, a QEMU is told of every peer that its device will ever have, and nothing after
that: a peer's eventfds belong to the device, and exist before the peer does. The protocol also has
a message for a peer that goes, which we never send: QEMU 7.2 would free that peer's eventfds twice
when the device is unplugged later, and crash (close_peer_eventfds).
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvmchand.ids import DeviceId
from kvmchand.linux import libc
from kvmchand.linux.eventfd import signal_event
from kvmchand.runtime import log
from kvmchand.runtime.loop import READABLE, WRITABLE
from kvmchand.runtime.marker import Marker
from kvmchand.runtime.privileges import drop_privileges
from kvmchand.runtime.worker import Worker, serve
from kvmchand.wire import ivshmem
from kvmchand.wire.packet import AT_ONCE, Fds, send_packet

_VERSION = 0
_MEMORY = -1
_NUMBER = struct.Struct("<q")

Telling = tuple[int, int | None]
"""One message: the number, and the descriptor beside it."""


def handshake(peer: int, memory: int, events: Mapping[int, Sequence[int]]) -> list[Telling]:
    """Return what the QEMU that is `peer` is told.

    It hears of itself last, because it takes that as the end.
    """
    told: list[Telling] = [(_VERSION, None), (peer, None), (_MEMORY, memory)]
    for other in (*(each for each in events if each != peer), peer):
        told += [(other, event) for event in events[other]]
    return told


@dataclass(slots=True, eq=False)
class Connection:
    """A QEMU's connection. `queue`: what remains to be sent."""

    sock: socket.socket
    queue: deque[Telling] = field(default_factory=deque)

    def close(self) -> None:
        """End the connection, for main's duplicate, too."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # gone already
        self.sock.close()


@dataclass(slots=True, eq=False)
class Port:
    """Where one QEMU connects. Its last connection counts, and nobody else gets one meanwhile.

    `listener`: None after the only connection that there may be.
    """

    device: Device
    peer: int
    listener: socket.socket | None = None
    once: bool = False
    connection: Connection | None = None

    def __str__(self) -> str:
        return f"the QEMU that is peer {self.peer} of device {self.device.number}"


@dataclass(slots=True, eq=False)
class Device:
    """A device. `events`: one for each peer and vector. close() closes all descriptors in it."""

    number: DeviceId
    memory: int
    events: dict[int, list[int]] = field(default_factory=dict)
    ports: dict[int, Port] = field(default_factory=dict)

    def signal(self) -> None:
        """Send an event to everyone."""
        for events in self.events.values():
            for event in events:
                signal_event(event)

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.memory)
        for events in self.events.values():
            for event in events:
                os.close(event)


class Ivshmem(Worker):
    """The process's whole state."""

    def __init__(self, main: socket.socket, marker: Marker) -> None:
        super().__init__(main, marker, ivshmem.to_ivshmem, ivshmem.to_main)
        self._devices: dict[DeviceId, Device] = {}
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def run(self) -> None:
        """Serve until main ends."""
        if self._wait_for_start():
            self._loop.run()
        # Main has ended: who waits for an event on a device would wait for ever, and must find that
        # it has.
        for device in self._devices.values():
            device.signal()

    # ---- main ----

    def _obey(self, message: object, fds: Fds) -> None:
        match message:
            case ivshmem.Device():
                (memory,) = fds.steal()
                self._devices[message.device] = Device(message.device, memory)
            case ivshmem.Peer():
                self._devices[message.device].events.setdefault(message.peer, []).extend(fds.steal())
            case ivshmem.Slot():
                (fd,) = fds.steal()
                port = Port(self._devices[message.device], message.peer, socket.socket(fileno=fd), message.once)
                self._add_port(port)
            case ivshmem.Restore():
                (fd,) = fds.steal()
                device = self._devices[message.device]
                port = device.ports.setdefault(message.peer, Port(device, message.peer))
                self._watch(port, Connection(socket.socket(fileno=fd)))
            case ivshmem.Remove():
                self._remove(self._devices.pop(message.device))
            case ivshmem.Start():
                drop_privileges(message.user)
                self._start(ivshmem.Started())

    def _add_port(self, port: Port) -> None:
        port.device.ports[port.peer] = port
        listener = port.listener
        if listener is not None:
            self._loop.add(listener.fileno(), lambda _events: self._on_connection(port, listener))

    def _stop_listening(self, port: Port) -> None:
        if port.listener is not None:
            self._loop.remove(port.listener.fileno())
            port.listener.close()
            port.listener = None

    def _remove(self, device: Device) -> None:
        for port in device.ports.values():
            self._stop_listening(port)
            if port.connection is not None:
                self._loop.remove(port.connection.sock.fileno())
                port.connection.close()
        device.close()

    # ---- QEMUs ----

    def _on_connection(self, port: Port, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning(f"{port} is refused, for lack of descriptors: {error.strerror}")
            self._refuse_without_descriptors(listener)
            return
        if port.connection is not None:
            # It may have gone, and the loop be about to say so.
            self._on_ready(port, port.connection, READABLE)
        if port.connection is not None:
            if not libc.are_of_one_process(port.connection.sock, sock):
                log.warning(f"{port} is connected: another that connected is refused")
                sock.close()
                return
            # Libvirtd ended while it plugged the device, and the next one begins anew.
            self._loop.remove(port.connection.sock.fileno())
            port.connection.close()
        new = Connection(sock, deque(handshake(port.peer, port.device.memory, port.device.events)))
        self._watch(port, new)
        self._say(ivshmem.Connected(port.device.number, port.peer), (sock.fileno(),))
        if port.once:
            self._stop_listening(port)

    def _refuse_without_descriptors(self, listener: socket.socket) -> None:
        """Take a connection off the backlog and close it.

        Otherwise it would keep waking the loop.
        """
        os.close(self._spare)
        try:
            listener.accept()[0].close()
        except OSError:
            pass
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _watch(self, port: Port, connection: Connection) -> None:
        connection.sock.setblocking(False)
        port.connection = connection
        wanted = READABLE | WRITABLE if connection.queue else READABLE
        self._loop.add(connection.sock.fileno(), lambda events: self._on_ready(port, connection, events), wanted)

    def _on_ready(self, port: Port, connection: Connection, events: int) -> None:
        try:
            if events & ~WRITABLE:
                self._hear(port, connection)
            else:
                self._send(port, connection)
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(port, connection, "" if isinstance(error, ConnectionError) else f"can't be told: {error.strerror}")

    def _hear(self, port: Port, connection: Connection) -> None:
        self._marker.set(port.device.number)
        try:
            said = connection.sock.recv(1)
        finally:
            self._marker.clear()
        self._end(port, connection, "said something, which the protocol does not have" if said else "")

    def _send(self, port: Port, connection: Connection) -> None:
        """Send until the queue is empty. Raises BlockingIOError if the socket is full."""
        while connection.queue:
            number, fd = connection.queue[0]
            send_packet(connection.sock, _NUMBER.pack(number), () if fd is None else (fd,), AT_ONCE)
            connection.queue.popleft()
        self._loop.modify(connection.sock.fileno(), READABLE)
        self._say(ivshmem.Served(port.device.number, port.peer))

    def _end(self, port: Port, connection: Connection, why: str) -> None:
        """End a connection. `why`: what its QEMU did, if it broke the protocol."""
        if why:
            log.warning(f"{port} {why}: its connection is ended")
        port.connection = None
        self._loop.remove(connection.sock.fileno())
        connection.close()
        self._say(ivshmem.Gone(port.device.number, port.peer))


def main(socket_fd: int, marker_fd: int) -> None:
    """Run the process."""
    serve("kvmchand-ivshm", Ivshmem, socket_fd, marker_fd)
