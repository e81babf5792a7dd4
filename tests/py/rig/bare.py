# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bare guest of tests/bare, which runs with KVM and without it, and what a test has it do.

Its machine is a QEMU of the test's own (rig.bare_qemu) or a libvirt domain (rig.bare_domain). A
thread hears what the guest says, until its QEMU ends.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from kvmchand.channels.page import LEFT_INDEXES, RIGHT_INDEXES
from kvmchand.ids import PAGE
from kvmchand.wire import control
from rig.deadline import Hangs, eventually
from rig.guest import Machine, Plugged
from rig.paths import ROOT
from rig.processes import run

SOURCES = ROOT / "tests" / "bare"
CSRC = ROOT / "libxenvchan_shim" / "csrc"
CODE = [SOURCES / "cpu.S", SOURCES / "guest.c", CSRC / "ring" / "ring.c"]
TARGET = ["-m32", "-march=i686", "-mgeneral-regs-only", "-ffreestanding", "-nostdinc"]
PLAIN = ["-fno-pic", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"]
LINKED = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,-z,noexecstack,--no-warn-rwx-segments"]
OWN_VECTORS = 24
"""Of a device's vectors, as guest.c has it: the last of these is told for all that follow."""
REGISTERS, TABLE, MEMORY = range(3)
"""A device's BARs."""
DOORBELL = 12
"""Offset of that register."""
ENTRY, CONTROL = 16, 12
"""Bytes of a vector in MSI-X's table, and the offset of the word there that masks it."""
MARK = 128
"""Offset of a word that nothing uses: in the shared page's grants, if a channel is there."""


def build(folder: Path) -> Path:
    """Compile the guest. No header of a C library is in reach."""
    program = folder / "bare.elf"
    include = run("gcc", "-print-file-name=include").stdout.strip()
    paths = ["-isystem", include, f"-I{SOURCES}", f"-I{CSRC}", f"-Wl,-T,{SOURCES / 'guest.ld'}"]
    run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", *TARGET, *PLAIN, *LINKED, *paths, *CODE, "-o", program)
    return program


class BareDevice(Plugged):
    """A device that the guest has enabled, all its vectors unmasked.

    `number`: the guest's. `interrupts`: how many came, by the vector.
    """

    def __init__(self, machine: BareMachine, number: int, peer: int, vectors: int, size: int) -> None:
        self._machine = machine
        self.number = number
        self.path = f"{machine.name}, device {secrets.token_hex(4)}"
        self.peer = peer
        self.vectors = vectors
        self.size = size
        self.interrupts: Counter[int] = Counter()
        self._events: dict[tuple[int, int], int] = {}

    @cached_property
    def memory(self) -> int:  # type: ignore[override]
        """Take the device's memory from its QEMU."""
        return self._machine.take_memory(self)

    def event(self, peer: int, vector: int) -> int:
        """Return an eventfd: the guest's own count its interrupts, and the guest rings the doorbell
        for those of others.
        """
        if (peer, vector) not in self._events:
            event = os.eventfd(int(self.interrupts[vector] > 0), os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._events[peer, vector] = event
            if peer != self.peer:
                self._machine.ring_for(event, self.number, peer << 16 | vector)
        return self._events[peer, vector]

    def on_interrupt(self, vector: int) -> None:
        self.interrupts[vector] += 1
        for (peer, own), event in self._events.items():
            if peer == self.peer and (own == vector or own > vector == OWN_VECTORS - 1):
                os.eventfd_write(event, 1)

    def ring(self, peer: int, vector: int) -> None:
        """Ring the doorbell."""
        self._machine.do("store", self.number, REGISTERS, DOORBELL, peer << 16 | vector)

    @staticmethod
    def told(vector: int) -> int:
        """Return the vector that the guest tells when that one interrupts."""
        return min(vector, OWN_VECTORS - 1)

    def mask(self, vector: int, masked: bool = True) -> None:
        self._machine.do("store", self.number, TABLE, ENTRY * vector + CONTROL, masked)

    def enable(self, enabled: bool = True) -> None:
        """Enable or disable MSI-X."""
        self._machine.do("enable", self.number, enabled)

    def wait_interrupts(self, vector: int, count: int) -> None:
        self._machine.wait(lambda: self.interrupts[vector] >= count, f"vector {vector} of {self.path} does not interrupt")

    def unplug(self) -> None:
        for (peer, _), event in self._events.items():
            if peer != self.peer:
                self._machine.ring_no_more(event)
            os.close(event)
        self._events.clear()
        if "memory" in self.__dict__:
            os.close(self.__dict__.pop("memory"))


class BareEnd:
    """A vchan's end in the guest, which sends a number of bytes, and checks all that come."""

    def __init__(self, machine: BareMachine, number: int) -> None:
        self._machine = machine
        self._number = number
        self.is_attached = True
        self.received = self.sent = self.wrong = 0

    def on_status(self, is_attached: int, received: int, sent: int, wrong: int) -> None:
        self.is_attached, self.received, self.sent, self.wrong = bool(is_attached), received, sent, wrong

    def wait_received(self, count: int) -> None:
        """Wait until so much has come, and assert that each byte was right."""
        eventually(lambda: self._look() >= count, lambda: str(vars(self)))
        assert (self.received, self.wrong) == (count, 0)

    def _look(self) -> int:
        self._machine.do("look", self._number)
        return self.received

    def wait_closed(self) -> None:
        """Wait until the peer has closed, and all that it wrote was read."""
        self._machine.wait(lambda: not self.is_attached, "the end is not closed")

    def close(self) -> None:
        self._machine.do("close", self._number)


class BareMachine(Machine):
    """A running guest, with the QEMU that is the process `pid`."""

    pid: int

    def __init__(self, number: int, name: str, sock: socket.socket, *, kvm: bool) -> None:
        super().__init__(number, name=name, kvm=kvm)
        self.changed = threading.Condition()
        self.heard: list[str] = []
        """What the guest has said."""
        self.is_ready = False
        self.no_room: list[int] = []
        """Bytes of the BARs that no window had room for."""
        self.ends: list[BareEnd] = []
        self._sock = sock
        self._sent = self._done = 0
        self._is_ended = False
        self._failure = ""
        self._rung: dict[int, tuple[int, int]] = {}
        self._epoll = select.epoll()
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    # ---- what it says ----

    def _listen(self) -> None:
        heard = b""
        while not self._is_ended:
            for fd, _ in self._epoll.poll():
                if fd != self._sock.fileno():
                    self._on_event(fd)
                    continue
                try:
                    more = self._sock.recv(65536)
                except ConnectionResetError:
                    more = b""
                *lines, heard = (heard + more).split(b"\n")
                with self.changed:
                    self._is_ended = not more
                    for line in lines:
                        self._hear(line.decode(errors="replace").strip())
                    self.changed.notify_all()

    def _on_event(self, event: int) -> None:
        with self.changed:
            if event in self._rung:  # or it has just been closed
                os.eventfd_read(event)
                number, value = self._rung[event]
                self._tell("store", number, REGISTERS, DOORBELL, value)

    def _hear(self, line: str) -> None:
        self.heard.append(line)
        word, *rest = line.split() or [""]
        try:
            numbers = [int(each, 16) for each in rest]
        except ValueError:
            return  # it is firmware's
        match word, numbers:
            case "done", []:
                self._done += 1
            case "start", []:
                self.is_ready = False
                Machine.stop(self)
            case "ready", []:
                self.is_ready = True
            case "device", [number, peer, vectors, size, _function]:
                made = BareDevice(self, number, peer, vectors, size)
                self.devices[made.path] = made
            case "gone", [number]:
                device = self.by_number(number)
                self.devices.pop(device.path).unplug()
            case "irq", [number, vector]:
                for each in [each for each in self.bare_devices() if each.number == number]:  # it may have just gone
                    each.on_interrupt(vector)
            case "end", [number, *status]:
                self.ends[number].on_status(*status)
            case "noroom", [_function, _bar, size]:
                self.no_room.append(size)
            case "trap", _:
                self._failure = line

    def by_number(self, number: int) -> BareDevice:
        return next(each for each in self.bare_devices() if each.number == number)

    def bare_devices(self) -> list[BareDevice]:
        return [each for each in self.devices.values() if isinstance(each, BareDevice)]

    def wait(self, holds: Callable[[], Any], what: str) -> None:
        """Wait until something that the guest says holds."""
        with self.changed:
            try:
                self.changed.wait_for(lambda: self._is_ended or self._failure or holds())
            except Hangs as hangs:
                raise Hangs(f"{hangs}: {what}: {self.state()}") from None
            assert holds(), f"{what}: {self.state()}"

    def state(self) -> str:
        return f"{self.name} said {self.heard[-20:]}{' and ended' if self._is_ended else ''}: {self.log()}"

    def log(self) -> str:
        """Return what its QEMU said."""
        raise NotImplementedError

    def wait_ready(self) -> Self:
        self.wait(lambda: self.is_ready, "the guest is not ready")
        return self

    def wait_device(self, holds: Callable[[BareDevice], bool] = lambda _: True) -> BareDevice:
        """Return a device that the guest has, or will get."""

        def found() -> list[BareDevice]:
            return [each for each in self.bare_devices() if holds(each)]

        self.wait(found, "the guest gets no device")
        return found()[0]

    # ---- what it is told ----

    def _tell(self, word: str, *numbers: int) -> int:
        """Tell it something. It does one thing after the other: returns how many these are now."""
        try:
            self._sock.sendall(" ".join([word, *(f"{each:x}" for each in numbers)]).encode() + b"\n")
        except BrokenPipeError:
            pass  # it has just ended
        self._sent += 1
        return self._sent

    def do(self, word: str, *numbers: int) -> None:
        """Have the guest do something, and return when it has."""
        with self.changed:
            mine = self._tell(word, *numbers)
        self.wait(lambda: self._done >= mine, f"the guest does not {word}")

    def set_policy(self, policy: str) -> None:
        """Set how it meets devices that come and go.

        "obedient": it stops a device before it lets it go; "eager": and looks for new ones
        all the time; "stubborn": it lets none go; "careless": it lets one go as it is.
        """
        self.do("policy", ("obedient", "eager", "stubborn", "careless").index(policy))

    def ring_for(self, event: int, number: int, value: int) -> None:
        """Have the guest ring a doorbell whenever an eventfd is signalled."""
        with self.changed:
            self._rung[event] = number, value
            self._epoll.register(event, select.EPOLLIN)

    def ring_no_more(self, event: int) -> None:
        with self.changed:
            del self._rung[event]
            self._epoll.unregister(event)

    def attach(self, granted: control.Granted, *, is_server: bool, send: int) -> BareEnd:
        """Have the guest become an end that sends so many bytes."""
        assert isinstance(granted, control.Granted), granted
        device, grant, rings = self.of_peer(granted.peer), granted.grant, []
        assert isinstance(device, BareDevice)
        after = int(PAGE)
        for indexes, order in ((LEFT_INDEXES, grant.left_order), (RIGHT_INDEXES, grant.right_order)):
            size = 1 << order
            rings += [indexes, size if size < PAGE else after, size]
            after += size if size >= PAGE else 0
        self.ends.append(BareEnd(self, len(self.ends)))
        number = len(self.ends) - 1
        self.do("attach", number, device.number, grant.offset, is_server, grant.doorbell_value, send, *rings)
        return self.ends[-1]

    # ---- its QEMU ----

    def take_memory(self, device: BareDevice) -> int:
        """Return the file that is a device's memory: the one in which the guest's mark is."""
        mark = secrets.randbits(31) | 1
        self.do("store", device.number, MEMORY, MARK, mark)
        found = -1
        for each in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                if not str(each.readlink()).startswith("/memfd:") or each.stat().st_size != device.size:
                    continue
                fd = os.open(each, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            if found < 0 and os.pread(fd, 4, MARK) == mark.to_bytes(4, "little"):
                found = fd
            else:
                os.close(fd)
        assert found >= 0, f"QEMU has no memory with the guest's mark: {self.state()}"
        self.do("store", device.number, MEMORY, MARK, 0)
        return found

    def wait_end(self) -> None:
        """Wait for the end of its QEMU, and let go of all that is of it."""
        self._thread.join()
        self.stop()
        self._epoll.close()
        self._sock.close()
