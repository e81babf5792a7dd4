# SPDX-License-Identifier: LGPL-2.1-or-later
"""What Qubes' libvchan for Xen does beside calling libxenvchan: it waits for servers, and looks
whether peers are gone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rig.compiler import alone
from rig.daemon import Daemon
from rig.guest import ALICE, Guest, ScriptedHost, offer
from rig.paths import REFERENCE_LIBDIR, REFERENCE_LIBXENVCHAN
from rig.program import Program
from rig.xen_program import LIBRARIES, XenProgram, compile_xen

PATH = "/local/domain/1/data/vchan/2/7"

Environment = Callable[..., dict[str, str]]


@pytest.fixture(params=["our libxenvchan", "xens libxenvchan"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Environment:
    """For a program in a domain: ours in place of Xen's, but for libxenstore, and perhaps
    libxenvchan.
    """
    xens = [alone(REFERENCE_LIBXENVCHAN, tmp_path)] if request.param == "xens libxenvchan" else []

    def environment(daemon: Daemon, domain: int = 0) -> dict[str, str]:
        return daemon.environment(
            domain,
            XENSTORED_PATH=str(daemon.store_path(domain)),
            LD_LIBRARY_PATH=":".join([*xens, LIBRARIES, str(REFERENCE_LIBDIR)]),
        )

    return environment


@pytest.fixture(scope="module")
def waiter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_xen(tmp_path_factory.mktemp("qubes"), "qubes_wait.c", "-lxenstore")


def block(client: Program) -> None:
    """It waits for its server."""
    client.expect("waits")
    client.wait_asleep()


def test_client_waits_until_its_server_is_there(
    daemon: Daemon, environment: Environment, xen_program: Path, waiter: Path
) -> None:
    with XenProgram(xen_program, env=environment(daemon, 1)) as server:
        with Program(waiter, "1", "7", env=environment(daemon, 2)) as client:
            block(client)
            server.number("server 2 data/vchan/2/7")
            client.expect("connected")
            assert (server.ask("open"), server.ask("recv 5"), server.line()) == ("connected", "calls", "5")
            client.tell()
        assert server.ask("open") == "disconnected"
        # It is found at once by who comes while it is there.
        server.ok("vchan_close")
        server.number("server 2 data/vchan/2/7")
        with Program(waiter, "1", "7", env=environment(daemon, 2)) as client:
            client.expect("waits")
            client.expect("connected")
            client.tell()


def test_client_gives_up_where_the_domain_is_not_there(daemon: Daemon, environment: Environment, waiter: Path) -> None:
    for own in (0, 2):
        with Program(waiter, "9", "7", env=environment(daemon, own)) as client:
            client.expect("waits")
            client.expect("gives up")


def test_client_gives_up_when_the_domain_goes(host: ScriptedHost, alice: Guest, environment: Environment, waiter: Path) -> None:
    with Program(waiter, str(ALICE), "7", env=environment(host)) as client:
        block(client)
        # Of another port, which is not the one waited for.
        alice.end(alice.ask(1, offer(path="data/vchan/0/8")), is_server=True)
        client.wait_asleep()
        alice.stop()
        client.expect("gives up")


def test_client_marks_a_server_gone_whose_event_channel_is(daemon: Daemon, xen_program: Path, environment: Environment) -> None:
    with XenProgram(xen_program, env=environment(daemon, 1)) as server:
        with XenProgram(xen_program, env=environment(daemon, 2)) as client:
            server.number(f"server 2 {PATH}")
            client.number(f"client 1 {PATH}")
            assert (server.ask("open"), client.ask("open")) == ("connected", "connected")
            if f"only-{REFERENCE_LIBXENVCHAN.name}" in environment(daemon)["LD_LIBRARY_PATH"]:
                server.ok("vchan_unbind")
                assert client.number("is_open") == 1
            else:
                # An event channel of ours goes only with its end, of which the byte tells already.
                assert server.ask("vchan_unbind") == "EINVAL"
                client.ok("lose")
            assert client.ask("open") == "disconnected"
            assert client.number("is_open") == 0
            assert server.number("is_open") == 1
            client.ok("vchan_close")
        assert server.ask("open") == "disconnected"
        server.ok("vchan_close")
