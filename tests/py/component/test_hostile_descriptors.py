# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors that a client holds, or sends, and that would keep whoever uses them waiting: nobody
else notices.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmchand.runtime import passrights
from kvmchand.wire.client import VERSION
from kvmchand.xenstore.protocol import Kind
from rig import without_passrights
from rig.clients import RawClient, StoreClient, packet
from rig.daemon import Daemon
from rig.deadline import eventually
from rig.guest import Guest, ScriptedHost
from rig.held import held
from rig.kept import Kept
from rig.lingering import lingering
from rig.paths import KVMCHAND, PYTHON
from rig.processes import stopped
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


# ---- descriptors that keep whoever closes them last waiting ----


@pytest.fixture(scope="module", params=["6.16", "before"])
def kept_patient(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Kept[Daemon]]:
    program = KVMCHAND
    if request.param == "before":
        program = tmp_path_factory.mktemp("old") / "kvmchand"
        program.write_text(f'#!/bin/sh\nexec {shlex.join([PYTHON, without_passrights.__file__, str(KVMCHAND)])} "$@"\n')
        program.chmod(0o755)
    elif not passrights.can_refuse():
        pytest.skip("this kernel has no SO_PASSRIGHTS")
    kept = Kept(lambda: Daemon(tmp_path_factory.mktemp("d"), program=program))
    yield kept
    kept.end()


@pytest.fixture
def patient(kept_patient: Kept[Daemon], request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon on a kernel that lets a socket refuse descriptors, and on one that does not."""
    yield from kept_patient.lend(request)


def send(sock: socket.socket, data: bytes, lingers: socket.socket) -> None:
    """Send data, and the socket that lingers, if the kernel lets us.

    Whoever reads must be stopped: if it closes that socket first, we are the last.
    """
    try:
        socket.send_fds(sock, [data], [lingers.fileno()])
    except PermissionError:
        sock.send(data)
    else:
        lingers.close()


LIST = b'{"type":"list","after":0}'


@pytest.mark.parametrize("ends", [False, True], ids=["stays", "ends"])
@pytest.mark.parametrize(
    "data", [b'{"type":"hello","version":%d}' % VERSION, b"", b"nonsense"], ids=["hello", "nothing", "nonsense"]
)
def test_one_comes_first_of_all(patient: Daemon, data: bytes, ends: bool) -> None:
    with lingering() as lingers:
        with stopped(patient.local_pid):
            client = RawClient(patient, 1)
            send(client.sock, data, lingers)
            if ends:
                client.close()
        if not ends:
            assert client.hear()["type"] == "error"
            client.close()
        assert_answers(patient)


def assert_refused(daemon: Daemon, client: RawClient, data: bytes, fds: list[int]) -> None:
    """Assert that a packet with descriptors is refused, by the kernel or by the daemon."""
    try:
        socket.send_fds(client.sock, [data], fds)
    except PermissionError:
        assert "closer" not in daemon.services()
    else:
        client.hear_error("protocol")
        client.hear_end()


@pytest.mark.parametrize("count", [1, 253])
@pytest.mark.parametrize("data", [LIST, b"not JSON", bytes(40000), b""], ids=["a request", "nonsense", "too much", "nothing"])
@pytest.mark.parametrize("greeted", [False, True], ids=["first", "second"])
def test_none_belongs_beside_any_packet(patient: Daemon, greeted: bool, data: bytes, count: int) -> None:
    with RawClient(patient) as client:
        if greeted:
            client.hello()
        assert_refused(patient, client, data, [0] * count)


def test_a_connection_is_sent_over_itself(patient: Daemon) -> None:
    """It would outlive its process, if the daemon kept it."""
    with RawClient(patient).hello() as client:
        assert_refused(patient, client, LIST, [client.sock.fileno()])


def test_one_comes_beside_a_request(patient: Daemon) -> None:
    with lingering() as lingers, RawClient(patient, 1).hello() as client:
        client.list()
        with stopped(patient.local_pid):
            send(client.sock, LIST, lingers)
        assert_answers(patient)


def test_one_is_not_read_when_the_client_is_dropped(patient: Daemon) -> None:
    with lingering() as lingers, RawClient(patient, 1).hello() as client:
        client.list()
        with stopped(patient.local_pid):
            client.say(b"nonsense")
            send(client.sock, LIST, lingers)
        assert_answers(patient)


@pytest.mark.parametrize("part", [b"", packet(Kind.READ, "/")], ids=["alone", "behind a request"])
@pytest.mark.parametrize("ends", [False, True], ids=["stays", "ends"])
def test_one_comes_over_a_connection_to_the_store(patient: Daemon, part: bytes, ends: bool) -> None:
    with lingering() as lingers, StoreClient(patient.store_path(1)) as client:
        with stopped(patient.service("store")):
            client.sock.send(part + packet(Kind.READ, "/")[:1])
            send(client.sock, packet(Kind.READ, "/")[1:], lingers)
            if ends:
                client.sock.close()
        with StoreClient(patient.store_path()) as other:
            other.children("/")
    assert_answers(patient)


def test_one_waits_when_the_daemon_is_stopped(patient: Daemon) -> None:
    os.kill(patient.local_pid, signal.SIGSTOP)
    with lingering() as lingers, RawClient(patient, 1) as client:
        send(client.sock, LIST, lingers)
        patient.process.terminate()
        assert patient.process.wait() == 0
