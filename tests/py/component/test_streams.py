# SPDX-License-Identifier: LGPL-2.1-or-later
"""asyncio's streams on vchans, on a real daemon: under asyncio's own loop, and under uvloop."""

from __future__ import annotations

import asyncio
import gc
import os
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from kvmchan import (
    ChannelClosed,
    NotFound,
    TimedOut,
    Unreachable,
    Vchan,
    VchanTransport,
    connect,
    offer,
    open_vchan,
    start_server,
)
from rig.daemon import Daemon, acting_as
from rig.processes import next_fd

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine function in a loop of the kind, and asserts that nothing is left."""
    factory = None
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop

    def run_it(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        before = next_fd()
        failures: list[dict[str, Any]] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
            await main()
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)  # what serves a client may be about to end

        with asyncio.Runner(loop_factory=factory, debug=True) as runner:
            runner.run(watched())
        gc.collect()
        assert failures == []
        assert next_fd() == before

    return run_it


async def echo(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(1000):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def close(*writers: Writer) -> None:
    for writer in writers:
        writer.close()
        await writer.wait_closed()


def test_a_server_echoes(daemon: Daemon, run: Run) -> None:
    async def main() -> None:
        async with await start_server(echo, 0, "x") as server:
            assert (server.path, server.is_serving()) == ("/local/domain/0/x", True)
            reader, writer = await open_vchan(0, "x")
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            vchan = writer.get_extra_info("vchan")
            assert isinstance(vchan, Vchan)
            assert writer.get_extra_info("peername") == (0, "/local/domain/0/x")
            await close(writer)
            assert vchan.closed
        assert not server.is_serving()

    with acting_as(daemon):
        run(main)


def test_clients_are_served_at_once(daemon: Daemon, run: Run) -> None:
    async def ask(number: int) -> bytes:
        reader, writer = await open_vchan(0, "x", timeout=None)
        for _ in range(3):
            writer.write(b"%d\n" % number)
            answer = await reader.readline()
        await close(writer)
        return answer

    async def main() -> None:
        async with await start_server(echo, 0, "x"):
            answers = await asyncio.gather(*(ask(number) for number in range(20)))
        assert answers == [b"%d\n" % number for number in range(20)]

    with acting_as(daemon):
        run(main)


@pytest.mark.parametrize("size", [300_000, 2_000_000])
def test_more_than_the_rings_hold_goes_both_ways(daemon: Daemon, run: Run, size: int) -> None:
    data = os.urandom(size)

    async def main() -> None:
        async with await start_server(echo, 0, "x", read_min=4096, write_min=65536):
            reader, writer = await open_vchan(0, "x")
            writer.write(data)
            received = await reader.readexactly(size)
            assert received == data
            await close(writer)

    with acting_as(daemon):
        run(main)


def test_a_writer_waits_for_a_slow_reader(daemon: Daemon, run: Run) -> None:
    """What is not read stays in the ring, and drain() waits for what does not fit there."""

    async def main() -> None:
        begun, go = asyncio.Event(), asyncio.Event()
        received: list[int] = []

        async def slow(reader: Reader, writer: Writer) -> None:
            begun.set()
            await go.wait()
            received.append(len(await reader.read(-1)))
            await close(writer)

        async with await start_server(slow, 0, "x", read_min=4096, write_min=4096, limit=1000):
            reader, writer = await open_vchan(0, "x")
            await begun.wait()
            writer.write(bytes(1_000_000))
            draining = asyncio.ensure_future(writer.drain())
            for _ in range(100):
                await asyncio.sleep(0)
            assert not draining.done()
            assert writer.transport.get_write_buffer_size() > 900_000
            go.set()
            await draining
            await close(writer)
            assert await reader.read() == b""
            while not received:
                await asyncio.sleep(0)
            assert received == [1_000_000]

    with acting_as(daemon):
        run(main)


def test_the_end_of_the_stream_is_seen(daemon: Daemon, run: Run) -> None:
    async def main() -> None:
        ended: list[bytes] = []

        async def serve(reader: Reader, writer: Writer) -> None:
            ended.append(await reader.read(-1))
            await close(writer)

        async with await start_server(serve, 0, "x"):
            _, writer = await open_vchan(0, "x")
            writer.write(b"all of it")
            await close(writer)
            while not ended:
                await asyncio.sleep(0)
        assert ended == [b"all of it"]

    with acting_as(daemon):
        run(main)


def test_writing_to_an_end_that_has_gone_is_an_error(daemon: Daemon, run: Run) -> None:
    async def main() -> None:
        with offer(0, "x") as server:
            _, writer = await open_vchan(0, "x")
            server.close()
            with pytest.raises(ConnectionError):
                for _ in range(100):
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0)
            with pytest.raises(ChannelClosed):
                await writer.wait_closed()

    with acting_as(daemon):
        run(main)


def test_a_client_waits_for_its_server(daemon: Daemon, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(NotFound):
            await open_vchan(0, "late")
        with pytest.raises(TimedOut, match=r"within 0\.01 s"):
            await open_vchan(0, "late", timeout=0.01)
        opening = asyncio.ensure_future(open_vchan(0, "late", timeout=None))
        await asyncio.sleep(0)
        async with await start_server(echo, 0, "late"):
            _, writer = await opening
            await close(writer)

    with acting_as(daemon):
        run(main)


def cancelled_calls(reader: Reader, writer: Writer) -> list[Callable[[], Awaitable[object]]]:
    return [
        lambda: open_vchan(0, "never", timeout=None),
        lambda: open_vchan(0, "x", timeout=None),
        lambda: start_server(echo, 0, "y"),
        lambda: reader.read(1),
        lambda: reader.readexactly(5),
        writer.drain,
        writer.wait_closed,
    ]


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
def test_every_wait_can_be_cancelled(daemon: Daemon, run: Run, turns: int) -> None:
    async def main() -> None:
        hang = asyncio.Event()

        async def serve(_reader: Reader, writer: Writer) -> None:
            await hang.wait()
            await close(writer)

        async with await start_server(serve, 0, "x", read_min=1024, write_min=1024):
            reader, writer = await open_vchan(0, "x")
            writer.write(bytes(200_000))
            for call in cancelled_calls(reader, writer):
                task = asyncio.ensure_future(call())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    made: Any = await task
                except asyncio.CancelledError:
                    continue
                if isinstance(made, tuple):
                    await close(made[1])
                else:
                    made.close()
                    await made.wait_closed()
            writer.transport.abort()
            with pytest.raises(asyncio.IncompleteReadError):
                await reader.readexactly(1)
            hang.set()
            for _ in range(20):
                await asyncio.sleep(0)

    with acting_as(daemon):
        run(main)


def test_a_server_that_is_cancelled_is_closed(daemon: Daemon, run: Run) -> None:
    async def main() -> None:
        server = await start_server(echo, 0, "x")
        serving = asyncio.ensure_future(server.serve_forever())
        await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await server.wait_closed()
        with pytest.raises(NotFound):
            await open_vchan(0, "x")

    with acting_as(daemon):
        run(main)


def test_a_daemon_that_ends_ends_serving(tmp_path: Path) -> None:
    started = Daemon(tmp_path)
    said: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        server = await start_server(echo, 0, "x")
        serving = asyncio.ensure_future(server.serve_forever())
        await asyncio.sleep(0)
        started.kill()
        with pytest.raises(Unreachable, match="listen again"):
            await serving
        assert not server.is_serving()

    with acting_as(started):
        asyncio.run(main())
    assert len(said) == 1


# ---- the transport ----


class Recorder(asyncio.Protocol):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.received = b""
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.said.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool | None:
        self.said.append("eof")
        return None

    def pause_writing(self) -> None:
        self.said.append("pause")

    def resume_writing(self) -> None:
        self.said.append("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.said.append("lost")
        self.lost.set_result(exc)


class BufferedRecorder(asyncio.BufferedProtocol):
    def __init__(self) -> None:
        self.buffer = bytearray(1500)
        self.received = b""
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(exc)


def test_a_protocol_hears_all_of_a_life(daemon: Daemon, run: Run) -> None:
    async def main() -> None:
        with offer(0, "x", read_min=1024, write_min=1024) as server:
            protocol = Recorder()
            transport = VchanTransport(asyncio.get_running_loop(), connect(0, "x"), protocol)
            assert (transport.is_reading(), transport.can_write_eof(), transport.get_protocol()) == (True, False, protocol)
            transport.set_write_buffer_limits(high=100)
            assert transport.get_write_buffer_limits() == (25, 100)
            with pytest.raises(ValueError, match="low"):
                transport.set_write_buffer_limits(high=1, low=2)
            transport.write(bytes(2000))
            assert protocol.said == ["made", "pause"]
            while transport.get_write_buffer_size():
                server.recv(100, timeout=0)
                await asyncio.sleep(0)
            assert protocol.said == ["made", "pause", "resume"]
            server.sendall(b"to the client")
            server.close()
            assert await protocol.lost is None
            assert (protocol.said[3:], protocol.received, transport.is_closing()) == (["eof", "lost"], b"to the client", True)

    with acting_as(daemon):
        run(main)


@pytest.mark.parametrize("method", ["data_received", "eof_received"])
def test_a_protocol_that_fails_loses_its_connection(daemon: Daemon, method: str) -> None:
    """As with asyncio's own transports."""
    said: list[dict[str, Any]] = []

    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        with offer(0, "x") as server:
            protocol = Recorder()
            setattr(protocol, method, fail)
            VchanTransport(asyncio.get_running_loop(), connect(0, "x"), protocol)
            server.sendall(b"x")
            server.close()
            assert isinstance(await protocol.lost, ZeroDivisionError)

    with acting_as(daemon):
        asyncio.run(main())
    assert [type(each["exception"]) for each in said] == [ZeroDivisionError]


def test_a_paused_transport_leaves_what_comes_in_the_ring(daemon: Daemon, run: Run) -> None:
    async def main() -> None:
        with offer(0, "x", read_min=1024, write_min=1024) as server:
            protocol = Recorder()
            transport = VchanTransport(asyncio.get_running_loop(), connect(0, "x"), protocol)
            transport.pause_reading()
            server.sendall(bytes(2048))
            for _ in range(20):
                await asyncio.sleep(0)
            assert (protocol.received, server.writable, transport.is_reading()) == (b"", 0, False)
            transport.resume_reading()
            while len(protocol.received) < 2048:
                await asyncio.sleep(0)
            transport.pause_reading()
            server.sendall(b"last")
            server.close()
            for _ in range(20):
                await asyncio.sleep(0)
            assert protocol.said == ["made"]
            transport.resume_reading()
            await protocol.lost
            assert protocol.received[2048:] == b"last"

    with acting_as(daemon):
        run(main)


def test_a_buffered_protocol_is_given_its_own_buffer(daemon: Daemon, run: Run) -> None:
    data = os.urandom(20_000)

    async def main() -> None:
        with offer(0, "x", write_min=1 << 16) as server:
            protocol = BufferedRecorder()
            VchanTransport(asyncio.get_running_loop(), connect(0, "x"), protocol)
            server.sendall(data)
            server.close()
            await protocol.lost
            assert protocol.received == data

    with acting_as(daemon):
        run(main)


def test_an_aborted_transport_forgets_what_waits(daemon: Daemon, run: Run) -> None:
    async def main() -> None:
        with offer(0, "x", read_min=1024, write_min=1024) as server:
            protocol = Recorder()
            transport = VchanTransport(asyncio.get_running_loop(), connect(0, "x"), protocol)
            transport.write(bytes(5000))
            transport.abort()
            transport.abort()
            await protocol.lost
            assert sum(map(len, server)) == 1024

    with acting_as(daemon):
        run(main)


@pytest.mark.parametrize("wrong", ["text", 5, None])
def test_what_is_no_buffer_can_not_be_written(daemon: Daemon, run: Run, wrong: Any) -> None:
    async def main() -> None:
        with offer(0, "x"):
            _, writer = await open_vchan(0, "x")
            with pytest.raises(TypeError, match="data must be a bytes-like object"):
                writer.write(wrong)
            await close(writer)

    with acting_as(daemon):
        run(main)
