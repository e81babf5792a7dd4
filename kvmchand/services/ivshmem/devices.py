# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ivshmem devices: their memory, their events, and the QEMUs that have them.

A device lives from create() to remove(). Main gives it to each QEMU that connects, and the ivshmem
process watches the connection from then on.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import socket
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kvmchand.channels.device import Device
from kvmchand.errors import InvalidArgument, OutOfResources, VchanError
from kvmchand.ids import HOST_PEER, DeviceId, DomainId
from kvmchand.linux import mapping
from kvmchand.linux.burst import Burst
from kvmchand.runtime import passrights
from kvmchand.runtime.loop import Loop
from kvmchand.services.ivshmem.handshake import handshake
from kvmchand.services.ivshmem.ports import Listener, Port, PortEvents, Spare
from kvmchand.services.ivshmem.unread import Unread
from kvmchand.services.ivshmem.watcher import Watcher

_SECRET_BYTES = 16
_PATH_MAX = 107
"""Bytes of a socket's path (sun_path has 108, with its NUL)."""
_BACKLOG = 4
"""One QEMU connects, and waits here while the ivshmem process is restarted."""


@dataclass(slots=True)
class _Made:
    """A device that exists.

    `events`: one for each peer and vector. `ports`: each guest's, by its ivshmem id.
    """

    device: Device
    memory: int
    events: dict[int, list[int]]
    ports: dict[int, Port]
    undo: ExitStack


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


class Devices(PortEvents):
    """The devices that exist."""

    _events: DeviceEvents
    """The object that start() was given."""

    def __init__(self, loop: Loop, directory: Path, user: str, fail: Callable[[VchanError], None]) -> None:
        """Make `directory`, for the sockets, and one beside it.

        `user` is whom the ivshmem process runs as; `fail` is called when that has ended for good.
        Raises InvalidArgument if the directory is unusable.
        """
        self._loop = loop
        self._made: dict[DeviceId, _Made] = {}
        self._sockets = itertools.count(1)
        self._directory = directory
        self._private = directory.with_name(f"{directory.name}.new")
        self._watcher = Watcher(loop, user, fail)
        self._unread = Unread(loop)
        longest = len(os.fsencode(directory)) + 1 + 2 * _SECRET_BYTES
        if longest > _PATH_MAX:
            excess = longest - _PATH_MAX
            raise InvalidArgument(f"{directory} is too long a path for sockets: give a runtime_dir {excess} bytes shorter")
        self._undo = ExitStack()
        self._spare = Spare()
        self._undo.callback(self._spare.close)
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
        self._watcher.start()

    # ---- devices ----

    def create(self, device: Device, listener: Listener | None = None, *, without_kvm: Collection[DomainId] = ()) -> None:
        """Make everything of a device. Its guests' QEMUs may connect from now on.

        `listener`: of a device that one QEMU gets, once; it stays the caller's. `without_kvm`: the
        guests whose QEMU does without KVM. Raises OutOfResources, and leaves nothing behind.
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
                ports: dict[int, Port] = {}
                for domain, peer in device.peers.items():
                    at = listener
                    if at is None:
                        at = self.listen(secrets.token_hex(_SECRET_BYTES))
                        undo.callback(at.close)
                    burst = Burst(handshake(peer, memory, events, has_kvm=domain not in without_kvm))
                    once = listener is not None
                    ports[peer] = Port(self._loop, self, self._spare, device, peer, at, burst, once=once)
            except OSError as error:
                raise OutOfResources(
                    f"the daemon can't make a device of {device.size} bytes and {device.vectors} vectors: {error.strerror}"
                ) from error
            made = _Made(device, memory, events, ports, undo.pop_all())
        self._made[device.number] = made
        self._watcher.add(device.number, events, ports.values())
        for port in ports.values():
            port.listen()

    def listen(self, name: str) -> Listener:
        """Return a socket in the directory, to which nobody is connected yet. Raises OSError."""
        with ExitStack() as undo:
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            passrights.refuse(sock)
            # /proc/net/unix shows everyone the path that a socket was bound to, so the secret one
            # comes after that.
            bound = self._private / str(next(self._sockets))
            path = self._directory / name
            sock.bind(str(bound))
            undo.callback(bound.unlink, missing_ok=True)
            bound.chmod(0o666)
            sock.listen(_BACKLOG)
            bound.rename(path)
            undo.pop_all()
        return Listener(path, sock, self._unread)

    def memory(self, device: Device) -> int:
        """Return the memory's descriptor, which stays ours."""
        return self._made[device.number].memory

    def event(self, device: Device, peer: int, vector: int) -> int:
        """Return the eventfd that wakes `peer`; it stays ours."""
        return self._made[device.number].events[peer][vector]

    def _port(self, device: Device, domain: DomainId) -> Port:
        return self._made[device.number].ports[device.peers[domain]]

    def socket_path(self, device: Device, domain: DomainId) -> Path:
        """Return the path that a guest's QEMU connects to.

        It is a secret, since whoever knows it gets the device.
        """
        return self._port(device, domain).listener.path

    def is_connected(self, device: Device, domain: DomainId) -> bool:
        """Return whether that guest's QEMU has the device, or is about to get it."""
        return self._port(device, domain).connection is not None

    def has_read(self, device: Device, domain: DomainId) -> bool:
        """Return whether that guest's QEMU has nothing left to read.

        It has read all of the device, or is not connected.
        """
        return self._port(device, domain).has_read

    def zero(self, device: Device, offset: int, size: int) -> None:
        """Overwrite a part of the memory with zeroes."""
        mapping.zero(self._made[device.number].memory, offset, size)

    @staticmethod
    def fds(device: Device) -> int:
        """Return the most descriptors that we have of a device.

        They are the memory, an event for each vector of each peer including the host, and for each
        guest a socket and its QEMU's connection. The ivshmem process has as many.
        """
        return 1 + (1 + len(device.peers)) * device.vectors + 2 * len(device.peers)

    def drain(self) -> None:
        """Serve the QEMUs that wait, and take what the ivshmem process has said so far."""
        for port in [port for made in self._made.values() for port in made.ports.values()]:
            port.accept()
        self._watcher.drain()

    def remove(self, device: Device) -> None:
        """Close everything of a device. A QEMU that still has it keeps what it has."""
        made = self._made.pop(device.number)
        self._watcher.remove(device.number)
        self._close(made)

    def _close(self, made: _Made) -> None:
        for port in made.ports.values():
            self._watcher.forget(port)
            port.close()
        made.undo.close()

    def close(self) -> None:
        """Close all devices. The ivshmem process, once it is alone, sends everyone an event."""
        for made in self._made.values():
            self._close(made)
        self._made.clear()
        self._watcher.stop()
        self._unread.close()
        self._undo.close()

    # ---- QEMUs: PortEvents ----

    def on_connected(self, port: Port) -> None:
        """Let the ivshmem process watch the connection."""
        self._watcher.watch(port)

    def on_served(self, port: Port) -> None:
        """Report it."""
        self._events.on_served(port.device, port.domain)

    def on_disconnected(self, port: Port, *, was_served: bool) -> None:
        """Report it."""
        self._watcher.forget(port)
        if was_served:
            self._events.on_unplugged(port.device, port.domain)
        else:
            self._events.on_cut_off(port.device, port.domain)


def _event(undo: ExitStack) -> int:
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    undo.callback(os.close, event)
    return event


def _remove_directory(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        pass  # something of someone else's is in it
