# SPDX-License-Identifier: LGPL-2.1-or-later
"""Xen's own libxenvchan and libxenstore, as the distribution has them, at both ends of a vchan,
over our libraries and store.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.compiler import alone, compile_c, xen_flags
from rig.daemon import Daemon
from rig.deadline import eventually
from rig.differential import PROGRAM, RINGS, STEPS, first_difference, over_xens
from rig.paths import LIBDIR, REFERENCE_LIBDIR, REFERENCE_LIBXENVCHAN, ROOT
from rig.processes import run
from rig.program import Program
from rig.xen_program import LIBRARIES, XenProgram

PATH = "/local/domain/1/data/vchan/2/7"
PAIRS = [(0, 1), (1, 0), (1, 2), (0, 0), (1, 1)]

Environment = Callable[[int], dict[str, str]]


@pytest.fixture
def environment(daemon: Daemon, tmp_path: Path) -> Environment:
    """For a program in a domain."""
    xens = alone(REFERENCE_LIBXENVCHAN, tmp_path)

    def environment(domain: int) -> dict[str, str]:
        return daemon.environment(
            domain,
            XENSTORED_PATH=str(daemon.store_path(domain)),
            # Xen's comes before ours of the same name.
            LD_LIBRARY_PATH=f"{xens}:{LIBRARIES}:{REFERENCE_LIBDIR}",
        )

    return environment


def libraries_of(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if re.search("/libxen(vchan|store|evtchn|gnttab)[^/]*$", line)}


@pytest.mark.parametrize(("read_min", "write_min"), RINGS)
def test_random_series_of_calls_are_answered_as_without_us(
    environment: Environment, tmp_path: Path, read_min: int, write_min: int
) -> None:
    seed = 100 + RINGS.index((read_min, write_min))
    arguments = ["--raw", "--second-client", str(seed), str(STEPS), str(read_min), str(write_min), "data/vchan/1"]
    ours = run(PROGRAM, *arguments, env=environment(0)).stdout.splitlines()
    assert first_difference(ours, over_xens(tmp_path / "standins", *arguments)) == ""
    assert ours[-1] == "end"


def test_rings_of_every_pair_of_sizes_are_as_without_us(environment: Environment, tmp_path: Path) -> None:
    ours = run(PROGRAM, "--table", "data/vchan/table", env=environment(0)).stdout.splitlines()
    assert first_difference(ours, over_xens(tmp_path / "standins", "--table", "data/vchan/table")) == ""
    assert len(ours) > 23 * 23


@pytest.mark.parametrize(("server_domain", "client_domain"), PAIRS)
def test_streams_between_two_domains(environment: Environment, tmp_path: Path, server_domain: int, client_domain: int) -> None:
    program = compile_c(tmp_path, ROOT / "tests" / "c" / "programs" / "both_ways.c", *xen_flags())
    path = f"/local/domain/{server_domain}/data/vchan/{client_domain}/7"

    def start(role: str, own: int, peer: int) -> Program:
        return Program(program, role, str(peer), path, "300000", env=environment(own))

    with start("server", server_domain, client_domain) as server:
        server.expect("offered")
        with start("client", client_domain, server_domain) as client:
            client.expect("open")
            server.expect("open")
            ours = {str(LIBDIR / "libxenevtchn.so.1"), str(LIBDIR / "libxengnttab.so.1")}
            theirs = {str(each.resolve()) for each in (REFERENCE_LIBXENVCHAN, REFERENCE_LIBDIR / "libxenstore.so.4")}
            assert libraries_of(server.pid) == libraries_of(client.pid) == ours | theirs
            server.tell()
            client.tell()
            server.expect("done")
            client.expect("done")


def test_life_of_a_vchan_as_qubes_sees_it(environment: Environment, xen_program: Path) -> None:
    with XenProgram(xen_program, env=environment(1)) as server, XenProgram(xen_program, env=environment(2)) as client:
        server.number(f"server 2 {PATH}")
        assert server.ask("open") == "waiting"
        client.number(f"client 1 {PATH}")
        assert (server.ask("open"), client.ask("open")) == ("connected", "connected")
        server.ok("vchan_close")
        assert client.ask("open") == "disconnected"
        client.ok("vchan_close")


def call(program: XenProgram, line: str) -> None:
    """It sleeps in the call."""
    assert program.ask(line) == "calls"
    program.wait_asleep()


def called(program: XenProgram, line: str) -> str:
    assert program.ask(line) == "calls"
    return program.line()


@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize("blocks", ["recv", "send"])
@pytest.mark.parametrize("ending", ["server", "client"])
def test_end_of_one_ends_a_blocked_call_of_the_other(
    environment: Environment, xen_program: Path, ending: str, blocks: str, end: str
) -> None:
    with XenProgram(xen_program, env=environment(1)) as server, XenProgram(xen_program, env=environment(2)) as client:
        server.number(f"server 2 {PATH}")
        client.number(f"client 1 {PATH}")
        gone, blocked = (server, client) if ending == "server" else (client, server)
        # The server writes into a ring of 2048 bytes, the client into one of 1024.
        full = "1000" if ending == "server" else "2000"
        assert called(blocked, f"send {full}") == full
        assert (called(gone, "send 24"), called(blocked, "recv 24")) == ("24", "24")
        # Of neither is there so much, of data or of room.
        call(blocked, f"{blocks} 1000")
        if end == "kill":
            gone.kill()
        else:
            gone.ok("vchan_close")
        blocked.expect("-1")
        assert blocked.ask("open") == "disconnected"


def test_blocked_call_goes_on_after_a_signal_whose_handler_restarts(environment: Environment, xen_program: Path) -> None:
    with XenProgram(xen_program, env=environment(1)) as server, XenProgram(xen_program, env=environment(2)) as client:
        server.number(f"server 2 {PATH}")
        client.number(f"client 1 {PATH}")
        call(server, "recv 3")
        for _ in range(3):
            server.process.send_signal(signal.SIGUSR1)
            server.wait_asleep()
        assert called(client, "send 3") == "3"
        server.expect("3")


@pytest.mark.parametrize("killed", ["server", "client"])
def test_killed_end_wakes_the_other(environment: Environment, xen_program: Path, killed: str) -> None:
    """The kernel's part on Xen: a byte that is cleared, and an event."""
    with XenProgram(xen_program, env=environment(1)) as server, XenProgram(xen_program, env=environment(2)) as client:
        port = server.number(f"server 2 {PATH}")
        joined = client.number(f"client 1 {PATH}")
        # That of the client's coming, and that of its own binding.
        assert server.number("vchan_pending") == port
        assert client.number("vchan_pending") == joined
        ends = {"server": (server, joined, client), "client": (client, port, server)}
        ending, woken, waiting = ends[killed]
        waiting.tell("vchan_pending")
        ending.kill()
        waiting.expect(str(woken))
        eventually(lambda: waiting.ask("open") == "disconnected")
