# SPDX-License-Identifier: LGPL-2.1-or-later
"""Xen's own vchan-socket-proxy, as Debian ships it, between two domains: it watches the store, asks
libxenctrl whether its peer lives, and moves bytes. On our libxenvchan, and on Debian's own over our
libraries below it.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rig.daemon import Daemon, serving
from rig.deadline import eventually
from rig.paths import KVMCHAN, LIBDIR, REFERENCE, REFERENCE_LIBDIR, REFERENCE_LIBXENVCHAN, REFERENCE_PROGRAMS, XEN_LIBDIR
from rig.processes import run

PROXY = REFERENCE_PROGRAMS / "vchan-socket-proxy"
PATH = "/local/domain/1/data/proxy"
STATE = "/local/domain/2/data/state"
KIB = 1024
SIZE = 3 * 1024 * KIB + 17
ENDS = [(1, 2), (1, 0), (1, 1)]
"""The server's domain and the client's: two local domains, one and the host, and one with itself.
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    yield from serving(Daemon(tmp_path_factory.mktemp("proxy")), request)


@pytest.fixture(scope="module")
def debian_first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Debian's libxenvchan, which the loader finds before ours, and nothing else of
    Debian's.
    """
    folder = tmp_path_factory.mktemp("debian")
    (folder / REFERENCE_LIBXENVCHAN.name).symlink_to(REFERENCE_LIBXENVCHAN)
    return folder


@pytest.fixture(params=["ours", "debian's"])
def libxenvchan(request: pytest.FixtureRequest) -> str:
    made: str = request.param
    return made


@pytest.fixture(autouse=True)
def _clean(daemon: Daemon) -> Iterator[None]:
    yield
    daemon.assert_clean()


def content(name: str, size: int = SIZE) -> bytes:
    """Bytes that repeat nowhere."""
    return hashlib.shake_128(name.encode()).digest(size)


class Proxies:
    """Starts proxies; a test's have all ended at its end."""

    def __init__(self, daemon: Daemon, first: list[Path]) -> None:
        self._daemon = daemon
        self._first = [*first, XEN_LIBDIR, LIBDIR, REFERENCE_LIBDIR]
        self._running: list[subprocess.Popen[bytes]] = []

    def environment(self, domain: int) -> dict[str, str]:
        # `kvmchan exec` puts our folders before what is there; Debian's libxenvchan must be before
        # them.
        environment = self._daemon.environment(domain)
        shown = run(KVMCHAN, "exec", "--", "env", env=environment).stdout.splitlines()
        found = dict(line.split("=", 1) for line in shown if line.startswith(("XENSTORED_PATH=", "LD_LIBRARY_PATH=")))
        return {**environment, **found, "LD_LIBRARY_PATH": ":".join([*map(str, self._first), found["LD_LIBRARY_PATH"]])}

    def start(self, domain: int, mode: str, peer: int, where: str, *options: str) -> subprocess.Popen[bytes]:
        started = subprocess.Popen(
            [str(PROXY), f"--mode={mode}", *options, str(peer), PATH, where],
            env=self.environment(domain),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._running.append(started)
        return started

    def stop(self) -> None:
        for each in self._running:
            each.kill()
            each.wait()
            for stream in (each.stdin, each.stdout, each.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture
def proxies(daemon: Daemon, debian_first: Path, libxenvchan: str) -> Iterator[Proxies]:
    made = Proxies(daemon, [debian_first] if libxenvchan == "debian's" else [])
    try:
        yield made
    finally:
        made.stop()


def exchange(one: tuple[int, int], other: tuple[int, int], out: bytes, back: bytes) -> None:
    """Writes `out` into the first's input and `back` into the second's, and asserts that each comes
    out at the other. A pair is what to read from and what to write to; none blocks.
    """
    for fd in (*one, *other):
        os.set_blocking(fd, False)
    to_write = {one[1]: memoryview(out), other[1]: memoryview(back)}
    to_read = {one[0]: len(back), other[0]: len(out)}
    got: dict[int, bytearray] = {one[0]: bytearray(), other[0]: bytearray()}
    while any(to_write.values()) or any(to_read[fd] > len(got[fd]) for fd in to_read):
        writing = [fd for fd, left in to_write.items() if left]
        readable, writable, _ = select.select([*to_read], writing, [])
        assert readable or writable, f"stuck at {[len(each) for each in got.values()]} of {list(to_read.values())}"
        for fd in readable:
            data = os.read(fd, 256 * KIB)
            assert data, f"ended at {len(got[fd])} of {to_read[fd]}"
            got[fd] += data
        for fd in writable:
            to_write[fd] = to_write[fd][os.write(fd, to_write[fd][: 64 * KIB]) :]
    assert (bytes(got[one[0]]), bytes(got[other[0]])) == (back, out)


def pipes(proxy: subprocess.Popen[bytes]) -> tuple[int, int]:
    assert proxy.stdout is not None and proxy.stdin is not None
    return proxy.stdout.fileno(), proxy.stdin.fileno()


def ended(proxy: subprocess.Popen[bytes], status: int = 0) -> None:
    """Asserts that it ends so."""
    assert proxy.stderr is not None
    assert proxy.wait() == status, proxy.stderr.read()


@pytest.mark.parametrize(("server", "client"), ENDS)
def test_standard_input_and_output_both_ways_at_once(proxies: Proxies, server: int, client: int) -> None:
    here, there = proxies.start(server, "server", client, "-"), proxies.start(client, "client", server, "-")
    exchange(pipes(here), pipes(there), content("out"), content("back"))
    assert here.stdin is not None
    here.stdin.close()  # the end of the file ends the server, and the channel's end the client
    ended(here)
    ended(there)


def test_a_client_that_comes_first_waits_for_the_server(proxies: Proxies) -> None:
    early = proxies.start(2, "client", 1, "-", f"--state-path={STATE}")
    exists = [str(REFERENCE / "bin" / "xenstore-exists"), STATE]
    eventually(lambda: subprocess.run(exists, env=proxies.environment(2)).returncode == 0)
    assert run(REFERENCE / "bin" / "xenstore-read", STATE, env=proxies.environment(2)).stdout == "running\n"
    late = proxies.start(1, "server", 2, "-")
    exchange(pipes(early), pipes(late), b"out", b"back")
    late.kill()
    ended(late, -signal.SIGKILL)
    ended(early)
    run(REFERENCE / "bin" / "xenstore-rm", STATE, env=proxies.environment(2))


def test_a_client_that_is_killed_ends_a_server_of_standard_input(proxies: Proxies) -> None:
    here, there = proxies.start(1, "server", 2, "-"), proxies.start(2, "client", 1, "-")
    exchange(pipes(here), pipes(there), b"out", b"back")
    there.kill()
    ended(here)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        yield sock


def dial(path: Path) -> socket.socket:
    """Connects, when somebody listens there."""
    eventually(path.exists)
    sock = socket.socket(socket.AF_UNIX)

    def connected() -> bool:
        try:
            sock.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True

    eventually(connected)
    return sock


@pytest.mark.parametrize(("server", "client"), ENDS[:2])
def test_clients_come_one_after_the_other_through_sockets(proxies: Proxies, tmp_path: Path, server: int, client: int) -> None:
    with listening(tmp_path / "in") as accepting:
        proxies.start(server, "server", client, str(tmp_path / "in"))
        proxies.start(client, "client", server, str(tmp_path / "out"))
        for turn in range(3):
            with dial(tmp_path / "out") as near:
                far, _ = accepting.accept()
                with far:
                    ends = [(each.fileno(), each.fileno()) for each in (near, far)]
                    exchange(ends[0], ends[1], content(f"out {turn}", 300 * KIB), content(f"back {turn}", 300 * KIB))
                    near.close()
                    far.setblocking(True)
                    assert far.recv(1) == b""  # the client's end of its socket is the end at the other side


def test_the_next_client_gets_through_after_one_was_killed(proxies: Proxies, tmp_path: Path) -> None:
    with listening(tmp_path / "in") as accepting:
        proxies.start(1, "server", 2, str(tmp_path / "in"))
        for turn in range(2):
            there = proxies.start(2, "client", 1, "-")
            far, _ = accepting.accept()
            with far:
                exchange(pipes(there), (far.fileno(), far.fileno()), content(f"out {turn}", 99), content(f"back {turn}", 99))
                there.kill()
                far.setblocking(True)
                assert far.recv(1) == b""
