# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests share: a real daemon in a folder of its own, programs on it, and proof that nothing is left over."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
C_BUILD = BUILD / "tests" / "c"
PREFIX = BUILD / "prefix"
SITE = PREFIX / "lib" / "kvmchan"
LIBDIR = SITE / "libxenvchan_shim" / "lib"
REFERENCE = BUILD / "reference" / "usr"
REFERENCE_LIBDIR = REFERENCE / "lib" / f"{os.uname().machine}-linux-gnu"
KVMCHAND = PREFIX / "bin" / "kvmchand"
KVMCHAN = PREFIX / "bin" / "kvmchan"
DEADLINE = 30.0
"""Seconds after which something that should happen counts as not happening."""


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def open_fds(pid: int) -> list[str]:
    """What a process's descriptors are, sorted, without the numbers of sockets."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(each.readlink()).split(":[")[0])
        except FileNotFoundError:
            continue
    return sorted(found)


class Daemon:
    """A running `kvmchand host`. Talk to it as its clients do; stop() proves that it left nothing."""

    def __init__(self, folder: Path, *options: str, domains: Iterable[int] = (1, 2)) -> None:
        self.runtime_dir = folder / "run"
        self.log_path = folder / "kvmchand.log"
        notify_path = folder / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, self.log_path.open("wb") as log:
            notify.bind(str(notify_path))
            notify.settimeout(DEADLINE)
            arguments = ["host", "--no-libvirt", "--runtime-dir", str(self.runtime_dir)]
            for domain in domains:
                arguments += ["--local-domain", str(domain)]
            self.process = subprocess.Popen(
                [str(KVMCHAND), *arguments, *options], stderr=log, env={**os.environ, "NOTIFY_SOCKET": str(notify_path)}
            )
            try:
                self.ready = notify.recv(4096)
            except TimeoutError:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"kvmchand was not ready in time: {self.log()}") from None
        notify_path.unlink()
        self.baseline = self.fds()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def local_pid(self) -> int:
        (pid,) = children(self.pid)
        return pid

    def fds(self) -> dict[str, list[str]]:
        return {"main": open_fds(self.pid), "local": open_fds(self.local_pid)}

    def log(self) -> str:
        return self.log_path.read_text()

    def socket_path(self, domain: int = 0) -> Path:
        return self.runtime_dir / (f"domain-{domain}.sock" if domain else "kvmchand.sock")

    def environment(self, domain: int = 0, **more: str) -> dict[str, str]:
        """For a program that acts as `domain`."""
        made = {**os.environ, "KVMCHAN_RUNTIME_DIR": str(self.runtime_dir), **more}
        made.pop("KVMCHAN_DOMAIN", None)
        if domain:
            made["KVMCHAN_DOMAIN"] = str(domain)
        return made

    def listing(self, domain: int = 0) -> dict[str, Any]:
        """`kvmchan ls --json`."""
        done = subprocess.run(
            [str(KVMCHAN), "ls", "--json"], env=self.environment(domain), capture_output=True, text=True, timeout=DEADLINE, check=True
        )
        listed: dict[str, Any] = json.loads(done.stdout)
        return listed

    def channels(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.listing()["channels"]
        return found

    def assert_clean(self) -> None:
        """No channel, and no descriptor more than at the start."""
        eventually(lambda: self.channels() == [] and self.fds() == self.baseline, lambda: f"{self.channels()} {self.fds()} {self.baseline}")

    def stop(self) -> None:
        """Asserts that all is released, ends the daemon, and asserts that no process or socket is left."""
        if self.process.poll() is None:
            self.assert_clean()
            local = self.local_pid
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(DEADLINE) == 0, self.log()
            assert not Path(f"/proc/{local}").exists(), "the local process is left"
        assert list(self.runtime_dir.iterdir()) == [], "sockets are left"
        assert "Traceback" not in self.log(), self.log()

    def kill(self) -> None:
        """For a test that failed, or that wants the daemon gone at once."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def eventually(holds: Callable[[], bool], state: Callable[[], str] = str) -> None:
    """Asserts that something that another process is doing comes about. Each look is a round trip to a process."""
    until = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < until, state()
        os.sched_yield()


def run(*command: str | Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, and shows what it printed if that was not a success."""
    done = subprocess.run([str(each) for each in command], env=env, capture_output=True, text=True, timeout=DEADLINE * 2, **options)
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def compile_c(folder: Path, source: Path, *flags: str) -> Path:
    """A program from one C source, beside nothing else."""
    program = folder / source.stem
    run("gcc", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror", source, "-o", program, *flags)
    return program


def our_flags() -> list[str]:
    """`pkg-config --cflags --libs xenvchan` of the build."""
    return run("pkg-config", "--cflags", "--libs", "xenvchan", env={**os.environ, "PKG_CONFIG_PATH": str(PREFIX / "lib" / "pkgconfig")}).stdout.split()


def xen_flags() -> list[str]:
    """The same for Debian's own headers and library."""
    return ["-isystem", str(REFERENCE / "include"), f"-L{REFERENCE_LIBDIR}", "-lxenvchan", "-Wl,--allow-shlib-undefined"]


PYTHON = sys.executable
