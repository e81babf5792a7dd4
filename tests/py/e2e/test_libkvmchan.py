# SPDX-License-Identifier: LGPL-2.1-or-later
"""libkvmchan's interface: vchans at domain and port, and memory shared between domains."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.compiler import compile_c, our_flags, pkg_config
from rig.daemon import Daemon
from rig.paths import KVMCHAN, LIBDIR, PROGRAMS, ROOT
from rig.processes import run
from rig.program import Program

DISCONNECTED, CONNECTED, WAITING = "0", "1", "2"
RING = 4096
PAGE = 4096


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("kvmchan"), PROGRAMS / "kvmchan.c", *our_flags("kvmchan"))


@pytest.fixture
def start(daemon: Daemon, program: Path) -> Callable[[int], Program]:
    """A program in a domain."""
    return lambda domain: Program(program, env=daemon.environment(domain))


Start = Callable[[int], Program]


def refused(program: Program, command: str) -> int:
    word, number, sentence = program.ask(command).split(" ", 2)
    assert (word, len(sentence) > 10) == ("NULL", True)
    return int(number)


def meet(server: Program, client: Program) -> None:
    """A server in domain 1 and a client in domain 2."""
    assert server.ask(f"server 2 7 {RING} {RING}") == "ok"
    assert client.ask("client 1 7") == "ok"


# ---- vchans ----


def test_both_ends_send_receive_and_close(daemon: Daemon, start: Start) -> None:
    with start(1) as server, start(2) as client:
        assert server.ask(f"server 2 7 {RING} {RING}") == "ok"
        assert server.ask("state") == WAITING
        assert client.ask("client 1 7") == "ok"
        assert (server.ask("state"), client.ask("state")) == (CONNECTED, CONNECTED)
        (channel,) = daemon.channels()
        assert channel["path"] == "/local/domain/1/data/vchan/2/7"
        for writer, reader in ((server, client), (client, server)):
            assert (writer.ask("space"), reader.ask("ready")) == (str(RING), "0")
            assert writer.ask("send twelve bytes") == "12"
            assert (writer.ask("space"), reader.ask("ready")) == (str(RING - 12), "12")
            assert reader.ask("recv 6") == "twelve"
            # Less than there is room for in the program: read takes what there is.
            assert reader.ask("read 100") == " bytes"
        assert client.ask("close") == "1"
        assert server.ask("state") == DISCONNECTED
        assert server.ask("recv 1") == f"-1 {errno.EPIPE}"
        assert server.ask("send x") == f"-1 {errno.EPIPE}"
        assert server.ask("close") == "1"


def test_write_writes_what_there_is_room_for_and_waits_for_some(start: Start) -> None:
    with start(1) as server, start(2) as client:
        meet(server, client)
        assert server.ask(f"fill {RING + 100}") == str(RING)
        server.block_in("fill 100")
        assert client.ask("recv 4") == "ffff"
        assert server.line() == "4"
        assert client.ask("send " + "x" * (RING + 1)) == f"-1 {errno.EMSGSIZE}"


@pytest.mark.parametrize("call", ["send hello", "write hello", "recv 5", "read 5"])
def test_servers_calls_wait_for_its_client(start: Start, call: str) -> None:
    with start(1) as server, start(2) as client:
        assert server.ask(f"server 2 7 {RING} {RING}") == "ok"
        server.block_in(call)
        assert client.ask("client 1 7") == "ok"
        if call.split()[0] in ("send", "write"):
            assert server.line() == "5"
            assert client.ask("recv 5") == "hello"
        else:
            assert client.ask("send hello") == "5"
            assert server.line() == "hello"


def test_client_does_not_wait_for_a_server(start: Start) -> None:
    with start(1) as program:
        assert refused(program, "client 2 7") == errno.ENOENT
        assert refused(program, "client 9 7") == errno.ENOENT
        assert refused(program, f"client {2**32 - 1} 7") == errno.EINVAL
        assert refused(program, f"server 9 7 {RING} {RING}") == errno.ENOENT


def test_descriptor_says_whether_there_is_something_to_read(start: Start) -> None:
    with start(1) as server, start(2) as client:
        meet(server, client)
        assert server.ask("eventfd") == "0"
        assert server.ask("readable") == "0", "that the client came is known by now"
        server.block_in("await")
        assert client.ask("send hello") == "5"
        assert server.line() == "1"
        assert server.ask("recv 5") == "hello"
        assert server.ask("readable") == "0"
        # What is left keeps it readable, whatever is cleared.
        assert client.ask("send hello again") == "11"
        assert server.ask("recv 5") == "hello"
        assert server.ask("clear") == "ok"
        assert server.ask("readable") == "1"
        assert server.ask("read 100") == " again"
        assert server.ask("readable") == "0"
        # A write that had to wait has taken the events of what came meanwhile.
        assert client.ask("eventfd") == "0"
        assert server.ask(f"fill {RING}") == str(RING)
        server.block_in("send x")
        assert client.ask("send news") == "4"
        assert client.ask("read 100") == "f" * 100
        assert server.line() == "1"
        assert server.ask("readable") == "1"
        assert server.ask("recv 4") == "news"
        assert server.ask("readable") == "0"
        # And so does the end, for good.
        server.block_in("await")
        client.process.kill()
        client.process.wait()
        client.status = -signal.SIGKILL
        assert server.line() == "1"
        assert server.ask("clear") == "ok"
        assert server.ask("readable") == "1"
        assert server.ask("state") == DISCONNECTED


def test_descriptor_that_can_not_be_had_is_an_error_that_leaves_nothing(start: Start) -> None:
    with start(1) as server:
        assert server.ask(f"server 2 7 {RING} {RING}") == "ok"
        before = int(server.ask("fds"))
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        lowest_free = next(fd for fd in range(hard) if not Path(f"/proc/{server.pid}/fd/{fd}").is_symlink())
        for room in (0, 1):
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (lowest_free + room, hard))
            assert server.ask("eventfd") == f"-1 {errno.EMFILE}"
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert int(server.ask("fds")) == before
        assert server.ask("eventfd") == "0"


def test_closing_leaves_no_descriptor(start: Start) -> None:
    with start(1) as server, start(2) as client:
        meet(server, client)
        assert (client.ask("close"), server.ask("close")) == ("1", "1")
        before = server.ask("fds")
        meet(server, client)
        assert server.ask("eventfd") == "0"
        assert (client.ask("close"), server.ask("close")) == ("1", "1")
        assert server.ask("fds") == before


def test_pkg_config_knows_it_by_the_name_of_old() -> None:
    assert "-lkvmchan" in pkg_config("--libs", "kvmchan")


# ---- shared memory ----


@pytest.mark.parametrize(("own", "peer"), [(1, 2), (0, 1), (1, 0), (1, 1)])
def test_region_is_the_same_memory_in_both_domains(start: Start, own: int, peer: int) -> None:
    last = 2 * PAGE
    with start(own) as owner, start(peer) as other:
        assert (owner.ask("start"), other.ask("start")) == ("ok", "ok")
        number = owner.ask(f"create {peer} 3")
        assert other.ask(f"connect {own} {number}") == "ok"
        assert owner.ask("put 0 first") == "ok"
        assert other.ask(f"put {last} last") == "ok"
        assert other.ask("get 0 5") == "'first'"
        assert owner.ask(f"get {last} 4") == "'last'"
        assert owner.ask(f"get {PAGE} 4") == "''", "not zero"
        for each in (owner, other):
            assert each.ask("end") == "ok"


@pytest.mark.parametrize("way", ["forget", "id 2"])
def test_region_that_its_owner_closes_stays_with_who_has_it_and_no_other(start: Start, way: str) -> None:
    with start(1) as owner, start(2) as other:
        assert (owner.ask("start"), other.ask("start")) == ("ok", "ok")
        number = owner.ask("create 2 1")
        assert owner.ask("put 0 hello") == "ok"
        assert other.ask(f"connect 1 {number}") == "ok"
        assert owner.ask(way if way == "forget" else f"{way} {number}") == "0"
        assert owner.ask(f"id 2 {number}") == f"-1 {errno.EINVAL}"
        assert other.ask("get 0 5") == "'hello'"
        with start(2) as late:
            assert late.ask("start") == "ok"
            assert refused(late, f"connect 1 {number}") == errno.ENOENT
        assert other.ask("forget") == "0"
        assert other.ask("forget") == f"-1 {errno.EINVAL}"


def test_region_can_be_connected_to_again(start: Start) -> None:
    with start(1) as owner, start(2) as other:
        assert (owner.ask("start"), other.ask("start")) == ("ok", "ok")
        number = owner.ask("create 2 1")
        assert owner.ask("put 0 hello") == "ok"
        for _ in range(2):
            assert other.ask(f"connect 1 {number}") == "ok"
            assert other.ask("get 0 5") == "'hello'"
            assert other.ask(f"id 1 {number}") == "0"


def test_regions_are_told_apart(start: Start) -> None:
    with start(1) as owner, start(2) as other:
        assert (owner.ask("start"), other.ask("start")) == ("ok", "ok")
        numbers = [owner.ask("create 2 2") for _ in range(3)]
        assert len(set(numbers)) == 3
        assert owner.ask("put 0 third") == "ok"
        assert owner.ask(f"id 2 {numbers[1]}") == "0"
        assert refused(other, f"connect 1 {numbers[1]}") == errno.ENOENT
        assert other.ask(f"connect 1 {numbers[2]}") == "ok"
        assert other.ask("get 0 5") == "'third'"
        assert other.ask(f"connect 1 {numbers[0]}") == "ok"
        assert other.ask("get 0 5") == "''"


def test_region_is_for_the_domain_that_it_is_shared_with(start: Start) -> None:
    with start(1) as owner, start(0) as other:
        assert (owner.ask("start"), other.ask("start")) == ("ok", "ok")
        number = owner.ask("create 2 1")
        assert refused(other, f"connect 1 {number}") in (errno.EACCES, errno.ENOENT)
        assert refused(owner, "create 9 1") == errno.ENOENT
        assert refused(owner, "create 2 0") == errno.EINVAL
        assert refused(owner, f"create {2**32 - 1} 1") == errno.EINVAL
        assert refused(owner, f"connect {2**32 - 1} 1") == errno.EINVAL
        assert refused(owner, f"create 2 {2**32 - 1}") > 0


def test_a_handle_ends_with_all_its_regions(daemon: Daemon, start: Start) -> None:
    with start(1) as owner:
        assert owner.ask("start") == "ok"
        before = owner.ask("fds")
        for _ in range(3):
            owner.ask("create 2 4")
        assert owner.ask("fds") != before
        assert owner.ask("end") == "ok"
        assert owner.ask("fds") == before
        daemon.assert_clean()


def test_region_of_a_program_that_closed_its_descriptors_lasts_until_it_is_closed(daemon: Daemon, start: Start) -> None:
    with start(1) as owner, start(2) as other:
        assert (owner.ask("start"), other.ask("start")) == ("ok", "ok")
        number = owner.ask("create 2 1")
        assert owner.ask("detach") == "ok"
        before = owner.ask("fds")
        assert owner.ask("put 0 hello") == "ok"
        assert other.ask(f"connect 1 {number}") == "ok"
        assert other.ask("get 0 5") == "'hello'"
        assert other.ask("end") == "ok"
        assert owner.ask("end") == "ok"
        assert owner.ask("fds") == before, "it closed what is the program's"
        daemon.assert_clean()


def test_regions_end_with_a_process_that_is_killed(daemon: Daemon, start: Start) -> None:
    with start(1) as owner, start(2) as other:
        assert (owner.ask("start"), other.ask("start")) == ("ok", "ok")
        number = owner.ask("create 2 1")
        assert owner.ask("put 0 hello") == "ok"
        assert other.ask(f"connect 1 {number}") == "ok"
        owner.process.kill()
        owner.process.wait()
        owner.status = -signal.SIGKILL
        assert other.ask("get 0 5") == "'hello'"
        assert other.ask("end") == "ok"
        daemon.assert_clean()


def test_without_a_daemon_nothing_starts(tmp_path: Path, program: Path) -> None:
    with Program(program, env={"KVMCHAN_RUNTIME_DIR": str(tmp_path)}) as alone:
        for command in ("start", "server 1 7 0 0", "client 1 7"):
            assert refused(alone, command) == errno.ECONNREFUSED


def test_program_linked_without_a_search_path_runs_by_kvmchan_exec(daemon: Daemon, tmp_path: Path) -> None:
    flags = [f"-I{ROOT / 'include'}", str(LIBDIR / "libkvmchan.so")]
    program = compile_c(tmp_path, PROGRAMS / "kvmchan.c", *flags)
    dynamic = run("readelf", "--dynamic", program).stdout
    assert "Shared library: [libkvmchan.so]" in dynamic
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    way = (str(KVMCHAN), "exec", "--", program)
    with Program(*way, env=daemon.environment(1)) as server, Program(*way, env=daemon.environment(2)) as client:
        meet(server, client)
        assert client.ask("send hello") == "5"
        assert server.ask("recv 5") == "hello"
        assert (server.ask("start"), client.ask("start")) == ("ok", "ok")
        number = server.ask("create 2 1")
        assert server.ask("put 0 hello") == "ok"
        assert client.ask(f"connect 1 {number}") == "ok"
        assert client.ask("get 0 5") == "'hello'"
