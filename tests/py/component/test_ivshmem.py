# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ivshmem devices: what each QEMU is told, what it may do wrong, and what outlives the process
that tells it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from kvmchand.channels.device import Device
from kvmchand.errors import InvalidArgument, OutOfResources
from kvmchand.ids import HOST_PEER, DeviceId, DomainId, Size
from kvmchand.linux.burst import Burst
from kvmchand.runtime.loop import Loop
from kvmchand.services.ivshmem.devices import Devices
from kvmchand.wire.packet import Fds
from rig.ivshmem import ALICE, BOB, MIB, SECRET, A, B, Rig, is_readable, our_fds
from rig.libvirtd import require_kvm

MANY = 256
"""Vectors whose messages do not all fit a connection that has no more room than others."""
NO_VERSION = struct.pack("<q", -1)
"""What a QEMU is told that gets no device."""


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections have the room that one gets without privileges."""
    monkeypatch.setattr(Burst, "make_room", lambda _burst, _sock: None)


# ---- what a QEMU is told ----


def test_a_lone_qemu_is_told_the_version_its_id_the_memory_the_host_and_itself(rig: Rig) -> None:
    device = rig.device(ALICE)
    alice = rig.qemu(device, ALICE)
    alice.hear_handshake(A)
    rig.until_told(("served", device.number, ALICE))
    assert alice.has_heard_all()
    assert os.fstat(alice.fds["memory"]).st_size == MIB


def test_qemus_of_one_device_know_each_other_whoever_comes_first(rig: Rig) -> None:
    device = rig.device(ALICE, BOB)
    alice = rig.qemu(device, ALICE)
    alice.hear_handshake(A)
    os.eventfd_write(alice.fds["event 3.1"], 1)  # a doorbell for one who is not there yet
    rig.until_told(("served", device.number, ALICE))
    bob = rig.qemu(device, BOB)
    bob.hear_handshake(B)
    assert is_readable(bob.fds["event 3.1"])
    assert not is_readable(bob.fds["event 3.0"])
    rig.until_told(("served", device.number, BOB))


def test_a_qemu_is_not_told_that_the_other_goes_or_comes_again(rig: Rig) -> None:
    device = rig.device(ALICE, BOB)
    alice = rig.qemu(device, ALICE)
    alice.hear_handshake(A)
    rig.until_told(("served", device.number, ALICE))
    for _ in range(3):
        bob = rig.qemu(device, BOB)
        bob.hear_handshake(B)
        rig.until_told(("served", device.number, BOB))
        bob.close()
        rig.until_told(("unplugged", device.number, BOB))
    assert alice.has_heard_all()


def test_devices_are_independent(rig: Rig) -> None:
    first, second = rig.device(ALICE), rig.device(ALICE, size=4096, vectors=1)
    for device in (second, first):
        rig.qemu(device, ALICE).hear_handshake(A)
    rig.until_told(("served", first.number, ALICE), ("served", second.number, ALICE))
    rig.devices.remove(first)
    assert rig.devices.memory(second) >= 0
    with pytest.raises(KeyError):
        rig.devices.memory(first)


def test_more_vectors_than_fit_the_connection_and_a_packet_all_arrive(rig: Rig) -> None:
    device = rig.device(ALICE, vectors=MANY)
    alice = rig.qemu(device, ALICE)
    alice.hear_handshake(A)
    rig.until_told(("served", device.number, ALICE))


def test_a_qemu_may_come_before_the_process_is_ready(tmp_path: Path) -> None:
    before = our_fds()
    rig = Rig(tmp_path)
    try:
        device = rig.device(ALICE)
        alice = rig.qemu(device, ALICE)
        rig.devices.start(rig)
        alice.hear_handshake(A)
        rig.until_told(("served", device.number, ALICE))
    finally:
        rig.close()
    assert our_fds() == before


def test_events_and_bytes_pass_between_a_qemu_and_main(rig: Rig) -> None:
    device = rig.device(ALICE)
    alice = rig.qemu(device, ALICE)
    alice.hear_handshake(A)
    ours = rig.devices.event(device, HOST_PEER, 1)
    assert not is_readable(ours)
    os.eventfd_write(alice.fds["event 0.1"], 1)  # its doorbell
    assert is_readable(ours)
    assert not is_readable(rig.devices.event(device, HOST_PEER, 0))
    os.eventfd_write(rig.devices.event(device, A, 0), 1)
    assert is_readable(alice.fds["event 2.0"])
    os.pwrite(alice.fds["memory"], b"hello", 4096)
    assert os.pread(rig.devices.memory(device), 5, 4096) == b"hello"


# ---- what a QEMU may do wrong ----


def test_anothers_connection_at_the_same_time_is_refused_and_one_after_it_is_served(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    device = rig.device(ALICE)
    alice = rig.qemu(device, ALICE)
    alice.hear_handshake(A)
    look = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdout.buffer.write(s.recv(9))"
    path = rig.devices.socket_path(device, ALICE)
    with subprocess.Popen([sys.executable, "-c", look, path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        rig.until_readable(other.stdout.fileno())
        assert other.stdout.read() == NO_VERSION
    assert "another that connected is refused" in capfd.readouterr().err
    assert alice.has_heard_all()
    alice.close()
    rig.until_told(("served", device.number, ALICE), ("unplugged", device.number, ALICE))
    rig.qemu(device, ALICE).hear_handshake(A)
    rig.until_told(("served", device.number, ALICE))


def test_a_qemu_that_connects_again_is_served_again_and_its_earlier_connection_ends(rig: Rig) -> None:
    """Libvirtd may have ended in between, when QEMU had connected and libvirtd did not know it."""
    device = rig.device(ALICE)
    qemu = rig.qemu(device, ALICE)
    for _ in range(3):
        qemu.hear_handshake(A)
        rig.until_told(("served", device.number, ALICE))
        earlier, qemu = qemu, rig.qemu(device, ALICE)
        earlier.hear_end()
    qemu.hear_handshake(A)
    rig.until_told(("served", device.number, ALICE))
    qemu.close()
    rig.until_told(("unplugged", device.number, ALICE))


@pytest.mark.parametrize("heard", [0, 2, 5])
@pytest.mark.usefixtures("narrow")
def test_a_qemu_that_goes_away_in_the_handshake_is_said_to_be_cut_off(rig: Rig, heard: int) -> None:
    device = rig.device(ALICE, BOB, vectors=MANY)
    alice = rig.qemu(device, ALICE)
    alice.hear(heard)
    alice.close()
    rig.until_told(("cut off", device.number, ALICE))
    rig.qemu(device, ALICE).hear_handshake(A)
    rig.until_told(("served", device.number, ALICE))


@pytest.mark.usefixtures("narrow")
def test_a_qemu_that_stops_reading_in_the_handshake_keeps_nobody_waiting(rig: Rig) -> None:
    device, other = rig.device(ALICE, BOB, vectors=MANY), rig.device(ALICE)
    alice = rig.qemu(device, ALICE)
    alice.hear(1)
    bob = rig.qemu(device, BOB)
    bob.hear_handshake(B)
    rig.qemu(other, ALICE).hear_handshake(A)
    rig.until_told(("served", device.number, BOB), ("served", other.number, ALICE))
    # And can go on.
    assert alice.hear(2 + 3 * MANY)[-1] == (-1, "memory")
    rig.until_told(("served", device.number, ALICE))


@pytest.mark.parametrize("garbage", [b"\0", b"x" * 4096])
def test_a_qemu_that_says_anything_is_dropped(rig: Rig, garbage: bytes) -> None:
    device = rig.device(ALICE, BOB)
    alice, bob = rig.qemu(device, ALICE), rig.qemu(device, BOB)
    rig.until_told(("served", device.number, ALICE), ("served", device.number, BOB))
    alice.hear_handshake(A)
    bob.hear_handshake(B)
    alice.sock.send(garbage)
    alice.hear_end()
    rig.until_told(("unplugged", device.number, ALICE))
    assert "said something" in rig.log()
    assert bob.has_heard_all()
    rig.qemu(device, ALICE).hear_handshake(A)


# ---- lives and deaths ----


def test_connections_outlive_the_process_and_are_watched_by_the_next(rig: Rig) -> None:
    device, lone = rig.device(ALICE, BOB), rig.device(ALICE)
    alice, single = rig.qemu(device, ALICE), rig.qemu(lone, ALICE)
    alice.hear_handshake(A)
    single.hear_handshake(A)
    rig.until_told(("served", device.number, ALICE), ("served", lone.number, ALICE))
    rig.kill()
    bob = rig.qemu(device, BOB)
    bob.hear_handshake(B)
    rig.until_told(("served", device.number, BOB))
    rig.settle()
    rig.kill()
    bob.close()
    rig.until_told(("unplugged", device.number, BOB))
    assert alice.has_heard_all()
    alice.sock.send(b"x")
    alice.hear_end()
    rig.until_told(("unplugged", device.number, ALICE))
    assert single.has_heard_all()


def test_a_qemu_that_goes_while_there_is_no_process_is_found_gone(rig: Rig) -> None:
    device = rig.device(ALICE, BOB)
    alice, bob = rig.qemu(device, ALICE), rig.qemu(device, BOB)
    rig.until_told(("served", device.number, ALICE), ("served", device.number, BOB))
    rig.settle()
    os.kill(rig.pid(), signal.SIGKILL)
    bob.close()
    rig.until_told(("unplugged", device.number, BOB))
    alice.hear_handshake(A)
    assert alice.has_heard_all()


@pytest.mark.usefixtures("narrow")
def test_a_qemu_in_its_handshake_does_not_notice_that_the_process_dies(rig: Rig) -> None:
    device = rig.device(ALICE, BOB, vectors=MANY)
    alice = rig.qemu(device, ALICE)
    alice.hear(1)
    rig.kill()
    assert alice.hear(2 + 3 * MANY)[-1] == (-1, "memory")
    rig.until_told(("served", device.number, ALICE))
    rig.settle()
    alice.close()
    rig.until_told(("unplugged", device.number, ALICE))


def test_whose_bytes_end_the_process_is_ended_and_nobody_else(rig: Rig) -> None:
    bad, good = rig.device(ALICE), rig.device(BOB)
    alice, bob = rig.qemu(bad, ALICE), rig.qemu(good, BOB)
    rig.until_told(("served", bad.number, ALICE), ("served", good.number, BOB))
    kept = rig.devices._watcher._service._service
    assert kept is not None
    kept.marker.set(1)  # the first connection
    rig.kill()
    rig.until_told(("unplugged", bad.number, ALICE))
    assert alice.rest() == 3 + 2 * 2
    bob.hear_handshake(B)
    assert bob.has_heard_all()
    rig.qemu(bad, ALICE).hear_handshake(A)


def test_devices_made_and_removed_while_there_is_no_process_are_right_in_the_next(rig: Rig) -> None:
    old = rig.device(ALICE)
    alice = rig.qemu(old, ALICE)
    alice.hear_handshake(A)
    rig.until_told(("served", old.number, ALICE))
    os.kill(rig.pid(), signal.SIGKILL)
    rig.devices.remove(old)
    new = rig.device(ALICE)
    again = rig.qemu(new, ALICE)
    rig.until_told(("served", new.number, ALICE))
    again.hear_handshake(A)
    alice.hear_end()


def test_a_removed_devices_sockets_and_connections_are_gone_and_late_words_of_it_are_ignored(rig: Rig) -> None:
    device = rig.device(ALICE, BOB)
    paths = [rig.devices.socket_path(device, domain) for domain in (ALICE, BOB)]
    alice = rig.qemu(device, ALICE)
    alice.hear_handshake(A)
    rig.until_told(("served", device.number, ALICE))
    before = rig.pid()
    rig.devices.remove(device)
    alice.hear_end()
    assert not any(path.exists() for path in paths)
    other = rig.device(BOB)
    rig.qemu(other, BOB).hear_handshake(B)
    rig.until_told(("served", other.number, BOB))
    assert rig.pid() == before


def test_a_device_may_be_removed_in_the_midst_of_the_owners_call(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    device = rig.device(ALICE, BOB, vectors=MANY)
    alice = rig.qemu(device, ALICE)
    alice.hear_handshake(A)
    rig.until_told(("served", device.number, ALICE))
    bob = rig.qemu(device, BOB)
    bob.hear(1)
    removed: list[Device] = []

    def remove(gone: Device, _domain: DomainId) -> None:
        rig.devices.remove(gone)
        removed.append(gone)

    monkeypatch.setattr(rig, "on_unplugged", remove)
    alice.close()
    rig.until(lambda: bool(removed))
    bob.rest()


def test_when_main_ends_every_event_is_signalled(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.devices.start(rig)
    device = rig.device(ALICE, BOB)
    alice = rig.qemu(device, ALICE)
    alice.hear_handshake(A)
    copies = [os.dup(rig.devices.event(device, peer, vector)) for peer in (HOST_PEER, A, B) for vector in range(2)]
    os.eventfd_write(copies[0], 2**64 - 2)  # full: it must not be waited for
    pid = rig.pid()
    rig.devices.close()
    assert [is_readable(event) for event in copies] == [True] * 6
    assert not Path(f"/proc/{pid}").exists()
    alice.hear_end()
    for event in copies:
        os.close(event)
    rig.close()


# ---- main's side ----


def test_a_process_that_says_what_can_not_be_is_ended(rig: Rig) -> None:
    device = rig.device(ALICE)
    alice = rig.qemu(device, ALICE)
    alice.hear_handshake(A)
    rig.until_told(("served", device.number, ALICE))
    for wrong in (
        b'{"type":"gone","connection":0}',
        b'{"type":"gone","connection":2}',  # there was none yet
        b'{"type":"nonsense"}',
    ):
        with pytest.raises((KeyError, OSError)):
            rig.devices._watcher.decode(wrong, Fds())
    assert alice.has_heard_all()


def test_zeroed_memory_reads_as_zero(rig: Rig) -> None:
    device = rig.device(ALICE)
    memory = rig.devices.memory(device)
    os.pwrite(memory, b"\1" * 5 * 4096, 0)
    rig.devices.zero(device, 4096, 3 * 4096)
    assert os.pread(memory, 5 * 4096, 0) == b"\1" * 4096 + bytes(3 * 4096) + b"\1" * 4096
    assert os.fstat(memory).st_size == MIB


def test_memory_can_neither_shrink_nor_grow(rig: Rig) -> None:
    device = rig.device(ALICE)
    alice = rig.qemu(device, ALICE)
    alice.hear_handshake(A)
    for size in (0, MIB - 1, 2 * MIB):
        with pytest.raises(PermissionError):
            os.ftruncate(alice.fds["memory"], size)


def test_sockets_have_secret_names_that_nobody_can_list(rig: Rig) -> None:
    device = rig.device(ALICE, BOB)
    paths = [rig.devices.socket_path(device, domain) for domain in (ALICE, BOB)]
    assert len(set(paths)) == 2
    assert stat.S_IMODE(rig.folder.stat().st_mode) == 0o711
    bound = Path("/proc/net/unix").read_text()
    for path in paths:
        assert path.parent == rig.folder
        assert SECRET.fullmatch(path.name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        rig.qemu(device, ALICE if path is paths[0] else BOB).hear(3)
        assert path.name not in bound
        assert path.name not in Path("/proc/net/unix").read_text()
    private = rig.folder.with_name("devices.new")
    assert f"{private}/1\n" in bound
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert list(private.iterdir()) == []


def test_sockets_of_a_daemon_that_was_killed_are_removed(tmp_path: Path) -> None:
    for name in ("devices", "devices.new"):
        (tmp_path / name).mkdir()
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(tmp_path / name / "left"))
        left.close()
    (tmp_path / "devices" / "someone's").touch()
    rig = Rig(tmp_path)
    assert [path.name for path in rig.folder.iterdir()] == ["someone's"]
    rig.close()
    assert [path.name for path in tmp_path.rglob("*")] == ["devices", "someone's"]


def test_a_directory_whose_sockets_no_qemu_could_name_is_refused(tmp_path: Path) -> None:
    room = 107 - 33 - len(os.fsencode(tmp_path)) - 1
    assert room > 0, "the tests' own folder has too long a path"
    before = our_fds()
    loop = Loop()
    fail: Any = None
    longest = Devices(loop, tmp_path / ("d" * room), "nobody", fail)
    longest.create(Device(DeviceId(1), (DomainId(0), ALICE), Size(4096), 1, {ALICE: A}))
    longest.close()
    with pytest.raises(InvalidArgument, match="1 bytes shorter"):
        Devices(loop, tmp_path / ("d" * (room + 1)), "nobody", fail)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="can't be used"):
        Devices(loop, tmp_path / "file", "nobody", fail)
    loop.close()
    assert our_fds() == before
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("failing", ["memfd", "events", "sockets"])
def test_a_device_that_can_not_be_made_leaves_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(24, "Too many open files")

    before = our_fds()
    with monkeypatch.context() as patch:
        if failing == "sockets":
            patch.setattr(Path, "rename", fail)
        else:
            patch.setattr(os, {"memfd": "memfd_create", "events": "eventfd"}[failing], fail)
        with pytest.raises(OutOfResources, match="Too many open files"):
            rig.device(ALICE, BOB)
    assert our_fds() == before
    assert list(rig.folder.iterdir()) == []
    assert list(rig.folder.with_name("devices.new").iterdir()) == []


def test_a_qemu_has_read_all_when_the_last_message_is_read(rig: Rig) -> None:
    device = rig.device(ALICE)
    assert rig.devices.has_read(device, ALICE)  # nobody is connected
    alice = rig.qemu(device, ALICE)
    rig.until_told(("served", device.number, ALICE))
    assert not rig.devices.has_read(device, ALICE)
    alice.hear(3 + 2 * device.vectors - 1)
    assert not rig.devices.has_read(device, ALICE)
    alice.hear(1)
    assert rig.devices.has_read(device, ALICE)


@pytest.mark.usefixtures("narrow")
def test_a_qemu_that_is_not_sent_all_yet_has_not_read_all(rig: Rig) -> None:
    device = rig.device(ALICE, BOB, vectors=MANY)
    alice = rig.qemu(device, ALICE)
    alice.hear(3)
    rig.settle()
    assert not rig.devices.has_read(device, ALICE)


def test_a_size_that_would_end_qemu_is_refused(rig: Rig) -> None:
    with pytest.raises(InvalidArgument, match="power of two"):
        rig.device(ALICE, size=3 * 4096)


def test_main_has_as_many_descriptors_of_a_device_as_it_says(rig: Rig) -> None:
    before = len(our_fds())
    device = rig.device(ALICE, BOB, vectors=3)
    alice, bob = rig.qemu(device, ALICE), rig.qemu(device, BOB)
    rig.until_told(("served", device.number, ALICE), ("served", device.number, BOB))
    theirs = 2  # both are in this process
    assert len(our_fds()) == before + Devices.fds(device) + theirs
    alice.close()
    bob.close()
    rig.devices.remove(device)
    assert len(our_fds()) == before


# ---- the real one ----


class RealQemu:
    """A machine without a processor that runs: its bus is driven from here (QEMU's qtest).

    Main runs while this waits, to serve it.
    """

    DOORBELL_BAR, MEMORY_BAR = 0xE0000000, 0xE1000000

    def __init__(self, rig: Rig, folder: Path, path: Path, vectors: int, machine: str = "q35", accelerator: str = "tcg") -> None:
        program = shutil.which("qemu-system-x86_64")
        if program is None:
            if os.environ.get("KVMCHAN_TEST_FORCE") == "1":
                raise AssertionError("qemu-system-x86_64 is missing")
            pytest.skip("qemu-system-x86_64 is not installed (KVMCHAN_TEST_FORCE=1 makes this a failure)")
        self._rig = rig
        self._folder = folder
        self.slot = 0x10
        """Of the device that was plugged last."""
        self._sockets = {name: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for name in ("qmp", "qtest")}
        for name, sock in self._sockets.items():
            sock.bind(str(folder / name))
            sock.listen(1)
        made = ["-machine", f"{machine},accel={accelerator}", "-nodefaults", "-display", "none", "-S"]
        chardev = ["-chardev", f"socket,path={path},id=c{self.slot}"]
        device = [
            "-device",
            f"ivshmem-doorbell,id=d{self.slot},chardev=c{self.slot},vectors={vectors},addr={self.slot:#x},ioeventfd=on",
        ]
        control = ["-qmp", f"unix:{folder / 'qmp'}", "-qtest", f"unix:{folder / 'qtest'}", "-qtest-log", "none"]
        self.process = subprocess.Popen([program, *made, *chardev, *device, *control])
        self._connections: dict[str, socket.socket] = {}
        self._heard = {"qmp": b"", "qtest": b""}
        self._events: list[str] = []
        for name, sock in self._sockets.items():
            rig.until_readable(sock.fileno())
            self._connections[name], _ = sock.accept()
        assert "QMP" in json.loads(self._line("qmp"))
        self.command("qmp_capabilities")

    def _line(self, name: str) -> str:
        while b"\n" not in self._heard[name]:
            connection = self._connections[name]
            self._rig.until_readable(connection.fileno())
            heard = connection.recv(65536)
            assert heard, f"QEMU ended: {self.process.wait()}"
            self._heard[name] += heard
        line, _, self._heard[name] = self._heard[name].partition(b"\n")
        return line.decode()

    def _say(self, name: str, line: str) -> None:
        self._connections[name].sendall(line.encode() + b"\n")

    def command(self, name: str, **arguments: object) -> Any:
        """QMP."""
        self._say("qmp", json.dumps({"execute": name, "arguments": arguments}))
        while True:
            answer = json.loads(self._line("qmp"))
            if "event" not in answer:
                assert "error" not in answer, answer
                return answer["return"]
            self._events.append(answer["event"])

    def plug(self, path: Path, vectors: int) -> None:
        """Hot-plug another device."""
        self.slot += 1
        address = {"type": "unix", "data": {"path": str(path)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        self.command("chardev-add", id=f"c{self.slot}", backend=backend)
        options = {"id": f"d{self.slot}", "chardev": f"c{self.slot}", "addr": f"{self.slot:#x}"}
        self.command("device_add", driver="ivshmem-doorbell", vectors=vectors, ioeventfd=True, **options)

    def unplug(self) -> None:
        """As a guest of the machine "pc" does when it is asked: by the ejection register of QEMU's
        ACPI hot-plug.
        """
        self.command("device_del", id=f"d{self.slot}")
        self.bus("outl", 0xAE10, 0)
        self.bus("outl", 0xAE08, 1 << self.slot)
        while "DEVICE_DELETED" not in self._events:
            self._events.append(json.loads(self._line("qmp"))["event"])
        self._events.remove("DEVICE_DELETED")
        self.command("chardev-remove", id=f"c{self.slot}")
        self.slot -= 1

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that QEMU does. Each look is a round trip to it."""
        while not holds():
            self.command("query-status")

    def bus(self, *words: str | int) -> int:
        """A qtest command, and the number it answers."""
        self._say("qtest", " ".join(word if isinstance(word, str) else hex(word) for word in words))
        answer = self._line("qtest").split()
        assert answer[0] == "OK", answer
        return int(answer[1], 16) if len(answer) > 1 else 0

    def configure(self, register: int, value: int) -> None:
        self.bus("outl", 0xCF8, 0x80000000 | self.slot << 11 | register)
        self.bus("outl", 0xCFC, value)

    def map(self) -> None:
        self.configure(0x10, self.DOORBELL_BAR)
        self.configure(0x18, self.MEMORY_BAR)
        self.configure(0x1C, 0)
        self.configure(0x04, 0x6)  # memory, bus master

    def ring(self, peer: int, vector: int, event: int) -> None:
        """Until that wakes: a peer's doorbell is dead until QEMU has come to read of that peer."""
        while not is_readable(event):
            self.bus("writel", self.DOORBELL_BAR + 12, peer << 16 | vector)

    def quit(self) -> int:
        self.command("quit")
        return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.wait()
        for connection in self._connections.values():
            connection.close()
        for name, sock in self._sockets.items():
            sock.close()
            (self._folder / name).unlink(missing_ok=True)


def test_a_real_qemu_takes_the_device_and_its_doorbell_and_memory_are_ours(rig: Rig, tmp_path: Path) -> None:
    device = rig.device(ALICE, BOB, vectors=4, without_kvm=True)
    bob = rig.qemu(device, BOB)
    bob.hear_handshake(B)
    rig.until_told(("served", device.number, BOB))
    with RealQemu(rig, tmp_path, rig.devices.socket_path(device, ALICE), 4) as qemu:
        rig.until_told(("served", device.number, ALICE))
        (bus,) = qemu.command("query-pci")
        (regions,) = [each["regions"] for each in bus["devices"] if each["id"]["device"] == 0x1110]
        assert [region["size"] for region in regions if region["bar"] == 2] == [MIB]
        qemu.map()
        assert qemu.bus("readl", qemu.DOORBELL_BAR + 8) == A
        for peer, vector in ((HOST_PEER, 0), (HOST_PEER, 3), (B, 1)):
            event = rig.devices.event(device, peer, vector)
            assert not is_readable(event)
            qemu.ring(peer, vector, event)
        os.pwrite(rig.devices.memory(device), b"\x78\x56\x34\x12", MIB - 4)
        assert qemu.bus("readl", qemu.MEMORY_BAR + MIB - 4) == 0x12345678
        rig.devices.zero(device, MIB - 4096, 4096)
        assert qemu.bus("readl", qemu.MEMORY_BAR + MIB - 4) == 0
        assert qemu.quit() == 0
    rig.until_told(("unplugged", device.number, ALICE))
    assert rig.log() == ""
    assert bob.has_heard_all()


ROUNDS = 8
"""Of what ended QEMU in the first one or two."""


def test_a_real_qemu_without_kvm_keeps_its_devices_and_outlives_their_servers(rig: Rig, tmp_path: Path) -> None:
    device = rig.device(ALICE, BOB, vectors=4, without_kvm=True)
    own: list[int] = []
    with RealQemu(rig, tmp_path, rig.devices.socket_path(device, ALICE), 4, machine="pc") as qemu:
        for number in range(ROUNDS):
            if number:
                device = rig.device(ALICE, BOB, vectors=4, without_kvm=True)
                qemu.plug(rig.devices.socket_path(device, ALICE), 4)
            rig.until_told(("served", device.number, ALICE))
            qemu.until(lambda device=device: rig.devices.has_read(device, ALICE))  # type: ignore[misc]
            own += [os.dup(rig.devices.event(device, A, vector)) for vector in range(4)]
            host = os.dup(rig.devices.event(device, HOST_PEER, 0))
            rig.devices.remove(device)
            # Each device still hears its own events, by the descriptors that it was given,
            for event in own:
                os.eventfd_write(event, 1)
            qemu.until(lambda own=own: not any(map(is_readable, own)))  # type: ignore[misc]
            # and has its doorbell and its memory.
            qemu.map()
            qemu.ring(HOST_PEER, 0, host)
            os.close(host)
            qemu.bus("writel", qemu.MEMORY_BAR + MIB - 4, 0x12345678 + number)
            assert qemu.bus("readl", qemu.MEMORY_BAR + MIB - 4) == 0x12345678 + number
            qemu.configure(0x04, 0)  # the next device gets these addresses
        assert qemu.quit() == 0
    for event in own:
        os.close(event)


def test_a_real_qemu_with_kvm_outlives_unplugging_once_it_has_read_all(rig: Rig, tmp_path: Path) -> None:
    require_kvm()
    device = rig.device(ALICE, BOB, vectors=64)
    bob = rig.qemu(device, BOB)
    rig.until_told(("served", device.number, BOB))
    with RealQemu(rig, tmp_path, rig.devices.socket_path(device, ALICE), 64, machine="pc", accelerator="kvm") as qemu:
        for number in range(ROUNDS):
            if number:
                device = rig.device(ALICE, BOB, vectors=64)
                qemu.plug(rig.devices.socket_path(device, ALICE), 64)
            rig.until_told(("served", device.number, ALICE))
            if number == 0:
                bob.close()
                rig.until_told(("unplugged", device.number, BOB))
            qemu.until(lambda device=device: rig.devices.has_read(device, ALICE))  # type: ignore[misc]
            qemu.unplug()
            rig.until_told(("unplugged", device.number, ALICE))
            rig.devices.remove(device)
        assert qemu.quit() == 0


def test_a_real_qemu_outlives_the_process(rig: Rig, tmp_path: Path) -> None:
    device = rig.device(ALICE, BOB, vectors=4, without_kvm=True)
    with RealQemu(rig, tmp_path, rig.devices.socket_path(device, ALICE), 4) as qemu:
        rig.until_told(("served", device.number, ALICE))
        rig.kill()
        rig.qemu(device, BOB).hear_handshake(B)
        rig.until_told(("served", device.number, BOB))
        qemu.map()
        qemu.ring(B, 2, rig.devices.event(device, B, 2))
        assert qemu.quit() == 0
    rig.until_told(("unplugged", device.number, ALICE))
    assert rig.log() == ""
