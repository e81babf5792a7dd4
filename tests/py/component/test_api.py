# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the Python API opens vchans, and what it raises where that fails."""

from __future__ import annotations

import ast
import errno
import gc
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import libxenvchan_shim
from kvmchand.errors import (
    AccessDenied,
    ChannelClosed,
    InvalidArgument,
    NotFound,
    ProtocolError,
    TimedOut,
    TooLong,
    Unreachable,
    VchanError,
)
from kvmchand.wire import client, dataplane
from kvmchand.wire.packet import send_packet
from libxenvchan_shim import State, Vchan, connect, domains, listen, map, offer, share
from libxenvchan_shim.connection import Connection, Granted
from rig.daemon import Daemon, acting_as
from rig.deadline import eventually
from rig.device import end_on_device, slice_of_device
from rig.paths import LIBDIR, PYTHON
from rig.processes import next_fd, open_fds

# ---- opening ----


@pytest.mark.parametrize(
    ("path", "kind", "number"),
    [
        ("", InvalidArgument, errno.EINVAL),
        ("a b", InvalidArgument, errno.EINVAL),
        ("a\0b", InvalidArgument, errno.EINVAL),
        ("ä", InvalidArgument, errno.EINVAL),
        ("\ud800", InvalidArgument, errno.EINVAL),
        ("a/", InvalidArgument, errno.EINVAL),
        ("/" + "x" * 3072, TooLong, errno.E2BIG),
        ("x" * 100_000, TooLong, errno.E2BIG),
    ],
)
def test_a_path_that_can_not_be(daemon: Daemon, path: str, kind: type[VchanError], number: int) -> None:
    before = next_fd()
    with acting_as(daemon):
        calls: list[Callable[[], Vchan]] = [lambda: offer(0, path), lambda: connect(0, path)]
        for call in calls:
            with pytest.raises(kind) as caught:
                call()
            assert caught.value.errno == number
            assert len(caught.value.sentence) < 200
    assert next_fd() == before


@pytest.mark.parametrize(
    ("sizes", "named"),
    [({"read_min": (1 << 20) + 1}, "read_min"), ({"write_min": 1 << 70}, "write_min"), ({"read_min": -1}, "read_min is -1")],
)
def test_a_size_of_ring_that_can_not_be(daemon: Daemon, sizes: dict[str, int], named: str) -> None:
    with acting_as(daemon), pytest.raises(InvalidArgument, match=named):
        offer(0, "x", **sizes)


@pytest.mark.parametrize("domain", [-1, 2**31, -(2**31) - 1, 2**70])
def test_a_domain_that_can_not_be(daemon: Daemon, domain: int) -> None:
    with acting_as(daemon):
        calls: list[Callable[[], Vchan]] = [lambda: offer(domain, "x"), lambda: connect(domain, "x")]
        for call in calls:
            with pytest.raises(InvalidArgument, match=str(domain)):
                call()


def test_the_daemons_errors_are_raised_as_what_they_are(daemon: Daemon) -> None:
    before = next_fd()
    with acting_as(daemon, 1):
        with pytest.raises(NotFound) as not_found:
            connect(2, "/local/domain/2/x")
        with pytest.raises(AccessDenied) as denied:
            offer(2, "/local/domain/2/x")
    assert (not_found.value.errno, denied.value.errno) == (errno.ENOENT, errno.EACCES)
    assert "offers no vchan at /local/domain/2/x" in not_found.value.sentence
    assert str(denied.value) == f"[Errno {errno.EACCES}] {denied.value.sentence}"
    assert next_fd() == before


def test_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMCHAN_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(Unreachable, match="KVMCHAN_RUNTIME_DIR") as missing:
        offer(0, "x")
    assert (missing.value.errno, str(tmp_path) in missing.value.sentence) == (errno.ECONNREFUSED, True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(tmp_path / "kvmchand.sock"))
    with pytest.raises(Unreachable) as refused:
        offer(0, "x")
    assert refused.value.errno == errno.ECONNREFUSED


def test_a_daemon_that_is_not_for_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMCHAN_RUNTIME_DIR", str(tmp_path))
    user = os.geteuid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "kvmchand.sock"))
        listener.listen()
        (tmp_path / "kvmchand.sock").chmod(0)
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(AccessDenied, match="be root") as denied:
                offer(0, "x")
        finally:
            os.seteuid(user)
    assert denied.value.errno == errno.EACCES


@pytest.mark.parametrize("directory", ["x" * 200, "/dev/null"])
def test_a_runtime_directory_that_can_not_be(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMCHAN_RUNTIME_DIR", directory)
    with pytest.raises(Unreachable, match=directory):
        offer(0, "x")


@pytest.mark.parametrize("domain", ["x", "-1", "1.0", " 1", "\u0661", "../kvmchand"])
def test_a_domain_in_the_environment_that_can_not_be(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMCHAN_DOMAIN", domain)
    with pytest.raises(InvalidArgument, match="KVMCHAN_DOMAIN"):
        offer(0, "x")


class FakeDaemon:
    """A socket where a daemon should be, that answers the first client with given packets, and
    reads none.
    """

    def __init__(self, folder: Path, packets: list[tuple[bytes, int]], *, silent: bool = False) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(folder / "kvmchand.sock"))
        self.listener.listen()
        self.packets = packets
        self.silent = silent
        self.kept: list[socket.socket] = []
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        sock, _ = self.listener.accept()
        if self.silent:
            self.kept.append(sock)
            return
        for data, fds in self.packets:
            socket.send_fds(sock, [data], [0] * fds)
        select.select([sock], [], [])
        sock.close()

    def __enter__(self) -> FakeDaemon:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.thread.join()
        for sock in (self.listener, *self.kept):
            sock.close()


GRANTED = (
    b'{"type":"grant","channel":1,"path":"/x","left_order":10,"right_order":11,'
    b'"events":"socket","offset":0,"doorbell":0,"doorbell_value":0}'
)
EVENTFD = GRANTED.replace(b"socket", b"eventfd")
DOORBELL = GRANTED.replace(b"socket", b"doorbell")
ERROR = b'{"type":"error","code":"denied","sentence":"you may not"}'


@pytest.mark.parametrize(
    ("packets", "kind", "said"),
    [
        ([], Unreachable, "ended the connection"),
        ([(ERROR, 0)], AccessDenied, "you may not"),
        ([(ERROR, 2)], AccessDenied, "you may not"),
        ([(GRANTED, 0)], ProtocolError, "0 descriptors"),
        ([(GRANTED, 3)], ProtocolError, "3 descriptors"),
        ([(GRANTED.replace(b"11", b"10"), 2)], OSError, "orders 10 and 10, which are invalid"),
        ([(GRANTED.replace(b"11", b"-1"), 2)], ProtocolError, "invalid channel"),
        ([(GRANTED, 2)], OSError, "memory"),
        ([(EVENTFD, 2)], ProtocolError, "2 descriptors, not 3"),
        ([(EVENTFD, 4)], ProtocolError, "4 descriptors, not 3"),
        ([(EVENTFD, 3)], OSError, "memory"),
        ([(EVENTFD.replace(b"eventfd", b"shared eventfd"), 2)], ProtocolError, "2 descriptors, not 3"),
        ([(DOORBELL.replace(b"doorbell", b"shared doorbell", 1), 3)], ProtocolError, "3 descriptors, not 2"),
        ([(DOORBELL, 1)], ProtocolError, "1 descriptors, not 2"),
        ([(DOORBELL, 3)], ProtocolError, "3 descriptors, not 2"),
        ([(GRANTED.replace(b"socket", b"pigeon"), 2)], ProtocolError, "'pigeon' for events"),
        ([(GRANTED.replace(b"socket", b""), 2)], ProtocolError, "'' for events"),
        ([(EVENTFD.replace(b'"offset":0', b'"offset":1'), 3)], ProtocolError, "invalid channel"),
        ([(EVENTFD.replace(b'"offset":0', b'"offset":-4096'), 3)], ProtocolError, "offset"),
        ([(EVENTFD.replace(b'"offset":0', b'"offset":9223372036854771712'), 3)], OSError, "memory at 9223372036854771712"),
        ([(DOORBELL.replace(b'"doorbell":0', b'"doorbell":12'), 2)], ProtocolError, "invalid channel"),
        ([(DOORBELL.replace(b'"doorbell_value":0', b'"doorbell_value":4294967296'), 2)], ProtocolError, "invalid channel"),
        ([(DOORBELL.replace(b'"doorbell_value":0', b'"doorbell_value":-1'), 2)], ProtocolError, "doorbell_value"),
        ([(b"not JSON", 2)], ProtocolError, "not JSON"),
        (
            [(b'{"type":"listing","domains":[],"guests":[],"links":[],"devices":[],"channels":[],"following":0}', 0)],
            ProtocolError,
            "Listing",
        ),
        ([(b'{"type":"of-tomorrow"}', 0)], ProtocolError, "of-tomorrow"),
    ],
)
def test_a_daemon_that_breaks_the_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packets: list[tuple[bytes, int]], kind: type[OSError], said: str
) -> None:
    monkeypatch.setenv("KVMCHAN_RUNTIME_DIR", str(tmp_path))
    before = next_fd()
    with FakeDaemon(tmp_path, packets), pytest.raises(kind, match=said):
        offer(0, "x")
    gc.collect()
    assert next_fd() == before


@contextmanager
def granted_on_device() -> Iterator[tuple[Vchan, Any, socket.socket, int]]:
    """A server whose client would be in a guest: it, that client, the daemon's side of its
    connection, and its eventfd.
    """
    before = next_fd()
    ours, daemon = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with daemon, slice_of_device() as (memory, event, notify, offset):
        grant = client.replies.decode(EVENTFD.replace(b'"offset":0', f'"offset":{offset}'.encode()))
        granted = Granted(grant, os.dup(memory), os.dup(event), os.dup(notify))
        server = Vchan(Connection.adopt(ours.detach()), granted, is_server=True, peer=1)
        far = end_on_device(memory, notify, event, offset, is_server=False)
        yield server, far, daemon, event
        dataplane.detach(far)
        daemon.close()
        server.close()
    assert next_fd() == before


def test_an_end_whose_peer_is_in_a_guest() -> None:
    with granted_on_device() as (server, far, daemon, _):
        server.wait()  # the client's arrival
        assert server.state is State.OPEN
        assert dataplane.send(far, b"to the host", 11) == 11
        server.wait()
        assert server.recv(11) == b"to the host"
        assert dataplane.data_ready(far) == 0
        assert server.send(b"to the guest") == 12
        assert select.select([dataplane.fd_for_select(far)], [], [], 0)[0]
        daemon.shutdown(socket.SHUT_WR)  # what it answers a close with
        server.close()
        assert daemon.recv(1) == b""
        assert dataplane.is_open(far) == State.GONE.value


def test_a_daemon_that_dies_takes_the_ends_with_it_whose_peer_is_in_a_guest() -> None:
    with granted_on_device() as (server, far, daemon, event):
        server.wait()
        assert dataplane.send(far, b"last", 4) == 4
        daemon.close()
        os.eventfd_write(event, 1)  # what is left of the daemon sees to that
        assert select.select([server], [], [])[0]
        server.wait()
        assert server.state is State.GONE
        assert server.recv(4) == b"last"
        assert server.recv(1) == b""
        for call in (server.wait, lambda: server.send(b"x")):
            with pytest.raises(ChannelClosed):
                call()


def test_a_wait_ends_with_the_daemon_where_the_peer_is_in_a_guest() -> None:
    with granted_on_device() as (server, _far, daemon, _):
        server.wait()
        waiter = threading.Timer(0, daemon.close)
        waiter.start()
        assert server.recv(1) == b""
        waiter.join()


def test_kinds_of_events_have_the_same_numbers_everywhere() -> None:
    assert client.EVENTS == ("socket", "eventfd", "doorbell", "shared eventfd", "shared doorbell")
    assert (dataplane.SOCKET, dataplane.EVENTFD, dataplane.DOORBELL) == (0, 1, 2)
    assert (dataplane.SHARED_EVENTFD, dataplane.SHARED_DOORBELL) == (3, 4)


def test_granted_descriptors_are_kept_out_of_stdios_numbers() -> None:
    """A program without stdio: what it writes to stderr must not become an event."""
    code = (
        "import os, sys; from libxenvchan_shim.connection import _all_above_stdio; from kvmchand.wire.packet import Fds;"
        "made = [os.open('/dev/null', os.O_RDWR) for _ in range(3)]; os.closerange(0, 3);"
        "low = [os.dup(fd) for fd in made]; assert low == [0, 1, 2];"
        "moved = _all_above_stdio(Fds(low));"
        "assert len(moved) == 3 and min(moved) > 2 and not any(os.get_inheritable(fd) for fd in moved);"
        "spare = os.dup(made[0]); os._exit(7 if spare == 0 else 1)"
    )
    done = subprocess.run([PYTHON, "-c", code], check=False)
    assert done.returncode == 7


def test_a_daemon_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMCHAN_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("libxenvchan_shim.connection.DEADLINE", 0.05)
    with FakeDaemon(tmp_path, [], silent=True), pytest.raises(TimedOut) as caught:
        offer(0, "x")
    assert caught.value.errno == errno.ETIMEDOUT


def test_a_daemon_that_takes_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMCHAN_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("libxenvchan_shim.connection.DEADLINE", 0.05)
    with FakeDaemon(tmp_path, [], silent=True):
        connection = Connection(str(tmp_path / "kvmchand.sock"))
        with pytest.raises(TimeoutError):
            while True:
                connection._sock.send(bytes(30000))
        with pytest.raises(TimedOut):
            connection.list(0)  # type: ignore[arg-type]
        connection.close()


def test_a_refusal_between_hello_and_request_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon refused, and closed with the hello unread, before the request was sent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "kvmchand.sock"))
        listener.listen()
        connection = Connection(str(tmp_path / "kvmchand.sock"))
        daemon, _ = listener.accept()

        def send_and_be_refused(sock: socket.socket, data: bytes) -> None:
            send_packet(sock, data)
            if daemon.fileno() >= 0:
                daemon.send(ERROR)
                daemon.close()

        monkeypatch.setattr("libxenvchan_shim.connection.send_packet", send_and_be_refused)
        with pytest.raises(AccessDenied, match="you may not"):
            connection.list(0)  # type: ignore[arg-type]
        connection.close()


def test_the_package_exports_what_it_names() -> None:
    """The list is in three forms: for programs, for type checkers, and where each name is."""
    source = ast.parse(Path(libxenvchan_shim.__file__).read_text())
    typed = {
        alias.asname
        for node in ast.walk(source)
        if isinstance(node, ast.If)
        for each in node.body
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
    }
    assert {*libxenvchan_shim.__all__} == typed | {"__version__"} == {*libxenvchan_shim._WHERE, "__version__"}
    for name in typed:
        assert getattr(libxenvchan_shim, str(name)).__name__ == name


def test_without_the_library_its_absence_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [PYTHON, "-c", "import libxenvchan_shim as v; v.listen"],
        env={**os.environ, "KVMCHAN_LIBDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert f"{tmp_path}/libkvmchan-dataplane.so" in done.stderr
    assert (LIBDIR / "libkvmchan-dataplane.so").exists()


def test_a_close_after_the_daemon_ended_returns(tmp_path: Path) -> None:
    started = Daemon(tmp_path)
    with acting_as(started):
        server, client = offer(0, "x"), connect(0, "x")
    started.kill()
    client.close()
    assert server.state is State.GONE
    server.close()


@pytest.mark.parametrize("wrong", [None, 1.0, True, b"host", [0]])
def test_a_domain_of_a_wrong_type_is_a_type_error_that_names_the_argument(daemon: Daemon, wrong: Any) -> None:
    with acting_as(daemon):
        calls: list[tuple[str, Callable[[], object]]] = [
            ("peer", lambda: offer(wrong, "x")),
            ("peer", lambda: listen(wrong, "x")),
            ("domain", lambda: connect(wrong, "x")),
            ("peer", lambda: share(wrong, 1)),
            ("domain", lambda: map(wrong, 1)),
        ]
        for name, call in calls:
            with pytest.raises(TypeError, match=f"{name} must be a domain's number or name, not {type(wrong).__name__}"):
                call()


@pytest.mark.parametrize("wrong", [None, 5, b"x"])
def test_a_path_of_a_wrong_type_is_a_type_error_that_names_the_argument(daemon: Daemon, wrong: Any) -> None:
    with acting_as(daemon):
        for call in (offer, listen, connect):
            with pytest.raises(TypeError, match=f"path must be a str, not {type(wrong).__name__}"):
                call(0, wrong)


def test_a_size_of_a_wrong_type_is_a_type_error_that_names_the_argument(daemon: Daemon) -> None:
    with acting_as(daemon):
        for name in ("read_min", "write_min"):
            with pytest.raises(TypeError, match=f"{name} must be an int, not float"):
                offer(0, "x", **{name: 1.5})  # type: ignore[arg-type]


# ---- domains ----


def test_domains_are_listed(daemon: Daemon) -> None:
    with acting_as(daemon):
        assert [(each.number, each.kind, each.name) for each in domains()] == [
            (0, "host", "host"),
            (1, "local", ""),
            (2, "local", ""),
        ]


def test_the_host_has_a_name_and_every_domain_a_number_in_digits(daemon: Daemon) -> None:
    with acting_as(daemon), offer("host", "x") as server, connect("0", "x") as client, offer("1", "y") as other:
        assert (server.peer, client.peer, other.peer) == (0, 0, 1)


@pytest.mark.parametrize("name", ["none", "", "-1", "1.0", "\u0661", "\ud800"])
def test_a_name_of_no_domain_is_not_found(daemon: Daemon, name: str) -> None:
    before = next_fd()
    with acting_as(daemon):
        for call in (offer, listen, connect):
            with pytest.raises(NotFound, match="no domain that is served is called") as caught:
                call(name, "x")
            assert isinstance(caught.value, FileNotFoundError)
    assert next_fd() == before


# ---- paths ----


def test_a_relative_path_is_below_the_servers_node(daemon: Daemon) -> None:
    with acting_as(daemon, 1), offer(2, "data/x") as server:
        assert server.path == "/local/domain/1/data/x"
        with acting_as(daemon, 2), connect(1, "data/x") as client:
            assert client.path == "/local/domain/1/data/x"


# ---- clients that wait ----


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def test_a_client_waits_for_its_server(daemon: Daemon) -> None:
    with acting_as(daemon):
        thread, results = in_thread(lambda: connect(0, "late", timeout=None))
        with offer(0, "late") as server:
            thread.join()
            (client,) = results
            assert isinstance(client, Vchan), client
            client.sendall(b"there")
            assert server.recv(5) == b"there"
            assert client.gettimeout() is None
            client.close()


def test_a_client_waits_for_the_client_before_it(daemon: Daemon) -> None:
    with acting_as(daemon), offer(0, "x"):
        first = connect(0, "x")
        thread, results = in_thread(lambda: connect(0, "x", timeout=None))
        first.close()
        thread.join()
        (second,) = results
        assert isinstance(second, Vchan), second
        second.close()


@pytest.mark.parametrize("timeout", [0.01, 0.2])
def test_a_client_waits_no_longer_than_it_says(daemon: Daemon, timeout: float) -> None:
    before = next_fd()
    with acting_as(daemon):
        with pytest.raises(TimedOut, match=f"no vchan that domain 0 offers at never was free within {timeout:g} s") as caught:
            connect(0, "never", timeout=timeout)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(NotFound):
            connect(0, "never")
    assert next_fd() == before


def test_a_client_that_waits_is_told_when_the_daemon_ends(tmp_path: Path) -> None:
    started = Daemon(tmp_path)
    with acting_as(started):
        thread, results = in_thread(lambda: connect(0, "never", timeout=None))
        eventually(lambda: len(open_fds(started.pid)) > len(started.baseline))
    started.kill()
    thread.join()
    (error,) = results
    assert isinstance(error, Unreachable)
