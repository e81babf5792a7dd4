# SPDX-License-Identifier: LGPL-2.1-or-later
"""Qubes' libvchan: programs that use it, between local domains, and with a guest that dies."""

from __future__ import annotations

import errno
import re
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmchand.ids import HOST
from kvmchand.wire.client import DomainInfo, Domains, Error, replies
from rig.compiler import compile_c, our_flags, pkg_config
from rig.daemon import Daemon
from rig.deadline import eventually
from rig.guest import ALICE, Guest, ScriptedHost, connect, offer
from rig.libraries import exported
from rig.paths import KVMCHAN, LIBDIR, PROGRAMS, PYTHON
from rig.processes import in_poll, run
from rig.program import Program

DISCONNECTED, CONNECTED, WAITING = "0", "1", "2"
RING = 4096


@pytest.fixture(scope="module")
def qubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("qubes"), PROGRAMS / "qubes.c", *our_flags("vchan"))


@pytest.fixture
def start(daemon: Daemon, qubes: Path) -> Callable[[int], Program]:
    """A program in a domain."""
    return lambda domain: Program(qubes, env=daemon.environment(domain))


Start = Callable[[int], Program]


def kill(program: Program) -> None:
    program.process.kill()
    program.process.wait()
    program.status = -signal.SIGKILL


def refused(program: Program, command: str) -> tuple[int, str]:
    word, number, sentence = program.ask(command).split(" ", 2)
    assert word == "NULL"
    return int(number), sentence


def meet(server: Program, client: Program, server_domain: int, client_domain: int, port: int = 7) -> None:
    """A server and a client that are connected, and each know it."""
    assert server.ask(f"server {client_domain} {port} {RING} {RING}") == "ok"
    assert server.ask("open") == WAITING
    assert client.ask(f"client {server_domain} {port}") == "ok"
    assert server.ask("wait") == "0"
    assert (server.ask("open"), client.ask("open")) == (CONNECTED, CONNECTED)


@pytest.mark.parametrize(("server_domain", "client_domain"), [(0, 1), (1, 0), (1, 2), (1, 1)])
def test_streams_go_both_ways_between_domains(daemon: Daemon, start: Start, server_domain: int, client_domain: int) -> None:
    with start(server_domain) as server, start(client_domain) as client:
        meet(server, client, server_domain, client_domain)
        (channel,) = daemon.channels()
        assert channel["path"] == f"/local/domain/{server_domain}/data/vchan/{client_domain}/7"
        for writer, reader in ((server, client), (client, server)):
            # Many times what the ring holds: a blocking write writes all the same.
            writer.tell("fill 300000")
            assert reader.ask("drain 300000") == "300000"
            assert writer.line() == "300000"
        for each in (client, server):
            assert each.ask("close") == "ok"


def test_room_and_data_are_told_to_the_byte(start: Start) -> None:
    with start(1) as server, start(2) as client:
        meet(server, client, 1, 2)
        assert (client.ask("space"), server.ask("ready")) == (str(RING), "0")
        assert client.ask("send twelve bytes") == "12"
        assert (client.ask("space"), server.ask("ready")) == (str(RING - 12), "12")
        assert server.ask("recv 6") == "twelve"
        assert (client.ask("space"), server.ask("ready")) == (str(RING - 6), "6")
        assert client.ask("blocking 0") == "ok"
        assert client.ask(f"fill {RING}") == str(RING - 6)
        assert (client.ask("space"), server.ask("ready")) == ("0", str(RING))


def test_calls_that_do_not_block_say_so(start: Start) -> None:
    with start(1) as server, start(2) as client:
        meet(server, client, 1, 2)
        # Blocking, what never fits is an error; else it is nothing.
        assert client.ask("send " + "x" * (RING + 1)) == f"-1 {errno.EMSGSIZE}"
        assert client.ask("blocking 0") == "ok"
        assert client.ask("send " + "x" * (RING + 1)) == "0"
        assert client.ask("recv 1") == "0"
        assert client.ask("read 1") == "0"
        assert client.ask("blocking 1") == "ok"
        client.block_in("recv 5")
        assert server.ask("send hello") == "5"
        assert client.line() == "hello"


def test_descriptor_is_readable_while_an_event_is_pending(start: Start) -> None:
    with start(1) as server, start(2) as client:
        assert server.ask(f"server 2 7 {RING} {RING}") == "ok"
        assert server.ask("readable") == "0"
        assert client.ask("client 1 7") == "ok"
        assert server.ask("readable") == "1"
        assert server.ask("wait") == "0"
        assert server.ask("ready") == "0"
        assert server.ask("readable") == "0"
        assert client.ask("write x") == "1"
        assert server.ask("readable") == "1"
        assert server.ask("wait") == "0"
        assert server.ask("read 10") == "x"


# ---- a client that waits for its server ----


def test_client_waits_until_its_server_is_there(start: Start) -> None:
    with start(1) as server, start(2) as client:
        client.block_in("client 1 7")
        # Neither another's port nor another's peer is what it waits for.
        with start(1) as other:
            assert other.ask(f"server 2 8 {RING} {RING}") == "ok"
            assert other.ask("close") == "ok"
            assert other.ask(f"server 0 7 {RING} {RING}") == "ok"
        client.wait_asleep()  # at first it may sleep until the daemon has heard it
        assert server.ask(f"server 2 7 {RING} {RING}") == "ok"
        assert client.line() == "ok"
        assert server.ask("wait") == "0"
        assert server.ask("open") == CONNECTED


def test_async_client_is_told_by_its_descriptor(start: Start) -> None:
    with start(1) as server, start(2) as client:
        assert client.ask("async 1 7") == "ok"
        assert client.ask("open") == WAITING
        assert client.ask("finish 1") == "1"
        client.block_in("watch")
        assert server.ask(f"server 2 7 {RING} {RING}") == "ok"
        assert client.line() == "1"
        finish(client, "0")
        assert client.ask("open") == CONNECTED
        # As finish was told.
        assert client.ask("recv 1") == "0"
        assert client.ask("send hello") == "5"
        assert server.ask("recv 5") == "hello"


def finish(client: Program, blocking: str) -> None:
    """Have it connect, as programs do: each answer says to go on, or to watch for the next."""
    while client.ask(f"finish {blocking}") != "0":
        assert client.ask("watch") == "1"


def test_calls_on_a_client_that_is_not_connected_fail_or_do_nothing(start: Start) -> None:
    with start(2) as client:
        assert client.ask("async 1 7") == "ok"
        for call in ("send x", "write x", "recv 1", "read 1", "fd"):
            assert client.ask(call) == f"-1 {errno.EAGAIN}"
        for call in ("wait", "ready", "space"):
            assert client.ask(call) == "0"
        assert client.ask("blocking 0") == "ok"
        assert client.ask("open") == WAITING


def test_async_client_can_be_closed_at_every_step(daemon: Daemon, start: Start) -> None:
    with start(1) as server, start(2) as client:
        assert client.ask("async 1 7") == "ok"
        assert client.ask("close") == "ok"
        before = client.ask("fds")
        for asks in (0, 1):
            assert client.ask("async 1 7") == "ok"
            for _ in range(asks):
                assert client.ask("finish 1") == "1"
            assert client.ask("close") == "ok"
            assert client.ask("fds") == before
        # Answered already, but the answer not taken; and taken.
        for is_taken in (False, True):
            assert client.ask("async 1 7") == "ok"
            assert server.ask(f"server 2 7 {RING} {RING}") == "ok"
            assert client.ask("watch") == "1"
            if is_taken:
                finish(client, "1")
            assert client.ask("close") == "ok"
            assert client.ask("fds") == before
            assert server.ask("open") == (DISCONNECTED if is_taken else WAITING)
            if is_taken:
                assert server.ask("wait") == "0"
            assert server.ask("close") == "ok"
        daemon.assert_clean()


DOMAINS = replies.encode(Domains(HOST, (DomainInfo(HOST, "host", "host", ""),), False))
ERROR = replies.encode(Error("not-found", "there is no domain 1"))


def test_close_waits_for_the_daemon_though_its_answer_is_not_taken_yet(qubes: Path, tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        Program(qubes, env={"KVMCHAN_RUNTIME_DIR": str(tmp_path)}) as client,
    ):
        listener.bind(str(tmp_path / "kvmchand.sock"))
        listener.listen()
        client.tell("async 1 7")
        with listener.accept()[0] as asks_who_it_is:
            asks_who_it_is.send(DOMAINS)
            assert asks_who_it_is.recv(65536) and asks_who_it_is.recv(65536)
        with listener.accept()[0] as waits:
            client.expect("ok")
            assert waits.recv(65536) and waits.recv(65536)
            waits.send(ERROR)
            assert client.ask("watch") == "1"
            client.tell("close")
            assert waits.recv(65536) == b""
            client.wait_asleep()
            assert client.process.stdout is not None
            assert select.select([client.process.stdout], [], [], 0)[0] == [], "it is closed, and the daemon has not released it"
        client.expect("ok")


@pytest.mark.parametrize("is_finished", [False, True])
def test_client_whose_program_closed_its_descriptor_leaves_others_alone(daemon: Daemon, start: Start, is_finished: bool) -> None:
    with start(1) as client:
        assert client.ask("async 2 7") == "ok"
        assert client.ask("detach") == "ok"
        before = client.ask("fds")
        if is_finished:
            assert client.ask("finish 1") == f"-1 {errno.EINVAL}"
        assert client.ask("close") == "ok"
        assert client.ask("fds") == before, "it closed what is the program's"
        daemon.assert_clean()


def test_client_gives_up_where_the_domain_is_not_there(start: Start) -> None:
    with start(1) as client:
        number, sentence = refused(client, "client 9 7")
        assert (number, "there is no domain 9" in sentence) == (errno.ENOENT, True)
        assert client.ask("async 9 7") == "ok"
        assert client.ask("watch") == "1"
        assert client.ask("finish 1") == f"-1 {errno.ENOENT}"
        assert client.ask("finish 1") == f"-1 {errno.EINVAL}"
        assert client.ask("close") == "ok"


def test_domains_and_ports_that_can_not_be_are_refused(start: Start) -> None:
    with start(1) as program:
        for command in ("server -1 7 0 0", "server 2 -7 0 0", "client -1 7", "client 2 -7", "async -1 7", "async 2 -7"):
            assert refused(program, command)[0] == errno.EINVAL
        assert refused(program, "server 9 7 0 0")[0] == errno.ENOENT


def test_without_a_daemon_all_inits_fail(tmp_path: Path, qubes: Path) -> None:
    with Program(qubes, env={"KVMCHAN_RUNTIME_DIR": str(tmp_path)}) as program:
        for command in ("server 1 7 0 0", "client 1 7", "async 1 7"):
            number, sentence = refused(program, command)
            assert (number, "start it" in sentence) == (errno.ECONNREFUSED, True)


def test_signals_do_not_end_the_wait_for_a_peer(start: Start) -> None:
    with start(1) as server, start(2) as client:
        assert server.ask(f"server 2 7 {RING} {RING}") == "ok"
        server.block_in("wait")
        server.process.send_signal(signal.SIGUSR1)
        server.expect("signal")
        client.block_in("client 1 8")
        client.process.send_signal(signal.SIGUSR1)
        client.expect("signal")
        with start(1) as other:
            assert other.ask(f"server 2 8 {RING} {RING}") == "ok"
            client.expect("ok")
            assert client.ask("close") == "ok"
        assert client.ask("client 1 7") == "ok"
        server.expect("0")
        # But they do end one of an end that has its peer, as Xen's.
        assert server.ask("ready") == "0"
        server.block_in("wait")
        server.process.send_signal(signal.SIGUSR1)
        server.expect("signal")
        server.expect(f"-1 {errno.EINTR}")


# ---- one client, and no other ----


@pytest.mark.parametrize("how", ["jump", "cancel", "end"])
def test_a_wait_that_was_left_gives_its_place_back(daemon: Daemon, start: Start, tmp_path: Path, how: str) -> None:
    program = compile_c(tmp_path, PROGRAMS / "left_wait.c", "-pthread", *our_flags("vchan"))
    with Program(program, how, "2", "7", env=daemon.environment(1)) as left:
        leave(left, how)
        with start(2) as server:
            assert server.ask("server 1 7 4096 4096") == "ok"
            left.tell()
            left.expect("sent")
            assert server.ask("recv 5") == "hello"
            left.tell()
            left.finish()
            assert server.ask("close") == "ok"


def test_a_wait_that_was_left_for_good_is_not_in_the_way(daemon: Daemon, start: Start, tmp_path: Path) -> None:
    """The program that left it makes no other call."""
    program = compile_c(tmp_path, PROGRAMS / "left_wait.c", "-pthread", *our_flags("vchan"))
    with Program(program, "jump", "2", "7", env=daemon.environment(1)) as left, start(1) as client, start(2) as server:
        leave(left, "jump")
        client.block_in("client 2 7")
        assert server.ask("server 1 7 4096 4096") == "ok"
        client.expect("ok")
        assert client.ask("send hello") == "5"
        assert server.ask("recv 5") == "hello"
        left.process.kill()
        left.status = -signal.SIGKILL


def leave(waiting: Program, how: str) -> None:
    """Have it leave its wait for a server."""
    eventually(lambda: in_poll(waiting.pid))
    if how == "jump":
        waiting.process.send_signal(signal.SIGUSR1)
    else:
        waiting.tell()
    waiting.expect("left")


def test_second_client_waits_for_another_server(start: Start) -> None:
    with start(1) as server, start(2) as client, start(2) as second:
        meet(server, client, 1, 2)
        assert second.ask("async 1 7") == "ok"
        assert second.ask("finish 1") == "1"
        assert client.ask("close") == "ok"
        assert server.ask("wait") == "0"
        assert server.ask("open") == DISCONNECTED
        assert second.ask("finish 1") == "1"
        with start(1) as another:
            assert another.ask(f"server 2 7 {RING} {RING}") == "ok"
            assert second.ask("watch") == "1"
            finish(second, "1")
            assert another.ask("wait") == "0"
            assert (another.ask("open"), server.ask("open")) == (CONNECTED, DISCONNECTED)


def test_second_client_finds_nothing_though_the_server_has_not_looked_yet(start: Start) -> None:
    with start(1) as server, start(2) as client, start(2) as second:
        assert server.ask(f"server 2 7 {RING} {RING}") == "ok"
        assert client.ask("client 1 7") == "ok"
        assert client.ask("send first") == "5"
        assert client.ask("close") == "ok"
        assert second.ask("async 1 7") == "ok"
        assert second.ask("finish 1") == "1"
        assert server.ask("recv 5") == "first"
        assert server.ask("recv 1") == f"-1 {errno.EPIPE}"


# ---- the end ----


def test_what_was_written_before_a_close_can_be_read(start: Start) -> None:
    with start(1) as server, start(2) as client:
        meet(server, client, 1, 2)
        assert server.ask("send last words") == "10"
        assert server.ask("close") == "ok"
        assert client.ask("open") == DISCONNECTED
        assert client.ask("recv 10") == "last words"
        assert client.ask("read 1") == f"-1 {errno.EPIPE}"
        assert client.ask("send x") == f"-1 {errno.EPIPE}"


@pytest.mark.parametrize("call", ["wait", "recv 1", "read 1"])
@pytest.mark.parametrize("dies", ["server", "client"])
def test_no_wait_outlives_a_peer_that_is_killed(start: Start, dies: str, call: str) -> None:
    with start(1) as server, start(2) as client:
        meet(server, client, 1, 2)
        dead, left = (server, client) if dies == "server" else (client, server)
        assert left.ask("readable") in ("0", "1")
        if left.ask("readable") == "1":
            assert left.ask("wait") == "0"
        assert left.ask("ready") == "0"
        left.block_in(call)
        kill(dead)
        assert left.line() == ("0" if call == "wait" else f"-1 {errno.EPIPE}")
        assert left.ask("open") == DISCONNECTED


@pytest.mark.parametrize("left", ["server", "client"])
def test_wait_for_a_peer_that_is_known_to_be_gone_fails(start: Start, left: str) -> None:
    with start(1) as server, start(2) as client:
        meet(server, client, 1, 2)
        gone, stays = (client, server) if left == "server" else (server, client)
        assert gone.ask("close") == "ok"
        assert stays.ask("wait") == "0"
        assert stays.ask("wait") == f"-1 {errno.EPIPE}"


def test_ends_outlive_the_daemon_and_what_waits_for_a_peer_does_not(daemon: Daemon, start: Start) -> None:
    with start(1) as server, start(2) as client, start(1) as lonely, start(2) as waits, start(2) as other:
        meet(server, client, 1, 2)
        assert lonely.ask(f"server 2 8 {RING} {RING}") == "ok"
        lonely.block_in("wait")
        waits.block_in("client 1 9")
        assert other.ask("async 1 9") == "ok"
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait() == 0
        assert lonely.line() == f"-1 {errno.EPIPE}"
        assert lonely.ask("open") == DISCONNECTED
        assert waits.line().startswith(f"NULL {errno.ECONNREFUSED} ")
        assert other.ask("watch") == "1"
        assert other.ask("finish 1") == f"-1 {errno.ECONNREFUSED}"
        assert client.ask("send hello") == "5"
        assert server.ask("recv 5") == "hello"
        server.block_in("recv 1")
        kill(client)
        server.expect(f"-1 {errno.EPIPE}")
        assert server.ask("open") == DISCONNECTED
        assert server.ask("wait") == f"-1 {errno.EPIPE}"
        for each in (server, lonely, other):
            assert each.ask("close") == "ok"


def test_blocked_write_ends_with_the_peer(start: Start) -> None:
    with start(1) as server, start(2) as client:
        meet(server, client, 1, 2)
        server.block_in(f"fill {2 * RING}")
        kill(client)
        assert server.line() == f"-1 {errno.EPIPE}"


# ---- domains that die ----


def test_client_gives_up_when_the_domain_goes(host: ScriptedHost, alice: Guest, qubes: Path) -> None:
    with Program(qubes, env=host.environment()) as client, Program(qubes, env=host.environment()) as other:
        client.block_in(f"client {ALICE} 7")
        assert other.ask(f"async {ALICE} 8") == "ok"
        assert other.ask("finish 1") == "1"
        alice.stop()
        number, sentence = client.line().split(" ", 2)[1:]
        assert (int(number), f"no domain {ALICE}" in sentence) == (errno.ENOENT, True)
        assert other.ask("watch") == "1"
        assert other.ask("finish 1") == f"-1 {errno.ENOENT}"


def test_client_waits_for_a_guests_server_and_ends_with_the_guest(host: ScriptedHost, alice: Guest, qubes: Path) -> None:
    with Program(qubes, env=host.environment()) as client:
        client.block_in(f"client {ALICE} 7")
        end = alice.end(alice.ask(1, offer(path="data/vchan/0/7")), is_server=True)
        client.expect("ok")
        end.send(b"hello")
        assert client.ask("recv 5") == "hello"
        client.block_in("recv 1")
        alice.stop()
        client.expect(f"-1 {errno.EPIPE}")
        assert client.ask("open") == DISCONNECTED
        # The last event, if recv did not take it, and then no more.
        assert [client.ask("wait") for _ in range(2)][1] == f"-1 {errno.EPIPE}"


def test_server_stops_waiting_for_a_client_whose_domain_goes(host: ScriptedHost, alice: Guest, qubes: Path) -> None:
    with Program(qubes, env=host.environment()) as server:
        assert server.ask(f"server {ALICE} 7 {RING} {RING}") == "ok"
        server.block_in("wait")
        alice.stop()
        server.expect("0")
        assert server.ask("open") == DISCONNECTED


def test_guests_client_is_the_only_one(host: ScriptedHost, alice: Guest, qubes: Path) -> None:
    path = f"/local/domain/0/data/vchan/{ALICE}/7"
    with Program(qubes, env=host.environment()) as server:
        assert server.ask(f"server {ALICE} 7 {RING} {RING}") == "ok"
        end = alice.end(alice.ask(1, connect(path=path)), is_server=False)
        assert server.ask("wait") == "0"
        assert server.ask("open") == CONNECTED
        end.send(b"hello")
        assert server.ask("recv 5") == "hello"
        alice.refused(2, connect(path=path), "not-found")


# ---- programs of Qubes ----


@pytest.mark.parametrize("name", ["libvchan-xen.so", "libvchan-xen.so.1"])
def test_program_linked_with_qubes_library_runs_by_kvmchan_exec(daemon: Daemon, tmp_path: Path, name: str) -> None:
    """By the name that Qubes' library had before it had a soname, and by its soname."""
    # Linked with one of that soname, which is not there any more when the program runs.
    stub, source = tmp_path / name, tmp_path / "stub.c"
    source.write_text("".join(f"void {each}(void) {{}}\n" for each in exported(LIBDIR / "qubes" / name)))
    run("gcc", "-shared", source, "-o", stub, f"-Wl,-soname,{name}")
    program = compile_c(tmp_path, PROGRAMS / "qubes.c", *pkg_config("--cflags", "vchan"), str(stub))
    stub.unlink()
    assert f"[{name}]" in run("readelf", "--dynamic", program).stdout
    way = (str(KVMCHAN), "exec", "--", program)
    with Program(*way, env=daemon.environment(1)) as server, Program(*way, env=daemon.environment(2)) as client:
        meet(server, client, 1, 2)
        assert client.ask("send hello") == "5"
        assert server.ask("recv 5") == "hello"


BINDING = """
import ctypes
library = ctypes.CDLL("libvchan-xen.so")
library.libvchan_server_init.restype = library.libvchan_client_init.restype = ctypes.c_void_p
for name in ("write", "read"):
    getattr(library, f"libvchan_{name}").argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
library.libvchan_wait.argtypes = library.libvchan_close.argtypes = (ctypes.c_void_p,)
server = library.libvchan_server_init(1, 7, 1024, 1024)
assert server
print("offered", flush=True)
assert library.libvchan_wait(server) == 0
data = ctypes.create_string_buffer(64)
count = library.libvchan_read(server, data, len(data))
assert library.libvchan_write(server, data.raw[:count].upper(), count) == count
input()
library.libvchan_close(server)
"""


@pytest.mark.parametrize("python", ["/usr/bin/python3", "venv"])
def test_python_binding_loads_the_library_into_its_own_interpreter(
    daemon: Daemon, start: Start, tmp_path: Path, python: str
) -> None:
    environment = daemon.environment()
    environment.pop("PYTHONPATH", None)
    program = (str(KVMCHAN), "exec", "--", PYTHON if python == "venv" else python, "-c", BINDING)
    with Program(*program, env=environment, cwd=tmp_path) as server, start(1) as client:
        server.expect("offered")
        assert client.ask("client 0 7") == "ok"
        assert client.ask("send hello") == "5"
        assert client.ask("recv 5") == "HELLO"
        server.tell()


@pytest.mark.parametrize("package", ["vchan", "vchan-kvm"])
def test_qubes_sources_find_what_they_ask_pkg_config_for(package: str) -> None:
    assert pkg_config("--variable=backend_vmm", package) == ["kvm"]
    assert "-lvchan-kvm" in pkg_config("--libs", package)
    assert pkg_config("--atleast-version=4.2", package) == []
    # Qubes' makefiles take the back end's name from the flags.
    assert re.sub(".*vchan-", "", " ".join(pkg_config("--cflags", package))) == "kvm"


def test_program_of_libvchan_meets_one_of_libxenvchan(daemon: Daemon, start: Start, tmp_path: Path) -> None:
    shell = compile_c(tmp_path, PROGRAMS / "shell.c", *our_flags())
    with start(1) as server, Program(shell, env=daemon.environment(2)) as client:
        assert server.ask(f"server 2 7 {RING} {RING}") == "ok"
        assert client.ask("client 1 /local/domain/1/data/vchan/2/7") == "ok"
        assert client.ask("send hello") == "5"
        assert server.ask("recv 5") == "hello"
        assert client.ask("close") == "ok"
