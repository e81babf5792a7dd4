# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs made for xenstore, unchanged, on our store: Debian's xenstore-* and test-xenstore with
Debian's libxenstore, and pyxs.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pyxs

from libxenvchan_shim import offer
from rig.daemon import Daemon, acting_as
from rig.paths import KVMCHAN, PYTHON, REFERENCE, REFERENCE_LIBDIR, REFERENCE_PROGRAMS
from rig.processes import run
from rig.program import Program

TEST_XENSTORE = REFERENCE_PROGRAMS / "test-xenstore"


def environment(daemon: Daemon, domain: int) -> dict[str, str]:
    return daemon.environment(domain, LD_LIBRARY_PATH=str(REFERENCE_LIBDIR))


def command(program: Path, *arguments: str) -> list[str | Path]:
    return [KVMCHAN, "exec", "--", program, *arguments]


def xenstore(daemon: Daemon, what: str, *arguments: str, domain: int = 0) -> str:
    """What xenstore-WHAT prints."""
    return run(*command(REFERENCE / "bin" / f"xenstore-{what}", *arguments), env=environment(daemon, domain)).stdout


def status(daemon: Daemon, what: str, *arguments: str, domain: int = 0) -> int:
    words = [str(each) for each in command(REFERENCE / "bin" / f"xenstore-{what}", *arguments)]
    return subprocess.run(words, env=environment(daemon, domain), capture_output=True).returncode


def watching(daemon: Daemon, *arguments: str, domain: int = 0) -> Program:
    return Program(*command(REFERENCE / "bin" / "xenstore-watch", *arguments), env=environment(daemon, domain))


def test_what_one_program_writes_others_read_list_and_remove(daemon: Daemon) -> None:
    xenstore(daemon, "write", "data/a", "1", "data/b/c", "two words", domain=1)
    assert xenstore(daemon, "read", "data/a", domain=1) == "1\n"
    assert xenstore(daemon, "read", "/local/domain/1/data/a", "/local/domain/1/data/b/c") == "1\ntwo words\n"
    assert sorted(xenstore(daemon, "list", "data", domain=1).split()) == ["a", "b"]
    assert xenstore(daemon, "ls", "data", domain=1).splitlines() == ['a = "1"', 'b = ""', ' c = "two words"']
    assert xenstore(daemon, "ls", "-f", "/local/domain/1/data").splitlines() == [
        '/local/domain/1/data/a = "1"',
        '/local/domain/1/data/b = ""',
        '/local/domain/1/data/b/c = "two words"',
    ]
    assert status(daemon, "exists", "data/b", domain=1) == 0
    xenstore(daemon, "rm", "data", domain=1)
    assert status(daemon, "exists", "data/b", domain=1) != 0
    assert status(daemon, "read", "data/a", domain=1) != 0


def test_a_program_lets_another_domain_read(daemon: Daemon) -> None:
    xenstore(daemon, "write", "data/x", "1", domain=1)
    assert status(daemon, "read", "/local/domain/1/data/x", domain=2) != 0
    xenstore(daemon, "chmod", "data/x", "n1", "r2", domain=1)
    assert "(n1,r2)" in xenstore(daemon, "ls", "-p", "data", domain=1)
    assert xenstore(daemon, "read", "/local/domain/1/data/x", domain=2) == "1\n"
    assert status(daemon, "write", "/local/domain/1/data/x", "2", domain=2) != 0
    xenstore(daemon, "rm", "data", domain=1)


def test_a_program_sees_a_vchan_come_and_go(daemon: Daemon) -> None:
    path = "/local/domain/1/data/vchan/2/1"
    with watching(daemon, "-n", "4", path, domain=0) as watch:
        watch.expect(path)
        with acting_as(daemon, 1):
            server = offer(2, "data/vchan/2/1")
        assert {watch.line(), watch.line()} == {f"{path}/ring-ref", f"{path}/event-channel"}
        found = dict(line.split(" = ") for line in xenstore(daemon, "ls", path, domain=0).splitlines())
        assert int(found["event-channel"].strip('"')) == 2 * int(found["ring-ref"].strip('"'))
        assert xenstore(daemon, "read", f"{path}/ring-ref", domain=2) == found["ring-ref"].strip('"') + "\n"
        server.close()
        watch.expect(path)


def test_all_of_xens_own_test_program_passes(daemon: Daemon) -> None:
    said = run(*command(TEST_XENSTORE, "-i", "3"), env=environment(daemon, 0)).stdout
    assert len(said.splitlines()) == 12
    assert "failed" not in said
    run(*command(TEST_XENSTORE, "-r", "1"), env=environment(daemon, 0))


def test_exec_leaves_a_path_that_is_set(daemon: Daemon) -> None:
    code = "import os; print(os.environ['XENSTORED_PATH'])"
    told = run(*command(Path(PYTHON), "-c", code), env=daemon.environment(2)).stdout
    assert told == f"{daemon.store_path(2)}\n"
    assert run(*command(Path(PYTHON), "-c", code), env=daemon.environment(2, XENSTORED_PATH="/mine")).stdout == "/mine\n"


def pyxs_client(daemon: Daemon, domain: int) -> pyxs.Client:
    return pyxs.Client(unix_socket_path=str(daemon.store_path(domain)))


def test_pyxs_reads_writes_and_walks(daemon: Daemon) -> None:
    with pyxs_client(daemon, 1) as client:
        client.write(b"data/a", b"1")
        client.mkdir(b"data/b")
        assert client.read(b"data/a") == b"1"
        assert sorted(client.list(b"data")) == [b"a", b"b"]
        assert client.get_domain_path(1) == b"/local/domain/1"
        client.set_perms(b"data/a", [b"n1", b"r2"])
        assert client.get_perms(b"data/a") == [b"n1", b"r2"]
        assert [path for path, _, _ in client.walk(b"/local/domain/1/data")] == [
            b"/local/domain/1/data",
            b"/local/domain/1/data/a",
            b"/local/domain/1/data/b",
        ]
        client.delete(b"data")
        assert not client.exists(b"data/a")
    with pyxs_client(daemon, 0) as host:
        assert host.is_domain_introduced(2)
        assert not host.is_domain_introduced(3)


def test_pyxs_transactions_commit_roll_back_and_conflict(daemon: Daemon) -> None:
    with pyxs_client(daemon, 1) as client, pyxs_client(daemon, 1) as other:
        client.write(b"data", b"0")
        client.transaction()
        client.write(b"data", b"1")
        assert other.read(b"data") == b"0"
        assert client.commit()
        assert other.read(b"data") == b"1"
        client.transaction()
        client.write(b"data", b"2")
        client.rollback()
        assert other.read(b"data") == b"1"
        client.transaction()
        client.write(b"data", client.read(b"data") + b"0")
        other.write(b"data", b"7")
        assert not client.commit()
        assert client.read(b"data") == b"7"
        client.delete(b"data")


def test_pyxs_monitors(daemon: Daemon) -> None:
    with pyxs_client(daemon, 1) as client, pyxs_client(daemon, 0) as other, client.monitor() as monitor:
        monitor.watch(b"data", b"token")
        events = monitor.wait()
        assert next(events) == (b"data", b"token")
        other.write(b"/local/domain/1/data/x", b"1")
        assert next(events) == (b"data/x", b"token")
        monitor.unwatch(b"data", b"token")
        client.delete(b"data")
