# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors that a client holds, or sends, and that would keep whoever uses them waiting: nobody
else notices.
"""

from __future__ import annotations

from pathlib import Path

from rig.clients import RawClient
from rig.daemon import Daemon
from rig.deadline import eventually
from rig.guest import Guest, ScriptedHost
from rig.held import held
from rig.stalled import drain, stalled


def assert_answers(daemon: Daemon) -> None:
    """Assert that domain 2 can open a vchan."""
    with RawClient(daemon, 2).hello() as server, RawClient(daemon, 2).hello() as client:
        assert server.offer(2, "answers")["type"] == "grant"
        assert client.connect(2, "answers")["type"] == "grant"


def test_an_end_dies_while_its_peer_holds_the_memory(daemon: Daemon) -> None:
    with RawClient(daemon, 1).hello() as server, held(server.offer(1)["fds"][0]):
        with RawClient(daemon, 1).hello() as client:
            assert client.connect(1)["type"] == "grant"
        eventually(lambda: daemon.channels()[0]["client_pid"] == 0, lambda: str(daemon.channels()))
        assert_answers(daemon)


def test_a_share_with_a_notice_ends_while_its_peer_holds_the_pages(daemon: Daemon) -> None:
    with RawClient(daemon, 1).hello() as owner, RawClient(daemon, 1).hello() as mapper:
        owner.say({"type": "share", "peer": 1, "pages": 1, "writable": True})
        mapper.say({"type": "map", "domain": 1, "ref": owner.hear()["ref"], "writable": True})
        with held(mapper.hear()["fds"][0]):
            owner.say({"type": "notify", "clears": True, "offset": 0, "port": 0})
            assert owner.hear()["type"] == "done"
            owner.close()
            assert_answers(daemon)


def test_a_slice_is_freed_while_a_program_of_the_host_holds_the_device(host: ScriptedHost, alice: Guest) -> None:
    alice.offer(1)
    with RawClient(host).hello() as near:
        memory = near.connect(alice.domain, f"/local/domain/{alice.domain}/x")["fds"][0]
        with held(memory):
            alice.close(1)
            near.close()
            assert alice.is_answered()


def test_nobody_reads_the_log(tmp_path: Path) -> None:
    with stalled() as (reading, writing):
        daemon = Daemon(tmp_path, stderr=writing)
        try:
            for _ in range(3):
                with RawClient(daemon, 1) as client:
                    client.say(b"nonsense")
                    client.hear_error("protocol")
            assert_answers(daemon)
            drain(reading)
            with RawClient(daemon, 1) as client:
                client.say(b"nonsense")
                client.hear_error("protocol")
            said = drain(reading).decode()
            assert "lines before this one were lost" in said
            daemon.stop()
        finally:
            daemon.kill()
