# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests share: a real daemon in a folder of its own, programs on it, and proof that nothing is left over."""

from __future__ import annotations

import ctypes
import json
import os
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build"
C_BUILD = BUILD / "tests" / "c"
PREFIX = BUILD / "prefix"
SITE = PREFIX / "lib" / "kvmchan"
LIBDIR = SITE / "libxenvchan_shim" / "lib"
REFERENCE = BUILD / "reference" / "usr"
REFERENCE_LIBDIR = REFERENCE / "lib" / f"{os.uname().machine}-linux-gnu"
XEN_RELEASE = min(REFERENCE_LIBDIR.glob("libxenvchan.so.4.*")).name.removeprefix("libxenvchan.so.")
"""The Xen release of the reference, which is that of the machine's Debian."""
XEN_MINOR = int(XEN_RELEASE.split(".")[1])
REFERENCE_LIBXENVCHAN = REFERENCE_LIBDIR / f"libxenvchan.so.{XEN_RELEASE}"
REFERENCE_PROGRAMS = REFERENCE / "lib" / f"xen-{XEN_RELEASE}" / "bin"
"""Xen's programs that are in no PATH."""
XEN_LIBDIR = LIBDIR / f"xen-{XEN_RELEASE}"
"""Our libraries that programs of that release load in place of Xen's."""
KVMCHAND = PREFIX / "bin" / "kvmchand"
KVMCHAN = PREFIX / "bin" / "kvmchan"
DEADLINE = 30.0
"""Seconds after which something that should happen counts as not happening."""


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def services_of(main: int) -> dict[str, int]:
    """A kvmchand's processes beside main, by name. One that is just starting is not there yet."""
    found = {}
    for pid in children(main):
        try:
            *_, entry, name, _socket, _page, _end = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, ValueError):
            continue  # it has ended, or not begun
        if entry.endswith(b"services/__main__.py"):
            found[name.decode()] = pid
    return found


def socket_of(service: int) -> socket.socket:
    """A service process's socket to main, as somebody has it who took over the process."""
    number = int(Path(f"/proc/{service}/cmdline").read_bytes().split(b"\0")[-3])
    process = os.pidfd_open(service)
    pidfd_getfd = 438
    fd = ctypes.CDLL(None, use_errno=True).syscall(pidfd_getfd, process, number, 0)
    os.close(process)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return socket.socket(fileno=fd)


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

    def __init__(
        self, folder: Path, *options: str, domains: Iterable[int] = (1, 2), libvirt: str = "", program: Path = KVMCHAND
    ) -> None:
        self.runtime_dir = folder / "run"
        self.log_path = folder / "kvmchand.log"
        notify_path = folder / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, self.log_path.open("ab") as log:
            notify.bind(str(notify_path))
            notify.settimeout(DEADLINE)
            arguments = ["host", "--libvirt", libvirt, "--runtime-dir", str(self.runtime_dir)]
            for domain in domains:
                arguments += ["--local-domain", str(domain)]
            self.process = subprocess.Popen(
                [str(program), *arguments, *options], stderr=log, env={**os.environ, "NOTIFY_SOCKET": str(notify_path)}
            )
            try:
                self.ready = notify.recv(4096)
            except TimeoutError:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"kvmchand was not ready in time: {self.log()}") from None
        notify_path.unlink()
        self.baseline = self._fds_at_rest()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def local_pid(self) -> int:
        return self.service("local")

    def services(self) -> dict[str, int]:
        """Its processes beside main."""
        return services_of(self.pid)

    def service(self, name: str) -> int:
        """One of them, which may just be starting again."""
        eventually(lambda: name in self.services(), self.log)
        return self.services()[name]

    def kill_service(self, name: str) -> None:
        """Returns when another is there, or main has given up."""
        killed = self.service(name)
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: self.services().get(name, killed) != killed or self.process.poll() is not None)

    def fds(self) -> dict[str, list[str]]:
        return {"main": open_fds(self.pid), **{name: open_fds(pid) for name, pid in sorted(self.services().items())}}

    def _fds_at_rest(self) -> dict[str, list[str]]:
        # Once they answer requests, its processes are done with starting, and main with telling us so.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as reading, RawClient(self) as asking:
            reading.settimeout(DEADLINE)
            reading.connect(str(self.store_path()))
            reading.send(struct.pack("=IIII", 1, 0, 0, 2) + b"/\0")  # lists the root
            assert reading.recv(65536)
            asking.hello().list()
            asking.list()  # main has heard of the other connection by now
            found = self.fds()
        for name in ("main", "main", "local", "store"):
            found[name].remove("socket")  # those connections
        eventually(lambda: self.fds() == found, lambda: f"{self.fds()} {found}")  # and they are gone
        return found

    def log(self) -> str:
        return self.log_path.read_text()

    def socket_path(self, domain: int = 0) -> Path:
        return self.runtime_dir / (f"domain-{domain}.sock" if domain else "kvmchand.sock")

    def store_path(self, domain: int = 0) -> Path:
        return self.runtime_dir / (f"store-{domain}.sock" if domain else "store.sock")

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
            [str(KVMCHAN), "ls", "--json"],
            env=self.environment(domain),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
        listed: dict[str, Any] = json.loads(done.stdout)
        return listed

    def channels(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.listing()["channels"]
        return found

    def assert_clean(self) -> None:
        """No channel, and no descriptor more than at the start."""
        eventually(
            lambda: self.channels() == [] and self.fds() == self.baseline,
            lambda: f"{self.channels()} {self.fds()} {self.baseline}",
        )

    def stop(self) -> None:
        """Asserts that all is released, ends the daemon, and asserts that no process or socket is left."""
        if self.process.poll() is None:
            self.assert_clean()
            services = self.services()
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(DEADLINE) == 0, self.log()
            left = [name for name, pid in services.items() if Path(f"/proc/{pid}").exists()]
            assert not left, f"processes are left: {left}"
        assert list(self.runtime_dir.iterdir()) == [], "sockets are left"
        assert "Traceback" not in self.log(), self.log()

    def kill(self) -> None:
        """For a test that failed, or that wants the daemon gone at once."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


D = TypeVar("D", bound=Daemon)


def serving(daemon: D, request: pytest.FixtureRequest) -> Iterator[D]:
    """A fixture's body: the daemon must be clean at the end, unless a test has failed on it."""
    failed_before = request.session.testsfailed
    try:
        yield daemon
        if request.session.testsfailed == failed_before:
            daemon.stop()
    finally:
        daemon.kill()


def eventually(holds: Callable[[], bool], state: Callable[[], str] = str) -> None:
    """Asserts that something that another process is doing comes about. Each look is a round trip to a process."""
    until = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < until, state()
        os.sched_yield()


def run(*command: str | Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, and shows what it printed if that was not a success."""
    done = subprocess.run(
        [str(each) for each in command], env=env, capture_output=True, text=True, timeout=DEADLINE * 2, **options
    )
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


class Program:
    """A running program that is told lines and says lines. As a context it must, at the end, have ended well, and have said
    nothing more, nor anything on stderr."""

    def __init__(self, *command: str | Path, env: dict[str, str] | None = None, **options: Any) -> None:
        pipe = subprocess.PIPE
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [str(each) for each in command], bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, env=env, **options
        )
        self.status = 0
        """How it shall end."""
        self._heard = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """What it says next, "" if nothing any more."""
        assert self.process.stdout is not None
        while b"\n" not in self._heard:
            assert select.select([self.process.stdout], [], [], DEADLINE)[0], f"{self.process.args!r} says nothing"
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                return ""
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def expect(self, line: str) -> None:
        """Asserts what it says next."""
        said = self.line()
        rest = "" if said else self.process.communicate(timeout=DEADLINE)
        assert said == line, f"{self.process.args!r} said {said!r}: {rest}"

    def tell(self, line: str | bytes = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((line.encode() if isinstance(line, str) else line) + b"\n")

    def ask(self, line: str | bytes) -> str:
        self.tell(line)
        answer = self.line()
        assert answer, f"{self.process.args!r} did not answer {line!r}: {self.process.communicate(timeout=DEADLINE)}"
        return answer

    def finish(self) -> None:
        """Closes its stdin and waits for its end."""
        output, errors = self.process.communicate(timeout=DEADLINE)
        ended = (self.process.returncode, self._heard + output, errors)
        assert ended == (self.status, b"", b""), f"{self.process.args!r}: {ended}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_exception: object) -> None:
        try:
            if failed is None:
                self.finish()
        finally:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()


def compile_c(folder: Path, source: Path, *flags: str) -> Path:
    """A program from one C source, beside nothing else."""
    program = folder / source.stem
    run("gcc", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror", source, "-o", program, *flags)
    return program


def pkg_config(*arguments: str) -> list[str]:
    """What pkg-config says of the build."""
    environment = {**os.environ, "PKG_CONFIG_PATH": str(PREFIX / "lib" / "pkgconfig")}
    # It escapes each byte of a letter that ASCII has not, and only a shell puts these together.
    words = shlex.split(run("pkg-config", *arguments, env=environment, errors="surrogateescape").stdout)
    return [os.fsdecode(os.fsencode(word)) for word in words]


def our_flags(package: str = "xenvchan") -> list[str]:
    return pkg_config("--cflags", "--libs", package)


def xen_flags() -> list[str]:
    """The same for Debian's own headers and library."""
    return ["-isystem", str(REFERENCE / "include"), f"-L{REFERENCE_LIBDIR}", "-lxenvchan", "-Wl,--allow-shlib-undefined"]


def alone(library: Path, folder: Path) -> str:
    """A folder with no library but that one, for LD_LIBRARY_PATH: LD_PRELOAD can't name what has a space in its path."""
    made = folder / f"only-{library.name}"
    made.mkdir(exist_ok=True)
    (made / library.name).unlink(missing_ok=True)
    (made / library.name).symlink_to(library)
    return str(made)


PYTHON = sys.executable
NOBODY = 65534


def run_as(
    user: int, code: str, *arguments: str | Path, group: int = NOBODY, groups: Sequence[int] = (), fds: Sequence[int] = ()
) -> str:
    """What Python code prints that runs as another user, which needs root. Its modules are os, json, socket and sys: the process
    becomes that user when it has these, for another user can't run Python in a home that is closed to others."""
    become = f"""
import json, os, socket, sys
os.chdir("/")
os.setgroups({list(groups)})
os.setresgid({group}, {group}, {group})
os.setresuid({user}, {user}, {user})
"""
    return run(PYTHON, "-I", "-S", "-c", become + code, *arguments, pass_fds=fds).stdout


def is_asleep(pid: int) -> bool:
    """Whether a process waits for something, as far as can be told from outside."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@contextmanager
def in_time(seconds: float = 2 * DEADLINE) -> Iterator[None]:
    """Ends what takes longer, be it a blocked call of the library, by an exception."""

    def late(_number: int, _frame: object) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def acting_as(daemon: Daemon, domain: int = 0) -> Iterator[None]:
    """What this process opens in here, it opens as `domain` of `daemon`."""
    before = dict(os.environ)
    os.environ.pop("KVMCHAN_DOMAIN", None)
    os.environ.update(daemon.environment(domain))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class RawClient:
    """A connection to the daemon that says what a test wants, and hears what the daemon says to that."""

    def __init__(self, daemon: Daemon, domain: int = 0) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(daemon.socket_path(domain)))
        self.sock.settimeout(DEADLINE)
        self._granted: list[int] = []

    def say(self, message: bytes | dict[str, Any], fds: Sequence[int] = ()) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(self.sock, [data], fds) if fds else self.sock.send(data)

    def hello(self, **fields: Any) -> Self:
        self.say({"type": "hello", "version": 3, **fields})
        return self

    def offer(self, peer: int = 0, path: str = "raw", **fields: Any) -> dict[str, Any]:
        """Asks for a channel."""
        self.say({"type": "offer", "peer": peer, "path": path, "read_min": 1, "write_min": 1, "once": False, **fields})
        return self.hear()

    def connect(self, domain: int = 0, path: str = "raw", *, waits: bool = False) -> dict[str, Any]:
        self.say({"type": "connect", "domain": domain, "path": path, "waits": waits})
        return self.hear()

    def list(self) -> dict[str, Any]:
        self.say({"type": "list", "after": 0})
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """The next reply, with its descriptors as `fds`, which stay this connection's."""
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 8)
        except ConnectionResetError:
            data, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 8)  # what it said before it left ours unread
        assert data, "the daemon ended the connection without a word"
        self._granted += fds
        return {**json.loads(data), "fds": fds}

    def hear_end(self) -> None:
        """Asserts that the daemon has ended the connection, and says nothing more."""
        try:
            assert self.sock.recv(1 << 16) == b""
        except ConnectionResetError:
            pass

    def hear_error(self, code: str) -> str:
        """Asserts that the reply is this error; its sentence."""
        reply = self.hear()
        assert (reply["type"], reply.get("code"), reply["fds"]) == ("error", code, []), reply
        sentence: str = reply["sentence"]
        assert len(sentence) > 10
        assert sentence.isprintable()
        return sentence

    def let_go(self) -> None:
        """Closes the descriptors that came with replies."""
        while self._granted:
            os.close(self._granted.pop())

    def close(self) -> None:
        self.let_go()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def next_fd() -> int:
    """The number the next descriptor gets: the same before and after, where none leaks."""
    fd = os.dup(0)
    os.close(fd)
    return fd
