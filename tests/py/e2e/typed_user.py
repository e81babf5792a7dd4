# SPDX-License-Identifier: LGPL-2.1-or-later
"""A user's program that uses all of the Python API. It is for type checkers only: never run.

test_python_types.py has mypy and pyright read it in strict mode.
"""

from __future__ import annotations

import array
import asyncio
import mmap
import selectors
from typing import IO, Any, assert_type

import kvmchan
from kvmchan import Domain, Listener, MappedPages, SharedPages, Span, State, Vchan, VchanServer


def opening() -> None:
    assert_type(kvmchan.__version__, str)
    assert_type(kvmchan.domains(), list[Domain])
    domain = kvmchan.domains()[0]
    assert_type(domain.number, int)
    assert_type(domain.kind, str)
    assert_type(domain.name, str)
    assert_type(domain.uuid, str)
    assert_type(kvmchan.offer("host", "a", read_min=1, write_min=2), Vchan)
    assert_type(kvmchan.connect(0, "a"), Vchan)
    assert_type(kvmchan.connect("web", "a", timeout=None), Vchan)
    assert_type(kvmchan.connect("web", "a", timeout=1), Vchan)
    with kvmchan.connect("web", "a", timeout=1.5) as vchan:
        assert_type(vchan, Vchan)


def listening() -> None:
    with kvmchan.listen(1, "a", read_min=1, write_min=2) as listener:
        assert_type(listener, Listener)
        assert_type(listener.path, str)
        assert_type(listener.peer, int)
        assert_type(listener.closed, bool)
        assert_type(listener.gettimeout(), float | None)
        assert_type(listener.fileno(), int)
        listener.settimeout(None)
        assert_type(listener.accept(), Vchan)
        assert_type(listener.accept(timeout=None), Vchan)
        assert_type(listener.accept(0.5), Vchan)
        for vchan in listener:
            assert_type(vchan, Vchan)
        selectors.DefaultSelector().register(listener, selectors.EVENT_READ)
    listener.close()


def a_vchan(vchan: Vchan) -> None:
    assert_type(vchan.path, str)
    assert_type(vchan.peer, int)
    assert_type(vchan.is_server, bool)
    assert_type(vchan.read_ring, int)
    assert_type(vchan.write_ring, int)
    assert_type(vchan.state, State)
    assert_type(vchan.closed, bool)
    assert_type(vchan.readable, int)
    assert_type(vchan.writable, int)
    assert_type(vchan.gettimeout(), float | None)
    assert_type(vchan.getblocking(), bool)
    assert_type(vchan.fileno(), int)
    assert_type(vchan.detach(), int)
    vchan.settimeout(1)
    vchan.settimeout(None)
    vchan.setblocking(False)
    vchan.wait()
    vchan.wait(timeout=0)
    selectors.DefaultSelector().register(vchan, selectors.EVENT_READ)
    vchan.close()


def every_state(state: State) -> str:
    match state:
        case State.CLOSED:
            return "closed"
        case State.GONE:
            return "gone"
        case State.OPEN:
            return "open"
        case State.WAITING:
            return "waiting"


def receiving(vchan: Vchan) -> None:
    assert_type(vchan.recv(1), bytes)
    assert_type(vchan.recv(1, timeout=None), bytes)
    assert_type(vchan.take(1, 0.5), bytes)
    assert_type(vchan.recv_into(bytearray(5)), int)
    assert_type(vchan.recv_into(memoryview(bytearray(5)), 3, timeout=0), int)
    assert_type(vchan.recv_into(mmap.mmap(-1, 4096)), int)
    for data in vchan:
        assert_type(data, bytes)


def sending(vchan: Vchan) -> None:
    for data in (b"1", bytearray(b"1"), memoryview(b"1"), array.array("i", [1])):
        assert_type(vchan.send(data), int)
        vchan.sendall(data, timeout=1)
        vchan.put(data, timeout=None)


def in_place(vchan: Vchan) -> None:
    with vchan.look(5, copy=True, timeout=1) as span:
        assert_type(span, Span)
        assert_type(span.pieces, tuple[memoryview, ...])
        assert_type(len(span), int)
        assert_type(bytes(span), bytes)
        for piece in span:
            assert_type(piece[0], int)
    vchan.consume(5)
    assert_type(vchan.reserve(5, timeout=1), Span)
    vchan.commit(5)
    span.release()


def messages(vchan: Vchan) -> None:
    vchan.send_bytes(b"1", timeout=1)
    assert_type(vchan.recv_bytes(), bytes)
    assert_type(vchan.recv_bytes(100, timeout=1), bytes)
    vchan.send_object({"any": "thing"}, timeout=None)
    received: dict[str, str] = vchan.recv_object(trust_peer=True, maxlength=100)
    print(received)
    with vchan.makefile("rwb", buffering=0) as file:
        assert_type(file, IO[Any])
    vchan.makefile("r", encoding="utf-8", errors="strict", newline="\n")


def pages() -> None:
    with kvmchan.share("host", 4096, writable=False) as shared:
        assert_type(shared, SharedPages)
        assert_type(shared.ref, int)
        assert_type(shared.size, int)
        assert_type(shared.peer, int)
        assert_type(shared.closed, bool)
        assert_type(shared.buffer[0], int)
        with kvmchan.map("host", shared.ref, writable=False) as mapped:
            assert_type(mapped, MappedPages)
            assert_type(bytes(mapped.buffer), bytes)
        mapped.close()
        shared.revoke()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(100))
    vchan: Vchan = writer.get_extra_info("vchan")
    print(vchan)


def serve_by_callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")


async def with_asyncio() -> None:
    reader, writer = await kvmchan.open_vchan("host", "a", timeout=1, limit=1000)
    assert_type(reader, asyncio.StreamReader)
    assert_type(writer, asyncio.StreamWriter)
    assert isinstance(writer.transport, kvmchan.VchanTransport)
    await kvmchan.start_server(serve_by_callback, 1, "a", read_min=1, write_min=1, limit=1000)
    async with await kvmchan.start_server(serve, 1, "a") as server:
        assert_type(server, VchanServer)
        assert_type(server.path, str)
        assert_type(server.is_serving(), bool)
        await server.serve_forever()
    server.close()
    await server.wait_closed()


def errors(vchan: Vchan) -> None:
    try:
        vchan.recv(1)
    except kvmchan.TimedOut as error:
        timed_out: TimeoutError = error
        print(timed_out)
    except kvmchan.WouldBlock as error:
        would_block: BlockingIOError = error
        print(would_block)
    except kvmchan.EndOfStream as error:
        end: EOFError = error
        closed: kvmchan.ChannelClosed = error
        print(end, closed)
    except (kvmchan.InvalidArgument, kvmchan.TooLong, kvmchan.TooBig, kvmchan.AlreadyClosed) as error:
        value_error: ValueError = error
        print(value_error)
    except (kvmchan.AccessDenied, kvmchan.NotFound, kvmchan.Unreachable, kvmchan.Busy, kvmchan.LimitReached):
        pass
    except (kvmchan.OutOfResources, kvmchan.ProtocolError, kvmchan.InternalError):
        pass
    except kvmchan.VchanError as error:
        assert_type(error.sentence, str)
        os_error: OSError = error
        print(os_error)
