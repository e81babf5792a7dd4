# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Python API's bytes in place, messages and pages, on a real daemon."""

from __future__ import annotations

import gc
import multiprocessing.connection
import os
import pickle
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kvmchan import (
    AccessDenied,
    AlreadyClosed,
    EndOfStream,
    InvalidArgument,
    NotFound,
    ProtocolError,
    Span,
    TimedOut,
    TooBig,
    Vchan,
    WouldBlock,
    connect,
    map,
    offer,
    share,
)
from rig.daemon import Daemon, acting_as
from rig.processes import in_child, next_fd

Pair = tuple[Vchan, Vchan]
"""A server and its client, in rings of 4096 bytes to the server and 8192 to the client."""


@pytest.fixture
def pair(daemon: Daemon) -> Iterator[Pair]:
    before = next_fd()
    with acting_as(daemon):
        server = offer(0, "x", read_min=4096, write_min=8192)
        client = connect(0, "x")
    yield server, client
    client.close()
    server.close()
    gc.collect()
    assert next_fd() == before


# ---- in place ----


def test_what_is_looked_at_stays_until_it_is_consumed(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"abcdef")
    with server.look() as span:
        assert (bytes(span), len(span), [bytes(each) for each in span]) == (b"abcdef", 6, [b"abcdef"])
        assert repr(span) == "<Span 6 bytes>"
    server.consume(4)
    assert bytes(server.look()) == b"ef"
    assert server.recv(10) == b"ef"


def test_a_span_over_the_rings_end_has_two_pieces(pair: Pair) -> None:
    server, client = pair
    client.sendall(bytes(4000))
    server.take(4000)
    data = os.urandom(200)
    client.sendall(data)
    span = server.look(200)
    assert [len(each) for each in span.pieces] == [96, 104]
    assert bytes(span) == data
    server.consume(200)


def test_looked_at_bytes_can_not_be_written_to(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"abc")
    (piece,) = server.look().pieces
    assert piece.readonly
    with pytest.raises(TypeError):
        piece[0] = 1


def test_what_is_reserved_is_sent_when_it_is_committed(pair: Pair) -> None:
    server, client = pair
    (piece,) = client.reserve(5).pieces
    assert len(piece) == 4096
    piece[:5] = b"hello"
    with pytest.raises(WouldBlock):
        server.recv(1, timeout=0)
    client.commit(5)
    assert server.recv(10) == b"hello"
    client.reserve()
    client.commit(0)
    assert server.readable == 0


def test_no_more_can_be_passed_than_there_is(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"abc")
    server.look()
    for size in (4, 2**31, 2**40):
        with pytest.raises(InvalidArgument, match="more than the 3 that were seen"):
            server.consume(size)
    client.reserve()
    with pytest.raises(InvalidArgument):
        client.commit(4097)
    assert server.recv(10) == b"abc"


def test_a_released_view_raises(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"abcdef")
    for release in (lambda _: server.consume(1), lambda _: server.look(), lambda span: span.release()):
        span = server.look()
        view = span.pieces[0]
        release(span)
        with pytest.raises(ValueError, match="released"):
            _ = view[0]
        assert repr(span) == "<Span, released>"
    view = client.reserve().pieces[0]
    client.commit(0)
    with pytest.raises(ValueError, match="released"):
        view[0] = 1


def test_a_view_that_c_holds_keeps_the_bytes(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"abcdef")
    made = pickle.PickleBuffer(server.look().pieces[0])
    with pytest.raises(BufferError):
        server.consume(3)
    assert bytes(made) == b"abcdef"
    made.release()
    server.consume(3)
    assert server.recv(10) == b"def"


def test_a_view_outlives_a_close_and_not_the_mapping(daemon: Daemon) -> None:
    with acting_as(daemon), offer(0, "x") as server, connect(0, "x") as client:
        client.sendall(b"abcdef")
        made = memoryview(server.look().pieces[0])
        server.close()
        del server
        gc.collect()
        assert bytes(made) == b"abcdef"
        made.release()


def test_a_copy_is_the_readers_own(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"abcdef")
    span = server.look(copy=True)
    view = span.pieces[0][:3]
    server.consume(6)
    client.sendall(bytes(4096))
    assert bytes(view) == b"abc"


def test_looking_waits_for_the_least(pair: Pair) -> None:
    server, client = pair
    client.sendall(b"ab")
    with pytest.raises(WouldBlock):
        server.look(3, timeout=0)
    with pytest.raises(TimedOut):
        server.look(3, timeout=0.01)
    thread = threading.Timer(0, client.sendall, (b"c",))
    thread.start()
    assert bytes(server.look(3)) == b"abc"
    thread.join()
    assert len(server.look(0)) == 3


def test_structures_are_read_and_written_in_place(pair: Pair) -> None:
    server, client = pair
    struct.pack_into("!IH", client.reserve(6).pieces[0], 0, 7, 9)
    client.commit(6)
    assert struct.unpack_from("!IH", server.look(6).pieces[0]) == (7, 9)
    server.consume(6)


def test_numpy_works_on_views(pair: Pair) -> None:
    numpy = pytest.importorskip("numpy")
    server, client = pair
    numbers = numpy.frombuffer(client.reserve(400).pieces[0], dtype="<u4", count=100)
    numbers[:] = range(100)
    del numbers
    client.commit(400)
    seen = numpy.frombuffer(server.look(400).pieces[0], dtype="<u4")
    assert (int(seen.sum()), seen.flags.writeable) == (4950, False)
    server.consume(400)
    client.sendall(bytes(4096))
    assert int(seen[0]) == 0  # it shows what the ring holds by now
    client.close()
    server.close()
    del server, client, pair
    gc.collect()
    assert int(seen[50]) == 0


def test_a_span_is_what_its_pieces_are() -> None:
    span = Span((memoryview(b"ab"), memoryview(b"c")))
    assert (len(span), bytes(span), [bytes(each) for each in span]) == (3, b"abc", [b"ab", b"c"])


# ---- messages ----


@pytest.mark.parametrize("size", [0, 1, 4092, 4093, 100_000])
def test_messages_arrive_as_they_were_sent(pair: Pair, size: int) -> None:
    server, client = pair
    data = os.urandom(size)

    def send() -> None:
        for each in (data, bytearray(b"next"), data):
            client.send_bytes(each)

    thread = threading.Thread(target=send)
    thread.start()
    assert [server.recv_bytes(), server.recv_bytes(), server.recv_bytes()] == [data, b"next", data]
    thread.join()


def test_messages_are_framed_as_multiprocessing_frames_them(pair: Pair) -> None:
    server, client = pair
    reading, writing = multiprocessing.connection.Pipe(duplex=False)
    with reading, writing:
        writing.send_bytes(b"hello")
        framed = os.read(reading.fileno(), 100)
        client.sendall(framed)
        assert server.recv_bytes() == b"hello"
        client.send_bytes(b"back")
        os.write(writing.fileno(), server.recv(100))
        assert reading.recv_bytes() == b"back"


def test_a_length_of_8_bytes_is_understood(pair: Pair) -> None:
    server, client = pair
    client.sendall(struct.pack("!iQ", -1, 3) + b"abc")
    assert server.recv_bytes() == b"abc"


def test_a_message_that_is_too_long_stays_where_it_is(pair: Pair) -> None:
    server, client = pair
    client.send_bytes(b"12345")
    for _ in range(2):
        with pytest.raises(TooBig, match="has 5 bytes, more than maxlength, which is 4"):
            server.recv_bytes(4)
    assert server.recv_bytes(5) == b"12345"
    client.sendall(struct.pack("!iQ", -1, 2**63))
    with pytest.raises(TooBig, match=str(2**63)):
        server.recv_bytes(1 << 20)


@pytest.mark.parametrize("length", [-2, -(2**31)])
def test_what_is_no_message_is_a_protocol_error(pair: Pair, length: int) -> None:
    server, client = pair
    client.sendall(struct.pack("!i", length))
    with pytest.raises(ProtocolError, match="is no message"):
        server.recv_bytes()


@pytest.mark.parametrize("sent", [2, 4, 6])
def test_a_part_of_a_small_message_is_left_where_it_is(pair: Pair, sent: int) -> None:
    server, client = pair
    whole = struct.pack("!i", 5) + b"12345"
    client.sendall(whole[:sent])
    for timeout, kind in ((0, WouldBlock), (0.01, TimedOut)):
        with pytest.raises(kind):
            server.recv_bytes(timeout=timeout)
    client.sendall(whole[sent:])
    assert server.recv_bytes() == b"12345"


def test_a_part_of_a_large_message_is_kept(pair: Pair) -> None:
    server, client = pair
    data = os.urandom(10_000)
    client.sendall(struct.pack("!i", 10_000) + data[:3000])
    with pytest.raises(TimedOut):
        server.recv_bytes(timeout=0.01)
    client.sendall(data[3000:7000])
    with pytest.raises(WouldBlock):
        server.recv_bytes(timeout=0)
    client.sendall(data[7000:])
    client.send_bytes(b"next")
    assert (server.recv_bytes(), server.recv_bytes()) == (data, b"next")


@pytest.mark.parametrize("sent", [0, 3, 4, 8])
def test_an_end_before_the_whole_message_is_the_end_of_the_stream(pair: Pair, sent: int) -> None:
    server, client = pair
    client.sendall((struct.pack("!i", 5) + b"12345")[:sent])
    client.close()
    with pytest.raises(EndOfStream) as caught:
        server.recv_bytes()
    assert isinstance(caught.value, EOFError)


def test_a_message_that_does_not_fit_now_is_sent_whole_or_not_at_all(pair: Pair) -> None:
    server, client = pair
    client.send_bytes(bytes(4000))
    with pytest.raises(WouldBlock):
        client.send_bytes(bytes(100), timeout=0)
    with pytest.raises(TimedOut):
        client.send_bytes(bytes(100), timeout=0.01)
    assert len(server.recv_bytes()) == 4000
    assert server.readable == 0


def test_objects_are_pickled_where_the_peer_is_trusted(pair: Pair) -> None:
    server, client = pair
    value = {"a": [1, 2.5, None], "b": ("x", b"y")}
    client.send_object(value)
    assert server.recv_object(trust_peer=True) == value
    client.send_bytes(pickle.dumps(1))
    for wrong in (False, 1, None):
        with pytest.raises(InvalidArgument, match="trust_peer must be True"):
            server.recv_object(trust_peer=wrong)  # type: ignore[arg-type]
    assert server.recv_object(trust_peer=True) == 1
    for wrong_bytes in (b"no pickle", b""):
        client.send_bytes(wrong_bytes)
        with pytest.raises(ProtocolError, match="no pickled object"):
            server.recv_object(trust_peer=True)


# ---- pages ----


def test_pages_are_shared_between_two_domains(daemon: Daemon) -> None:
    before = next_fd()
    with acting_as(daemon, 1), share(2, 5000) as shared:
        assert (shared.size, shared.peer, bytes(shared.buffer)) == (8192, 2, bytes(8192))
        shared.buffer[4096:4101] = b"hello"
        with acting_as(daemon, 2), map(1, shared.ref) as mapped:
            assert bytes(mapped.buffer[4096:4101]) == b"hello"
            mapped.buffer[0] = 7
            assert shared.buffer[0] == 7
            assert repr(mapped) == f"<MappedPages ref {shared.ref}, 8192 bytes, peer domain 1>"
    assert (shared.closed, mapped.closed) == (True, True)
    assert next_fd() == before


def test_pages_for_reading_only(daemon: Daemon) -> None:
    with acting_as(daemon), share(0, 1, writable=False) as shared:
        with pytest.raises(AccessDenied):
            map(0, shared.ref)
        with map(0, shared.ref, writable=False) as mapped, pytest.raises(TypeError):
            mapped.buffer[0] = 1


def test_revoked_pages_can_not_be_mapped_any_more(daemon: Daemon) -> None:
    with acting_as(daemon):
        shared = share(0, 1)
        with map(0, shared.ref) as mapped:
            shared.buffer[0] = 9
            shared.revoke()
            shared.revoke()
            assert mapped.buffer[0] == 9
            with pytest.raises(AlreadyClosed):
                _ = shared.buffer
        with pytest.raises(NotFound):
            map(0, shared.ref)


def test_pages_stay_while_something_is_made_of_them(daemon: Daemon) -> None:
    with acting_as(daemon):
        shared = share(0, 1)
        made = pickle.PickleBuffer(shared.buffer)
        with pytest.raises(BufferError):
            shared.revoke()
        assert shared.buffer[0] == 0
        made.release()
        shared.revoke()


def test_a_forked_child_can_not_use_its_parents_pages(daemon: Daemon) -> None:
    with acting_as(daemon), share(0, 1) as shared, map(0, shared.ref) as mapped:

        def use() -> None:
            for pages in (shared, mapped):
                with pytest.raises(AlreadyClosed, match="which forked this one"):
                    _ = pages.buffer
            shared.revoke()
            mapped.close()

        assert in_child(use) == 0
        shared.buffer[0] = 5
        assert mapped.buffer[0] == 5


def test_pages_that_were_forgotten_are_let_go_with_a_warning(daemon: Daemon) -> None:
    with acting_as(daemon):
        shared = share(0, 1)
        with pytest.warns(ResourceWarning, match="unclosed <SharedPages"):
            del shared
            gc.collect()


@pytest.mark.parametrize(
    ("size", "kind"), [(0, InvalidArgument), (-1, InvalidArgument), (2**70, InvalidArgument), ("1", TypeError), (1.5, TypeError)]
)
def test_a_size_of_pages_that_can_not_be(daemon: Daemon, size: Any, kind: type[Exception]) -> None:
    with acting_as(daemon), pytest.raises(kind, match="size"):
        share(0, size)


@pytest.mark.parametrize(("ref", "kind"), [(-1, InvalidArgument), (2**32, InvalidArgument), ("1", TypeError), (1, NotFound)])
def test_a_reference_that_can_not_be(daemon: Daemon, ref: Any, kind: type[Exception]) -> None:
    with acting_as(daemon), pytest.raises(kind):
        map(0, ref)
