# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that break the protocol.

Each is told what it did where that can be done, and its connection ends; the channel of another,
and the daemon, go on as if nothing had been.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kvmchand.wire import dataplane
from kvmchand.wire.client import VERSION
from kvmchand.wire.codec import PACKET_MAX
from libxenvchan_shim import State, connect, offer
from rig.clients import RawClient
from rig.daemon import Daemon, acting_as, serving
from rig.deadline import eventually
from rig.paths import PYTHON
from rig.processes import is_asleep
from rig.program import Program

HELLO = {"type": "hello", "version": VERSION}
OFFER = {"type": "offer", "peer": 0, "path": "raw", "read_min": 1, "write_min": 1, "once": False}
CONNECT = {"type": "connect", "domain": 0, "path": "raw", "waits": False}
LIST = {"type": "list", "after": 0}
F_OFD_SETLK = 37
CLI_LIVE = 20
"""Where the shared page says whether the client is there."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One daemon for all of them: who breaks the protocol must not have an effect on who comes
    later.
    """
    yield from serving(Daemon(tmp_path_factory.mktemp("served")), request)


@pytest.fixture(autouse=True)
def bystander(served: Daemon) -> Iterator[None]:
    """Somebody else's channel, which must still move data after the test; then nothing may be left,
    and the same processes must be serving as before.
    """
    processes = served.pid, served.local_pid
    with acting_as(served, 1):
        server = offer(2, "bystander")
    with acting_as(served, 2):
        client = connect(1, "/local/domain/1/bystander")
    yield
    assert (server.state, client.state) == (State.OPEN, State.OPEN)
    assert server.send(b"there") == 5
    assert client.recv(5) == b"there"
    assert client.send(b"and back") == 8
    assert server.recv(8) == b"and back"
    client.close()
    server.close()

    def is_clean() -> bool:
        with RawClient(served) as looking:
            left = looking.hello().list()["channels"]
        return left == [] and served.fds() == served.baseline

    eventually(is_clean, lambda: f"{served.channels()} {served.fds()} {served.baseline}")
    assert (served.pid, served.local_pid) == processes


def works(served: Daemon) -> None:
    """An honest client can open a channel, use and close it."""
    with acting_as(served), offer(0, "honest") as server, connect(0, "honest") as client:
        assert client.send(b"honest") == 6
        assert server.recv(6) == b"honest"


def edited(message: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({**message, **fields}).encode()


def without(message: dict[str, Any], name: str) -> bytes:
    return json.dumps({key: value for key, value in message.items() if key != name}).encode()


# Packets that are no request, by what is wrong with them.
NO_REQUEST = {
    "truncated JSON": b'{"type":"list","after":',
    "not JSON": b"GET / HTTP/1.1\r\n\r\n",
    "two objects": b'{"type":"list","after":0}{"type":"list","after":0}',
    "one zero byte": b"\0",
    "a list": b"[]",
    "a string": b'"list"',
    "a number": b"1",
    "null": b"null",
    "invalid UTF-8": b'{"type":"list\xff","after":0}',
    "a lone surrogate": b'{"type":"\\udcff"}',
    "UTF-16": '{"type":"list","after":0}'.encode("utf-16"),
    "deep lists": b"[" * 20000,
    "deep objects": b'{"type":' * 3000,
    "a deep type": b'{"type":' + b"[" * 900 + b"]" * 900 + b"}",
    "no type": b"{}",
    "an unknown type": b'{"type":"frobnicate"}',
    "a type of another type": b'{"type":1}',
    "a type that is a terminal's escape": b'{"type":"\\u001b[2J\\n"}',
    "a reply: grant": b'{"type":"grant","channel":1,"path":"x","left_order":10,"right_order":11,'
    b'"events":"socket","offset":0,"doorbell":0,"doorbell_value":0}',
    "a reply: listing": b'{"type":"listing","domains":[],"channels":[],"following":0}',
    "a reply: error": b'{"type":"error","code":"busy","sentence":"x"}',
    "a message of the daemon's own": b'{"type":"ask","client":1,"request":"x"}',
    "a missing field": without(OFFER, "path"),
    "a missing field, the last": without(LIST, "after"),
    "an extra field": edited(LIST, surplus=1),
    "an int as a string": edited(LIST, after="0"),
    "an int as a float": edited(LIST, after=0.0),
    "an int as null": edited(LIST, after=None),
    "an int as a list": edited(LIST, after=[0]),
    "an int as an object": edited(LIST, after={}),
    "a bool for an int": edited(LIST, after=True),
    "NaN": edited(LIST, after=float("nan")),
    "a string as an int": edited(OFFER, path=1),
    "a string as null": edited(OFFER, path=None),
    "half a surrogate pair": edited(OFFER, path="\ud800"),
    "a string as a list": edited(OFFER, path=["raw"]),
    "a negative number": edited(LIST, after=-1),
    "a number of 64 bits": edited(LIST, after=2**63),
    "a number of 5000 digits": b'{"type":"list","after":' + b"9" * 5000 + b"}",
    "a negative size": edited(OFFER, read_min=-1),
    "a size of 64 bits": edited(OFFER, write_min=2**63),
    "a domain of 32 bits": edited(OFFER, peer=2**31),
    "a domain of 32 bits below": edited(CONNECT, domain=-(2**31) - 1),
    "a string of more than 4096": edited(OFFER, path="x" * 4097),
}


@pytest.mark.parametrize("greeted", [False, True], ids=["at first", "after hello"])
@pytest.mark.parametrize("packet", NO_REQUEST.values(), ids=NO_REQUEST.keys())
def test_no_request(served: Daemon, packet: bytes, greeted: bool) -> None:
    with RawClient(served) as client:
        if greeted:
            client.hello()
        client.say(packet)
        client.hear_error("protocol")
        client.hear_end()


def test_what_a_violator_sent_behind_it_does_not_hide_the_error(served: Daemon) -> None:
    with RawClient(served) as client:
        os.kill(served.local_pid, signal.SIGSTOP)  # so that all of it is there when the first is read
        client.hello()
        client.say(b"not JSON")
        for _ in range(5):
            client.say(LIST)
        os.kill(served.local_pid, signal.SIGCONT)
        client.hear_error("protocol")
        client.hear_end()


def test_oversized_packet(served: Daemon) -> None:
    with RawClient(served) as client:
        client.hello().say(edited(LIST).ljust(PACKET_MAX + 1))
        assert str(PACKET_MAX) in client.hear_error("protocol")
        client.hear_end()


def test_largest_packet_is_none_too_large(served: Daemon) -> None:
    with RawClient(served) as client:
        client.hello().say(edited(LIST).ljust(PACKET_MAX))
        assert client.hear()["type"] == "listing"


def test_a_path_of_more_bytes_than_letters(served: Daemon) -> None:
    with RawClient(served) as client:
        client.hello().say(json.dumps({**OFFER, "path": "\U0001f600" * 4096}, ensure_ascii=False).encode())
        client.hear_error("protocol")
        client.hear_end()


def test_empty_packet_at_first(served: Daemon) -> None:
    with RawClient(served) as client:
        client.say(b"")
        client.hear_error("protocol")
        client.hear_end()


def test_empty_packet(served: Daemon) -> None:
    with RawClient(served) as client:
        client.hello().say(b"")
        client.hear_error("protocol")
        client.hear_end()


def test_empty_packet_after_a_request(served: Daemon) -> None:
    with RawClient(served) as client:
        client.hello().list()
        client.say(b"")
        client.hear_error("protocol")
        client.hear_end()


@pytest.mark.parametrize("request_", [OFFER, CONNECT, LIST], ids=lambda request_: request_["type"])
def test_request_before_hello(served: Daemon, request_: dict[str, Any]) -> None:
    with RawClient(served) as client:
        client.say(request_)
        assert "hello" in client.hear_error("protocol")
        client.hear_end()


def test_second_hello(served: Daemon) -> None:
    with RawClient(served) as client:
        client.hello().hello()
        assert "hello" in client.hear_error("protocol")
        client.hear_end()


def test_second_hello_after_a_request(served: Daemon) -> None:
    with RawClient(served) as client:
        assert client.hello().list()["type"] == "listing"
        client.hello()
        client.hear_error("protocol")
        client.hear_end()


@pytest.mark.parametrize("version", [0, 1, 2, 3, VERSION + 1, -1, 2**31 - 1])
def test_wrong_version(served: Daemon, version: int) -> None:
    with RawClient(served) as client:
        client.hello(version=version)
        sentence = client.hear_error("protocol")
        assert f"version {version}" in sentence
        assert f"version {VERSION}" in sentence
        client.hear_end()


def test_second_channel_on_one_connection(served: Daemon) -> None:
    with RawClient(served) as client:
        granted = client.hello().offer()
        assert granted["type"] == "grant"
        client.say({**OFFER, "path": "second"})
        assert "one connection for each" in client.hear_error("protocol")
        client.hear_end()


def test_connect_on_a_connection_that_offers(served: Daemon) -> None:
    with RawClient(served) as client:
        assert client.hello().offer()["type"] == "grant"
        client.say(CONNECT)
        client.hear_error("protocol")
        client.hear_end()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({**OFFER, "path": ""}, "invalid"),
        ({**OFFER, "path": "a b"}, "invalid"),
        ({**OFFER, "path": "\u00e4"}, "invalid"),
        ({**OFFER, "path": "x" * 4096}, "too-long"),
        ({**OFFER, "peer": 3}, "not-found"),
        ({**OFFER, "peer": -1}, "not-found"),
        ({**OFFER, "read_min": 2**63 - 1}, "invalid"),
        ({**CONNECT, "path": "nothing"}, "not-found"),
        ({**CONNECT, "domain": 2**31 - 1}, "not-found"),
    ],
)
def test_a_request_that_fails_but_breaks_no_rule_leaves_the_connection_usable(
    served: Daemon, request_: dict[str, Any], code: str
) -> None:
    with RawClient(served) as client:
        client.hello()
        for _ in range(2):
            client.say(request_)
            client.hear_error(code)
        granted = client.offer()
        assert granted["type"] == "grant"


def test_a_violator_keeps_its_own_channel_until_it_lets_go_of_the_memory(served: Daemon) -> None:
    with RawClient(served) as client:
        assert client.hello().offer()["type"] == "grant"
        client.say(b"not JSON")
        client.hear_error("protocol")
        client.hear_end()
        works(served)
        assert "/local/domain/0/raw" in [channel["path"] for channel in served.channels()]
        client.let_go()
        eventually(lambda: len(served.channels()) == 1)


def test_no_hello_in_time(served: Daemon) -> None:
    with RawClient(served) as silent, RawClient(served) as greeted, RawClient(served) as idle:
        greeted.hello()
        idle.hello().list()  # who has asked something may be idle for longer
        works(served)
        for each in (silent, greeted):
            assert "no request" in each.hear_error("timeout")
            each.hear_end()
        assert idle.list()["type"] == "listing"


def test_a_thousand_half_open_connections(served: Daemon) -> None:
    with ExitStack() as stack:
        half_open = [stack.enter_context(RawClient(served)) for _ in range(1000)]
        works(served)
        # The oldest make room; as many as may be are still there.
        assert "oldest" in half_open[0].hear_error("limit")
        half_open[0].hear_end()
        assert half_open[-1].hello().list()["type"] == "listing"
        works(served)


def test_half_open_connections_go_without_a_word(served: Daemon) -> None:
    for _ in range(300):
        RawClient(served).close()
    works(served)


def test_a_client_that_floods_requests_and_reads_no_replies(served: Daemon) -> None:
    with RawClient(served) as client:
        client.hello()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(1_000_000):
                client.say(LIST)
        works(served)


def test_a_client_that_floods_offers_and_reads_no_replies(served: Daemon) -> None:
    """Each grant in its queue holds descriptors, which go with it."""
    with ExitStack() as stack:
        for number in range(50):
            client = stack.enter_context(RawClient(served))
            client.hello().say({**OFFER, "path": f"flood{number}"})
            client.say({**OFFER, "path": f"more{number}"})
        works(served)


def test_shutting_down_its_sending_direction_ends_the_connection(served: Daemon) -> None:
    with RawClient(served) as client:
        client.hello().list()
        client.sock.shutdown(socket.SHUT_WR)
        client.hear_end()


@pytest.mark.parametrize("greeted", [False, True], ids=["at first", "after hello"])
def test_shutting_down_its_sending_direction_before_a_request(served: Daemon, greeted: bool) -> None:
    with RawClient(served) as client:
        if greeted:
            client.hello()
        client.sock.shutdown(socket.SHUT_WR)
        client.hear_end()


def test_shutting_down_its_receiving_direction_ends_the_connection_at_the_first_reply(served: Daemon) -> None:
    with RawClient(served) as client:
        client.hello()
        client.sock.shutdown(socket.SHUT_RD)
        client.say(OFFER)
        poll = select.poll()
        poll.register(client.sock, select.POLLHUP)
        assert poll.poll()
        eventually(lambda: len(served.channels()) == 1)


def test_a_half_close_without_closing_the_channel_is_told_to_the_peer(served: Daemon) -> None:
    """It closes its end without saying so in the shared page: the peer's wait must end all the
    same.
    """
    with acting_as(served), offer(0, "half") as server, RawClient(served) as client:
        granted = client.hello().connect(0, "half")
        assert os.pwrite(granted["fds"][0], b"\x01", CLI_LIVE) == 1
        before = server.state
        client.sock.shutdown(socket.SHUT_WR)
        client.hear_end()
        assert (before, server.state) == (State.OPEN, State.GONE)
        server.wait()


def test_a_server_that_holds_its_clients_place_is_refused_clients_and_ends_nobody_else(served: Daemon) -> None:
    """The lock in the region that tells of a client's life, taken by the server beforehand."""
    with RawClient(served) as server, RawClient(served) as client:
        granted = server.hello().offer()
        fcntl.fcntl(granted["fds"][0], F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))  # everything
        client.hello().say(CONNECT)
        client.hear_error("denied")
        works(served)


def test_a_client_that_keeps_the_memory_after_its_close_is_in_nobodys_way(served: Daemon) -> None:
    with RawClient(served) as server, RawClient(served) as first, RawClient(served) as second:
        server.hello().offer()
        assert first.hello().connect()["type"] == "grant"
        first.sock.shutdown(socket.SHUT_WR)
        first.hear_end()
        assert second.hello().connect()["type"] == "grant"


def test_an_offer_can_be_connected_to_before_its_server_has_attached(served: Daemon) -> None:
    """What the server's attaching would overwrite is the daemon's to write."""
    with RawClient(served) as server:
        region, event = server.hello().offer()["fds"]
        with acting_as(served), connect(0, "raw") as client:
            assert client.state is State.OPEN
            assert client.send(b"early") == 5
            grant = dataplane.Grant(
                region_fd=os.dup(region),
                event_fd=os.dup(event),
                notify_fd=-1,
                control_fd=-1,
                is_server=1,
                left_order=10,
                right_order=11,
            )
            made = dataplane.attach(grant)
            assert dataplane.is_open(made) == State.OPEN.value
            assert dataplane.data_ready(made) == 5
            assert client.state is State.OPEN
            dataplane.detach(made)


def test_a_client_that_shuts_the_event_channel_down_breaks_its_own_channel_only(served: Daemon) -> None:
    with RawClient(served) as server, RawClient(served) as rogue, RawClient(served) as second:
        server.hello().offer()
        _, event = rogue.hello().connect()["fds"]
        with socket.socket(fileno=os.dup(event)) as events:
            events.shutdown(socket.SHUT_RDWR)
        rogue.sock.shutdown(socket.SHUT_WR)
        rogue.hear_end()
        second.hello().say(CONNECT)
        assert "anew" in second.hear_error("not-found")
        works(served)


def test_idle_connections_beyond_a_domains_share_are_dropped(served: Daemon) -> None:
    with ExitStack() as stack:
        idle = []
        for _ in range(1100):
            idle.append(stack.enter_context(RawClient(served)))
            assert idle[-1].hello().list()["type"] == "listing"
        works(served)
        idle[0].hear_end()
        assert idle[-1].list()["type"] == "listing"


def test_a_client_waits_where_the_queue_of_connections_is_full(served: Daemon) -> None:
    with ExitStack() as stack:
        os.kill(served.local_pid, signal.SIGSTOP)
        stack.callback(os.kill, served.local_pid, signal.SIGCONT)
        eventually(lambda: "T (stopped)" in Path(f"/proc/{served.local_pid}/status").read_text())
        full = False
        while not full:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
            full = sock.connect_ex(str(served.socket_path())) != 0
        code = "import libxenvchan_shim as v; print('start', flush=True); v.offer(0, 'waits').close(); print('done', flush=True)"
        with Program(PYTHON, "-c", code, env=served.environment()) as honest:
            honest.expect("start")
            eventually(lambda: is_asleep(honest.pid) or honest.process.poll() is not None)
            os.kill(served.local_pid, signal.SIGCONT)
            honest.expect("done")
