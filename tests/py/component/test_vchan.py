# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Python API's Vchan on a real daemon: what its calls return, and what they raise."""

from __future__ import annotations

import array
import copy
import ctypes
import errno
import gc
import io
import os
import pickle
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmchan import (
    AlreadyClosed,
    Busy,
    ChannelClosed,
    EndOfStream,
    InvalidArgument,
    State,
    TimedOut,
    TooBig,
    Vchan,
    VchanError,
    WouldBlock,
    connect,
    offer,
)
from rig.compiler import compile_c, our_flags
from rig.daemon import Daemon, acting_as
from rig.deadline import eventually
from rig.paths import LIBDIR, PYTHON
from rig.processes import in_child, next_fd
from rig.program import Program

Pair = tuple[Vchan, Vchan]
"""A server and its client, in rings of 1024 bytes to the server and 2048 to the client."""


@pytest.fixture
def pair(daemon: Daemon) -> Iterator[Pair]:
    before = next_fd()
    with acting_as(daemon):
        server = offer(0, "x", read_min=1024, write_min=2048)
        client = connect(0, "x")
    yield server, client
    client.close()
    server.close()
    assert next_fd() == before


class Call:
    """A call in a thread of its own."""

    def __init__(self, vchan: Vchan, call: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        before = set(vchan._awaited)
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()
        eventually(lambda: vchan._awaited > before or not self._thread.is_alive())

    def _run(self, call: Callable[[], object]) -> None:
        try:
            self.result = call()
        except BaseException as error:
            self.error = error

    def end(self) -> object:
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self.result


# ---- receiving and sending ----


def test_recv_returns_what_is_there(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"abc")
    client.sendall(b"def")
    assert server.recv(4) == b"abcd"
    assert server.recv(100) == b"ef"


def test_send_sends_what_there_is_room_for(pair: Pair) -> None:
    server, client = pair
    assert client.send(bytes(3000)) == 1024
    with pytest.raises(WouldBlock):
        client.send(b"x", timeout=0)
    assert server.recv(24) == bytes(24)
    assert client.send(bytes(100)) == 24


def test_put_and_take_move_all_or_nothing(pair: Pair) -> None:
    server, client = pair
    client.put(b"abc")
    with pytest.raises(WouldBlock):
        server.take(4, timeout=0)
    assert server.take(2) == b"ab"
    client.put(bytes(1023))
    with pytest.raises(WouldBlock):
        client.put(b"x", timeout=0)
    assert server.take(1024) == b"c" + bytes(1023)


def test_recv_into_fills_the_beginning_of_a_buffer(pair: Pair) -> None:
    server, client = pair
    buffer = bytearray(b"........")
    client.sendall(b"abcdef")
    assert server.recv_into(buffer, 2) == 2
    assert server.recv_into(memoryview(buffer)[2:6]) == 4
    assert bytes(buffer) == b"abcdef.."
    client.sendall(b"0123")
    numbers = array.array("H", [0, 0, 0, 0])
    assert server.recv_into(numbers) == 4
    assert numbers.tobytes() == b"0123" + bytes(4)


@pytest.mark.parametrize("size", [1, 63, 1023, 1024])
def test_sizes_at_the_bounds(pair: Pair, size: int) -> None:
    server, client = pair
    data = os.urandom(size)
    client.put(data)
    assert server.take(size) == data
    assert client.send(data) == size
    assert server.recv(size) == data
    buffer = bytearray(size)
    client.sendall(data)
    assert (server.recv_into(buffer), bytes(buffer)) == (size, data)


def test_no_bytes_move_nothing_and_wait_for_nothing(pair: Pair) -> None:
    server, client = pair
    assert (server.recv(0), server.take(0), server.recv_into(bytearray())) == (b"", b"", 0)
    for empty in (b"", bytearray(), memoryview(b""), memoryview(bytearray(b"x"))[1:]):
        assert client.send(empty) == 0
        client.put(empty)
        client.sendall(empty)
    assert server.readable == 0


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
        (ctypes.c_char * 8)(*[bytes([each]) for each in b"12345678"]),
    ],
    ids=lambda source: f"{type(source).__name__}{getattr(source, 'format', '')}{getattr(source, 'readonly', '')}",
)
def test_any_contiguous_buffer_can_be_sent(pair: Pair, source: Any) -> None:
    server, client = pair
    assert client.send(source) == 8
    assert server.recv(8) == b"12345678"
    client.put(source)
    assert server.recv(8) == b"12345678"
    client.sendall(source)
    assert server.recv(8) == b"12345678"


def test_a_buffer_is_free_again_after_a_call(pair: Pair) -> None:
    server, client = pair
    data = bytearray(b"12")
    client.send(data)
    client.sendall(data)
    client.put(data)
    data += b"34"  # would be a BufferError while anything still uses it
    assert server.recv_into(data) == 4
    data += b"56"
    client.close()
    with pytest.raises(ChannelClosed) as _kept:
        server.send(data)
    assert server.recv_into(data) == 2
    assert server.recv_into(data) == 0
    data += b"78"


def test_sendall_sends_more_than_the_rings_hold(pair: Pair) -> None:
    server, client = pair
    data = os.urandom(300_000)
    sending = Call(client, lambda: client.sendall(data))
    got = b""
    while len(got) < len(data):
        got += server.recv(65536)
    sending.end()
    assert got == data


@pytest.mark.parametrize("size", [5000, 65536])
def test_large_pieces_go_over_the_rings_end(daemon: Daemon, size: int) -> None:
    with acting_as(daemon), offer(0, "x", read_min=65536, write_min=4096) as server, connect(0, "x") as client:
        for _ in range(20):
            data = os.urandom(size)
            client.put(data)
            assert server.recv(size) == data
            client.put(data)
            assert server.take(size) == data


def test_iterating_receives_until_the_end(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"one")
    received = iter(server)
    assert next(received) == b"one"
    client.sendall(b"two")
    client.close()
    assert list(received) == [b"two"]


def test_readable_and_writable_count_bytes(pair: Pair) -> None:
    server, client = pair
    assert (server.readable, server.writable, client.readable, client.writable) == (0, 2048, 0, 1024)
    client.send(bytes(24))
    server.send(bytes(48))
    assert (server.readable, server.writable, client.readable, client.writable) == (24, 2000, 48, 1000)


# ---- bad arguments ----


@pytest.mark.parametrize("wrong", ["text", 5, None, [1, 2]])
def test_what_is_no_buffer_is_a_type_error_that_names_the_argument(pair: Pair, wrong: Any) -> None:
    server, client = pair
    for call in (client.send, client.sendall, client.put):
        with pytest.raises(TypeError, match=f"data must be a bytes-like object, not {type(wrong).__name__}"):
            call(wrong)
    with pytest.raises(TypeError, match="buffer must be a bytes-like object"):
        server.recv_into(wrong)
    with pytest.raises(TypeError, match="message must be a bytes-like object"):
        client.send_bytes(wrong)
    assert server.readable == 0


@pytest.mark.parametrize("wrong", [memoryview(b"12345678")[::2], memoryview(bytearray(b"12345678"))[::-1]])
def test_what_is_not_contiguous_is_a_type_error(pair: Pair, wrong: memoryview) -> None:
    server, client = pair
    for call in (client.send, client.sendall, client.put):
        with pytest.raises(TypeError, match="data must be contiguous"):
            call(wrong)
    with pytest.raises(TypeError, match="buffer must be contiguous"):
        server.recv_into(wrong)


def test_what_can_not_be_written_to_can_not_be_filled(pair: Pair) -> None:
    for wrong in (b"1234", memoryview(b"1234")):
        with pytest.raises(TypeError, match="buffer must be writable"):
            pair[0].recv_into(wrong)


@pytest.mark.parametrize("wrong", ["5", 5.0, None, b"5"])
def test_a_size_that_is_no_int_is_a_type_error(pair: Pair, wrong: Any) -> None:
    server, client = pair
    client.send(b"abc")
    for call in (server.recv, server.take, server.consume, client.commit):
        with pytest.raises(TypeError, match=f"size must be an int, not {type(wrong).__name__}"):
            call(wrong)
    with pytest.raises(TypeError, match="nbytes must be an int"):
        server.recv_into(bytearray(5), wrong)
    for looks in (server.look, client.reserve):
        with pytest.raises(TypeError, match="least must be an int"):
            looks(wrong)
    assert server.readable == 3


def test_a_negative_size_is_invalid(pair: Pair) -> None:
    server, client = pair
    client.send(b"abc")
    calls: list[Callable[[], object]] = [
        lambda: server.recv(-1),
        lambda: server.take(-1),
        lambda: server.recv_into(bytearray(5), -1),
        lambda: server.look(-1),
        lambda: server.consume(-1),
        lambda: client.reserve(-1),
        lambda: client.commit(-1),
        lambda: server.recv_bytes(-1),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="is -1") as caught:
            call()
        assert isinstance(caught.value, ValueError)
    assert server.readable == 3


@pytest.mark.parametrize("size", [1025, 2**31, 2**32 + 1, 2**64 + 1])
def test_more_at_once_than_a_ring_holds_is_too_big(pair: Pair, size: int) -> None:
    server, client = pair
    client.send(b"abc")
    for call in (server.take, server.look):
        with pytest.raises(TooBig, match=str(size)) as caught:
            call(size)
        assert (caught.value.errno, isinstance(caught.value, ValueError)) == (errno.EMSGSIZE, True)
    with pytest.raises(TooBig):
        client.reserve(size)
    assert server.recv(size) == b"abc"
    with pytest.raises(TooBig, match="1025"):
        client.put(bytes(1025))


def test_more_than_an_int_counts_is_sent_in_pieces_or_not_at_all(pair: Pair) -> None:
    """C takes an int: a size of 2**32 + 64 must not be taken for 64."""
    server, client = pair

    data = bytes(2**32 + 64)  # most of its pages are never touched
    with pytest.raises(TooBig, match=str(2**32 + 64)):
        client.put(data)
    assert client.send(data) == 1024
    server.take(1024)
    with pytest.raises(TimedOut):
        client.sendall(data, timeout=0.01)


def test_an_int_of_another_type_is_a_size(pair: Pair) -> None:
    class Index:
        def __index__(self) -> int:
            return 2

    server, client = pair
    client.send(b"abcdef")
    assert server.recv(Index()) == b"ab"  # type: ignore[arg-type]
    assert server.take(Index()) == b"cd"  # type: ignore[arg-type]
    assert server.recv(True) == b"e"


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ("1", TypeError, "timeout must be a number of seconds or None, not str"),
        (True, TypeError, "not bool"),
        (-1, InvalidArgument, "timeout is -1"),
        (-0.1, ValueError, "timeout is -0.1"),
        (float("nan"), ValueError, "timeout is nan"),
    ],
)
def test_a_timeout_that_can_not_be(pair: Pair, wrong: Any, kind: type[Exception], said: str) -> None:
    server, _ = pair
    calls: list[Callable[[], object]] = [
        lambda: server.settimeout(wrong),
        lambda: server.recv(1, timeout=wrong),
        lambda: server.wait(timeout=wrong),
    ]
    for call in calls:
        with pytest.raises(kind, match=said):
            call()


# ---- timeouts ----


def test_calls_wait_by_default(pair: Pair) -> None:
    server, client = pair
    assert (server.gettimeout(), server.getblocking()) == (None, True)
    receiving = Call(server, lambda: server.recv(10))
    client.sendall(b"there")
    assert receiving.end() == b"there"


def test_a_timeout_is_read_back(pair: Pair) -> None:
    server, _ = pair
    for value, blocks in ((0.5, True), (2, True), (0, False), (None, True)):
        server.settimeout(value)
        assert (server.gettimeout(), server.getblocking()) == (value, blocks)
    server.setblocking(False)
    assert server.gettimeout() == 0
    server.setblocking(True)
    assert server.gettimeout() is None
    server.settimeout(float("inf"))
    assert server.gettimeout() is None


def blocked_calls(server: Vchan) -> list[Callable[[Any], object]]:
    """What waits at an end that has no room to send, and nothing to receive."""
    return [
        lambda timeout: server.recv(1, timeout=timeout),
        lambda timeout: server.take(1, timeout=timeout),
        lambda timeout: server.recv_into(bytearray(1), timeout=timeout),
        lambda timeout: server.look(timeout=timeout),
        lambda timeout: server.recv_bytes(timeout=timeout),
        lambda timeout: server.send(b"x", timeout=timeout),
        lambda timeout: server.send(bytearray(b"x"), timeout=timeout),
        lambda timeout: server.sendall(b"x", timeout=timeout),
        lambda timeout: server.put(b"x", timeout=timeout),
        lambda timeout: server.reserve(timeout=timeout),
        lambda timeout: server.send_bytes(b"x", timeout=timeout),
        lambda timeout: server.wait(timeout=timeout),
    ]


def fill(vchan: Vchan) -> None:
    vchan.sendall(bytes(vchan.writable))
    try:
        vchan.wait(timeout=0)
    except WouldBlock:
        pass


def test_a_call_that_may_not_wait_would_block(pair: Pair) -> None:
    server, _ = pair
    fill(server)
    for call in blocked_calls(server):
        with pytest.raises(WouldBlock) as caught:
            call(0)
        assert (caught.value.errno, isinstance(caught.value, BlockingIOError)) == (errno.EAGAIN, True)
        assert "/local/domain/0/x" in caught.value.sentence


def test_a_call_that_waits_too_long_times_out(pair: Pair) -> None:
    server, _ = pair
    fill(server)
    for call in blocked_calls(server):
        with pytest.raises(TimedOut, match=r"within 0\.01 s") as caught:
            call(0.01)
        assert (caught.value.errno, isinstance(caught.value, TimeoutError)) == (errno.ETIMEDOUT, True)


def test_a_timeout_for_all_of_sendall(pair: Pair) -> None:
    server, client = pair
    with pytest.raises(TimedOut):
        client.sendall(bytes(5000), timeout=0.01)
    assert server.readable == 1024


def test_a_timeout_of_its_own_is_the_default(pair: Pair) -> None:
    server, _ = pair
    fill(server)
    server.settimeout(0)
    for call in (lambda: server.recv(1), lambda: server.send(b"x"), server.wait):
        with pytest.raises(WouldBlock):
            call()
    server.settimeout(0.01)
    with pytest.raises(TimedOut):
        server.recv(1)


# ---- the end ----


def test_the_end_of_the_stream_is_no_bytes(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"abc")
    client.close()
    assert server.state is State.GONE
    assert server.recv(2) == b"ab"
    with pytest.raises(EndOfStream, match="left 1 bytes of 2") as caught:
        server.take(2)
    assert isinstance(caught.value, EOFError) and isinstance(caught.value, BrokenPipeError)
    with pytest.raises(EndOfStream):
        server.look(2)
    assert bytes(server.look()) == b"c"
    assert server.recv_into(bytearray(5)) == 1
    assert (server.recv(1), server.recv(100_000), server.recv_into(bytearray(1))) == (b"", b"", 0)
    assert (len(server.look()), list(server)) == (0, [])
    with pytest.raises(EndOfStream, match="left 0 bytes of 1"):
        server.take(1)
    with pytest.raises(EndOfStream):
        server.recv_bytes()


def test_sending_to_an_end_that_has_gone_is_a_broken_pipe(pair: Pair) -> None:
    server, client = pair
    server.close()
    calls: list[Callable[[], object]] = [
        lambda: client.send(b"x"),
        lambda: client.send(bytearray(b"x")),
        lambda: client.send(b""),
        lambda: client.sendall(b"x"),
        lambda: client.put(b"x"),
        lambda: client.send_bytes(b"x"),
        lambda: client.reserve(),
        lambda: client.commit(0),
    ]
    for call in calls:
        with pytest.raises(ChannelClosed, match=r"/local/domain/0/x.*other end has gone") as caught:
            call()
        assert (caught.value.errno, isinstance(caught.value, BrokenPipeError)) == (errno.EPIPE, True)


@pytest.mark.parametrize("number", range(12))
def test_a_peer_that_goes_ends_each_wait(daemon: Daemon, number: int) -> None:
    with acting_as(daemon), offer(0, "x", read_min=1024, write_min=1024) as server:
        with connect(0, "x") as client:
            fill(server)
            call = Call(server, lambda: blocked_calls(server)[number](None))
        try:
            result = call.end()
        except ChannelClosed:
            result = None
        assert result in (b"", 0, None) or len(result) == 0  # type: ignore[arg-type]
        assert (server.state, client.state) == (State.GONE, State.CLOSED)


@pytest.mark.parametrize("number", range(12))
def test_a_close_by_another_thread_ends_each_wait(daemon: Daemon, number: int) -> None:
    with acting_as(daemon):
        before = next_fd()
        with offer(0, "x", read_min=1024, write_min=1024) as server, connect(0, "x"):
            fill(server)
            call = Call(server, lambda: blocked_calls(server)[number](None))
            server.close()
            with pytest.raises(AlreadyClosed):
                call.end()
        assert next_fd() == before


@pytest.mark.parametrize("number", range(12))
def test_a_daemon_that_is_killed_ends_no_call(tmp_path: Path, number: int) -> None:
    """The vchan goes on, and its peer's end is still seen."""
    started = Daemon(tmp_path)
    with acting_as(started):
        server, client = offer(0, "x", read_min=1024, write_min=1024), connect(0, "x")
    fill(server)
    call = Call(server, lambda: blocked_calls(server)[number](5))
    started.kill()
    client.sendall(b"\0\0\0\1x")
    client.recv(1024)
    call.end()
    client.close()
    assert server.state is State.GONE
    server.close()


def test_closing_twice_is_closing(pair: Pair) -> None:
    pair[0].close()
    pair[0].close()
    assert (pair[0].closed, pair[1].closed, pair[1].state) == (True, False, State.GONE)


def test_every_use_after_close_is_an_error_with_the_path(pair: Pair) -> None:
    server, client = pair
    client.close()
    calls: list[Callable[[], object]] = [
        lambda: client.send(b"x"),
        lambda: client.send(b""),
        lambda: client.sendall(b"x"),
        lambda: client.put(b"x"),
        lambda: client.recv(1),
        lambda: client.recv(0),
        lambda: client.recv(100_000),
        lambda: client.take(1),
        lambda: client.recv_into(bytearray(1)),
        lambda: next(client),
        lambda: client.look(),
        lambda: client.consume(0),
        lambda: client.reserve(),
        lambda: client.commit(0),
        lambda: client.send_bytes(b""),
        lambda: client.recv_bytes(),
        lambda: client.readable,
        lambda: client.writable,
        lambda: client.wait(),
        lambda: client.fileno(),
        lambda: client.detach(),
        lambda: client.makefile(),
    ]
    for call in calls:
        with pytest.raises(AlreadyClosed, match="/local/domain/0/x has been closed here") as caught:
            call()
        assert isinstance(caught.value, ValueError)
    assert (client.path, server.path, client.state) == ("/local/domain/0/x", "/local/domain/0/x", State.CLOSED)


def test_with_closes_also_when_the_body_raises(daemon: Daemon) -> None:
    with acting_as(daemon), offer(0, "x") as server:
        with pytest.raises(ZeroDivisionError), connect(0, "x"):
            _ = 1 // 0
        assert server.state is State.GONE


def test_its_repr_shows_what_it_is(pair: Pair) -> None:
    server, client = pair
    assert repr(server) == "<Vchan server, peer domain 0, /local/domain/0/x, open, rings 1024/2048>"
    client.close()
    assert repr(client) == "<Vchan client, peer domain 0, /local/domain/0/x, closed, rings 2048/1024>"
    assert (server.peer, server.is_server, client.is_server, server.read_ring, server.write_ring) == (0, True, False, 1024, 2048)


def test_a_vchan_that_was_forgotten_is_closed_with_a_warning(daemon: Daemon) -> None:
    with acting_as(daemon), offer(0, "x") as server:
        client: list[object] = [connect(0, "x")]
        client.append(client)  # only the collector ends this
        before = server.state
        with pytest.warns(ResourceWarning, match="unclosed <Vchan client, peer domain 0, /local/domain/0/x"):
            del client
            gc.collect()
        assert (before, server.state) == (State.OPEN, State.GONE)


def test_a_program_may_end_with_a_vchan_open(daemon: Daemon) -> None:
    """Nothing on stderr, status 0, and the peer learns of it."""
    with acting_as(daemon), offer(0, "x") as server:
        code = "import kvmchan; c = kvmchan.connect(0, 'x'); c.send(b'bye')"
        done = subprocess.run([PYTHON, "-c", code], env=daemon.environment(), capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        while server.state is not State.GONE:
            server.wait()
        assert server.recv(3) == b"bye"


def test_a_program_may_end_while_threads_wait(daemon: Daemon) -> None:
    code = (
        "import threading, kvmchan\n"
        "s, t, l = kvmchan.offer(0, 's'), kvmchan.offer(0, 't'), kvmchan.listen(0, 'l')\n"
        "c, d = kvmchan.connect(0, 's'), kvmchan.connect(0, 't')\n"
        "for call in (lambda: s.recv(1), lambda: d.sendall(bytes(1 << 20)), l.accept):\n"
        "    threading.Thread(target=call, daemon=True).start()\n"
        "while not (s._awaited and d._awaited and l._offered._awaited): pass\n"
    )
    done = subprocess.run([PYTHON, "-c", code], env=daemon.environment(), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_client_that_is_closed_leaves_its_place_to_the_next(daemon: Daemon) -> None:
    with acting_as(daemon), offer(0, "x") as server:
        for number in range(3):
            with connect(0, "x") as client:
                call = Call(client, lambda client=client: client.recv(1))  # type: ignore[misc]
                client.sendall(b"%d" % number)
            with pytest.raises(AlreadyClosed):
                call.end()
        assert server.recv(3) == b"012"


def test_a_detached_vchan_is_the_c_librarys(daemon: Daemon) -> None:
    library = ctypes.CDLL(str(LIBDIR / "libxenvchan.so"))
    for name in ("libxenvchan_close", "libxenvchan_send"):
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t][: 3 if "send" in name else 1]
    before = next_fd()
    with acting_as(daemon), offer(0, "x") as server:
        client = connect(0, "x")
        address = client.detach()
        assert client.closed
        assert library.libxenvchan_send(address, b"from C", 6) == 6
        assert server.recv(6) == b"from C"
        library.libxenvchan_close(address)
        assert server.recv(1) == b""
    assert next_fd() == before


def test_a_vchan_in_use_can_not_be_detached(pair: Pair) -> None:
    server, client = pair
    call = Call(server, lambda: server.recv(1))
    with pytest.raises(Busy, match="in use"):
        server.detach()
    client.send(b"x")
    call.end()
    file = server.makefile("rb")
    with pytest.raises(Busy):
        server.detach()
    file.close()
    client.send(b"abc")
    made = server.look().pieces[0][:1]
    with pytest.raises(BufferError, match="something is still made of a span"):
        server.detach()
    assert server.recv(3) == b"abc"
    made.release()


# ---- threads ----


def test_one_thread_receives_while_another_sends(pair: Pair) -> None:
    data = os.urandom(200_000)

    def receive(vchan: Vchan) -> bytes:
        got = b""
        while len(got) < len(data):
            got += vchan.recv(777)
        return got

    calls = [Call(each, lambda each=each: receive(each)) for each in pair]  # type: ignore[misc]
    senders = [Call(each, lambda each=each: each.sendall(data)) for each in pair]  # type: ignore[misc]
    assert [each.end() for each in senders] == [None, None]
    assert [each.end() for each in calls] == [data, data]


def test_a_second_thread_that_receives_or_sends_is_refused(pair: Pair) -> None:
    server, client = pair
    fill(server)
    calls = [Call(server, lambda: server.recv(1)), Call(server, lambda: server.send(b"x"))]
    more: list[Callable[[], object]] = [
        lambda: server.recv(1),
        lambda: server.take(1),
        lambda: server.recv_into(bytearray(1)),
        lambda: server.look(),
        lambda: server.send(b"x"),
        lambda: server.send(bytearray(b"x")),
        lambda: server.sendall(b"x"),
        lambda: server.put(b"x"),
        lambda: server.reserve(),
        lambda: server.recv_bytes(),
        lambda: server.send_bytes(b"x"),
    ]
    for call in more:
        with pytest.raises(Busy, match="another thread") as caught:
            call()
        assert caught.value.errno == errno.EBUSY
    client.sendall(b"1")
    client.recv(10)
    assert [each.end() for each in calls] == [b"1", 1]


def test_threads_with_a_vchan_each(daemon: Daemon) -> None:
    failures: list[BaseException] = []

    def talk(number: int) -> None:
        try:
            for _ in range(5):
                with offer(0, f"thread{number}") as server, connect(0, f"thread{number}") as client:
                    data = os.urandom(1000)
                    client.put(data)
                    assert server.take(1000) == data
        except BaseException as error:
            failures.append(error)

    with acting_as(daemon):
        threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


# ---- signals ----


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Sets what SIGUSR1 does, and sends it."""
    before = signal.getsignal(signal.SIGUSR1)

    def set_and_send(action: Callable[[], object]) -> None:
        signal.signal(signal.SIGUSR1, lambda _number, _frame: action())
        threading.Timer(0, os.kill, (os.getpid(), signal.SIGUSR1)).start()

    yield set_and_send
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_whose_handler_returns_ends_no_call(pair: Pair, on_signal: Callable[[Callable[[], object]], None]) -> None:
    server, client = pair
    on_signal(lambda: client.send(b"x"))
    assert server.recv(1) == b"x"
    assert server.readable == 0
    on_signal(lambda: client.send(b"y"))
    server.wait()
    assert server.recv(1) == b"y"
    fill(server)
    on_signal(lambda: client.recv(2048))
    server.sendall(b"z")


def test_a_signal_whose_handler_raises_ends_a_call(pair: Pair, on_signal: Callable[[Callable[[], object]], None]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    server, client = pair
    fill(server)
    for call in blocked_calls(server):
        with pytest.raises(KeyboardInterrupt):
            on_signal(interrupt)
            call(None)
    assert server.state is State.OPEN
    client.send(b"x")
    assert server.recv(1) == b"x"


def test_a_handler_may_use_the_vchan_that_it_interrupts(pair: Pair, on_signal: Callable[[Callable[[], object]], None]) -> None:
    server, client = pair
    seen: list[object] = []

    def act() -> None:
        server.send(b"from the handler")
        try:
            server.recv(1, timeout=0)
        except VchanError as error:
            seen.append(type(error))
        client.send(b"x")

    on_signal(act)
    assert server.recv(1) == b"x"
    assert client.recv(100) == b"from the handler"
    assert seen in ([Busy], [WouldBlock])


def test_a_handler_may_close_the_vchan_that_it_interrupts(pair: Pair, on_signal: Callable[[Callable[[], object]], None]) -> None:
    server, client = pair
    on_signal(server.close)
    with pytest.raises(AlreadyClosed):
        server.recv(1)
    assert client.state is State.GONE


# ---- forks ----


def test_a_forked_child_can_not_use_its_parents_vchans(pair: Pair) -> None:
    server, client = pair
    view = server.reserve().pieces[0]

    def use() -> None:
        for call in (lambda: client.send(b"x"), lambda: client.recv(1), client.wait, client.fileno, lambda: server.commit(0)):
            with pytest.raises(AlreadyClosed, match=f"is of process {os.getppid()}, which forked this one"):
                call()
        client.close()
        server.close()
        with pytest.raises(ValueError, match="released"):
            _ = view[0]
        assert repr(client).startswith("<Vchan client")

    assert in_child(use) == 0
    assert (server.state, client.state) == (State.OPEN, State.OPEN)
    client.send(b"x")
    assert server.recv(1) == b"x"


def test_a_forked_child_holds_nothing_of_its_parents_vchans(daemon: Daemon) -> None:
    """So that the parent's death is seen, whatever becomes of the child."""
    code = (
        "import os, kvmchan\n"
        "c = kvmchan.connect(0, 'x')\n"
        "if os.fork() == 0:\n"
        "    print('forked', flush=True); input(); os._exit(0)\n"
        "os._exit(0)\n"
    )
    with acting_as(daemon), offer(0, "x") as server:
        parent = subprocess.Popen(
            [PYTHON, "-c", code], env=daemon.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None and parent.stdin is not None
        assert parent.stdout.readline() == "forked\n"
        while server.state is not State.GONE:
            server.wait()
        parent.communicate("\n")


def test_a_forked_child_can_open_vchans_of_its_own(daemon: Daemon) -> None:
    with acting_as(daemon), offer(0, "x") as server:

        def talk() -> None:
            with connect(0, "x") as client:
                client.sendall(b"from the child")

        assert in_child(talk) == 0
        assert server.recv(100) == b"from the child"


# ---- select ----


def test_the_descriptor_is_readable_when_it_is_worth_trying_again(pair: Pair) -> None:
    server, client = pair
    server.settimeout(0)

    def is_readable() -> bool:
        return bool(select.select([server], [], [], 0)[0])

    assert is_readable()  # it may have come before anyone watched
    with pytest.raises(WouldBlock):
        server.recv(1)
    assert not is_readable()
    client.send(b"abc")
    assert is_readable()
    assert server.recv(1) == b"a"
    assert is_readable()  # there is more
    assert server.recv(10) == b"bc"
    with pytest.raises(WouldBlock):
        server.recv(1)
    assert not is_readable()
    with pytest.raises(WouldBlock):
        server.sendall(bytes(5000))
    assert not is_readable()
    client.recv(10)
    assert is_readable()
    server.wait()
    assert not is_readable()
    client.close()
    assert is_readable()


def test_a_call_that_waits_leaves_the_descriptor_readable(pair: Pair) -> None:
    """It may have taken the event that select() would have shown."""
    server, client = pair
    server.fileno()
    with pytest.raises(WouldBlock):
        server.recv(1, timeout=0)
    fill(server)
    sending = Call(server, lambda: server.send(b"x"))
    client.send(b"data")
    client.recv(1)
    sending.end()
    assert select.select([server], [], [], 0)[0]
    server.wait()
    assert server.recv(10, timeout=0) == b"data"
    with pytest.raises(WouldBlock):
        server.wait(timeout=0)


def test_a_call_that_would_block_takes_no_event_of_the_other_direction(pair: Pair) -> None:
    server, client = pair
    server.fileno()
    fill(server)
    server.settimeout(0)
    for lacking, other in (
        (lambda: server.send(b"x"), lambda: server.recv(1)),
        (lambda: server.recv(1), lambda: server.send(b"x")),
    ):
        with pytest.raises(WouldBlock):
            lacking()
        with pytest.raises(WouldBlock):
            other()
    client.recv(1)
    with pytest.raises(WouldBlock):
        server.recv(1)
    assert select.select([server], [], [], 0)[0]
    server.send(b"x")


def test_a_vchan_can_not_be_copied(pair: Pair) -> None:
    for copies in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a Vchan can't be copied or pickled"):
            copies(pair[0])


def test_a_selector_serves_a_stream_each_way(pair: Pair) -> None:
    server, client = pair
    data = os.urandom(200_000)
    for each in pair:
        each.settimeout(0)
    sent, received = 0, bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ, "server")
        selector.register(client, selectors.EVENT_READ, "client")
        while len(received) < len(data):
            for key, _ in selector.select():
                try:
                    while key.data == "server":
                        received += server.recv(4096)
                    while sent < len(data):
                        sent += client.send(data[sent : sent + 4096])
                    client.wait()
                except WouldBlock:
                    pass
    assert received == data


def test_wait_takes_the_event(pair: Pair) -> None:
    server, client = pair
    server.wait()  # of the connect
    assert server.readable == 0  # asks to hear of the next one
    client.send(b"x")
    server.wait()
    with pytest.raises(WouldBlock):
        server.wait(timeout=0)


# ---- files ----


def test_a_text_file_on_a_vchan(pair: Pair) -> None:
    server, client = pair
    with client.makefile("w", encoding="utf-8", newline="\n") as writing, server.makefile("r", encoding="utf-8") as reading:
        print("ä line", "another", sep="\n", file=writing, flush=True)
        assert [reading.readline(), reading.readline()] == ["ä line\n", "another\n"]
        assert not client.closed


def test_a_vchan_stays_open_until_its_last_file_is_closed(pair: Pair) -> None:
    server, client = pair
    first, second = client.makefile("rwb"), client.makefile("wb", 0)
    client.close()
    second.write(b"still there")
    second.close()
    assert server.recv(100) == b"still there"
    server.sendall(b"a\nb\n")
    assert first.readline() == b"a\n"
    first.close()
    assert server.state is State.GONE


def test_a_file_reads_to_the_end(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"all of it")
    client.close()
    with server.makefile("rb") as file:
        assert file.read() == b"all of it"


def test_a_file_that_may_not_wait_returns_none(pair: Pair) -> None:
    server, _ = pair
    server.settimeout(0)
    with server.makefile("rwb", 0) as file:
        assert file.read(1) is None
        fill(server)
        assert file.write(b"x") is None
        assert file.fileno() == server.fileno()


def test_a_file_is_for_what_its_mode_says(pair: Pair) -> None:
    server, _ = pair
    with server.makefile("rb", 0) as reading, pytest.raises(io.UnsupportedOperation):
        reading.write(b"x")
    with server.makefile("wb", 0) as writing, pytest.raises(io.UnsupportedOperation):
        writing.read(1)
    for mode in ("", "b", "a", "r+", "rr"):
        with pytest.raises(InvalidArgument, match="mode is"):
            server.makefile(mode)
    with pytest.raises(InvalidArgument, match="buffering is 0"):
        server.makefile("r", 0)
    with pytest.raises(TypeError, match="mode must be a str"):
        server.makefile(5)  # type: ignore[arg-type]


# ---- with others ----

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
        ours = offer(0, "x", read_min=4096, write_min=4096) if side == "client" else None
        with Program(program, "x", *(["server"] if ours is None else []), env=daemon.environment()) as echo:
            echo.expect("there")
            if ours is None:
                ours = connect(0, "x")
            for size in (1, 999, 4096):
                data = os.urandom(size)
                ours.put(data)
                assert ours.take(size) == data
            ours.close()


def test_a_socket_is_no_vchan_and_needs_none(daemon: Daemon) -> None:
    """The conventions are those of a socket: the same function serves both."""

    def echo(stream: Any) -> None:
        with stream:
            while data := stream.recv(100):
                stream.sendall(data)

    one, other = socket.socketpair()
    with acting_as(daemon), offer(0, "x") as server:
        for stream, peer in ((one, other), (connect(0, "x"), server)):
            thread = threading.Thread(target=echo, args=(stream,))
            thread.start()
            peer.sendall(b"hello")
            assert peer.recv(100) == b"hello"
            peer.close()
            thread.join()


def test_the_package_has_two_names() -> None:
    import kvmchan
    import libxenvchan_shim

    assert kvmchan.__version__ == libxenvchan_shim.__version__
    for name in libxenvchan_shim.__all__:
        assert getattr(kvmchan, name) is getattr(libxenvchan_shim, name)
        assert name in dir(kvmchan) and name in dir(libxenvchan_shim)
    for package in (kvmchan, libxenvchan_shim):
        with pytest.raises(AttributeError, match=f"{package.__name__}.*of_tomorrow"):
            _ = package.of_tomorrow
    assert sys.modules["kvmchan"] is kvmchan
