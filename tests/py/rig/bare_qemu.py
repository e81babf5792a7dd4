# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bare guest in a QEMU of the test's own, without libvirt: devices are plugged by QMP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from rig.bare import BareMachine
from rig.deadline import Hangs, in_time

BRIDGE = "bridge"
"""The conventional PCI bus that devices are plugged into."""
CPU = {"tcg": "qemu64", "kvm": "host,arch-capabilities=off"}
"""A KVM within a virtual machine may offer that feature and refuse its register, and QEMU ends."""


class QmpError(Exception):
    """QEMU refused a command. `args[0]`: why."""


class BareQemu(BareMachine):
    """Running from its making to quit().

    As a context it must have ended by itself, or end well then. `folder`: where its log is.
    `until_readable`: runs whoever serves its devices until QEMU has answered.
    """

    def __init__(
        self,
        folder: Path,
        kernel: Path,
        accelerator: str,
        *options: str,
        name: str = "bare",
        until_readable: Callable[[int], None] = lambda _fd: None,
    ) -> None:
        console, its_console = socket.socketpair()
        self._monitor, its_monitor = socket.socketpair()
        self._log = folder / f"{name}.log"
        command = ["qemu-system-x86_64", "-accel", accelerator, "-cpu", CPU[accelerator], "-machine", "q35", "-m", "64"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-kernel", str(kernel)]
        command += [
            "-device",
            "pcie-root-port,id=root-port,chassis=1,slot=1",
            "-device",
            f"pcie-pci-bridge,id={BRIDGE},bus=root-port",
        ]
        command += ["-chardev", f"socket,id=console,fd={its_console.fileno()}", "-serial", "chardev:console"]
        command += ["-chardev", f"socket,id=monitor,fd={its_monitor.fileno()}", "-mon", "chardev=monitor,mode=control"]
        with its_console, its_monitor, self._log.open("ab") as log:
            fds = its_console.fileno(), its_monitor.fileno()
            self.process = subprocess.Popen([*command, *options], pass_fds=fds, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = self.process.pid
        self._until_readable = until_readable
        self._heard_of_monitor = b""
        self._events: list[dict[str, Any]] = []
        super().__init__(0, name, console, kvm=accelerator == "kvm")
        try:
            self._read()  # its greeting
            self.command("qmp_capabilities")
        except BaseException:
            self.kill()
            raise

    def log(self) -> str:
        return self._log.read_text()

    # ---- QMP ----

    def command(self, name: str, **arguments: object) -> Any:
        """Return the answer to a command of QMP."""
        self._say(name, **arguments)
        return self._answer()

    def _say(self, name: str, **arguments: object) -> None:
        self._monitor.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")

    def _answer(self) -> Any:
        while True:
            answer = self._read()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QmpError(answer["error"]["desc"])
            self._events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\n" not in self._heard_of_monitor:
            self._until_readable(self._monitor.fileno())
            try:
                heard = self._monitor.recv(65536)
            except ConnectionResetError:
                heard = b""
            assert heard, f"QEMU has ended: {self.state()}"
            self._heard_of_monitor += heard
        line, _, self._heard_of_monitor = self._heard_of_monitor.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def wait_event(self, name: str, **data: object) -> None:
        """Wait for an event with these data, of those that nobody waited for yet."""

        def is_it(event: dict[str, Any]) -> bool:
            return bool(event["event"] == name and event.get("data", {}).items() >= data.items())

        while not any(is_it(each) for each in self._events):
            self._events.append(self._read())
        self._events.remove(next(each for each in self._events if is_it(each)))

    # ---- devices ----

    def plug(self, name: str, server: Path, vectors: int) -> None:
        """Plug a device in, as a hypervisor does. The guest may not have seen it yet."""
        self.connect(name, server)
        self.begin_add(name, vectors)
        self.end_add(name)

    def connect(self, name: str, server: Path) -> None:
        """Have QEMU connect to a device's server. It reads nothing yet."""
        address = {"type": "unix", "data": {"path": str(server)}}
        self.command("chardev-add", id=f"to-{name}", backend={"type": "socket", "data": {"addr": address, "server": False}})

    def begin_add(self, name: str, vectors: int) -> None:
        """Have QEMU read what its server says. It answers end_add()."""
        self._say("device_add", driver="ivshmem-doorbell", id=name, chardev=f"to-{name}", vectors=vectors, bus=BRIDGE)

    def end_add(self, name: str) -> None:
        """Wait until the device is plugged in. Raises QmpError if QEMU has refused it."""
        try:
            self._answer()
        except QmpError:
            self.command("chardev-remove", id=f"to-{name}")
            raise

    def ask_unplug(self, name: str) -> None:
        """Ask the guest to let a device go."""
        self.command("device_del", id=name)

    def wait_unplugged(self, name: str) -> None:
        self.wait_event("DEVICE_DELETED", device=name)
        self.command("chardev-remove", id=f"to-{name}")

    def unplug(self, name: str) -> None:
        self.ask_unplug(name)
        self.wait_unplugged(name)

    # ---- its end ----

    def quit(self) -> None:
        """End QEMU, and assert that it ended well."""
        try:
            if self.process.poll() is None:
                self.command("quit")
        except BaseException:
            self.kill()
            raise
        self._end()
        assert self.process.returncode == 0, self.state()

    def kill(self) -> None:
        self.process.kill()
        self._end()

    def _end(self) -> None:
        self.process.wait()
        self.wait_end()
        self._monitor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_exception: object) -> None:
        if self._monitor.fileno() < 0:
            return
        if failed is None:
            self.quit()
        else:
            self.kill()


PATIENCE = 60.0
"""Seconds, on the clock of rig.deadline, in which a guest must have started."""


def lacking_kvm(folder: Path, kernel: Path) -> str:
    """Return why the bare guest does not run with KVM here, or ""."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm can't be opened: {error.strerror}"
    try:
        with in_time(PATIENCE, "the start of the bare guest with KVM"), BareQemu(folder, kernel, "kvm") as guest:
            guest.wait_ready()
    except (AssertionError, Hangs) as failure:
        return f"the bare guest does not answer with KVM: {' '.join(str(failure).split())}"
    return ""
