# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ivshmem process as main has it, which watches the QEMUs that are connected.

One that dies is started again and gets everything back, and no QEMU notices.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kvmchand.errors import ProtocolError, VchanError
from kvmchand.ids import DeviceId
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.supervisor import ServiceEvents, SupervisedService
from kvmchand.services.ivshmem.ports import Port
from kvmchand.wire import ivshmem
from kvmchand.wire.packet import Fds

_Told = tuple[bytes, Sequence[int]]
"""A packet, and the descriptors that go with it."""


@dataclass(frozen=True, slots=True)
class _Device:
    """What the process is told of a device. `events`: of each peer."""

    number: DeviceId
    events: Mapping[int, Sequence[int]]
    ports: Collection[Port]

    def introduction(self) -> Iterator[_Told]:
        yield _packet(ivshmem.Device(self.number))
        for events in self.events.values():
            for first in range(0, len(events), ivshmem.EVENTS_PER_PACKET):
                yield _packet(ivshmem.Events(self.number), events[first : first + ivshmem.EVENTS_PER_PACKET])
        for port in self.ports:
            if port.is_listening or port.connection is None:
                yield _packet(ivshmem.Listener(self.number), [port.listener.sock.fileno()])


class Watcher(ServiceEvents):
    """The process, the devices that it knows, and the connections that it watches."""

    def __init__(self, loop: Loop, user: str, fail: Callable[[VchanError], None]) -> None:
        """Watch nothing. `user`: whom the process runs as; `fail`: as for SupervisedService."""
        self._user = user
        self._devices: dict[DeviceId, _Device] = {}
        self._connected: dict[int, Port] = {}
        """By the number of the connection."""
        self._last = 0
        """The highest number of a connection so far."""
        self._service = SupervisedService(loop, "ivshmem", fail)

    def start(self) -> None:
        """Start the process."""
        self._service.start(self)

    def stop(self) -> None:
        """End the process. It sends everyone an event."""
        self._service.stop()

    def drain(self) -> None:
        """Take what the process has said so far."""
        self._service.drain()

    def add(self, number: DeviceId, events: Mapping[int, Sequence[int]], ports: Collection[Port]) -> None:
        """Let the process have a device, for when main has ended. All stays the caller's."""
        device = self._devices[number] = _Device(number, events, ports)
        for data, fds in device.introduction():
            self._service.send(data, fds)

    def remove(self, number: DeviceId) -> None:
        """Let the process close everything of a device."""
        del self._devices[number]
        self._service.send(*_packet(ivshmem.Remove(number)))

    def watch(self, port: Port) -> None:
        """Watch a QEMU that has just connected, and not the one before it."""
        self.forget(port)
        self._last += 1
        self._connected[self._last] = port
        self._service.send(*_connection(self._last, port))

    def forget(self, port: Port) -> None:
        """Take nothing more that the process says of a port's connection."""
        self._connected = {number: each for number, each in self._connected.items() if each is not port}

    # ---- the ivshmem process: ServiceEvents ----

    def first_messages(self) -> list[_Told]:
        """Return what a new ivshmem process is told."""
        told = [each for device in self._devices.values() for each in device.introduction()]
        told += [_connection(number, port) for number, port in self._connected.items()]
        return [*told, _packet(ivshmem.Start(self._user))]

    def decode(self, data: bytes, _fds: Fds) -> object:
        """Return the message of a packet."""
        message = ivshmem.to_main.decode(data)
        if isinstance(message, ivshmem.Gone) and not 0 < message.connection <= self._last:
            raise ProtocolError(f"there has been no connection {message.connection}")
        return message

    def on_message(self, message: object) -> None:
        """React to what the ivshmem process said."""
        self._service.reset_failures()
        if isinstance(message, ivshmem.Gone) and message.connection in self._connected:
            self._connected[message.connection].end()

    def on_death(self, culprit: int | None) -> None:
        """End the connection whose bytes ended the ivshmem process."""
        port = self._connected.get(culprit or 0)
        if port is not None:
            log.warning(f"{port} loses its connection: its bytes ended the ivshmem process")
            port.end()


def _connection(number: int, port: Port) -> _Told:
    fds = [port.connection.sock.fileno()] if port.connection is not None else []
    return _packet(ivshmem.Connection(number, port.device.number), fds)


def _packet(message: object, fds: Sequence[int] = ()) -> _Told:
    return ivshmem.to_ivshmem.encode(message), fds
