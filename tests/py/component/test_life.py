# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of a channel, and its end at every step of it: whoever is left learns of it, loses
nothing that was written, and finds the path free.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmchand.channels.lifelines import Lifelines
from kvmchand.errors import AccessDenied, Busy, ChannelClosed, InvalidArgument, NotFound
from kvmchand.ids import ClientId
from kvmchand.runtime.loop import Loop
from libxenvchan_shim import State, Vchan, connect, offer
from rig.clients import RawClient
from rig.daemon import Daemon, acting_as
from rig.deadline import eventually
from rig.paths import PYTHON
from rig.processes import is_asleep
from rig.program import Program

PEER = """
import os, sys, libxenvchan_shim as v
from kvmchand.wire import client, dataplane
from kvmchand.wire.packet import send_packet
from libxenvchan_shim.connection import Connection
from libxenvchan_shim.protocol import socket_path
path = socket_path(os.environ["KVMCHAN_RUNTIME_DIR"], os.environ.get("KVMCHAN_DOMAIN", ""))
def end_of(call):
    try:
        print("returned", call(), flush=True)
    except OSError as error:
        print(error.errno, flush=True)
def tell_daemon(vchan):
    Connection.adopt(dataplane.steal_control(vchan._end._pointer)).close_channel()
names = dict(globals())
for line in sys.stdin:
    exec(line, names)
    print("done", flush=True)
"""


class Peer(Program):
    """A process with an end of a channel, that does what it is told in Python."""

    def __init__(self, daemon: Daemon, domain: int = 0) -> None:
        super().__init__(PYTHON, "-c", PEER, env=daemon.environment(domain))

    def do(self, code: str) -> None:
        self.tell(code)
        self.expect("done")

    def block_in(self, code: str) -> None:
        """Has it make a call that blocks; returns when it does."""
        self.tell(f"print('now', flush=True); {code}")
        self.expect("now")
        eventually(lambda: is_asleep(self.pid))

    def die(self) -> None:
        """By kill -9.

        All it had is released when this returns, as far as its kernel is concerned.
        """
        self.process.kill()
        self.process.wait()
        self.status = -signal.SIGKILL


def has_event(vchan: Vchan) -> bool:
    return bool(select.select([vchan._event_fd()], [], [], 0)[0])


def await_death(vchan: Vchan) -> None:
    """Until the other end counts as gone, woken by events only."""
    while vchan.state is not State.GONE:
        select.select([vchan._event_fd()], [], [])
        vchan.wait()  # takes all events, and so one that came since with the other end's death


def assert_drained(vchan: Vchan, data: bytes) -> None:
    """The data that the dead one wrote is there, and after it the end."""
    assert vchan.readable == len(data)
    if data:
        assert vchan.take(len(data)) == data
    assert vchan.recv(1) == b""
    for call in (lambda: vchan.take(1), lambda: vchan.put(b"x"), lambda: vchan.send(b"x"), lambda: vchan.sendall(b"x")):
        with pytest.raises(ChannelClosed):
            call()


# What the one that will be killed does before; and what of it is left, None where the channel never
# came to be.
HELLO = "c = Connection(path); send_packet(c._sock, client.requests.encode(client.Hello(client.VERSION)))"
CLIENT_STEPS: dict[str, tuple[str, bytes | None]] = {
    "before hello": ("c = Connection(path)", None),
    "after hello": (HELLO, None),
    "granted, not attached": (
        "c = Connection(path); c.send(client.Connect(0, '/local/domain/0/x', False)); g = c.take_grant()",
        b"",
    ),
    "attached": ("c = v.connect(0, '/local/domain/0/x')", b""),
    "data unread": ("c = v.connect(0, '/local/domain/0/x'); c.send(b'data')", b"data"),
    "hung up": ("c = v.connect(0, '/local/domain/0/x'); c.send(b'data'); dataplane.hang_up(c._end._pointer)", b"data"),
    "half closed": (
        "c = v.connect(0, '/local/domain/0/x'); c.send(b'data'); dataplane.hang_up(c._end._pointer); tell_daemon(c)",
        b"data",
    ),
    "half closed without hanging up": (
        "c = v.connect(0, '/local/domain/0/x'); c.send(b'data'); tell_daemon(c)",
        b"data",
    ),
}


@pytest.mark.parametrize("step", CLIENT_STEPS)
def test_a_client_is_killed(daemon: Daemon, step: str) -> None:
    code, left = CLIENT_STEPS[step]
    with acting_as(daemon):
        server = offer(1, "x")
    with Peer(daemon, 1) as victim:
        victim.do(code)
        if left is not None and server.state is State.OPEN:
            assert server.send(b"unread") == 6
        victim.die()
    if left is None:
        assert (server.state, has_event(server)) == (State.WAITING, False)
    else:
        await_death(server)
        assert_drained(server, left)
    with acting_as(daemon, 1):
        again = connect(0, "/local/domain/0/x")
    assert server.state is State.OPEN
    if again.readable:
        assert again.recv(6) == b"unread"  # it goes on where the dead one stopped
    assert server.send(b"to the next") == 11
    assert again.recv(11) == b"to the next"
    again.close()
    server.close()


def test_a_client_is_killed_with_the_reply_unread(daemon: Daemon) -> None:
    with acting_as(daemon):
        server = offer(1, "x")
    with Peer(daemon, 1) as victim:
        victim.do(f"{HELLO}; send_packet(c._sock, client.requests.encode(client.Connect(0, '/local/domain/0/x', False)))")
        eventually(lambda: daemon.channels()[0]["state"] == "connected")
        victim.die()
    await_death(server)
    assert_drained(server, b"")
    with acting_as(daemon, 1):
        connect(0, "/local/domain/0/x").close()
    server.close()


SERVER_STEPS: dict[str, tuple[str, bytes | None]] = {
    "before hello": ("c = Connection(path)", None),
    "after hello": (HELLO, None),
    "granted, not attached": ("c = Connection(path); c.send(client.Offer(1, 'x', 1, 1, False)); g = c.take_grant()", None),
    "waiting for a client": ("s = v.offer(1, 'x')", None),
    "connected": ("s = v.offer(1, 'x')", b""),
    "data unread": ("s = v.offer(1, 'x'); s.send(b'data')", b"data"),
}
SERVER_LAST_STEPS = {
    "hung up": "dataplane.hang_up(s._end._pointer)",
    "half closed": "dataplane.hang_up(s._end._pointer); tell_daemon(s)",
    "half closed without hanging up": "tell_daemon(s)",
}


def assert_free(daemon: Daemon) -> None:
    """The path is withdrawn, and may be offered and connected to again."""
    with acting_as(daemon, 1), pytest.raises(NotFound):
        connect(0, "/local/domain/0/x")
    with acting_as(daemon):
        server = offer(1, "x")
    with acting_as(daemon, 1):
        client = connect(0, "/local/domain/0/x")
    assert (client.send(b"anew"), server.recv(4)) == (4, b"anew")
    client.close()
    server.close()


@pytest.mark.parametrize("step", SERVER_STEPS)
def test_a_server_is_killed(daemon: Daemon, step: str) -> None:
    code, left = SERVER_STEPS[step]
    client = None
    with Peer(daemon) as victim:
        victim.do(code)
        if left is not None:
            with acting_as(daemon, 1):
                client = connect(0, "/local/domain/0/x")
        victim.die()
    assert_free(daemon)
    if client is not None:
        await_death(client)
        assert_drained(client, left or b"")
        client.close()


@pytest.mark.parametrize("last", SERVER_LAST_STEPS)
def test_a_server_is_killed_while_it_closes(daemon: Daemon, last: str) -> None:
    with Peer(daemon) as victim:
        victim.do("s = v.offer(1, 'x'); s.send(b'data')")
        with acting_as(daemon, 1):
            client = connect(0, "/local/domain/0/x")
        victim.do(SERVER_LAST_STEPS[last])
        victim.die()
    assert_free(daemon)
    await_death(client)
    assert_drained(client, b"data")
    client.close()


def test_a_server_is_killed_with_the_reply_unread(daemon: Daemon) -> None:
    with Peer(daemon) as victim:
        victim.do(f"{HELLO}; send_packet(c._sock, client.requests.encode(client.Offer(1, 'x', 1, 1, False)))")
        eventually(lambda: [each["state"] for each in daemon.channels()] == ["waiting"])
        victim.die()
    eventually(lambda: daemon.channels() == [])
    assert_free(daemon)


RETURNS = {"wait()": "None", "recv(1000)": "b''"}
"""What a blocked call returns at the end, where it fails with EPIPE otherwise."""
CALLS = [*RETURNS, "take(1000)", "put(bytes(1024))", "send(b'x')", "sendall(bytes(1 << 20))"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("side", ["server", "client"])
def test_one_is_killed_while_it_is_blocked(daemon: Daemon, side: str, call: str) -> None:
    """The one that is left fills or empties nothing, so the call of the other stays blocked."""
    with acting_as(daemon):
        left = offer(0, "x", read_min=1024, write_min=1024) if side == "client" else None
        with Peer(daemon) as victim:
            opened = "v.connect(0, 'x')" if left else "v.offer(0, 'x', read_min=1, write_min=1)"
            victim.do(f"c = {opened}")
            if left is None:
                left = connect(0, "x")
            if call.startswith(("put", "send")):
                victim.do("c.put(bytes(c.writable))")
            if call == "wait()":
                victim.do("c.wait()")  # of the connect
            victim.block_in(f"c.{call}")
            victim.die()
        await_death(left)
        left.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_blocked_call_ends_when_the_other_is_killed(daemon: Daemon, side: str, call: str) -> None:
    servers, clients = "v.offer(0, 'x', read_min=1, write_min=1)", "v.connect(0, 'x')"
    with Peer(daemon) as first, Peer(daemon) as second:
        first.do(f"c = {servers}")
        second.do(f"c = {clients}")
        blocked, victim = (first, second) if side == "server" else (second, first)
        if call.startswith(("put", "send")):
            blocked.do("c.put(bytes(c.writable))")
        blocked.do("c.wait()")  # of the connect
        blocked.block_in(f"end_of(lambda: c.{call})")
        victim.die()
        blocked.expect(f"returned {RETURNS[call]}" if call in RETURNS else str(errno.EPIPE))
        blocked.expect("done")
        blocked.do("assert c.state is v.State.GONE")
        blocked.do("c.close()")


def test_clients_that_die_one_after_another_always_make_room_at_once(daemon: Daemon) -> None:
    """No order in which the kernel releases what a process had may leave the daemon unaware."""
    with acting_as(daemon):
        server = offer(0, "x")
        for number in range(150):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                client = connect(0, "x")
                client.send(b"%03d" % number)
                os.write(writing, b"x")
                signal.pause()
            assert os.read(reading, 1) == b"x"
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reading)
            os.close(writing)
        connect(0, "x").close()
        assert_drained(server, b"".join(b"%03d" % number for number in range(150)))
        server.close()


def test_who_has_died_does_not_stand_in_the_way_of_a_request_that_came_before_its_end_was_seen(daemon: Daemon) -> None:
    with Peer(daemon) as victim, RawClient(daemon) as next_client, acting_as(daemon):
        server = offer(0, "x")
        victim.do("c = v.connect(0, 'x')")
        next_client.hello().list()
        local = daemon.local_pid
        os.kill(daemon.pid, signal.SIGSTOP)
        eventually(lambda: "T (stopped)" in Path(f"/proc/{daemon.pid}/status").read_text())
        next_client.say({"type": "connect", "domain": 0, "path": "x", "waits": False})
        eventually(lambda: outgoing(next_client.sock) == 0 and is_asleep(local))  # it waits for main
        victim.die()
        os.kill(daemon.pid, signal.SIGCONT)
        assert next_client.hear()["type"] == "grant"
        server.close()


def outgoing(sock: socket.socket) -> int:
    """Bytes that the other end has not received yet."""
    answer = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


# ---- ends whose descriptors were closed ----

CLOSE_ALL = "os.closerange(3, c._event_fd()); os.closerange(c._event_fd() + 1, 1000)"


@pytest.mark.parametrize("side", ["server", "client"])
def test_an_end_whose_other_descriptors_were_closed_goes_on_until_it_dies(daemon: Daemon, side: str) -> None:
    with Peer(daemon) as peer, acting_as(daemon):
        if side == "client":
            ours = offer(0, "x")
            peer.do("c = v.connect(0, 'x')")
        else:
            peer.do("c = v.offer(0, 'x')")
            ours = connect(0, "x")
        peer.do(CLOSE_ALL)
        assert daemon.channels()[0]["state"] == "connected"
        assert ours.send(b"still there?") == 12
        peer.do("assert c.recv(12) == b'still there?'; c.send(b'yes')")
        assert ours.recv(3) == b"yes"
        if side == "client":
            with pytest.raises(Busy):
                connect(0, "x")
        peer.die()
        await_death(ours)
        ours.close()


def test_both_ends_descriptors_were_closed_and_both_die(daemon: Daemon) -> None:
    with Peer(daemon) as server, Peer(daemon) as client:
        server.do("c = v.offer(0, 'x')")
        client.do("c = v.connect(0, 'x')")
        server.do(CLOSE_ALL)
        client.do(CLOSE_ALL)
        client.do("c.send(b'last')")
        client.die()
        server.do("while c.state is not v.State.GONE: c.wait()")
        server.do("assert c.recv(4) == b'last'")
        server.die()
    eventually(lambda: daemon.channels() == [])


class Stub:
    """A region whose one end's lock goes a while after the kernel has said that its description
    goes.
    """

    def __init__(self) -> None:
        self.memory = os.memfd_create("stub")
        self.looks = 0

    def is_mapped(self, holder: ClientId) -> bool:
        assert holder == 7
        self.looks += 1
        return self.looks < 4


def test_a_lock_that_goes_after_the_report_of_its_description_is_not_missed() -> None:
    ended: list[ClientId] = []
    loop = Loop()
    stub = Stub()

    def end(holder: ClientId) -> None:
        ended.append(holder)
        loop.stop()

    lifelines = Lifelines(loop.call_at, end)
    loop.add(lifelines.fd, lifelines.take_events)
    lifelines.watch(ClientId(7), stub)
    os.close(os.open(f"/proc/self/fd/{stub.memory}", os.O_RDWR))  # one report, and never another
    loop.run()
    assert ended == [7]
    lifelines.close()
    loop.close()
    os.close(stub.memory)


# ---- who is connected, and to what ----


def test_one_client_at_a_time(daemon: Daemon) -> None:
    with acting_as(daemon), offer(0, "x") as server, connect(0, "x") as client:
        with pytest.raises(Busy) as caught:
            connect(0, "x")
        assert caught.value.errno == errno.EBUSY
        assert str(os.getpid()) in caught.value.sentence
        assert (client.send(b"mine"), server.recv(4)) == (4, b"mine")


def test_a_client_connects_again_after_a_close_and_finds_what_it_left(daemon: Daemon) -> None:
    with acting_as(daemon), offer(0, "x") as server:
        first = connect(0, "x")
        assert first.send(b"one") == 3
        assert server.send(b"not read by the first") == 21
        first.close()
        assert has_event(server)
        left = server.state
        with connect(0, "x") as second:
            assert (left, server.state) == (State.GONE, State.OPEN)
            assert second.recv(21) == b"not read by the first"
            assert second.send(b"two") == 3
            assert server.recv(6) == b"onetwo"


def test_a_server_may_write_before_its_client_connects(daemon: Daemon) -> None:
    with acting_as(daemon), offer(0, "x") as server:
        assert server.state is State.WAITING
        assert server.send(b"early") == 5
        with connect(0, "x") as client:
            assert client.recv(5) == b"early"


def test_a_clients_first_event_is_pending_when_it_has_connected(daemon: Daemon) -> None:
    with acting_as(daemon), offer(0, "x") as server, connect(0, "x") as client:
        for vchan in (client, server):
            assert has_event(vchan)
            vchan.wait()
            assert not has_event(vchan)


def test_loop_back_in_one_domain(daemon: Daemon) -> None:
    for domain in (0, 1):
        with acting_as(daemon, domain), offer(domain, "self") as server, connect(domain, "self") as client:
            assert (client.path, server.path) == (f"/local/domain/{domain}/self",) * 2
            assert (client.send(b"me"), server.recv(2)) == (2, b"me")


# ---- taking a path over ----


def test_a_second_offer_takes_the_path_and_the_old_channel_goes_on(daemon: Daemon) -> None:
    with acting_as(daemon):
        old = offer(0, "x")
        old_client = connect(0, "x")
        new = offer(0, "x")
        new_client = connect(0, "x")
        assert (old_client.send(b"old"), new_client.send(b"new")) == (3, 3)
        assert (old.recv(3), new.recv(3)) == (b"old", b"new")
        new_client.close()
        old.close()  # does not withdraw the new offer
        assert old_client.state is State.GONE
        with connect(0, "x") as again:
            assert (again.send(b"again"), new.recv(5)) == (5, b"again")
        old_client.close()
        new.close()
        with pytest.raises(NotFound):
            connect(0, "x")


def test_an_old_server_that_dies_does_not_withdraw_the_new_offer(daemon: Daemon) -> None:
    with acting_as(daemon), Peer(daemon) as old:
        old.do("s = v.offer(0, 'x')")
        with offer(0, "x") as new:
            old.die()
            eventually(lambda: len(daemon.channels()) == 1)
            with connect(0, "x") as client:
                assert (client.send(b"new"), new.recv(3)) == (3, b"new")


# ---- domains ----


def opened(daemon: Daemon, domain: int, call: Callable[[], Vchan]) -> None:
    with acting_as(daemon, domain):
        call().close()


@pytest.mark.parametrize("intruder", [0, 2])
def test_only_the_named_domain_may_connect(daemon: Daemon, intruder: int) -> None:
    with acting_as(daemon, 1):
        server = offer(1, "x")
    with acting_as(daemon, intruder), pytest.raises(AccessDenied) as caught:
        connect(1, "/local/domain/1/x")
    assert caught.value.errno == errno.EACCES
    assert server.state is State.WAITING
    opened(daemon, 1, lambda: connect(1, "/local/domain/1/x"))
    server.close()


@pytest.mark.parametrize("path", ["/local/domain/2/x", "/local/domain/0/x", "/local/domain/11/x", "/x"])
def test_a_domain_offers_below_its_own_node_only_and_domain_0_anywhere(daemon: Daemon, path: str) -> None:
    with acting_as(daemon, 1), pytest.raises(AccessDenied) as caught:
        offer(2, path)
    assert caught.value.errno == errno.EACCES
    opened(daemon, 0, lambda: offer(2, path))


def test_two_local_domains_talk(daemon: Daemon) -> None:
    with acting_as(daemon, 1):
        server = offer(2, "data/vchan/2/80")
    with acting_as(daemon, 2):
        client = connect(1, "data/vchan/2/80")  # a relative path is below the server's node
    assert client.path == server.path == "/local/domain/1/data/vchan/2/80"
    assert (client.send(b"two to one"), server.recv(10)) == (10, b"two to one")
    client.close()
    server.close()


def test_a_domain_that_is_not_there(daemon: Daemon) -> None:
    with acting_as(daemon):
        calls: list[Callable[[], Vchan]] = [lambda: offer(3, "x"), lambda: connect(3, "/local/domain/3/x")]
        for call in calls:
            with pytest.raises(NotFound, match="domain 3"):
                call()
    with acting_as(daemon, 3), pytest.raises(InvalidArgument, match=r"domain-3\.sock"):
        offer(0, "x")
