# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Python API, on a real daemon: what its calls give, and what they raise."""

from __future__ import annotations

import array
import asyncio
import errno
import gc
import os
import select
import signal
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
    KvmchanError,
    NotFound,
    ProtocolError,
    TimedOut,
    TooLong,
    Unreachable,
)
from kvmchand.wire import client, dataplane
from kvmchand.wire.packet import send_packet
from libxenvchan_shim import State, Vchan, connect, listen
from libxenvchan_shim.connection import Connection, Granted
from rig.compiler import compile_c, our_flags
from rig.daemon import Daemon, acting_as
from rig.device import end_on_device, slice_of_device
from rig.paths import LIBDIR, PYTHON
from rig.processes import next_fd
from rig.program import Program


@pytest.fixture
def pair(daemon: Daemon) -> Iterator[tuple[Vchan, Vchan]]:
    """A server and its client, in rings of 1024 bytes to the server and 2048 to the client."""
    before = next_fd()
    with acting_as(daemon):
        server = listen(0, "x", read_min=1024, write_min=2048)
        client = connect(0, "x")
    yield server, client
    client.close()
    server.close()
    assert next_fd() == before


# ---- moving data ----


def test_send_and_recv_move_all_or_nothing(pair: tuple[Vchan, Vchan]) -> None:
    server, client = pair
    assert server.recv(1) == b""
    assert client.send(b"abc") == 3
    assert server.recv(4) == b""
    assert server.recv(2) == b"ab"
    assert client.send(bytes(1023)) == 1023
    assert client.send(b"x") == 0
    assert server.recv(1024) == b"c" + bytes(1023)


def test_write_and_read_move_what_fits(pair: tuple[Vchan, Vchan]) -> None:
    server, client = pair
    assert client.read(10) == b""
    assert server.write(bytes(3000)) == 2048
    assert server.write(b"x") == 0
    assert client.read(2000) == bytes(2000)
    assert client.read(2000) == bytes(48)


def test_data_ready_and_buffer_space_are_each_directions_own(pair: tuple[Vchan, Vchan]) -> None:
    server, client = pair
    assert (server.data_ready, server.buffer_space, client.data_ready, client.buffer_space) == (0, 2048, 0, 1024)
    client.send(bytes(24))
    server.send(bytes(48))
    assert (server.data_ready, server.buffer_space, client.data_ready, client.buffer_space) == (24, 2000, 48, 1000)


@pytest.mark.parametrize("size", [0, 1, 1024])
def test_sizes_at_the_bounds(pair: tuple[Vchan, Vchan], size: int) -> None:
    server, client = pair
    data = os.urandom(size)
    assert client.send(data) == size
    assert server.recv(size) == data
    assert client.write(data) == size
    assert server.read(size) == data


@pytest.mark.parametrize(
    "source",
    [
        b"12345678",
        bytearray(b"12345678"),
        memoryview(b"12345678"),
        memoryview(bytearray(b"12345678")),
        memoryview(b"xx12345678xx")[2:-2],
        memoryview(bytearray(b"xx12345678xx"))[2:-2],
        memoryview(array.array("i", [0x34333231, 0x38373635])),
        memoryview(b"12345678").cast("H"),
        memoryview(bytearray(b"12345678")).cast("B", (2, 4)),
    ],
    ids=lambda source: f"{type(source).__name__}{getattr(source, 'format', '')}{getattr(source, 'readonly', '')}",
)
def test_what_can_be_sent(pair: tuple[Vchan, Vchan], source: bytes | bytearray | memoryview) -> None:
    server, client = pair
    assert client.send(source) == 8
    assert server.recv(8) == b"12345678"
    assert client.write(source) == 8
    assert server.read(8) == b"12345678"


@pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b""), memoryview(bytearray(b"x"))[1:]])
def test_nothing_can_be_sent(pair: tuple[Vchan, Vchan], empty: bytes | bytearray | memoryview) -> None:
    server, client = pair
    assert (client.send(empty), client.write(empty), server.data_ready) == (0, 0, 0)


def test_a_bytearray_is_free_again_after_the_call(pair: tuple[Vchan, Vchan]) -> None:
    data = bytearray(b"12")
    pair[1].send(data)
    data += b"34"  # would be a BufferError while anything still uses it
    pair[0].close()
    with pytest.raises(ChannelClosed):
        pair[1].send(data)
    data += b"56"


@pytest.mark.parametrize("wrong", [memoryview(b"12345678")[::2], memoryview(bytearray(b"12345678"))[::-1], "text", 5, None])
def test_what_can_not_be_sent_is_a_type_error(pair: tuple[Vchan, Vchan], wrong: object) -> None:
    server, client = pair
    for call in (client.send, client.write):
        with pytest.raises(TypeError):
            call(wrong)  # type: ignore[arg-type]
    assert server.data_ready == 0


def test_more_may_be_asked_for_than_there_is_memory(pair: tuple[Vchan, Vchan]) -> None:
    server, client = pair
    client.send(b"abc")
    assert server.recv(2**31 - 1) == b""
    assert server.read(2**31 - 1) == b"abc"


@pytest.mark.parametrize("size", [-1, 2**31, 2**32 + 1, 2**64 + 1])
def test_a_size_that_can_not_be(pair: tuple[Vchan, Vchan], size: int) -> None:
    server, client = pair
    client.send(b"abc")
    for call in (server.recv, server.read):
        with pytest.raises(InvalidArgument) as caught:
            call(size)
        assert caught.value.errno == errno.EINVAL
    assert server.data_ready == 3


def test_blocking_calls_for_more_than_the_ring_are_refused(pair: tuple[Vchan, Vchan]) -> None:
    server, client = pair
    server.blocking = client.blocking = True
    for call in (lambda: client.send(bytes(1025)), lambda: server.recv(1025)):
        with pytest.raises(KvmchanError, match="1025") as caught:
            call()
        assert caught.value.errno == errno.EMSGSIZE


def test_a_blocking_pair_moves_more_than_its_rings_hold(pair: tuple[Vchan, Vchan]) -> None:
    server, client = pair
    server.blocking = client.blocking = True
    data = os.urandom(300_000)
    sent: list[int] = []
    thread = threading.Thread(target=lambda: sent.append(client.write(data)))
    thread.start()
    got = b""
    while len(got) < len(data):
        got += server.read(65536)
    thread.join()
    assert (sent, got) == ([len(data)], data)


def test_blocking_and_server_persist_are_read_back(daemon: Daemon) -> None:
    with acting_as(daemon), listen(0, "x", blocking=True, persist=True) as server, connect(0, "x", blocking=True) as client:
        assert (server.blocking, server.server_persist, client.blocking, client.server_persist) == (True, True, True, False)
        server.blocking = server.server_persist = False
        assert (server.blocking, server.server_persist) == (False, False)


# ---- events ----


def test_wait_takes_the_event_that_the_descriptor_shows(pair: tuple[Vchan, Vchan]) -> None:
    server, client = pair
    server.wait()  # of the connect
    assert select.select([server], [], [], 0)[0] == []
    assert server.data_ready == 0  # asks to hear of the next write
    client.send(b"x")
    assert select.select([server], [], [], 0)[0] == [server]
    server.wait()
    assert select.select([server], [], [], 0)[0] == []


def test_a_signal_whose_handler_returns_does_not_end_a_wait(pair: tuple[Vchan, Vchan]) -> None:
    server, client = pair
    server.wait()
    heard: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        heard.append(number)
        client.send(b"x")

    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        assert server.data_ready == 0
        threading.Timer(0, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        server.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]
    assert server.recv(1) == b"x"


def test_a_signal_whose_handler_raises_ends_a_wait(pair: tuple[Vchan, Vchan]) -> None:
    server, _ = pair
    server.wait()

    def on_signal(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        with pytest.raises(KeyboardInterrupt):
            threading.Timer(0, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            server.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert server.state is State.OPEN


def test_asyncio_is_told_by_the_descriptor(pair: tuple[Vchan, Vchan]) -> None:
    server, client = pair
    total = 200_000

    async def both() -> bytes:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        received, sent = bytearray(), 0

        def on_server() -> None:
            server.wait()
            while data := server.read(4096):
                received.extend(data)
            if len(received) == total:
                done.set_result(bytes(received))

        def on_client() -> None:
            nonlocal sent
            client.wait()
            send_more()

        def send_more() -> None:
            nonlocal sent
            while sent < total and (count := client.write(bytes([sent % 251]) * min(777, total - sent))):
                sent += count

        loop.add_reader(server, on_server)
        loop.add_reader(client, on_client)
        send_more()
        try:
            result: bytes = await done
        finally:
            loop.remove_reader(server)
            loop.remove_reader(client)
        return result

    assert len(asyncio.run(both())) == total


# ---- threads, processes ----


def test_threads_with_a_channel_each(daemon: Daemon) -> None:
    failures: list[BaseException] = []

    def talk(number: int) -> None:
        try:
            for _ in range(5):
                with (
                    listen(0, f"thread{number}", blocking=True) as server,
                    connect(0, f"thread{number}", blocking=True) as client,
                ):
                    data = os.urandom(1000)
                    assert client.send(data) == 1000
                    assert server.recv(1000) == data
        except BaseException as error:
            failures.append(error)

    with acting_as(daemon):
        threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_forked_child_that_ends_does_not_close_its_parents_vchans(daemon: Daemon) -> None:
    code = (
        "import os, sys, libxenvchan_shim as v\n"
        "s = v.listen(0, 'x')\n"
        "c = v.connect(0, 'x')\n"
        "child = os.fork()\n"
        "if child == 0: sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert (s.state, c.state) == (v.State.OPEN, v.State.OPEN)\n"
        "assert (c.send(b'x'), s.recv(1)) == (1, b'x')\n"
        "s.close(); c.close()\n"
    )
    with Program(PYTHON, "-c", code, env=daemon.environment()):
        pass


C_ECHO = r"""
#include <libxenvchan.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    struct libxenvchan *vchan = argc > 2 ? libxenvchan_server_init(NULL, 0, argv[1], 4096, 4096)
                                         : libxenvchan_client_init(NULL, 0, argv[1]);
    char data[10000];
    int count;

    if (!vchan)
        return 2;
    vchan->blocking = 1;
    puts("there");
    fflush(stdout);
    while ((count = libxenvchan_read(vchan, data, sizeof(data))) > 0)
        if (libxenvchan_write(vchan, data, count) != count)
            return 3;
    libxenvchan_close(vchan);
    return 0;
}
"""


@pytest.mark.parametrize("side", ["server", "client"])
def test_it_talks_to_a_c_program(daemon: Daemon, tmp_path: Path, side: str) -> None:
    (tmp_path / "echo.c").write_text(C_ECHO)
    program = compile_c(tmp_path, tmp_path / "echo.c", *our_flags())
    with acting_as(daemon):
        ours = listen(0, "x", blocking=True) if side == "client" else None
        with Program(program, "x", *(["server"] if ours is None else []), env=daemon.environment()) as echo:
            echo.expect("there")
            if ours is None:
                ours = connect(0, "x", blocking=True)
            for size in (1, 999, 4096):
                data = os.urandom(size)
                assert ours.send(data) == size
                assert ours.recv(size) == data
            ours.close()


# ---- the end ----


def test_state_follows_the_peer(daemon: Daemon) -> None:
    with acting_as(daemon), listen(0, "x") as server:
        states = [server.state]
        client = connect(0, "x")
        states += [server.state, client.state]
        client.close()
        assert [*states, server.state] == [State.WAITING, State.OPEN, State.OPEN, State.GONE]


def test_what_was_written_before_a_close_stays_readable(pair: tuple[Vchan, Vchan]) -> None:
    server, client = pair
    client.send(b"abc")
    client.close()
    assert server.recv(2) == b"ab"
    with pytest.raises(ChannelClosed) as caught:
        server.recv(2)
    assert caught.value.errno == errno.EPIPE
    assert server.read(2) == b"c"
    with pytest.raises(ChannelClosed, match="other end has gone"):
        server.read(2)


def test_closing_twice_is_closing(pair: tuple[Vchan, Vchan]) -> None:
    pair[0].close()
    pair[0].close()
    assert pair[1].state is State.GONE


def test_every_use_after_close_is_an_error_with_the_path(pair: tuple[Vchan, Vchan]) -> None:
    server, client = pair
    client.close()
    for use in (
        lambda: client.send(b"x"),
        lambda: client.write(b"x"),
        lambda: client.recv(1),
        lambda: client.read(1),
        lambda: client.data_ready,
        lambda: client.buffer_space,
        lambda: client.state,
        lambda: client.wait(),
        lambda: client.fileno(),
        lambda: client.blocking,
        lambda: client.server_persist,
    ):
        with pytest.raises(ChannelClosed, match="/local/domain/0/x has been closed here"):
            use()
    assert client.path == server.path == "/local/domain/0/x"


def test_with_closes_also_when_the_body_raises(daemon: Daemon) -> None:
    with acting_as(daemon), listen(0, "x") as server:
        with pytest.raises(ZeroDivisionError), connect(0, "x"):
            _ = 1 // 0
        assert server.state is State.GONE


def test_a_vchan_that_nobody_refers_to_is_closed(daemon: Daemon) -> None:
    with acting_as(daemon), listen(0, "x") as server:
        client: list[object] = [connect(0, "x")]
        client.append(client)  # only the collector ends this
        del client
        before = server.state
        gc.collect()
        assert (before, server.state) == (State.OPEN, State.GONE)


def test_a_program_may_end_with_a_vchan_open(daemon: Daemon) -> None:
    """Nothing on stderr, status 0, and the peer learns of it."""
    with acting_as(daemon), listen(0, "x") as server:
        code = "import libxenvchan_shim as v; c = v.connect(0, 'x'); c.send(b'bye')"
        done = subprocess.run([PYTHON, "-c", code], env=daemon.environment(), capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        while server.state is not State.GONE:
            server.wait()
        assert server.recv(3) == b"bye"


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
        ("x" * 2049, TooLong, errno.E2BIG),
        ("/" + "x" * 3072, TooLong, errno.E2BIG),
        ("x" * 100_000, TooLong, errno.E2BIG),
    ],
)
def test_a_path_that_can_not_be(daemon: Daemon, path: str, kind: type[KvmchanError], number: int) -> None:
    before = next_fd()
    with acting_as(daemon):
        calls: list[Callable[[], Vchan]] = [lambda: listen(0, path), lambda: connect(0, path)]
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
        listen(0, "x", **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("domain", [-1, 2**31, -(2**31) - 1, 2**70])
def test_a_domain_that_can_not_be(daemon: Daemon, domain: int) -> None:
    with acting_as(daemon):
        calls: list[Callable[[], Vchan]] = [lambda: listen(domain, "x"), lambda: connect(domain, "x")]
        for call in calls:
            with pytest.raises(InvalidArgument, match=str(domain)):
                call()


def test_the_daemons_errors_are_raised_as_what_they_are(daemon: Daemon) -> None:
    before = next_fd()
    with acting_as(daemon, 1):
        with pytest.raises(NotFound) as not_found:
            connect(2, "/local/domain/2/x")
        with pytest.raises(AccessDenied) as denied:
            listen(2, "/local/domain/2/x")
    assert (not_found.value.errno, denied.value.errno) == (errno.ENOENT, errno.EACCES)
    assert "offers no vchan at /local/domain/2/x" in not_found.value.sentence
    assert str(denied.value) == f"[Errno {errno.EACCES}] {denied.value.sentence}"
    assert next_fd() == before


def test_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMCHAN_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(Unreachable, match="KVMCHAN_RUNTIME_DIR") as missing:
        listen(0, "x")
    assert (missing.value.errno, str(tmp_path) in missing.value.sentence) == (errno.ECONNREFUSED, True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(tmp_path / "kvmchand.sock"))
    with pytest.raises(Unreachable) as refused:
        listen(0, "x")
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
                listen(0, "x")
        finally:
            os.seteuid(user)
    assert denied.value.errno == errno.EACCES


@pytest.mark.parametrize("directory", ["x" * 200, "/dev/null"])
def test_a_runtime_directory_that_can_not_be(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMCHAN_RUNTIME_DIR", directory)
    with pytest.raises(Unreachable, match=directory):
        listen(0, "x")


@pytest.mark.parametrize("domain", ["x", "-1", "1.0", " 1", "\u0661", "../kvmchand"])
def test_a_domain_in_the_environment_that_can_not_be(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMCHAN_DOMAIN", domain)
    with pytest.raises(InvalidArgument, match="KVMCHAN_DOMAIN"):
        listen(0, "x")


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
        listen(0, "x")
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
        server = Vchan(Connection.adopt(ours.detach()), granted, is_server=True)
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
        for call in (server.wait, lambda: server.recv(1), lambda: server.send(b"x")):
            with pytest.raises(ChannelClosed):
                call()


def test_a_wait_ends_with_the_daemon_where_the_peer_is_in_a_guest() -> None:
    with granted_on_device() as (server, _far, daemon, _):
        server.wait()
        server.blocking = True
        waiter = threading.Timer(0, daemon.close)
        waiter.start()
        with pytest.raises(ChannelClosed):
            server.recv(1)
        waiter.join()


def test_kinds_of_events_have_the_same_numbers_everywhere() -> None:
    assert client.EVENTS == ("socket", "eventfd", "doorbell")
    assert (dataplane.SOCKET, dataplane.EVENTFD, dataplane.DOORBELL) == (0, 1, 2)


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
        listen(0, "x")
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
    for name in libxenvchan_shim.__all__:
        assert getattr(libxenvchan_shim, name).__name__ == name
    with pytest.raises(AttributeError, match="of_tomorrow"):
        _ = libxenvchan_shim.of_tomorrow


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
        server, client = listen(0, "x"), connect(0, "x")
    started.kill()
    client.close()
    assert server.state is State.GONE
    server.close()
