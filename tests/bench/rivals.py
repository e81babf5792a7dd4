# SPDX-License-Identifier: LGPL-2.1-or-later
"""What Python programs talk through, each used as its manual says, and one end of a measurement.

tests/bench/python.py runs this file as a program, once or twice for a run: `rivals.py JOB CARRIER
ROLE ARGUMENTS`. It opens its end, says "ready", waits for a line, measures, prints a line of JSON,
and closes its end when its input ends. The reader opens before the writer is told to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import importlib
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SMALL = 64
LARGE = 64 * 1024
RING = 1 << 20
"""Bytes that may wait, where one can say."""
_PATIENCE = 10.0


@dataclass(slots=True)
class End:
    """One end of whatever carries the bytes."""

    put: Callable[[bytes], object]
    """Send a message of the end's size."""
    take: Callable[[], bytes]
    """Receive one."""
    send: Callable[[bytes], object] = lambda data: None
    """Send the next bytes of a stream."""
    fill: Callable[[bytearray], int] = lambda buffer: 0
    """Receive the next bytes of a stream into a buffer."""
    recv: Callable[[], bytes] = bytes
    """Receive the next bytes of a stream, as bytes."""
    close: list[Callable[[], object]] = field(default_factory=list)
    vchan: Any = None
    must_greet: bool = False
    """Whether what is sent before both ends know of each other may be lost."""


class Kvmchan:
    """Ours. The reader offers, the writer connects."""

    name = "kvmchan"

    @staticmethod
    def open(place: dict[str, Any], role: str, size: int) -> End:
        """Return an end. `place`: what the process that measures has made for both."""
        import kvmchan

        if role == "reader":
            vchan = kvmchan.offer("host", place["path"], read_min=RING, write_min=RING)
        else:
            vchan = kvmchan.connect("host", place["path"], timeout=_PATIENCE)
        take = functools.partial(vchan.take, size)
        recv = functools.partial(vchan.recv, LARGE)
        return End(vchan.put, take, vchan.sendall, vchan.recv_into, recv, [vchan.close], vchan)


class Socket:
    """A UNIX stream socket of a pair."""

    name = "socket"

    @staticmethod
    def open(place: dict[str, Any], role: str, size: int) -> End:
        """Return an end."""
        end = socket.socket(fileno=place["socket"][role == "reader"])
        take = functools.partial(end.recv, size)  # what the other end sends at once is read at once
        recv = functools.partial(end.recv, LARGE)
        return End(end.send, take, end.sendall, end.recv_into, recv, [end.close])


class Pipe:
    """An end of a duplex multiprocessing.Pipe."""

    name = "Pipe"

    @staticmethod
    def open(place: dict[str, Any], role: str, size: int) -> End:
        """Return an end."""
        end = Connection(place["pipe"][role == "reader"])
        return End(end.send_bytes, end.recv_bytes, end.send_bytes, end.recv_bytes_into, end.recv_bytes, [end.close])


class Zmq:
    """A PAIR socket of ZeroMQ over a UNIX socket, with its defaults."""

    name = "pyzmq"

    @staticmethod
    def open(place: dict[str, Any], role: str, size: int) -> End:
        """Return an end."""
        zmq = importlib.import_module("zmq")
        context = zmq.Context()
        end = context.socket(zmq.PAIR)
        address = f"ipc://{place['folder']}/zmq-{place['path'].rpartition('/')[2]}"
        (end.bind if role == "reader" else end.connect)(address)
        return End(end.send, end.recv, end.send, end.recv_into, end.recv, [functools.partial(end.close, 0), context.term])


class Iceoryx2:
    """iceoryx2's publish-subscribe, a service for each direction, which loses nothing.

    Its subscriber polls: that is the quickest it has, and it takes all of a processor.
    """

    name = "iceoryx2"

    @staticmethod
    def open(place: dict[str, Any], role: str, size: int) -> End:
        """Return an end."""
        iox2 = importlib.import_module("iceoryx2")
        payload = type("Payload", (ctypes.Structure,), {"_fields_": [("data", ctypes.c_uint8 * size)]})
        iox2.set_log_level(iox2.LogLevel.Fatal)
        config = iox2.config.default()
        config.global_cfg.root_path = iox2.Path.new(place["folder"])
        config.global_cfg.prefix = iox2.FileName.new(place["prefix"])
        node = iox2.NodeBuilder.new().config(config).create(iox2.ServiceType.Ipc)

        def service(direction: str) -> Any:
            builder = node.service_builder(iox2.ServiceName.new(f"{place['path']}/{direction}")).publish_subscribe(payload)
            return builder.subscriber_max_buffer_size(RING // max(size, 1024)).enable_safe_overflow(False).open_or_create()

        ways = ("there", "back") if role == "reader" else ("back", "there")
        subscriber = service(ways[0]).subscriber_builder().create()
        strategy = iox2.BackpressureStrategy.RetryUntilDelivered
        publisher = service(ways[1]).publisher_builder().backpressure_strategy(strategy).create()
        loan, receive = publisher.loan_uninit, subscriber.receive
        move, copied, byte_in = ctypes.memmove, ctypes.string_at, ctypes.c_char.from_buffer

        def put(data: bytes) -> None:
            sample = loan()
            move(sample.payload_ptr, data, size)
            sample.assume_init().send()

        def take() -> bytes:
            while (sample := receive()) is None:
                pass
            return copied(sample.payload_ptr, size)

        def fill(buffer: bytearray) -> int:
            while (sample := receive()) is None:
                pass
            move(ctypes.byref(byte_in(buffer)), sample.payload_ptr, size)
            return size

        return End(put, take, put, fill, take, [subscriber.delete, publisher.delete], must_greet=True)


CARRIERS: dict[str, Any] = {each.name: each for each in (Kvmchan, Socket, Pipe, Zmq, Iceoryx2)}
MODULES = {"pyzmq": "zmq", "iceoryx2": "iceoryx2"}
"""Those of carriers that are no part of Python."""


def _looker(stride: int) -> Callable[[Any], object]:
    """Return what looks at one byte in so many of a buffer: numpy's sum, if that is there."""
    try:
        numpy = importlib.import_module("numpy")
    except ImportError:
        return lambda piece: bytes(memoryview(piece)[::stride])
    frombuffer, uint8 = numpy.frombuffer, numpy.uint8
    return lambda piece: frombuffer(piece, uint8)[::stride].sum()


# ---- what one process measures ----


def both_ends(carrier: str, place: dict[str, Any], count: int) -> dict[str, float]:
    """Put a message and take it, over and over, in one process: its processor's time."""
    reader = CARRIERS[carrier].open(place, "reader", SMALL)
    writer = CARRIERS[carrier].open(place, "writer", SMALL)
    put, take, message = writer.put, reader.take, b"x" * SMALL
    for _ in range(count // 10):
        put(message)
        take()
    began = time.process_time_ns()
    for _ in range(count):
        put(message)
        take()
    used = time.process_time_ns() - began
    _close(writer, reader)
    return {"ns": used / count}


def looks(_carrier: str, place: dict[str, Any], count: int, size: int, stride: int) -> dict[str, float]:
    """Look at one byte in `stride` of `size` bytes: in a ring, in a copy, and in what is at hand.

    Returns the ns of the processor that each takes.
    """
    reader, writer = Kvmchan.open(place, "reader", size), Kvmchan.open(place, "writer", size)
    vchan, look, data = reader.vchan, _looker(stride), b"x" * size
    pieces = RING // size  # fill the ring, so that reading the clock costs little

    def in_place() -> None:
        look(vchan.look(size).pieces[0][:size])
        vchan.consume(size)

    def copied() -> None:
        look(vchan.recv(size))

    def alone() -> None:
        look(data)

    used = {in_place: 0, copied: 0, alone: 0}
    for _ in range(rounds := max(2, count // pieces)):
        for way in used:
            for _ in range(pieces):
                writer.put(data)
            began = time.process_time_ns()
            for _ in range(pieces):
                way()
            used[way] += time.process_time_ns() - began
            while ready := vchan.readable:
                vchan.recv(ready)
    _close(writer, reader)
    return {way.__name__: ns / (rounds * pieces) for way, ns in used.items()}


def _look_in_place(vchan: Any, look: Callable[[Any], object]) -> int:
    span = vchan.look(LARGE)
    count = 0
    for piece in span.pieces:
        look(piece)
        count += len(piece)
    vchan.consume(count)
    return count


# ---- what two measure: each function is both of them ----


def messages(end: End, role: str, count: int) -> float:
    """Send messages one way. Returns how many a second come."""
    if role == "writer":
        put, message = end.put, b"x" * SMALL
        for _ in range(count + 1):
            put(message)
        return 0
    take = end.take
    take()
    began = time.perf_counter()
    for _ in range(count):
        take()
    return count / (time.perf_counter() - began)


def batched(end: End, role: str, count: int) -> float:
    """Send messages one way, and receive all at once that are there. Returns how many a second."""
    if role == "writer":
        return messages(end, role, count)
    end.take()
    recv, left, rest = end.recv, count * SMALL, b""
    began = time.perf_counter()
    while left > 0:
        data = recv()
        left -= len(data)
        if rest:
            data = rest + data
        whole = len(data) // SMALL * SMALL
        for at in range(0, whole, SMALL):
            data[at : at + SMALL]
        rest = data[whole:]
    return count / (time.perf_counter() - began)


def stream(end: End, role: str, total: int, how: str) -> float:
    """Send a stream one way in calls of 64 KiB. Returns bytes a second. `how`: it is received."""
    if role == "writer":
        send, data = end.send, b"x" * LARGE
        for _ in range(total // LARGE):
            send(data)
        return 0
    left = total = total // LARGE * LARGE
    if how == "fill":
        fill, buffer = end.fill, bytearray(LARGE)
        left -= (first := fill(buffer))
        began = time.perf_counter()
        while left > 0:
            left -= fill(buffer)
    elif how == "recv":
        recv = end.recv
        left -= (first := len(recv()))
        began = time.perf_counter()
        while left > 0:
            left -= len(recv())
    else:
        look, vchan = _looker(64), end.vchan
        left -= (first := _look_in_place(vchan, look))
        began = time.perf_counter()
        if how == "in place":
            while left > 0:
                left -= _look_in_place(vchan, look)
        else:
            while left > 0:
                data = vchan.recv(LARGE)
                look(data)
                left -= len(data)
    return (total - first) / (time.perf_counter() - began)


def round_trips(end: End, role: str, count: int) -> float:
    """Send a message there and back. Returns the ns of one."""
    put, take, warm_up = end.put, end.take, count // 10
    if role == "reader":
        for _ in range(count + warm_up):
            put(take())
        return 0
    message = b"x" * SMALL
    for _ in range(warm_up):
        put(message)
        take()
    began = time.perf_counter_ns()
    for _ in range(count):
        put(message)
        take()
    return (time.perf_counter_ns() - began) / count


PAIRS: dict[str, tuple[Callable[..., float], int]] = {
    "messages": (messages, SMALL),
    "batched": (batched, SMALL),
    "stream": (stream, LARGE),
    "round_trips": (round_trips, SMALL),
}
"""What two processes measure, and the size of a message in it."""


# ---- asyncio ----

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _async_end(carrier: str, place: dict[str, Any], role: str) -> tuple[Streams, Callable[[], Awaitable[None]]]:
    """Return the streams of an end, and what closes it."""
    if role == "writer":
        _say("ready")
        await asyncio.to_thread(_hear)
        if carrier == "kvmchan":
            import kvmchan

            reader, writer = await kvmchan.open_vchan("host", place["path"], timeout=_PATIENCE)
        else:
            reader, writer = await asyncio.open_unix_connection(f"{place['folder']}/asyncio")
        return (reader, writer), functools.partial(_async_close, writer)
    come: asyncio.Future[Streams] = asyncio.get_running_loop().create_future()

    def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        come.set_result((reader, writer))

    server: Any
    if carrier == "kvmchan":
        import kvmchan

        server = await kvmchan.start_server(on_client, "host", place["path"], read_min=RING, write_min=RING)
    else:
        Path(f"{place['folder']}/asyncio").unlink(missing_ok=True)
        server = await asyncio.start_unix_server(on_client, f"{place['folder']}/asyncio")
    _say("ready")
    streams = await asyncio.wait_for(come, _PATIENCE)

    async def close() -> None:
        server.close()
        await _async_close(streams[1])

    return streams, close


async def _async_close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _async_stream(streams: Streams, role: str, total: int) -> float:
    reader, writer = streams
    if role == "writer":
        data = b"x" * LARGE
        for _ in range(total // LARGE):
            writer.write(data)
            await writer.drain()
        return 0
    total = total // LARGE * LARGE
    left = total - (first := len(await reader.read(LARGE)))
    began = time.perf_counter()
    while left > 0:
        left -= len(await reader.read(LARGE))
    return (total - first) / (time.perf_counter() - began)


async def _async_round_trips(streams: Streams, role: str, count: int) -> float:
    (reader, writer), warm_up = streams, count // 10
    if role == "reader":
        for _ in range(count + warm_up):
            writer.write(await reader.readexactly(SMALL))
        return 0
    message = b"x" * SMALL
    for _ in range(warm_up):
        writer.write(message)
        await reader.readexactly(SMALL)
    began = time.perf_counter_ns()
    for _ in range(count):
        writer.write(message)
        await reader.readexactly(SMALL)
    return (time.perf_counter_ns() - began) / count


ASYNC = {"async_stream": _async_stream, "async_round_trips": _async_round_trips}


async def _async_run(job: str, carrier: str, place: dict[str, Any], role: str, arguments: list[Any]) -> None:
    streams, close = await _async_end(carrier, place, role)
    figure = await ASYNC[job](streams, role, *arguments)
    _say(json.dumps(figure))
    await asyncio.to_thread(_hear)
    await close()


# ---- one end ----


def _say(line: str) -> None:
    print(line, flush=True)


def _hear() -> None:
    sys.stdin.readline()


def _greet(end: End, role: str, size: int) -> None:
    if role == "reader":
        end.take()
    end.put(b"x" * size)
    if role == "writer":
        end.take()


def _close(*ends: End) -> None:
    for end in ends:
        for close in end.close:
            close()


def main() -> None:
    """Be one end."""
    job, carrier, role, given = sys.argv[1:]
    arguments = json.loads(given)
    place = arguments.pop(0)
    if job in ("both_ends", "looks"):
        _say(json.dumps((both_ends if job == "both_ends" else looks)(carrier, place, *arguments)))
        return
    if job in ASYNC:
        asyncio.run(_async_run(job, carrier, place, role, arguments))
        return
    function, size = PAIRS[job]
    end = None
    if role == "reader":
        end = CARRIERS[carrier].open(place, role, size)
        _say("ready")
    else:
        importlib.import_module(MODULES.get(carrier, "kvmchan"))
        _say("ready")
        _hear()
        end = CARRIERS[carrier].open(place, role, size)
    if end.must_greet:
        _greet(end, role, size)
    _say(json.dumps(function(end, role, *arguments)))
    _hear()
    _close(end)


if __name__ == "__main__":
    main()
