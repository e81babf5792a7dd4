# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host's daemon with its guests, and programs that run on any of them alike."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from rig.daemon import Daemon
from rig.deadline import eventually
from rig.libvirtd import PrivateLibvirtd
from rig.machine import Machine, Program
from rig.paths import KVMCHAN, KVMCHAND, LIBDIR, PYTHON, SITE
from rig.processes import open_fds

GUEST_RUNTIME_DIR = "/run/kvmchand"
GUEST_ENVIRONMENT = {"PYTHONPATH": str(SITE), "KVMCHAN_LIBDIR": str(LIBDIR)}


class Host(Daemon):
    """The host's daemon, with guests: at rest it has their devices, so stop() asks for less."""

    def _fds_at_rest(self) -> dict[str, list[str]]:
        return {}

    def assert_clean(self) -> None:
        eventually(lambda: self.channels() == [], lambda: str(self.channels()))


class HostProgram:
    """A program on the host, told and heard as one in a guest is."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.argv = argv
        self.lines: list[str] = []
        self._new = threading.Condition()
        self._process = subprocess.Popen(
            argv, env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._ended = False
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            with self._new:
                self.lines.append(line.rstrip("\n"))
                self._new.notify_all()
        with self._new:
            self._ended = True
            self._new.notify_all()

    def wait_line(self, part: str) -> str:
        def found() -> str | None:
            return next((line for line in self.lines if part in line), None)

        with self._new:
            self._new.wait_for(lambda: found() is not None or self._ended)
            line = found()
        assert line is not None, f"{self.argv} on the host said only {self.lines}"
        return line

    def wait(self) -> int:
        status = self._process.wait()
        self._reader.join()
        self._close()
        return status

    def _close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()

    def kill(self, signal: int = 9) -> None:
        self._process.send_signal(signal)

    def end(self) -> None:
        """Kill it, and wait for its end."""
        self._process.kill()
        self.wait()

    def write(self, text: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def end_input(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()

    @property
    def pid(self) -> int:
        return self._process.pid


N = TypeVar("N", bound="Network")


class Network:
    """From start() to stop(). `machines`: two guests. restore() repairs what a test broke.

    `machine_is`: what the guests are, as of Machine.
    """

    ENVIRONMENT: ClassVar[dict[str, str]] = GUEST_ENVIRONMENT
    """Of programs in the guests."""

    def __init__(self, libvirtd: PrivateLibvirtd, folder: Path, **machine_is: Any) -> None:
        self._libvirtd = libvirtd
        self._folder = folder
        self.host: Host | None = None
        self._programs: list[HostProgram | Program] = []
        self.machines = [Machine(libvirtd.uri, name, folder, **machine_is) for name in ("one", "two")]
        self.daemons: dict[str, Program] = {}

    @property
    def daemon(self) -> Host:
        """Return the host's daemon."""
        assert self.host is not None
        return self.host

    # ---- life ----

    def start(self) -> None:
        self.start_host()
        self.start_guests(*self.machines)

    def start_guests(self, *machines: Machine) -> None:
        """Start guests at once, each with a daemon."""
        for machine in machines:
            machine.create()
        for machine in machines:
            machine.wait_ready()
            self.start_daemon(machine)
        for machine in machines:
            self.wait_linked(machine)

    def start_host(self, *options: str) -> Host:
        """Start the host's daemon, in the same place each time."""
        folder = self._folder / "host"
        folder.mkdir(exist_ok=True)
        self.host = Host(folder, *options, domains=(), libvirt=self._libvirtd.uri)
        return self.host

    def start_daemon(self, machine: Machine) -> None:
        self.daemons[machine.name] = machine.start(PYTHON, str(KVMCHAND), "guest", env=self.ENVIRONMENT)

    def wait_linked(self, machine: Machine) -> None:
        """Wait until the host's daemon has heard the guest's, and the guest can use the link."""
        domain = machine.domain
        eventually(
            lambda: any(each["domain"] == domain and each["ready"] for each in self.guests()),
            lambda: f"{self.guests()} {self._said_by_daemon(machine)}",
        )

    def _said_by_daemon(self, machine: Machine) -> str:
        return str(self.daemons[machine.name].lines)

    def restore(self) -> None:
        """Start again whatever the last test ended."""
        for machine in self.machines:
            if not machine.is_running():
                machine.create()
                machine.wait_ready()
            daemon = self.daemons[machine.name]
            if daemon.status is not None or daemon.is_lost:
                self.start_daemon(machine)
        for machine in self.machines:
            self.wait_linked(machine)

    def lend(self) -> Iterator[list[Machine | None]]:
        """Serve as a fixture's body: the host and the guests, and no channel when the test has
        ended.
        """
        self.restore()
        yield [None, *self.machines]
        self.assert_clean()

    def assert_clean(self) -> None:
        for program in self._programs:
            program.end()
        self._programs.clear()
        self.daemon.assert_clean()
        assert "Traceback" not in self.daemon.log(), self.daemon.log()

    def stop(self) -> None:
        for machine in self.machines:
            machine.destroy()
        eventually(lambda: self.guests() == [], lambda: str(self.guests()))
        eventually(lambda: devices_left(self.daemon) == [], lambda: str(devices_left(self.daemon)))
        self.daemon.stop()

    def kill(self) -> None:
        for machine in self.machines:
            machine.destroy()
        if self.host is not None:
            self.host.kill()

    def guests(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = self.daemon.listing()["guests"]
        return found

    # ---- programs ----

    def run_on(self, machine: Machine | None, *argv: str | Path) -> HostProgram | Program:
        """Start a program on a guest, or on the host where `machine` is None."""
        words = [str(each) for each in argv]
        program: HostProgram | Program
        if machine is None:
            program = HostProgram(words, self.daemon.environment())
        else:
            program = machine.start(*words, env=self.ENVIRONMENT)
        self._programs.append(program)
        return program

    def domain_of(self, machine: Machine | None) -> int:
        return 0 if machine is None else machine.domain

    def listing_in(self, machine: Machine) -> str:
        return machine.run(PYTHON, str(KVMCHAN), "ls", "--json", env=self.ENVIRONMENT)


def devices_left(host: Host) -> list[str]:
    """Return the memory and the sockets of devices that the daemon still has."""
    memory = [fd for fd in open_fds(host.pid) if fd.startswith("/memfd:kvmchan ")]
    return memory + [each.name for each in (host.runtime_dir / "ivshmem").iterdir() if each.name != "new"]


@contextmanager
def running(network: N) -> Iterator[N]:
    """Start a network, and stop it; nothing of it is left, also if a test fails."""
    try:
        network.start()
        yield network
        network.stop()
    finally:
        network.kill()
