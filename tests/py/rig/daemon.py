# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real daemon in a folder of its own, and proof that it leaves nothing."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from libxenvchan_shim import tool
from rig.clients import RawClient, StoreClient
from rig.deadline import eventually
from rig.paths import KVMCHAND
from rig.processes import open_fds, services_of

if TYPE_CHECKING:
    import pytest


class Daemon:
    """A running `kvmchand host`.

    Talk to it as its clients do; stop() proves that it left nothing.
    """

    _log_begins = 0
    """Where the part of the log that log() returns begins."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        domains: Iterable[int] = (1, 2),
        libvirt: str = "",
        program: Path = KVMCHAND,
        stderr: int | None = None,
    ) -> None:
        """`stderr`: where it is to log, in place of a file."""
        self.runtime_dir = folder / "run"
        self.log_path = folder / "kvmchand.log"
        notify_path = folder / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, self.log_path.open("ab") as log:
            notify.bind(str(notify_path))
            arguments = ["host", "--libvirt", libvirt, "--runtime-dir", str(self.runtime_dir)]
            for domain in domains:
                arguments += ["--local-domain", str(domain)]
            self.process = subprocess.Popen(
                [str(program), *arguments, *options],
                stderr=log if stderr is None else stderr,
                env={**os.environ, "NOTIFY_SOCKET": str(notify_path)},
            )
            self.ready = self._await_ready(notify)
        notify_path.unlink()
        self.baseline = self._fds_at_rest()

    def _await_ready(self, notify: socket.socket) -> bytes:
        ended = os.pidfd_open(self.pid)
        try:
            ready, _, _ = select.select([notify.fileno(), ended], [], [])
        finally:
            os.close(ended)
        assert notify.fileno() in ready, f"kvmchand ended before it was ready: {self.log()}"
        return notify.recv(4096)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def local_pid(self) -> int:
        return self.service("local")

    def services(self) -> dict[str, int]:
        """Return its processes beside main, by name."""
        return services_of(self.pid)

    def service(self, name: str) -> int:
        """Return the process of a service, which may just be starting again."""
        eventually(lambda: name in self.services(), self.log)
        return self.services()[name]

    def kill_service(self, name: str) -> None:
        """Kill a service, and return when another runs, or main has given up."""
        killed = self.service(name)
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: self.services().get(name, killed) != killed or self.process.poll() is not None)

    def fds(self) -> dict[str, list[str]]:
        return {"main": open_fds(self.pid), **{name: open_fds(pid) for name, pid in sorted(self.services().items())}}

    def _fds_at_rest(self) -> dict[str, list[str]]:
        # Once they answer requests, its processes are done with starting, and main with telling us
        # so.
        with StoreClient(self.store_path()) as reading, RawClient(self) as asking:
            reading.children("/")
            asking.hello().list()
            asking.list()  # main has heard of the other connection by now
            found = self.fds()
        for name in ("main", "main", "local", "store"):
            found[name].remove("socket")  # those connections
        eventually(lambda: self.fds() == found, lambda: f"{self.fds()} {found}")  # and they are gone
        return found

    def log(self) -> str:
        """Return what it has logged since it started, or since begin()."""
        return self.log_path.read_bytes()[self._log_begins :].decode()

    def socket_path(self, domain: int = 0) -> Path:
        return self.runtime_dir / (f"domain-{domain}.sock" if domain else "kvmchand.sock")

    def store_path(self, domain: int = 0) -> Path:
        return self.runtime_dir / (f"store-{domain}.sock" if domain else "store.sock")

    def environment(self, domain: int = 0, **more: str) -> dict[str, str]:
        """Return the environment of a program that acts as `domain`."""
        made = {**os.environ, "KVMCHAN_RUNTIME_DIR": str(self.runtime_dir), **more}
        made.pop("KVMCHAN_DOMAIN", None)
        if domain:
            made["KVMCHAN_DOMAIN"] = str(domain)
        return made

    def listing(self, domain: int = 0) -> dict[str, Any]:
        """Return what `kvmchan ls --json` prints, without a process for it."""
        with acting_as(self, domain):
            listed: dict[str, Any] = json.loads(tool.as_json(tool.listing()))
        return listed

    def channels(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.listing()["channels"]
        return found

    def is_running(self) -> bool:
        return self.process.poll() is None

    def assert_clean(self) -> None:
        """Assert that it has no channel, no descriptor more than at the start, and no traceback in
        its log.
        """
        eventually(lambda: self.channels() == [], lambda: str(self.channels()))
        # Without another question, whose connection would be a descriptor more for a moment.
        eventually(lambda: self.fds() == self.baseline, lambda: f"{self.fds()} {self.baseline}")
        assert "Traceback" not in self.log(), self.log()

    # ---- one test after another (rig.kept) ----

    def begin(self) -> None:
        """Prepare for another test, which sees only what is logged from now on."""
        self._log_begins = self.log_path.stat().st_size

    def tidy(self, when_new: dict[str, Any]) -> None:
        """Remove what a test has left in the store, where programs may leave what they like.

        `when_new`: the state() that the daemon had then.
        """
        new = self.nodes().keys() - when_new["store"].keys()
        with StoreClient(self.store_path()) as client:
            for path in new:
                if path.rpartition("/")[0] not in new:
                    client.remove(path)

    def nodes(self) -> dict[str, tuple[str, list[str]]]:
        """Return the value and the permissions of each node of the store, by path."""
        found = {}
        paths = ["/"]
        with StoreClient(self.store_path()) as client:
            while paths:
                path = paths.pop()
                found[path] = (client.read(path), client.permissions(path))
                paths += [f"{path.rstrip('/')}/{name}" for name in client.children(path)]
        return found

    def state(self) -> dict[str, Any]:
        """Return what a test can have changed for good in a daemon that is clean again."""
        services = self.services()
        return {
            "services": services,
            "limits": [Path(f"/proc/{pid}/limits").read_text() for pid in (self.pid, *services.values())],
            "sockets": {path: (path.stat().st_ino, path.stat().st_mode) for path in self.runtime_dir.iterdir()},
            "store": self.nodes(),
        }

    # ---- its end ----

    def stop(self) -> None:
        """End the daemon.

        Assert that all is released before, and that no process or socket is left.
        """
        if self.is_running():
            self.assert_clean()
            services = self.services()
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait() == 0, self.log()
            left = [name for name, pid in services.items() if Path(f"/proc/{pid}").exists()]
            assert not left, f"processes are left: {left}"
        assert list(self.runtime_dir.iterdir()) == [], "sockets are left"
        assert "Traceback" not in self.log(), self.log()

    def kill(self) -> None:
        """Kill the daemon, after a failed test, or to have it gone at once."""
        if self.is_running():
            self.process.kill()
            self.process.wait()


D = TypeVar("D", bound=Daemon)


def serving(daemon: D, request: pytest.FixtureRequest) -> Iterator[D]:
    """Serve as a fixture's body: the daemon must be clean at the end, unless a test has failed on
    it.
    """
    failed_before = request.session.testsfailed
    try:
        yield daemon
        if request.session.testsfailed == failed_before:
            daemon.stop()
    finally:
        daemon.kill()
        if request.session.testsfailed != failed_before:
            print(daemon.log())


@contextmanager
def acting_as(daemon: Daemon, domain: int = 0) -> Iterator[None]:
    """Let this process act as `domain` of `daemon` within the context."""
    before = dict(os.environ)
    os.environ.pop("KVMCHAN_DOMAIN", None)
    os.environ.update(daemon.environment(domain))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
