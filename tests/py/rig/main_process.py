# SPDX-License-Identifier: LGPL-2.1-or-later
"""A main that has devices and nothing else, as a process of its own: a test may stop it and kill
it. It ends as a daemon's does.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

from kvmchand.channels.device import Device
from kvmchand.ids import DeviceId, DomainId, Size
from kvmchand.linux.burst import Burst
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.signals import stopped_by_signals
from kvmchand.services.ivshmem.devices import DeviceEvents, Devices
from kvmchand.services.ivshmem.ports import Port
from rig.deadline import eventually
from rig.paths import PYTHON, ROOT
from rig.processes import children, is_running, is_stopped

SIZE = Size(1 << 17)
"""Bytes of each device."""
GUEST, PEER = DomainId(11), 2


class MainProcess:
    """From its start to kill() or end(). `folder`: empty, for its sockets."""

    def __init__(self, folder: Path, *, kvm: bool) -> None:
        self._paths: list[Path] = []
        self._sock, theirs = socket.socketpair()
        self._marker_fd = os.memfd_create("marker", os.MFD_CLOEXEC)
        os.ftruncate(self._marker_fd, mmap.PAGESIZE)
        self._marker = mmap.mmap(self._marker_fd, mmap.PAGESIZE)
        with theirs, (folder.parent / f"{folder.name}.log").open("ab") as log:
            fds = theirs.fileno(), self._marker_fd
            paths = ":".join([str(ROOT / "tests" / "py"), *sys.path])
            command = [PYTHON, "-m", "rig.main_process", str(folder), str(int(kvm)), *map(str, fds)]
            self._process = subprocess.Popen(command, pass_fds=fds, env={**os.environ, "PYTHONPATH": paths}, stderr=log)
        self._log = Path(log.name)
        self.pid = self._process.pid
        eventually(lambda: children(self.pid))
        (self._service,) = children(self.pid)

    def device(self, vectors: int) -> Path:
        """Make a device, and return where the guest's QEMU gets it."""
        self._sock.sendall(b"%d\n" % vectors)
        self._paths.append(Path(self._sock.recv(4096).decode()))
        return self._paths[-1]

    def await_end_of_listening(self) -> None:
        """Wait until nobody can connect any more: main or its service has begun to end."""
        eventually(lambda: not any(map(_accepts, self._paths)))

    def stop(self) -> None:
        """Stop it, and return when it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        eventually(lambda: is_stopped(self.pid))

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, but not when it has accepted a QEMU and not told it everything yet.

        Nobody else has that connection then, and the QEMU stands still for ever.
        """
        self.stop()
        while self._marker[0]:
            self.go_on()
            self.stop()
        self._process.kill()

    def end(self) -> None:
        """Tell it to end, as a service manager does."""
        self._process.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        """End it, unless it has ended, and its service."""
        if self._process.poll() is None:
            self.go_on()
            self.end()
        self._process.wait()
        eventually(lambda: not is_running(self._service))
        self._sock.close()
        self._marker.close()
        os.close(self._marker_fd)
        assert "Traceback" not in self._log.read_text(), self._log.read_text()


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


class _Main(DeviceEvents):
    """What runs in the process."""

    def __init__(self, folder: Path, sock: socket.socket, *, kvm: bool) -> None:
        self.loop = Loop()
        self.devices = Devices(self.loop, folder / "devices", "nobody", self._fail)
        self._sock = sock
        self._kvm = kvm
        self._last = 0
        self.devices.start(self)
        self.loop.add(sock.fileno(), lambda _events: self._obey())

    def on_served(self, device: Device, domain: DomainId) -> None:
        pass

    on_unplugged = on_cut_off = on_served

    def _fail(self, error: Exception) -> None:
        raise error

    def _obey(self) -> None:
        vectors = int(self._sock.recv(16))
        self._last += 1
        device = Device(DeviceId(self._last), (DomainId(0), GUEST), SIZE, vectors, {GUEST: PEER})
        self.devices.create(device, without_kvm=() if self._kvm else [GUEST])
        self._sock.sendall(os.fsencode(self.devices.socket_path(device, GUEST)))


def _mark(marker: mmap.mmap) -> None:
    """Mark while a QEMU may have been accepted that was not told everything."""
    accept: Callable[[Port], None] = Port.accept
    send: Callable[[Burst, socket.socket, int], int] = Burst.send

    def marking_accept(port: Port) -> None:
        marker[0] = 1
        try:
            accept(port)
        finally:
            marker[0] = 0

    def marking_send(burst: Burst, sock: socket.socket, first: int) -> int:
        sent = send(burst, sock, first)
        marker[0] = 0
        return sent

    Port.accept = marking_accept  # type: ignore[assignment,method-assign]
    Burst.send = marking_send  # type: ignore[assignment,method-assign]


def main(folder: str, kvm: str, sock: str, marker: str) -> None:
    _mark(mmap.mmap(int(marker), mmap.PAGESIZE))
    made = _Main(Path(folder), socket.socket(fileno=int(sock)), kvm=bool(int(kvm)))
    with stopped_by_signals(made.loop):
        made.loop.run()
    made.devices.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
