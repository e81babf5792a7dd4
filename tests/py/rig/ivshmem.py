# SPDX-License-Identifier: LGPL-2.1-or-later
"""Main's side of the ivshmem process, and QEMUs that hear what they are told."""

from __future__ import annotations

import functools
import gc
import os
import re
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmchand.channels.device import Device
from kvmchand.errors import VchanError
from kvmchand.ids import HOST_PEER, DeviceId, DomainId, Size
from kvmchand.runtime.loop import Loop
from kvmchand.services.ivshmem.devices import Devices
from rig.deadline import eventually, run_until
from rig.processes import children, open_fds

MIB = 1 << 20


ALICE, BOB = DomainId(11), DomainId(12)


A, B = 2, 3
"""Their ivshmem ids."""


SECRET = re.compile("[0-9a-f]{32}")


Heard = tuple[int, str]
"""A message: the number, and what came beside it: "", or the name of Rig.names."""


def identity(fd: int) -> str:
    """Return what two descriptors of one thing have in common."""
    event = re.search(r"eventfd-id: *(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text())
    return f"eventfd {event[1]}" if event else f"file {os.fstat(fd).st_dev} {os.fstat(fd).st_ino}"


def is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def our_fds() -> list[str]:
    """Return the descriptors of this process, without the unnamed files to which pytest redirects
    its output.
    """
    return [each for each in open_fds(os.getpid()) if not re.search(r"/#\d+ \(deleted\)", each)]


class Rig:
    """Main, as far as devices go: owns them, and notes what it is told."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self.folder = folder / "devices"
        self._log = folder / "log"
        self.told: list[tuple[str, int, int]] = []
        self.failure: VchanError | None = None
        self.devices = Devices(self.loop, self.folder, "nobody", self._fail)
        self.names: dict[str, str] = {}
        """What each descriptor of a device is, by its identity."""
        self.without_kvm: set[DeviceId] = set()
        self._last = 0
        self._qemus: list[Qemu] = []

    def on_served(self, device: Device, domain: DomainId) -> None:
        self._note("served", device, domain)

    def on_unplugged(self, device: Device, domain: DomainId) -> None:
        self._note("unplugged", device, domain)

    def on_cut_off(self, device: Device, domain: DomainId) -> None:
        self._note("cut off", device, domain)

    def _note(self, what: str, device: Device, domain: DomainId) -> None:
        self.told.append((what, device.number, domain))
        self.loop.call_soon(lambda: None)  # a timer may have said it: do not wait for what comes next

    def _fail(self, error: VchanError) -> None:
        self.failure = error

    def until(self, holds: Callable[[], bool]) -> None:
        """Run main until something has come about."""
        run_until(self.loop, holds, lambda: f"{self.told}, {self.failure}")

    def until_readable(self, fd: int) -> None:
        """Run main until something can be read there."""
        if not is_readable(fd):
            self.loop.add(fd, lambda _events: None)
            try:
                self.until(lambda: is_readable(fd))
            finally:
                self.loop.remove(fd)

    def until_told(self, *expected: tuple[str, int, int]) -> None:
        """Run until the owner is told these, in any order.

        Assert that it is told nothing else since the last time.
        """
        self.until(lambda: len(self.told) >= len(expected))
        assert sorted(self.told) == sorted(expected)
        self.told.clear()

    def device(self, *domains: DomainId, vectors: int = 2, size: int = MIB, without_kvm: bool = False) -> Device:
        self._last += 1
        pair = (domains[0], domains[-1]) if len(domains) == 2 else (DomainId(0), domains[0])
        peers = {ALICE: A, BOB: B}
        made = Device(DeviceId(self._last), pair, Size(size), vectors, {each: peers[each] for each in domains})
        self.devices.create(made, without_kvm=domains if without_kvm else ())
        if without_kvm:
            self.without_kvm.add(made.number)
        self._name(made)
        return made

    def qemu(self, device: Device, domain: DomainId) -> Qemu:
        made = Qemu(self, device, domain)
        self._qemus.append(made)
        return made

    def _name(self, device: Device) -> None:
        self.names[identity(self.devices.memory(device))] = "memory"
        for peer in (HOST_PEER, *device.peers.values()):
            for vector in range(device.vectors):
                self.names[identity(self.devices.event(device, peer, vector))] = f"event {peer}.{vector}"

    def _pids(self) -> list[int]:
        return [each for each in children(os.getpid()) if b"\0ivshmem\0" in Path(f"/proc/{each}/cmdline").read_bytes()]

    def pid(self) -> int:
        """Return the number of the ivshmem process, whose command line shows after its start."""
        eventually(self._pids)
        (pid,) = self._pids()
        return pid

    def log(self) -> str:
        """Return what the processes said."""
        return self._log.read_text()

    def settle(self) -> None:
        """Run until main knows all that the ivshmem process has done so far."""
        device = self.device(BOB)
        qemu = self.qemu(device, BOB)
        self.until_told(("served", device.number, BOB))
        qemu.close()
        self.until_told(("unplugged", device.number, BOB))
        self.devices.remove(device)

    def kill(self) -> None:
        """End the ivshmem process, and wait until another runs."""
        before = self.pid()
        os.kill(before, signal.SIGKILL)
        self.until(lambda: self._pids() not in ([], [before]))

    def close(self) -> None:
        for each in self._qemus:
            each.close()
        self.devices.close()
        self.loop.close()


class Qemu:
    """One that hears what the server says."""

    def __init__(self, rig: Rig, device: Device, domain: DomainId) -> None:
        self._rig = rig
        self._device = device
        self.fds: dict[str, int] = {}
        """What came, by name; the last of each name. Ours until close()."""
        self._all: list[int] = []
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(rig.devices.socket_path(device, domain)))

    def hear(self, count: int) -> list[Heard]:
        """Return the next messages."""
        heard: list[Heard] = []
        for _ in range(count):
            self._rig.until_readable(self.sock.fileno())
            data, fds, _, _ = socket.recv_fds(self.sock, 8, 2)
            assert len(data) == 8, f"after {heard} came {data!r}"
            assert len(fds) <= 1
            name = ""
            for fd in fds:
                self._all.append(fd)
                name = self._rig.names.get(identity(fd), "unknown")
                self.fds[name] = fd
            heard.append((struct.unpack("<q", data)[0], name))
        return heard

    def hear_handshake(self, me: int) -> None:
        """Assert what comes: of the host, the device's other guest, there or not, and itself."""
        others = [HOST_PEER, *(each for each in self._device.peers.values() if each != me)]
        theirs, own = self._events(*others), self._events(me)
        memory = [(-1, "memory")]
        is_first = self._device.number in self._rig.without_kvm
        expected = [(0, ""), (me, ""), *theirs, *(memory + own if is_first else own + memory)]
        assert self.hear(len(expected)) == expected

    def _events(self, *peers: int) -> list[Heard]:
        return [(peer, f"event {peer}.{vector}") for peer in peers for vector in range(self._device.vectors)]

    def hear_refusal(self) -> None:
        """Assert that it is told a version that does not exist, and nothing else."""
        assert self.hear(1) == [(-1, "")]
        self.hear_end()

    def hear_end(self) -> None:
        assert self.rest() == 0

    def rest(self) -> int:
        """Return how many messages come before the connection is ended."""
        count = 0
        while True:
            self._rig.until_readable(self.sock.fileno())
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, 8, 2)
            except ConnectionResetError:
                continue  # what we said was not read; what it said is still there
            self._all += fds
            if not data:
                return count
            count += 1

    def has_heard_all(self) -> bool:
        """Return whether nothing is there to be heard, the end included."""
        return not is_readable(self.sock.fileno())

    def close(self) -> None:
        self.sock.close()
        while self._all:
            os.close(self._all.pop())


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Nothing of it may be left."""
    gc.collect()  # what another test let go of
    before = our_fds(), children(os.getpid())
    log = tmp_path / "log"
    with log.open("ab") as stderr, monkeypatch.context() as patch:
        # pytest's own capture ends with each phase of a test, and so would what a process started
        # in another was given.
        patch.setattr(subprocess, "Popen", functools.partial(subprocess.Popen, stderr=stderr))
        made = Rig(tmp_path)
        made.devices.start(made)
        try:
            yield made
        finally:
            made.close()
    assert made.failure is None
    assert (our_fds(), children(os.getpid())) == before
    assert "Traceback" not in log.read_text(), log.read_text()
    log.unlink()
    assert list(tmp_path.iterdir()) == []
