# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ivshmem devices as main has them: their memory, events, sockets, and the ivshmem process.

A device lives from create() to remove(). An ivshmem process that dies is started again and gets
everything back, including the connections of QEMUs that were told everything. Connections in the
middle of a handshake are ended, because nobody knows how far they were: their QEMU does not connect
again, and the device has to be plugged again.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kvmchand.channels.device import Device
from kvmchand.errors import InvalidArgument, OutOfResources, ProtocolError, VchanError
from kvmchand.ids import HOST_PEER, DeviceId, DomainId
from kvmchand.linux import libc
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.supervisor import ServiceEvents, SupervisedService
from kvmchand.wire import ivshmem
from kvmchand.wire.packet import Fds

_SECRET_BYTES = 16
_PATH_MAX = 107
"""Bytes of a socket's path (sun_path has 108, with its NUL)."""
_BACKLOG = 4
"""One QEMU connects, and waits here while the ivshmem process is restarted."""


@dataclass(slots=True)
class _Connection:
    """Our duplicate of a QEMU's connection.

    `served`: it was told everything, and that was reported.
    """

    sock: socket.socket
    served: bool = False


@dataclass(frozen=True, slots=True)
class Listener:
    """Where a QEMU connects.

    `path`: a secret; whoever knows it gets the device. `bound`: the path by which the kernel knows
    the socket.
    """

    path: Path
    bound: str
    sock: socket.socket

    def close(self) -> None:
        """Close the socket and remove its path."""
        self.sock.close()
        self.path.unlink(missing_ok=True)


@dataclass(slots=True)
class _Port:
    """One guest's way to a device. `once`: the listener serves another device after this one."""

    device: Device
    peer: int
    listener: Listener
    once: bool
    connection: _Connection | None = None

    @property
    def domain(self) -> DomainId:
        """Return the guest's number."""
        return next(domain for domain, peer in self.device.peers.items() if peer == self.peer)

    def adopt(self, fds: Fds) -> None:
        """Take ownership of a connection, the one descriptor in `fds`.

        It takes the place of an earlier one of the same process. Raises OSError if it is not a
        connection to this port.
        """
        if len(fds) != 1:
            raise ProtocolError(f"domain {self.domain}'s QEMU can't have connected: its connection is missing")
        sock = socket.socket(fileno=fds.borrow()[0])
        fds.steal()
        try:
            if sock.getsockname() != self.listener.bound:
                raise ProtocolError(f"domain {self.domain}'s QEMU can't have connected by another's socket")
            if self.connection is not None and not libc.are_of_one_process(self.connection.sock, sock):
                raise ProtocolError(f"domain {self.domain}'s QEMU can't have connected: another one is connected")
        except BaseException:
            sock.close()
            raise
        self.let_go()
        self.connection = _Connection(sock)

    def let_go(self) -> _Connection | None:
        """Close the connection, and return what it was."""
        was, self.connection = self.connection, None
        if was is not None:
            was.sock.close()
        return was


@dataclass(slots=True)
class _Made:
    """A device that exists.

    `events`: one for each peer and vector. `ports`: each guest's, by its ivshmem id.
    """

    device: Device
    memory: int
    events: dict[int, list[int]]
    ports: dict[int, _Port]
    undo: ExitStack

    def close(self) -> None:
        """Close everything of the device."""
        for port in self.ports.values():
            port.let_go()
        self.undo.close()


class DeviceEvents(Protocol):
    """Hears which QEMU has a device. May create and remove devices when it is called."""

    def on_served(self, device: Device, domain: DomainId) -> None:
        """React when that guest's QEMU has been sent the whole device. It is about to read it."""

    def on_unplugged(self, device: Device, domain: DomainId) -> None:
        """React when that guest's QEMU has let go of the device, or is not served any more.

        Called only after on_served(). The QEMU may connect again.
        """

    def on_cut_off(self, device: Device, domain: DomainId) -> None:
        """React when that guest's QEMU may have the device, but not all that makes it work.

        Called instead of on_served().
        """


class Devices(ServiceEvents):
    """The devices that exist, and the ivshmem process that gives them to QEMU."""

    _events: DeviceEvents
    """The object that start() was given."""

    def __init__(self, loop: Loop, directory: Path, user: str, fail: Callable[[VchanError], None]) -> None:
        """Make `directory`, for the sockets, and one beside it.

        `user` is whom the ivshmem process runs as; `fail` is called when that has ended for good.
        Raises InvalidArgument if the directory is unusable.
        """
        self._user = user
        self._made: dict[DeviceId, _Made] = {}
        self._last = 0
        """The highest device number so far."""
        self._numbers = itertools.count(1)
        self._directory = directory
        self._private = directory.with_name(f"{directory.name}.new")
        self._service = SupervisedService(loop, "ivshmem", fail)
        longest = len(os.fsencode(directory)) + 1 + 2 * _SECRET_BYTES
        if longest > _PATH_MAX:
            excess = longest - _PATH_MAX
            raise InvalidArgument(f"{directory} is too long a path for sockets: give a runtime_dir {excess} bytes shorter")
        self._undo = ExitStack()
        try:
            # QEMU runs as a user of its own, and must get by; only the secret name lets it in.
            self._prepare(self._directory, 0o711)
            self._prepare(self._private, 0o700)
        except OSError as error:
            self._undo.close()
            raise InvalidArgument(f"the directory {directory} can't be used for sockets: {error.strerror}") from error

    def _prepare(self, directory: Path, mode: int) -> None:
        directory.mkdir(exist_ok=True)
        self._undo.callback(_remove_directory, directory)
        directory.chmod(mode)
        for left in directory.iterdir():
            if left.is_socket():
                left.unlink()  # a daemon's that was killed

    def start(self, events: DeviceEvents) -> None:
        """Serve QEMUs. From now on `events` hears which has a device."""
        self._events = events
        self._service.start(self)

    # ---- devices ----

    def create(self, device: Device, listener: Listener | None = None) -> None:
        """Make everything of a device. Its guests' QEMUs may connect from now on.

        `listener`: of a device that one QEMU gets, once; it stays the caller's. Raises
        OutOfResources, and leaves nothing behind.
        """
        if device.size & (device.size - 1):
            raise InvalidArgument(f"a device of {device.size} bytes can't be: QEMU ends unless it is a power of two")
        with ExitStack() as undo:
            try:
                memory = os.memfd_create("kvmchan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                undo.callback(os.close, memory)
                os.ftruncate(memory, device.size)
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
                peers = [HOST_PEER, *device.peers.values()]
                events = {peer: [_event(undo) for _ in range(device.vectors)] for peer in peers}
                ports: dict[int, _Port] = {}
                for peer in device.peers.values():
                    at = listener
                    if at is None:
                        at = self.listen(secrets.token_hex(_SECRET_BYTES))
                        undo.callback(at.close)
                    ports[peer] = _Port(device, peer, at, once=listener is not None)
            except OSError as error:
                raise OutOfResources(
                    f"the daemon can't make a device of {device.size} bytes and {device.vectors} vectors: {error.strerror}"
                ) from error
            made = _Made(device, memory, events, ports, undo.pop_all())
        self._made[device.number] = made
        self._last = max(self._last, device.number)
        for message, beside in _introduction(made):
            self._service.send(ivshmem.to_ivshmem.encode(message), beside)

    def listen(self, name: str) -> Listener:
        """Return a socket in the directory, to which nobody is connected yet. Raises OSError."""
        with ExitStack() as undo:
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            # /proc/net/unix shows everyone the path that a socket was bound to, so the secret one
            # comes after that.
            bound = self._private / str(next(self._numbers))
            path = self._directory / name
            sock.bind(str(bound))
            undo.callback(bound.unlink, missing_ok=True)
            bound.chmod(0o666)
            sock.listen(_BACKLOG)
            bound.rename(path)
            undo.pop_all()
        return Listener(path, str(bound), sock)

    def memory(self, device: Device) -> int:
        """Return the memory's descriptor, which stays ours."""
        return self._made[device.number].memory

    def event(self, device: Device, peer: int, vector: int) -> int:
        """Return the eventfd that wakes `peer`; it stays ours."""
        return self._made[device.number].events[peer][vector]

    def socket_path(self, device: Device, domain: DomainId) -> Path:
        """Return the path that a guest's QEMU connects to.

        It is a secret, since whoever knows it gets the device.
        """
        return self._made[device.number].ports[device.peers[domain]].listener.path

    def is_connected(self, device: Device, domain: DomainId) -> bool:
        """Return whether that guest's QEMU has the device, or is about to get it."""
        return self._made[device.number].ports[device.peers[domain]].connection is not None

    def has_read(self, device: Device, domain: DomainId) -> bool:
        """Return whether that guest's QEMU has nothing left to read.

        It has read all of the device, or is not connected.
        """
        connection = self._made[device.number].ports[device.peers[domain]].connection
        return connection is None or (connection.served and libc.unread(connection.sock.fileno()) == 0)

    def zero(self, device: Device, offset: int, size: int) -> None:
        """Make a part of the memory read as zero, and free it until it is written again."""
        libc.punch_hole(self._made[device.number].memory, offset, size)

    @staticmethod
    def fds(device: Device) -> int:
        """Return the most descriptors that we have of a device.

        They are the memory, an event for each vector of each peer including the host, and for each
        guest a socket and its QEMU's connection. The ivshmem process has as many.
        """
        return 1 + (1 + len(device.peers)) * device.vectors + 2 * len(device.peers)

    def drain(self) -> None:
        """Take what the ivshmem process has said so far."""
        self._service.drain()

    def remove(self, device: Device) -> None:
        """Close everything of a device. A QEMU that still has it keeps what it has."""
        made = self._made.pop(device.number)
        self._service.send(ivshmem.to_ivshmem.encode(ivshmem.Remove(device.number)))
        made.close()

    def close(self) -> None:
        """Close all devices. The ivshmem process, once it is alone, sends everyone an event."""
        self._service.stop()
        for made in self._made.values():
            made.close()
        self._made.clear()
        self._undo.close()

    # ---- the ivshmem process: ServiceEvents ----

    def first_messages(self) -> list[tuple[bytes, Sequence[int]]]:
        """Return what a new ivshmem process is told."""
        told: list[tuple[object, Sequence[int]]] = []
        for made in self._made.values():
            told += _introduction(made)
        for made in self._made.values():
            for peer, port in made.ports.items():
                if port.connection is not None and port.connection.served:
                    told.append((ivshmem.Restore(made.device.number, peer), [port.connection.sock.fileno()]))
        told.append((ivshmem.Start(self._user), []))
        return [(ivshmem.to_ivshmem.encode(message), beside) for message, beside in told]

    def decode(self, data: bytes, fds: Fds) -> tuple[_Made, _Port, object] | None:
        """Return the device, port and message of a packet, or None if the device is gone."""
        message = ivshmem.to_main.decode(data)
        if isinstance(message, ivshmem.Started):
            return None
        made = self._made.get(message.device)
        if made is None:
            if message.device > self._last:
                raise ProtocolError(f"there has been no device {message.device}")
            return None  # it was removed meanwhile
        port = made.ports[message.peer]
        if isinstance(message, ivshmem.Connected):
            port.adopt(fds)
        elif port.connection is None:
            raise ProtocolError(f"nobody is connected as peer {message.peer} of device {message.device}")
        return made, port, message

    def on_message(self, message: object) -> None:
        """React to what the ivshmem process said."""
        if not isinstance(message, tuple):
            return
        made, port, said = message
        self._service.reset_failures()
        match said:
            case ivshmem.Served():
                if port.connection is not None and not port.connection.served:
                    port.connection.served = True
                    self._events.on_served(made.device, port.domain)
            case ivshmem.Gone():
                self._on_gone(made, port)

    def _on_gone(self, made: _Made, port: _Port) -> None:
        was = port.let_go()
        if was is not None and was.served:
            self._events.on_unplugged(made.device, port.domain)
        elif was is not None:
            self._events.on_cut_off(made.device, port.domain)

    def on_death(self, culprit: int | None) -> None:
        """End what the ivshmem process was doing when it died."""
        for made in list(self._made.values()):
            for port in made.ports.values():
                if port.connection is None:
                    continue
                if made.device.number == culprit:
                    why = "its device's bytes ended the ivshmem process"
                elif not port.connection.served:
                    why = "it was being told of the device"
                else:
                    continue
                log.warning(f"domain {port.domain}'s connection for device {made.device.number} is ended, for {why}")
                _hang_up(port.connection.sock)
                self._on_gone(made, port)


def _introduction(made: _Made) -> Iterator[tuple[object, Sequence[int]]]:
    """Return what the ivshmem process is told of a device, and the descriptors that go with it."""
    number = made.device.number
    yield ivshmem.Device(number), [made.memory]
    for peer, events in made.events.items():
        for first in range(0, len(events), ivshmem.EVENTS_PER_PACKET):
            yield ivshmem.Peer(number, peer), events[first : first + ivshmem.EVENTS_PER_PACKET]
    for peer, port in made.ports.items():
        if not port.once or port.connection is None:
            yield ivshmem.Slot(number, peer, port.once), [port.listener.sock.fileno()]


def _event(undo: ExitStack) -> int:
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    undo.callback(os.close, event)
    return event


def _hang_up(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # gone already


def _remove_directory(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        pass  # something of someone else's is in it
