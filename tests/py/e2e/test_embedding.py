# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program with our library in it must not notice that there is a Python in it, whatever it does
and wherever it runs.
"""

from __future__ import annotations

import array
import ctypes
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import _cffi_backend  # type: ignore[import-untyped]
import pytest

from kvmchand.wire import dataplane
from rig.daemon import Daemon
from rig.deadline import eventually
from rig.device import end_on_device, slice_of_device
from rig.paths import KVMCHAN, LIBDIR, PROGRAMS, PYTHON, ROOT, SITE
from rig.processes import NOBODY, in_poll, run, stopped
from rig.program import Program
from rig.shell import Compiled, assert_says, attempt, refused

pytestmark = pytest.mark.usefixtures("runtime")


def peer_of(compiled: Compiled, daemon: Daemon, domain: int, role: str) -> Program:
    peer = Program(compiled("shell"), env=daemon.environment(domain))
    assert peer.ask(role) == "ok"
    return peer


# ---- the environment that it starts in ----


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder in which no Python can start."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    names = ("json", "os", "_socket", "socket", "_json", "fcntl", "errno", "site", "sitecustomize", "usercustomize", "codecs")
    for name in (*names, "_cffi_backend", "kvmchan_embed", "kvmchand", "libxenvchan_shim", "io", "abc", "startup"):
        (folder / f"{name}.py").write_text("import posix\nposix._exit(99)\n")
    (folder / "encodings").mkdir()
    (folder / "encodings" / "__init__.py").write_text("import posix\nposix._exit(99)\n")
    (folder / "pyvenv.cfg").write_text("home = /nonexistent\ninclude-system-site-packages = maybe\n")
    for name in ("python3", "python"):
        (folder / name).symlink_to("/nonexistent")
    return folder


def test_starts_whatever_pythons_environment_and_the_working_directory_hold(
    daemon: Daemon, compiled: Compiled, hostile: Path
) -> None:
    environment = daemon.environment(
        PYTHONPATH=str(hostile),
        PYTHONHOME=str(hostile),
        PYTHONPLATLIBDIR="nonexistent",
        PYTHONSTARTUP=str(hostile / "startup.py"),
        PYTHONEXECUTABLE="/nonexistent",
        PYTHONUSERBASE=str(hostile),
        PYTHONPYCACHEPREFIX=str(hostile),
        PYTHONIOENCODING="no-such-encoding",
        PYTHONUTF8="7",
        PYTHONHASHSEED="not a number",
        PYTHONMALLOC="no-such-allocator",
        PYTHONCOERCECLOCALE="warn",
        PYTHONWARNINGS="error",
        PYTHONVERBOSE="2",
        PYTHONDEBUG="1",
        PYTHONDEVMODE="1",
        PYTHONINSPECT="1",
        PYTHONTRACEMALLOC="no-number",
        PYTHONFAULTHANDLER="1",
        PYTHONDUMPREFS="1",
        LC_ALL="no_such_LOCALE",
        PATH=str(hostile),
        HOME=str(hostile),
    )
    # Python looks for pyvenv.cfg beside the program, too.
    shutil.copy(compiled("loopback"), hostile / "program")
    before = {each: each.stat().st_mtime_ns for each in hostile.rglob("*") if each.exists()}
    assert_says(run("./program", "0", "data/hostile", env=environment, cwd=hostile), "ok\n")
    assert {each: each.stat().st_mtime_ns for each in hostile.rglob("*") if each.exists()} == before

    # The test tests something: each of the two keeps an ordinary Python from starting.
    for spoiled in ({"PYTHONPATH": str(hostile)}, {"PYTHONHOME": str(hostile)}):
        done = subprocess.run([PYTHON, "-c", "import json"], env={**os.environ, **spoiled}, capture_output=True)
        assert done.returncode != 0


@pytest.mark.parametrize("locale", ["", "C.UTF-8"])
def test_init_and_close_change_nothing_of_the_process(daemon: Daemon, compiled: Compiled, locale: str) -> None:
    """Locale, stdio, signals, environment, limits, descriptors, threads: compared inside the
    program.
    """
    environment = daemon.environment(LC_ALL="C.UTF-8", LC_CTYPE="C")
    assert_says(
        run(compiled("unnoticed"), "data/unnoticed", locale, env=environment, stdin=subprocess.DEVNULL), "not flushed yet\n"
    )


@pytest.mark.parametrize("what", ["idle", "recv"])
def test_interrupt_kills_the_program_as_ever(daemon: Daemon, compiled: Compiled, what: str) -> None:
    with Program(compiled("interrupted"), what, "data/interrupted", env=daemon.environment()) as program:
        program.expect("ready")
        # Nothing is left that it could sleep in but pause() or libxenvchan_recv().
        eventually(lambda: Path(f"/proc/{program.pid}/stat").read_text().rpartition(") ")[2][0] == "S")
        program.process.send_signal(signal.SIGINT)
        program.status = -signal.SIGINT


def test_first_init_needs_little_memory(daemon: Daemon, compiled: Compiled) -> None:
    grown, later = (int(each) for each in run(compiled("memory"), "data/memory", env=daemon.environment()).stdout.split())
    assert 0 < grown <= 15 * 1024, "KiB"
    assert later <= 1024, "KiB, by a hundred more, all closed"


def test_stdios_numbers_never_become_the_librarys(daemon: Daemon, compiled: Compiled) -> None:
    assert_says(run(compiled("no_stdio"), "data/no-stdio", env=daemon.environment()))


# ---- what it does after ----


def test_channel_is_used_and_closed_by_a_forked_child(daemon: Daemon, compiled: Compiled) -> None:
    with Program(compiled("forks"), "fork", "1", "/local/domain/0/data/fork", env=daemon.environment()) as program:
        program.expect("offered")
        with peer_of(compiled, daemon, 1, "client 0 /local/domain/0/data/fork") as peer:
            for word in ("hello", "child", "close"):
                assert peer.ask(f"send {word}") == "5"
                assert peer.ask("recv 5") == word
            assert peer.ask("gone") == "gone"
            program.expect("child ended")
            # Closed is closed, though the parent lives and has it mapped.
            (channel,) = daemon.channels()
            assert (channel["state"], channel["server_pid"], channel["client_pid"]) == ("server-gone", 0, peer.pid)


def test_channel_goes_on_in_a_daemon_whose_parent_has_ended(daemon: Daemon, compiled: Compiled) -> None:
    with Program(compiled("forks"), "daemonize", "1", "/local/domain/0/data/fork", env=daemon.environment()) as program:
        program.expect("offered")
        with peer_of(compiled, daemon, 1, "client 0 /local/domain/0/data/fork") as peer:
            assert peer.ask("send hello") == "5"
            assert peer.ask("recv 5") == "hello"
            assert program.process.wait() == 0
            assert peer.ask("open") == "1"
            assert peer.ask("send after") == "5"
            assert peer.ask("recv 5") == "after"
            assert [each["state"] for each in daemon.channels()] == ["connected"]
            assert peer.ask("open") == "1"
            assert peer.ask("send close") == "5"
            assert peer.ask("recv 5") == "close"
            assert peer.ask("gone") == "gone"
            program.expect("daemon ended")
            assert program.line() == "", "nobody has its stdout any more"


def test_threads_open_use_and_close_channels_at_the_same_time(daemon: Daemon, compiled: Compiled) -> None:
    assert_says(run(compiled("threads"), "data/threads", "6", env=daemon.environment()), "ok\n")


@contextmanager
def naked(daemon: Daemon, compiled: Compiled, role: str, own: str) -> Iterator[tuple[Program, Program]]:
    """A program that has closed every descriptor but one, and given the numbers to its own files;
    and its peer.
    """
    path = f"/local/domain/{0 if role == 'server' else 1}/data/naked"
    other = "client 0 " if role == "server" else "server 0 0 0 "
    command = (compiled("closes_fds"), role, own, "1", path)
    if role == "server":
        with Program(*command, env=daemon.environment()) as program:
            program.expect("ready")
            with peer_of(compiled, daemon, 1, other + path) as peer:
                yield program, peer
    else:
        with peer_of(compiled, daemon, 1, other + path) as peer, Program(*command, env=daemon.environment()) as program:
            program.expect("ready")
            yield program, peer


def assert_unnoticed(daemon: Daemon, program: Program, peer: Program) -> None:
    assert peer.ask("send hello") == "5"
    assert peer.ask("recv 5") == "naked"
    assert peer.ask("open") == "1"
    (channel,) = daemon.channels()
    assert channel["state"] == "connected"
    assert {channel["server_pid"], channel["client_pid"]} == {program.pid, peer.pid}


@pytest.mark.parametrize("own", ["files", "sockets"])
@pytest.mark.parametrize("role", ["server", "client"])
def test_channel_outlives_the_closing_of_all_other_descriptors(daemon: Daemon, compiled: Compiled, role: str, own: str) -> None:
    """That the program's own files under the library's old numbers were not touched is its exit
    status.
    """
    with naked(daemon, compiled, role, own) as (program, peer):
        assert_unnoticed(daemon, program, peer)
        assert peer.ask("send close") == "5"
        assert peer.ask("gone") == "gone"
        program.finish()
        if role == "client":
            (channel,) = daemon.channels()
            assert (channel["state"], channel["server_pid"], channel["client_pid"]) == ("client-gone", peer.pid, 0)


@pytest.mark.parametrize("role", ["server", "client"])
def test_death_is_seen_after_the_closing_of_all_other_descriptors(daemon: Daemon, compiled: Compiled, role: str) -> None:
    with naked(daemon, compiled, role, "sockets") as (program, peer):
        assert_unnoticed(daemon, program, peer)
        program.process.kill()
        program.status = -signal.SIGKILL
        assert peer.ask("gone") == "gone"


def test_channel_is_closed_from_an_empty_root_by_nobody(daemon: Daemon, compiled: Compiled, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("chroot is root's")
    empty = tmp_path / "empty"
    empty.mkdir()
    path = "/local/domain/0/data/drops"
    with Program(compiled("drops_rights"), "1", path, empty, env=daemon.environment()) as program:
        program.expect("dropped")
        with peer_of(compiled, daemon, 1, f"client 0 {path}") as peer:
            assert peer.ask("send hello") == "5"
            assert peer.ask("recv 5") == "hello"
            assert program.ask("") == "closed"
            # At once: not at the process's end.
            (channel,) = daemon.channels()
            assert (channel["state"], channel["server_pid"]) == ("server-gone", 0)
            assert peer.ask("gone") == "gone"
        program.tell()


def test_a_first_call_from_another_root_is_told_what_is_missing(daemon: Daemon, compiled: Compiled, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("chroot is root's")
    done = run(compiled("drops_rights"), "1", "data/drops", tmp_path, "first", env=daemon.environment())
    assert "a program that changes its root or its rights must open a vchan before that" in done.stdout


def test_the_library_loads_little_of_python() -> None:
    """All that it imports is paid for by other people's programs.

    So it imports neither ctypes nor json, nor any module that drags half of Python in.
    """
    code = "import sys, libxenvchan_shim.embed; print(*sorted(sys.modules))"
    loaded = set(run(PYTHON, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(SITE)!r}); {code}").stdout.split())
    assert "kvmchand.wire.client" in loaded
    slow = {"ctypes", "collections", "dataclasses", "enum", "functools", "inspect", "json", "pathlib", "re", "socket", "typing"}
    assert not loaded & {*slow, "_ctypes", "kvmchand.wire.dataplane"}


@pytest.mark.parametrize("case", ["small", "blocked", "cancelled", "forked"])
def test_the_first_call_may_be_any_threads(daemon: Daemon, compiled: Compiled, case: str) -> None:
    assert_says(run(compiled("unusual_threads"), "data/unusual", case, env=daemon.environment()), "ok\n")


def test_data_moves_with_the_system_calls_that_are_documented(daemon: Daemon, compiled: Compiled) -> None:
    """Any other would end the program, on a channel between two programs of this machine."""
    path = "/local/domain/1/data/filtered"
    filtered = compiled("filtered")
    with Program(filtered, "server", "2", path, env=daemon.environment(1)) as server:
        server.expect("offered")
        with Program(filtered, "client", "1", path, env=daemon.environment(2)) as client:
            client.expect("done")
            server.expect("done")
    listed = (ROOT / "docs" / "porting.md").read_text().partition("A seccomp filter must allow")[2].partition("\n\n")[0]
    source = (PROGRAMS / "filtered.c").read_text().partition("allowed[] = {")[2].partition("}")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(re.findall(r"SYS_(\w+)", source)) - {"exit_group"}


# ---- a grant that nobody takes ----


PATH = "/local/domain/0/data/left"


def test_a_connect_that_was_left_is_in_no_others_way(daemon: Daemon, compiled: Compiled) -> None:
    with (
        peer_of(compiled, daemon, 0, f"server 1 0 0 {PATH}") as server,
        Program(compiled("left_connect"), "0", PATH, env=daemon.environment(1)) as left,
    ):
        left.expect("ready")
        with stopped(daemon.pid):
            left.tell()
            eventually(lambda: in_poll(left.pid))
            left.process.send_signal(signal.SIGUSR1)
            left.expect("left")
        eventually(lambda: daemon.channels()[0]["client_pid"] == left.pid)  # for what that is worth
        with peer_of(compiled, daemon, 1, f"client 0 {PATH}") as peer:
            assert peer.ask("send hello") == "5"
            assert server.ask("recv 5") == "hello"
            left.tell()
            left.finish()
            assert peer.ask("open") == "1"
            assert peer.ask("close") == "ok"
            assert server.ask("close") == "ok"


@pytest.mark.parametrize("runtime", ["inside"], indirect=True)  # beside, it polls before it has asked, too
def test_a_client_that_was_too_slow_to_take_its_grant_asks_again(daemon: Daemon, compiled: Compiled) -> None:
    with (
        peer_of(compiled, daemon, 0, f"server 1 0 0 {PATH}") as server,
        Program(compiled("shell"), env=daemon.environment(1)) as slow,
    ):
        assert slow.ask("client 0 data/none").startswith("NULL 2 ")
        with stopped(daemon.pid):
            slow.tell(f"client 0 {PATH}")
            eventually(lambda: in_poll(slow.pid))
            os.kill(slow.pid, signal.SIGSTOP)
        eventually(lambda: daemon.channels()[0]["client_pid"] == slow.pid)
        with peer_of(compiled, daemon, 1, f"client 0 {PATH}") as peer:
            os.kill(slow.pid, signal.SIGCONT)
            assert slow.line().startswith("NULL 16 ")  # EBUSY
            assert peer.ask("send hello") == "5"
            assert server.ask("recv 5") == "hello"
            assert peer.ask("close") == "ok"
            assert server.ask("close") == "ok"


# ---- what can be wrong with the daemon ----


def test_missing_daemon_is_told_at_once(compiled: Compiled, tmp_path: Path) -> None:
    number, sentence = attempt(compiled, tmp_path)
    assert number == 111  # ECONNREFUSED
    assert sentence == (
        f"no kvmchand answers at {tmp_path}/kvmchand.sock (No such file or directory): "
        "start it, or set KVMCHAN_RUNTIME_DIR to where it is"
    )


def test_a_domain_that_the_daemon_does_not_serve_is_told_with_those_that_it_does(daemon: Daemon, compiled: Compiled) -> None:
    number, sentence = attempt(compiled, daemon.runtime_dir, KVMCHAN_DOMAIN="7")
    assert number == 22  # EINVAL
    assert "set KVMCHAN_DOMAIN to a domain that it serves (1, 2), or unset it" in sentence


@pytest.mark.parametrize("room", range(5))
def test_a_program_short_of_descriptors_gets_emfile(daemon: Daemon, compiled: Compiled, room: int, runtime: str) -> None:
    """A call needs one for the connection, and two for the answer; and one for a helper's reply."""
    with Program(compiled("shell"), env=daemon.environment()) as shell:
        assert shell.ask("server 0 0 0 data/first") == "ok"
        assert shell.ask("close") == "ok"
        used = len(list(Path(f"/proc/{shell.pid}/fd").iterdir()))
        limits = resource.prlimit(shell.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(shell.pid, resource.RLIMIT_NOFILE, (used + room, limits[1]))
        answer = shell.ask("server 0 0 0 data/short")
        if answer != "ok":
            _, number, sentence = answer.split(" ", 2)
            assert number == "24", sentence  # EMFILE
            assert "ulimit -n" in sentence
        assert (answer == "ok") == (room >= (3 if runtime == "inside" else 5))
        resource.prlimit(shell.pid, resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA], ids=["address space", "data"])
def test_a_program_short_of_memory_gets_enomem_and_lives(daemon: Daemon, compiled: Compiled, kind: int) -> None:
    answers = []
    for mib in (*range(4, 32, 2), 48, 64):
        limit = (mib << 20, mib << 20)
        with Program(
            compiled("shell"), env=daemon.environment(), preexec_fn=lambda limit=limit: resource.setrlimit(kind, limit)
        ) as shell:
            answers.append(shell.ask("server 0 0 0 data/short"))
    first = answers.index("ok")
    assert set(answers[first:]) == {"ok"}
    assert first > 0
    for each in answers[:first]:
        assert each.startswith("NULL 12 Python, which talks to the daemon, needs "), each


def test_a_relative_folder_is_where_the_program_was_started(daemon: Daemon, compiled: Compiled) -> None:
    environment = daemon.environment(KVMCHAN_RUNTIME_DIR=daemon.runtime_dir.name)
    assert_says(run(compiled("changes_folder"), "data/elsewhere", env=environment, cwd=daemon.runtime_dir.parent))
    program = [str(KVMCHAN), "exec", "sh", "-c", "cd / && echo $XENSTORED_PATH $KVMCHAN_RUNTIME_DIR"]
    paths = f"{daemon.runtime_dir}/store.sock {daemon.runtime_dir}\n"
    assert_says(run(*program, env=environment, cwd=daemon.runtime_dir.parent), paths)


def test_socket_of_a_daemon_that_was_killed_is_told_at_once(compiled: Compiled, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(tmp_path / "kvmchand.sock"))
    number, sentence = attempt(compiled, tmp_path)
    assert number == 111  # ECONNREFUSED
    assert sentence.startswith(f"no kvmchand answers at {tmp_path}/kvmchand.sock (Connection refused): ")


@pytest.mark.parametrize(
    ("runtime_dir", "domain", "number"),
    [
        ("/" + "long/" * 30, "", 111),
        ("/dev/null", "", 111),
        ("relative", "", 111),
        ("/", "x", 22),
        ("/", "-1", 22),
        ("/", "7", 111),
    ],
)
def test_settings_that_lead_nowhere_are_errors_like_any_other(
    compiled: Compiled, tmp_path: Path, runtime_dir: str, domain: str, number: int
) -> None:
    got, sentence = attempt(compiled, Path(runtime_dir), KVMCHAN_DOMAIN=domain)
    assert got == number, sentence
    assert "KVMCHAN_" in sentence


def test_a_runtime_directory_of_somebody_elses_is_told(daemon: Daemon, compiled: Compiled) -> None:
    """To a program of nobody's, whose library lies where it may read it."""
    if os.geteuid() != 0:
        pytest.skip("only root can run a program as somebody else")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        libraries = folder / LIBDIR.relative_to(SITE)
        shutil.copytree(LIBDIR, libraries)
        shutil.copy(_cffi_backend.__file__, folder)  # the runtime looks there, as in a wheel's install
        program = Path(shutil.copy(compiled("shell"), folder))
        environment = daemon.environment(LD_LIBRARY_PATH=str(libraries))
        with Program(program, env=environment, cwd="/", user=NOBODY, group=NOBODY, extra_groups=[]) as shell:
            for _ in range(2):
                number, sentence = refused(shell, "server 0 0 0 data/attempt")
                assert number == 13, sentence  # EACCES
                assert "may not be used by this user" in sentence


class FakeDaemon:
    """Answers a client's first request with what a test says."""

    def __init__(self, folder: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(folder / "kvmchand.sock"))
        self._listener.listen()

    def __enter__(self) -> FakeDaemon:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._listener.close()

    def serve(self, packets: int, answer: bytes, fds: list[int]) -> None:
        """Accept a client, take so many of its packets, answer if there is an answer, and close."""
        client, _ = self._listener.accept()
        with client:
            for _ in range(packets):
                assert client.recv(65536)
            if answer:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
                client.sendmsg([answer], rights)


GRANTED = (
    b'{"type":"grant","channel":1,"path":"/local/domain/0/data/attempt","left_order":10,"right_order":11,'
    b'"events":"socket","offset":0,"doorbell":0,"doorbell_value":0}'
)
# What it is: packets it takes (the hello and the request), its answer, descriptors beside it, the
# errno, part of the sentence
FAKES: dict[str, tuple[int, bytes, int, int, str]] = {
    "closes at once": (0, b"", 0, 111, "ended the connection"),
    "closes after the hello": (1, b"", 0, 111, "ended the connection"),
    "closes after the request": (2, b"", 0, 111, "ended the connection"),
    "refuses the version": (
        1,
        b'{"type":"error","code":"protocol","sentence":"the client speaks version 1, and kvmchand version 999"}',
        0,
        71,
        "the client speaks version 1, and kvmchand version 999",
    ),
    "speaks another version": (2, b'{"type":"welcome","version":999,"domain":0}', 0, 71, "use the same release"),
    "fails in a way we do not know": (2, b'{"type":"error","code":"new","sentence":"something new"}', 0, 5, "something new"),
    "says what is no text": (2, b"\xff\xfe\x00", 0, 71, "can't be understood"),
    "says what is no JSON": (2, b"hello?", 0, 71, "can't be understood"),
    "says what is no object": (2, b"[1]", 0, 71, "can't be understood"),
    "nests deeply": (2, b"[" * 20000, 0, 71, "can't be understood"),
    "says too much": (2, b" " * 40000, 0, 71, "more than"),
    "counts beyond bounds": (2, GRANTED.replace(b'order":10', b'order":' + b"9" * 5000), 2, 71, "can't be understood"),
    "leaves a field out": (2, GRANTED.replace(b'"channel":1,', b""), 2, 71, "can't be understood"),
    "adds a field": (2, GRANTED.replace(b"{", b'{"more":1,'), 2, 71, "can't be understood"),
    "answers something else": (
        2,
        b'{"type":"listing","domains":[],"guests":[],"links":[],"devices":[],"channels":[],"following":0}',
        0,
        71,
        "Listing",
    ),
    "sends descriptors with an error": (2, b'{"type":"error","code":"denied","sentence":"no"}', 3, 13, "no"),
    "grants without descriptors": (2, GRANTED, 0, 71, "0 descriptors"),
    "grants with one descriptor": (2, GRANTED, 1, 71, "1 descriptors"),
    "grants with three descriptors": (2, GRANTED, 3, 71, "3 descriptors"),
    "grants with many descriptors": (2, GRANTED, 250, 71, "250 descriptors"),
    "grants what is no memory": (2, GRANTED, 2, 22, "bytes of memory"),
    "grants events of no kind": (2, GRANTED.replace(b"socket", b"pigeon"), 2, 71, "'pigeon' for events"),
    "grants an eventfd too few": (2, GRANTED.replace(b"socket", b"eventfd"), 2, 71, "2 descriptors, not 3"),
    "grants no eventfds": (2, GRANTED.replace(b"socket", b"eventfd"), 3, 22, "bytes of memory"),
    "grants a doorbell that is none": (2, GRANTED.replace(b"socket", b"doorbell"), 2, 13, "mapped"),
    "grants a doorbell of 33 bits": (
        2,
        GRANTED.replace(b'"doorbell_value":0', b'"doorbell_value":4294967296'),
        2,
        71,
        "invalid channel",
    ),
    "grants memory between pages": (2, GRANTED.replace(b'"offset":0', b'"offset":2048'), 2, 71, "invalid channel"),
    "grants a doorbell between pages": (2, GRANTED.replace(b'"doorbell":0', b'"doorbell":12'), 2, 71, "invalid channel"),
    "grants rings that overlap": (2, GRANTED.replace(b"10", b"11"), 2, 22, "rings of orders 11 and 11"),
    "grants rings of no size": (2, GRANTED.replace(b'order":10', b'order":0'), 2, 22, "rings of orders 0 and 11"),
    "grants rings of negative size": (2, GRANTED.replace(b'order":10', b'order":-1'), 2, 71, "invalid channel"),
    "grants a path longer than any": (2, GRANTED.replace(b"attempt", b"a" * 5000), 2, 71, "can't be understood"),
    "grants a path longer in bytes than in letters": (
        2,
        GRANTED.replace(b"attempt", "€".encode() * 4000),
        2,
        71,
        "can't be understood",
    ),
    "grants a path of other letters than a path has": (2, GRANTED.replace(b"attempt", "€".encode()), 2, 71, "invalid channel"),
    "grants a path that is no text": (2, GRANTED.replace(b"attempt", b"\\ud800"), 2, 71, "can't be understood"),
}


@pytest.mark.parametrize("fake", FAKES.values(), ids=FAKES)
def test_daemon_that_misbehaves_is_an_error_and_leaves_nothing(
    compiled: Compiled, tmp_path: Path, fake: tuple[int, bytes, int, int, str]
) -> None:
    packets, answer, count, number, part = fake
    environment = {**os.environ, "KVMCHAN_RUNTIME_DIR": str(tmp_path)}
    with (
        FakeDaemon(tmp_path) as daemon,
        Program(compiled("shell"), env=environment) as shell,
        Path("/dev/null").open("rb") as null,
    ):
        # Once to start the interpreter, so that what is left of the second can be told.
        for _ in range(2):
            before = shell.ask("fds")
            shell.tell("server 0 0 0 data/attempt")
            daemon.serve(packets, answer, [null.fileno()] * count)
            null_pointer, got, sentence = shell.line().split(" ", 2)
            assert (null_pointer, int(got)) == ("NULL", number), sentence
            assert part in sentence
            assert "unexpected" not in sentence
            assert shell.ask("fds") == before


def test_an_end_whose_peer_is_in_a_guest(compiled: Compiled, tmp_path: Path) -> None:
    """All that was granted reaches the data plane; and the end goes with the daemon, once it is
    woken.
    """
    environment = {**os.environ, "KVMCHAN_RUNTIME_DIR": str(tmp_path)}
    with (
        FakeDaemon(tmp_path) as daemon,
        Program(compiled("shell"), env=environment) as shell,
        slice_of_device() as (memory, event, notify, offset),
    ):
        before = int(shell.ask("fds"))
        peer = end_on_device(memory, notify, event, offset, is_server=False)
        shell.tell("server 0 0 0 data/attempt")
        granted = GRANTED.replace(b"socket", b"eventfd").replace(b'"offset":0', f'"offset":{offset}'.encode())
        daemon.serve(2, granted, [memory, event, notify])
        assert shell.line() == "ok"
        assert int(shell.ask("fds")) == before + 3  # the two eventfds, and the connection
        assert dataplane.send(peer, b"hello", 5) == 5
        assert shell.ask("recv 5") == "hello"
        assert dataplane.data_ready(peer) == 0
        assert shell.ask("send welcome") == "7"
        assert os.eventfd_read(notify) == 1
        assert dataplane.data_ready(peer) == 7
        os.eventfd_write(event, 1)
        assert shell.ask("gone") == "gone"
        assert shell.ask("close") == "ok"
        assert int(shell.ask("fds")) == before
        assert dataplane.is_open(peer) == 0
        dataplane.detach(peer)


# ---- what can be wrong with a call ----

SIZE_MAX = 2 ** (8 * ctypes.sizeof(ctypes.c_size_t)) - 1
MIB = 1 << 20
BAD_INPUT: dict[str | bytes, tuple[int, str]] = {
    # of a server in domain 1
    "server 0 0 0 NULL": (22, "no path"),
    "server 0 0 0 ": (22, "the path is empty"),
    "server 0 0 0 " + "p" * 2049: (7, "the path has 2049 characters"),
    "server 0 0 0 /local/domain/1/" + "p" * 3057: (7, "the path has 3073 characters"),
    "server 0 0 0 " + "p" * 5000: (7, "the path has 5000 characters"),
    "server 0 0 0 " + "p" * 1_000_000: (7, "the path has 1000000 characters"),
    "server 0 0 0 ../2/data": (22, "'.'"),
    "server 0 0 0 /local/domain/1/../2/data": (22, "'.'"),
    "server 0 0 0 data//vchan": (22, "an empty part"),
    "server 0 0 0 data/": (22, "an empty part"),
    "server 0 0 0 /": (22, "an empty part"),
    "server 0 0 0 data/a b": (22, "' '"),
    "server 0 0 0 data/{0}%s%n": (22, "'{'"),
    b"server 0 0 0 data/\xff\xfe": (22, "characters that no path may have"),
    "server 0 0 0 data/\u20ac": (22, "characters that no path may have"),
    "server 0 0 0 data/\x01": (22, "\\x01"),
    "server 0 0 0 /local/domain/2/data": (13, "domain 1 may not offer"),
    "server 0 0 0 /local/domain/0/data": (13, "domain 1 may not offer"),
    "server 0 0 0 /local/domain/11/data": (13, "domain 1 may not offer"),
    "server 0 0 0 /local/domain/1": (13, "domain 1 may not offer"),
    "server 0 0 0 /vm/1": (13, "domain 1 may not offer"),
    "server 3 0 0 data/bad": (2, "there is no domain 3"),
    "server 2147483647 0 0 data/bad": (2, "there is no domain 2147483647"),
    "server -1 0 0 data/bad": (22, "-1 is no domain's number"),
    "server -2147483648 0 0 data/bad": (22, "-2147483648 is no domain's number"),
    f"server 0 {MIB + 1} 0 data/bad": (22, f"read_min is {MIB + 1} bytes"),
    f"server 0 0 {MIB + 1} data/bad": (22, f"write_min is {MIB + 1} bytes"),
    f"server 0 {SIZE_MAX} 0 data/bad": (22, "read_min is"),
    f"server 0 0 {SIZE_MAX} data/bad": (22, "write_min is"),
    f"server 0 {2**63} {2**63} data/bad": (22, "read_min is"),
    # of a client
    "client 0 NULL": (22, "no path"),
    "client 0 ": (22, "the path is empty"),
    "client 0 " + "p" * 2049: (7, "the path has 2049 characters"),
    "client 0 ../x": (22, "'.'"),
    "client 0 data/nobody": (2, "domain 0 offers no vchan at /local/domain/1/data/nobody"),
    "client 0 /local/domain/0/data/nobody": (2, "domain 0 offers no vchan"),
    "client 3 data/nobody": (2, "there is no domain 3"),
    "client -1 data/nobody": (22, "-1 is no domain's number"),
    # of a path that domain 0 offers domain 2
    "client 0 /local/domain/0/data/other": (13, "is for domain 2, and this is domain 1"),
    "client 2 /local/domain/0/data/other": (2, "domain 2 offers no vchan"),
}


def test_bad_input_is_refused_with_an_errno_and_a_sentence(daemon: Daemon, compiled: Compiled) -> None:
    with (
        peer_of(compiled, daemon, 0, "server 2 0 0 /local/domain/0/data/other") as other,
        Program(compiled("shell"), env=daemon.environment(1)) as shell,
    ):
        shell.ask("client 0 data/first")  # starts the interpreter, so that descriptors can be counted
        wrong = []
        for command, (number, part) in BAD_INPUT.items():
            got, sentence = refused(shell, command)
            if got != number or part not in sentence:
                wrong.append((command[:60], got, sentence))
        assert wrong == []
        assert [each["path"] for each in daemon.channels()] == ["/local/domain/0/data/other"]
        # It is none the worse for it.
        assert shell.ask("server 0 0 0 data/good") == "ok"
        assert shell.ask("close") == "ok"
        assert other.ask("close") == "ok"
        assert daemon.channels() == []


def test_sizes_at_the_limit_are_not_refused(daemon: Daemon, compiled: Compiled) -> None:
    with Program(compiled("shell"), env=daemon.environment(1)) as shell:
        for command in (
            f"server 0 {MIB} {MIB} data/good",
            "server 1 0 0 data/good",
            "server 0 0 0 " + "p" * 2048,
            "server 0 0 0 /local/domain/1/" + "p" * 3056,
        ):
            assert shell.ask(command) == "ok", command[:60]
            assert shell.ask("close") == "ok"
