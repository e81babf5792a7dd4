# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kvmchan command: what it shows, and how it runs programs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from libxenvchan_shim import Vchan, connect, offer
from rig.clients import RawClient
from rig.daemon import Daemon, acting_as
from rig.paths import KVMCHAN, LIBDIR, PYTHON
from rig.program import Program


def kvmchan(*arguments: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KVMCHAN, *arguments], env=env, capture_output=True, text=True)


def refusal(*arguments: str | Path, env: dict[str, str]) -> str:
    """It fails: its status is 1, and what it says is one line."""
    done = kvmchan(*arguments, env=env)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.startswith("kvmchan: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# ---- ls ----


def test_ls_without_channels(daemon: Daemon) -> None:
    done = kvmchan("ls", env=daemon.environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["domains: 0 (host), 1 (local), 2 (local)", "no channels"]


@pytest.fixture
def four(daemon: Daemon) -> Iterator[dict[str, Vchan]]:
    """A channel in each state; the servers' ends by name, the clients' with a C before."""
    with ExitStack() as stack:
        made: dict[str, Vchan] = {}
        with acting_as(daemon, 1):
            for name in ("waiting", "connected", "clientgone", "servergone"):
                made[name] = stack.enter_context(offer(2, name, read_min=1024, write_min=2048))
        with acting_as(daemon, 2):
            for name in ("connected", "clientgone", "servergone"):
                made[f"C{name}"] = stack.enter_context(connect(1, f"/local/domain/1/{name}"))
        made["Cconnected"].send(bytes(5))
        made["connected"].send(bytes(7))
        made["servergone"].send(bytes(3))
        made["Cclientgone"].close()
        made["servergone"].close()
        yield made


def test_ls_json_says_all_of_every_channel(daemon: Daemon, four: dict[str, Vchan]) -> None:
    me = os.getpid()
    listed = daemon.listing()
    assert listed["domains"] == [{"domain": 0, "kind": "host"}, {"domain": 1, "kind": "local"}, {"domain": 2, "kind": "local"}]
    expected = [
        # name, state, process and bytes ready at the server, at the client
        ("waiting", "waiting", me, 0, 0, 0),
        ("connected", "connected", me, 5, me, 7),
        ("clientgone", "client-gone", me, 0, 0, 0),
        ("servergone", "server-gone", 0, 0, me, 3),
    ]
    first = listed["channels"][0]["channel"]  # others have used this daemon before
    assert listed["channels"] == [
        {
            "channel": number,
            "path": f"/local/domain/1/{name}",
            "state": state,
            "server": 1,
            "client": 2,
            "server_pid": server_pid,
            "client_pid": client_pid,
            "server_ring": 1024,
            "client_ring": 2048,
            "server_ready": server_ready,
            "client_ready": client_ready,
        }
        for number, (name, state, server_pid, server_ready, client_pid, client_ready) in enumerate(expected, first)
    ]


def test_ls_shows_the_same_as_a_table(daemon: Daemon, four: dict[str, Vchan]) -> None:
    me = str(os.getpid())
    done = kvmchan("ls", env=daemon.environment())
    assert done.stderr == ""
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    numbers = [str(each["channel"]) for each in daemon.channels()]
    assert rows == [
        ["CHANNEL", "SERVER", "CLIENT", "STATE", "RINGS", "READY", "PATH"],
        [numbers[0], f"1:{me}", "2:-", "waiting", "1024/2048", "0/0", "/local/domain/1/waiting"],
        [numbers[1], f"1:{me}", f"2:{me}", "connected", "1024/2048", "5/7", "/local/domain/1/connected"],
        [numbers[2], f"1:{me}", "2:-", "client-gone", "1024/2048", "0/0", "/local/domain/1/clientgone"],
        [numbers[3], "1:-", f"2:{me}", "server-gone", "1024/2048", "0/3", "/local/domain/1/servergone"],
    ]


def test_ls_shows_the_process_at_each_end(daemon: Daemon) -> None:
    code = "import libxenvchan_shim as v; c = v.connect(0, 'x'); print('there', flush=True); input(); c.close()"
    with acting_as(daemon), offer(0, "x"), Program(PYTHON, "-c", code, env=daemon.environment()) as client:
        client.expect("there")
        (channel,) = daemon.channels()
        assert (channel["server_pid"], channel["client_pid"]) == (os.getpid(), client.pid)
        client.tell()


def test_ls_counts_nothing_where_the_indexes_can_not_be(daemon: Daemon) -> None:
    with RawClient(daemon) as client:
        granted = client.hello().offer()
        for index in (252, 508):  # of both rings: how much was consumed, and produced
            os.pwrite(granted["fds"][0], (7).to_bytes(4, "little") + (5).to_bytes(4, "little"), index)
        (channel,) = daemon.channels()
        assert (channel["server_ready"], channel["client_ready"]) == (0, 0)


def test_a_local_domain_sees_its_own_channels_only(daemon: Daemon) -> None:
    with ExitStack() as stack:
        for server, client in ((1, 2), (1, 1), (2, 0), (0, 0)):
            with acting_as(daemon, server):
                stack.enter_context(offer(client, f"{server}-{client}"))

        def seen(domain: int) -> list[str]:
            return [each["path"].rpartition("/")[2] for each in daemon.listing(domain)["channels"]]

        assert seen(0) == ["1-2", "1-1", "2-0", "0-0"]
        assert seen(1) == ["1-2", "1-1"]
        assert seen(2) == ["1-2", "2-0"]


@pytest.mark.parametrize(("count", "length"), [(350, 10), (40, 3000)])
def test_ls_shows_more_channels_than_one_packet_holds(daemon: Daemon, count: int, length: int) -> None:
    with ExitStack() as stack, acting_as(daemon):
        paths = [f"/{number:x>{length}}" for number in range(count)]
        for path in paths:
            stack.enter_context(offer(0, path))
        listed = daemon.channels()
        assert [each["path"] for each in listed] == paths
        first = listed[0]["channel"]
        assert [each["channel"] for each in listed] == list(range(first, first + count))
        shown = kvmchan("ls", env=daemon.environment()).stdout.splitlines()
        assert [line.split()[-1] for line in shown[2:]] == paths


def test_ls_to_a_pipe_that_nobody_reads_says_nothing(daemon: Daemon) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([KVMCHAN, "ls"], env=daemon.environment(), stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode != 0


def test_ls_without_a_daemon(tmp_path: Path) -> None:
    said = refusal("ls", env={**os.environ, "KVMCHAN_RUNTIME_DIR": str(tmp_path)})
    assert f"no kvmchand answers at {tmp_path}/kvmchand.sock" in said
    assert "KVMCHAN_RUNTIME_DIR" in said


def test_ls_for_a_domain_that_is_not_there(daemon: Daemon) -> None:
    assert "domain-7.sock" in refusal("ls", env=daemon.environment(7))


def test_ls_for_a_domain_that_can_not_be(daemon: Daemon) -> None:
    assert "KVMCHAN_DOMAIN" in refusal("ls", env=daemon.environment(KVMCHAN_DOMAIN="x") | {"KVMCHAN_DOMAIN": "x"})


# ---- doctor ----


def libvirt_of(folder: Path, emulator: str) -> str:
    """The URI of libvirt's own test driver, with a domain that runs on this emulator."""
    path = folder / "libvirt.xml"
    path.write_text(f"""\
<node><domain type='test'><name>web</name><memory>65536</memory><os><type arch='x86_64'>hvm</type></os>
<devices><emulator>{emulator}</emulator></devices></domain></node>""")
    return f"test://{path}"


@pytest.mark.parametrize(("device", "grade"), [("ivshmem-doorbell", "ok"), ("ivshmem-plain", "bad")])
def test_the_doctor_asks_the_emulator_for_the_device(daemon: Daemon, tmp_path: Path, device: str, grade: str) -> None:
    emulator = tmp_path / "qemu"
    emulator.write_text(f"#!/bin/sh\necho 'name \"{device}\", bus PCI'\n")
    emulator.chmod(0o755)
    done = kvmchan("doctor", "--as", "host", "--uri", libvirt_of(tmp_path, str(emulator)), env=daemon.environment())
    assert done.stderr == ""
    (said,) = [line for line in done.stdout.splitlines() if "emulator" in line]
    assert said.startswith(f"{grade:4}  emulator {emulator}: ")


def test_the_doctor_s_json_has_the_findings_as_they_are_printed(daemon: Daemon, tmp_path: Path) -> None:
    arguments = ("doctor", "--as", "host", "--uri", libvirt_of(tmp_path, "/none"))
    printed, as_data = (kvmchan(*arguments, *more, env=daemon.environment()) for more in ((), ("--json",)))
    assert (as_data.returncode, as_data.stderr) == (printed.returncode, "")
    told = json.loads(as_data.stdout)
    assert told.keys() == {"role", "findings"}
    assert told["role"] == "host"
    assert all(each.keys() == {"grade", "kind", "subject", "sentence"} for each in told["findings"])
    lines = [f"{each['grade']:4}  {each['subject']}: {each['sentence']}" for each in told["findings"]]
    assert lines == printed.stdout.splitlines()
    assert [(each["kind"], each["grade"]) for each in told["findings"][:3]] == [
        ("daemon", "ok"),
        ("libvirt", "ok"),
        ("emulator", "note"),
    ]


def test_the_doctor_s_status_is_the_same_with_json(tmp_path: Path) -> None:
    uri = libvirt_of(tmp_path, "/none")
    done = kvmchan("doctor", "--json", "--as", "host", "--uri", uri, env={**os.environ, "KVMCHAN_RUNTIME_DIR": str(tmp_path)})
    assert done.returncode == 1
    first = json.loads(done.stdout)["findings"][0]
    assert (first["grade"], first["kind"], first["subject"]) == ("bad", "daemon", "kvmchand host")
    assert first["sentence"].startswith("no kvmchand answers at ")


def test_the_doctor_s_help_says_what_the_json_has() -> None:
    said = kvmchan("doctor", "--help", env=dict(os.environ)).stdout
    assert all(f'"{name}"' in said for name in ("role", "findings", "grade", "kind", "subject", "sentence"))


def test_the_doctor_finds_out_by_the_daemon_that_this_is_a_host(daemon: Daemon, tmp_path: Path) -> None:
    done = kvmchan("doctor", "--json", "--uri", libvirt_of(tmp_path, "/none"), env=daemon.environment())
    assert json.loads(done.stdout)["role"] == "host"


# ---- exec ----


def test_exec_becomes_the_program_with_our_libraries_first(daemon: Daemon) -> None:
    environment = daemon.environment() | {"LD_LIBRARY_PATH": "/before"}
    with Program(KVMCHAN, "exec", "--", "sh", "-c", 'echo $$; echo "$LD_LIBRARY_PATH"; exit 7', env=environment) as program:
        program.status = 7
        program.expect(str(program.pid))
        folders = program.line().split(":")
    assert folders[0] == str(LIBDIR)
    assert folders[-1] == "/before"
    assert str(LIBDIR / "xen-4.17") in folders
    for folder in folders[:-1]:
        assert any(Path(folder).glob("lib*vchan*.so*")), folder


def test_exec_leaves_no_empty_folder_in_the_path(daemon: Daemon) -> None:
    environment = daemon.environment()
    environment.pop("LD_LIBRARY_PATH", None)
    done = kvmchan("exec", "--", "sh", "-c", 'echo "$LD_LIBRARY_PATH"', env=environment)
    assert "" not in done.stdout.strip().split(":")


def test_exec_passes_arguments_on_as_they_are() -> None:
    arguments = ["-x", "--json", "--", "a b", ""]
    done = kvmchan("exec", "--", "printf", "<%s>\\n", *arguments, env=dict(os.environ))
    assert done.stdout.splitlines() == [f"<{each}>" for each in arguments]


def test_exec_of_a_missing_program() -> None:
    said = refusal("exec", "--", "no-such-program", "--option", env=dict(os.environ))
    assert "no-such-program" in said
    assert "No such file" in said


def test_exec_of_what_is_no_program(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal("exec", "--", tmp_path, env=dict(os.environ))


@pytest.mark.parametrize("arguments", [[], ["--"]])
def test_exec_of_no_program(arguments: list[str]) -> None:
    assert "no program" in refusal("exec", *arguments, env=dict(os.environ))


def test_exec_without_the_libraries(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal("exec", "--", "true", env={**os.environ, "KVMCHAN_LIBDIR": str(tmp_path)})


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["ls", "--yaml"]])
def test_a_command_that_is_none_shows_how_it_is_used(arguments: list[str]) -> None:
    done = kvmchan(*arguments, env=dict(os.environ))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: kvmchan")
