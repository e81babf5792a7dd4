# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon as its administrator meets it: start and stop, settings, who may connect, and what its
own processes' ends do.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kvmchand import config
from kvmchand.errors import AccessDenied, EndOfStream, InvalidArgument, LimitReached, OutOfResources
from kvmchand.ids import HOST, ClientId, Size
from kvmchand.runtime.marker import Marker
from kvmchand.runtime.supervisor import Service
from kvmchand.wire import local
from kvmchand.wire.client import VERSION
from kvmchand.wire.packet import send_packet
from libxenvchan_shim import State, Vchan, connect, offer
from rig.clients import RawClient
from rig.daemon import Daemon, acting_as
from rig.deadline import eventually
from rig.paths import KVMCHAND, PYTHON
from rig.processes import NOBODY, children, is_asleep, run_as, socket_of
from rig.program import Program

ASK = """
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    sock.connect(sys.argv[1])
except PermissionError:
    print("file mode")
    sys.exit()
try:
    sock.send(b'{"type":"hello","version":%d}' % int(sys.argv[2]))
    sock.send(b'{"type":"list","after":0}')
except ConnectionError:
    pass
try:
    reply = sock.recv(65536)
except ConnectionResetError:
    reply = sock.recv(65536)
print({"listing": "welcome"}.get(json.loads(reply)["type"]) or json.loads(reply)["code"])
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may look into, unlike pytest's."""
    made = Path(tempfile.mkdtemp(prefix="kvmchan"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


class Start:
    """Starts daemons in a folder, and sees to it that none is left of a test that failed."""

    def __init__(self) -> None:
        self.started: list[Daemon] = []

    def __call__(self, folder: Path, settings: str = "") -> Daemon:
        options: list[str] = []
        if settings:
            (folder / "kvmchand.toml").write_text(settings + "\n")
            options = ["--config", str(folder / "kvmchand.toml")]
        self.started.append(Daemon(folder, *options))
        return self.started[-1]


@pytest.fixture
def start() -> Iterator[Start]:
    made = Start()
    yield made
    for each in made.started:
        each.kill()


@contextmanager
def launched(folder: Path, *arguments: str | Path, notify: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """kvmchand with no more than these arguments, from readiness to SIGTERM."""
    address = notify or str(folder / "notify")
    environment = {**os.environ, "NOTIFY_SOCKET": address}
    environment.pop("KVMCHAN_RUNTIME_DIR", None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if address.startswith("@") else address)
        with subprocess.Popen(
            [KVMCHAND, "host", "--no-libvirt", *arguments], stderr=subprocess.DEVNULL, env=environment
        ) as process:
            try:
                assert manager.recv(4096) == b"READY=1"
                yield process
            finally:
                process.terminate()
        assert process.returncode == 0


def refusal(*arguments: str | Path) -> str:
    """kvmchand does not start: its status is 1, and what it says is one line."""
    done = subprocess.run([KVMCHAND, "host", "--no-libvirt", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("kvmchand: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def pair(daemon: Daemon, path: str = "x") -> tuple[Vchan, Vchan]:
    """Both ends of a channel, in this process."""
    with acting_as(daemon):
        server = offer(0, path)
        return server, connect(0, path)


def moves_data(server: Vchan, client: Vchan) -> bool:
    return client.send(b"there") == 5 and server.recv(5) == b"there" and server.send(b"back") == 4 and client.recv(4) == b"back"


# ---- start and stop ----


def test_it_says_when_it_is_ready(daemon: Daemon) -> None:
    assert daemon.ready == b"READY=1"
    first = daemon.log_path.read_text().splitlines()[0]
    assert first.startswith("kvmchand: ready: ")
    for domain in (0, 1, 2):
        assert f"{daemon.socket_path(domain)} (domain {domain})" in first


def test_it_is_ready_for_a_service_manager_with_an_abstract_address(tmp_path: Path) -> None:
    with launched(tmp_path, "--runtime-dir", tmp_path / "run", notify=f"@kvmchan-test-{os.getpid()}"):
        assert (tmp_path / "run" / "kvmchand.sock").is_socket()


def test_it_makes_its_runtime_directory_with_what_is_above(tmp_path: Path) -> None:
    with launched(tmp_path, "--runtime-dir", tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755
        assert sorted(each.name for each in (tmp_path / "a" / "b").iterdir()) == ["kvmchand.sock", "store.sock"]


def test_a_second_daemon_on_a_directory_is_refused_and_the_first_goes_on(daemon: Daemon) -> None:
    assert f"another kvmchand serves {daemon.runtime_dir}" in refusal("--runtime-dir", daemon.runtime_dir)
    assert daemon.channels() == []


def test_the_sockets_of_a_killed_daemon_are_replaced(start: Start, tmp_path: Path) -> None:
    killed = start(tmp_path)
    killed.kill()
    assert sorted(killed.runtime_dir.iterdir())
    again = start(tmp_path)
    server, client = pair(again)
    assert moves_data(server, client)
    client.close()
    server.close()
    again.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_channels_go_on(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    started = start(tmp_path)
    server, client = pair(started)
    local = started.local_pid
    started.process.send_signal(number)
    assert started.process.wait() == 0
    assert not Path(f"/proc/{local}").exists()
    assert list(started.runtime_dir.iterdir()) == []
    assert started.log().count("\n") == 1, started.log()
    assert moves_data(server, client)
    client.close()
    assert server.state is State.GONE
    server.close()


def test_a_signal_to_all_its_processes_ends_it_cleanly(start: Start, tmp_path: Path) -> None:
    """As a service manager sends it to a whole control group, or a terminal to a process group."""
    started = start(tmp_path)
    local = started.local_pid
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(local, number)
    assert started.channels() == []
    assert started.local_pid == local  # main's end is what ends it
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait() == 0
    assert started.log().count("\n") == 1, started.log()


# ---- settings ----


def test_the_settings_file_says_what_the_options_would(tmp_path: Path) -> None:
    file = tmp_path / "kvmchand.toml"
    file.write_text(f'runtime_dir = "{tmp_path}/other"\nlocal_domains = [5]\n')
    with launched(tmp_path, "--config", file):
        names = ["domain-5.sock", "kvmchand.sock", "store-5.sock", "store.sock"]
        assert sorted(each.name for each in (tmp_path / "other").iterdir()) == names


def test_options_go_over_the_settings_file_and_domains_add_up(start: Start, tmp_path: Path) -> None:
    started = start(tmp_path, f'runtime_dir = "{tmp_path}/other"\nlocal_domains = [5]\n')
    assert not (tmp_path / "other").exists()
    assert [each["domain"] for each in started.listing()["domains"]] == [0, 1, 2, 5]
    started.stop()


def test_service_user_is_whom_the_local_process_runs_as(start: Start, tmp_path: Path) -> None:
    started = start(tmp_path, 'service_user = "daemon"\n')
    assert status(started.local_pid)["Uid"].split()[0] == "1"
    started.stop()


def test_a_server_without_a_wish_gets_large_rings(daemon: Daemon) -> None:
    with RawClient(daemon) as raw:
        raw.hello().say({"type": "offer", "peer": 0, "path": "raw", "read_min": 0, "write_min": 0, "once": False})
        granted = raw.hear()
        assert (granted["left_order"], granted["right_order"]) == (18, 18)


def test_channels_take_no_more_bytes_than_a_domain_may_have(start: Start, tmp_path: Path) -> None:
    started = start(tmp_path, '[limits]\nmax_bytes = "40K"\n')
    with acting_as(started), ExitStack() as stack:
        # Each has the smallest rings, which leave room for others, and fit into a page.
        vchans = [stack.enter_context(offer(0, f"x{number}")) for number in range(10)]
        with pytest.raises(LimitReached, match="max_bytes"):
            offer(0, "y")
        vchans[0].close()
        stack.enter_context(offer(0, "y"))
    started.stop()


def test_max_ring_allows_larger_rings_up_to_it(start: Start, tmp_path: Path) -> None:
    started = start(tmp_path, "[limits]\nmax_ring = 4194304\n")
    with acting_as(started):
        with offer(0, "large", read_min=4 << 20, write_min=4 << 20) as server, connect(0, "large") as client:
            block = os.urandom(4 << 20)
            assert (client.writable, client.send(block)) == (4 << 20, 4 << 20)
            assert server.recv(4 << 20) == block
            assert (server.send(block), client.recv(4 << 20) == block) == (4 << 20, True)
        with pytest.raises(InvalidArgument, match="4194304"):
            offer(0, "larger", read_min=(4 << 20) + 1)
    started.stop()


def test_max_channels_is_what_one_domain_may_offer(start: Start, tmp_path: Path) -> None:
    started = start(tmp_path, "[limits]\nmax_channels = 2\n")
    with acting_as(started):
        first, second = offer(0, "a"), offer(0, "b")
        with pytest.raises(LimitReached, match="max_channels") as caught:
            offer(0, "c")
        assert caught.value.errno == errno.ENOSPC
        with acting_as(started, 1):
            offer(0, "c").close()
        first.close()
        offer(0, "c").close()
        second.close()
    started.stop()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("limits = 1", "limits"),
        ("[limits]\nmax_ring = 'x'", "limits.max_ring"),
        (f"[limits]\nmax_channels = {10**30}", "limits.max_channels"),
        (f"[socket]\nmode = {10**30}", "socket.mode"),
        ('runtime_dir = "a\\u0000b"', "runtime_dir"),
        ("local_domains = [0]", "local_domains"),
        ("what = 1", "what"),
        ("[", "line 1"),
    ],
)
def test_a_mistake_in_the_settings_file_is_one_line_naming_file_and_setting(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "kvmchand.toml"
    file.write_text(text + "\n")
    said = refusal("--config", file, "--runtime-dir", tmp_path / "run")
    assert str(file) in said
    assert named in said


@pytest.mark.parametrize(
    ("text", "setting"),
    [('[socket]\ngroup = "no-such-group"', "socket.group"), ('service_user = "no-such-user"', "service_user")],
)
def test_a_user_or_group_that_is_not_there_is_one_line_naming_the_setting(tmp_path: Path, text: str, setting: str) -> None:
    file = tmp_path / "kvmchand.toml"
    file.write_text(text)
    said = refusal("--config", file, "--runtime-dir", tmp_path / "run")
    assert "no-such-" in said
    assert setting in said


def test_a_settings_file_that_is_not_there(tmp_path: Path) -> None:
    assert str(tmp_path / "missing") in refusal("--config", tmp_path / "missing")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--local-domain", "0"], "0"),
        (["--local-domain", "-1"], "-1"),
        (["--local-domain", "40000"], "40000"),
        (["--local-domain", "1", "--local-domain", "1"], "twice"),
    ],
)
def test_a_local_domain_that_can_not_be(tmp_path: Path, options: list[str], named: str) -> None:
    assert named in refusal("--runtime-dir", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_as_many_local_domains_as_may_be_fit_into_a_listing(start: Start, tmp_path: Path) -> None:
    numbers = range(config.DOMAIN_MAX - config.LOCAL_DOMAINS_MAX + 1, config.DOMAIN_MAX + 1)
    started = start(tmp_path, f"local_domains = {[*numbers][:-2]}")
    with ExitStack() as stack, acting_as(started):
        for number in range(5):
            stack.enter_context(offer(0, f"/{number:x>3000}"))
        assert len(started.listing()["domains"]) == config.LOCAL_DOMAINS_MAX + 1
        assert len(started.channels()) == 5
    started.stop()


def test_more_local_domains_than_may_be(tmp_path: Path) -> None:
    file = tmp_path / "kvmchand.toml"
    file.write_text(f"local_domains = {[*range(1, config.LOCAL_DOMAINS_MAX + 2)]}")
    assert str(config.LOCAL_DOMAINS_MAX) in refusal("--config", file, "--runtime-dir", tmp_path / "run")


def test_a_runtime_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    assert f"{tmp_path}/run" in refusal("--runtime-dir", tmp_path / "run")


def test_a_runtime_directory_whose_name_is_too_long_for_a_socket(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    said = refusal("--runtime-dir", long)
    assert str(long) in said
    assert "too long" in said
    assert list(long.iterdir()) == []


def test_a_socket_that_can_not_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "run" / "kvmchand.sock").mkdir(parents=True)
    assert "kvmchand.sock" in refusal("--runtime-dir", tmp_path / "run")


# ---- who may connect ----


def asks(daemon: Daemon, *, user: int, group: int = NOBODY, groups: tuple[int, ...] = ()) -> str:
    """What the daemon says to a user's process: "welcome", or the code of an error, or "file mode"
    if that keeps it out.
    """
    return run_as(user, ASK, daemon.socket_path(), str(VERSION), group=group, groups=groups).strip()


@pytest.mark.parametrize(
    ("settings", "who", "answer"),
    [
        ("", {"user": 0}, "welcome"),
        ("", {"user": NOBODY}, "file mode"),
        ("[socket]\nmode = 0o666", {"user": NOBODY}, "welcome"),
        ("[socket]\nmode = 0o660\ngroup = 'daemon'", {"user": NOBODY}, "file mode"),
        ("[socket]\nmode = 0o660\ngroup = 'daemon'", {"user": NOBODY, "group": 1}, "welcome"),
        ("[socket]\nmode = 0o660\ngroup = 'daemon'", {"user": NOBODY, "groups": (4, 1)}, "welcome"),
        ("[socket]\nmode = 0o660\ngroup = 'daemon'", {"user": NOBODY, "groups": (4,)}, "file mode"),
        ("[socket]\nmode = 0o660", {"user": NOBODY, "group": 0}, "welcome"),
        ("[socket]\nmode = 0o600\ngroup = 'daemon'", {"user": NOBODY, "group": 1}, "file mode"),
        ("[socket]\nmode = 0o606", {"user": NOBODY}, "welcome"),
    ],
)
def test_who_may_connect(start: Start, open_folder: Path, settings: str, who: dict[str, object], answer: str) -> None:
    started = start(open_folder, settings)
    assert asks(started, **who) == answer  # type: ignore[arg-type]
    started.stop()


@pytest.mark.parametrize(
    ("settings", "who"),
    [
        ("", {"user": NOBODY}),
        ("", {"user": NOBODY, "group": 0}),
        ("[socket]\nmode = 0o660\ngroup = 'daemon'", {"user": NOBODY}),
        ("[socket]\nmode = 0o600\ngroup = 'daemon'", {"user": NOBODY, "group": 1}),
    ],
)
def test_a_socket_whose_mode_was_loosened_lets_nobody_else_in(
    start: Start, open_folder: Path, settings: str, who: dict[str, object]
) -> None:
    started = start(open_folder, settings)
    started.socket_path().chmod(0o666)
    assert asks(started, **who) == AccessDenied.code  # type: ignore[arg-type]
    assert asks(started, user=0, group=0) == "welcome"
    started.stop()


def test_others_may_connect_whatever_the_umask_is(open_folder: Path) -> None:
    (open_folder / "settings").write_text("[socket]\nmode = 0o666\n")
    before = os.umask(0o077)
    try:
        started = Daemon(open_folder, "--config", str(open_folder / "settings"))
    finally:
        os.umask(before)
    assert asks(started, user=NOBODY) == "welcome"
    started.stop()


# ---- where and by whom it is started ----


def started_by(folder: Path, *command: str, after: str = "") -> Daemon:
    """A daemon that the shell starts by a command, which its own and `after` follow."""
    script = folder / "start"
    script.write_text(f'#!/bin/sh\nexec {shlex.join([*command, str(KVMCHAND)])} "$@" {after}\n')
    script.chmod(0o755)
    return Daemon(folder, program=script)


def assert_serves(daemon: Daemon) -> None:
    with acting_as(daemon), offer(0, "serves") as server, connect(0, "serves") as client:
        client.sendall(b"there")
        assert server.recv(5) == b"there"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_daemon_runs_without_stdio(tmp_path: Path, closed: str) -> None:
    started = started_by(tmp_path, after=closed)
    with RawClient(started) as client:
        client.hello().list()
    started.kill_service("local")
    assert_serves(started)
    started.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", ["--block-signal", "--ignore-signal"])
def test_a_signal_stops_a_daemon_whose_parent_did_not_want_it(tmp_path: Path, how: str, number: signal.Signals) -> None:
    started = started_by(tmp_path, "env", how)
    started.process.send_signal(number)
    assert started.process.wait() == 0, started.log()
    started.stop()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_means_nothing_ends_no_process(daemon: Daemon, number: signal.Signals) -> None:
    services = daemon.services()
    for pid in (daemon.pid, *services.values()):
        os.kill(pid, number)
    assert_serves(daemon)
    assert daemon.services() == services


def test_sockets_that_a_killed_daemon_left_are_removed(start: Start, tmp_path: Path) -> None:
    first = start(tmp_path)
    first.kill()
    own = first.runtime_dir / "domain-1.sock.txt"
    own.write_text("somebody's")
    second = Daemon(tmp_path, domains=[2])
    names = {"kvmchand.sock", "store.sock", "domain-2.sock", "store-2.sock", own.name}
    assert {each.name for each in second.runtime_dir.iterdir()} == names
    own.unlink()
    second.stop()


def test_the_sockets_have_the_mode_and_group_of_the_settings(start: Start, tmp_path: Path) -> None:
    started = start(tmp_path, "[socket]\nmode = 0o640\ngroup = 'daemon'\n")
    for domain in (0, 1, 2):
        found = started.socket_path(domain).stat()
        assert (found.st_mode & 0o7777, found.st_gid) == (0o640, 1)
    started.stop()


# ---- the local process ----


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_local_process_has_no_privileges(daemon: Daemon) -> None:
    found = status(daemon.local_pid)
    assert found["Uid"].split() == found["Gid"].split() == [str(NOBODY)] * 4
    assert found["Groups"] == ""
    assert found["NoNewPrivs"] == "1"
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert found["Name"] == "kvmchand-local"


def test_the_local_process_has_no_region(daemon: Daemon) -> None:
    server, client = pair(daemon)
    assert any(each.startswith("/memfd:kvmchan ") for each in daemon.fds()["main"])
    assert not any(each.startswith("/memfd:kvmchan ") for each in daemon.fds()["local"])
    client.close()
    server.close()


def links(pid: int) -> list[str]:
    """What a process's descriptors are."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(each.readlink()))
        except FileNotFoundError:
            continue
    return found


def test_the_local_process_listens_to_nobody_before_it_has_shed_its_privileges(tmp_path: Path) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        client.connect(str(tmp_path / "sock"))
        client.send(b"not JSON")
        others = children(os.getpid())
        service = Service("local")
        stack.callback(service.stop)
        (pid,) = set(children(os.getpid())) - set(others)
        listen_ = local.Listen(HOST, "domain 0", True, Size(0), -1, 10)
        send_packet(service.sock, local.to_local.encode(listen_), [listener.fileno()])
        # It has the message when a descriptor more is open in it, and the descriptor is its
        # listener.
        mine = str(Path(f"/proc/self/fd/{listener.fileno()}").readlink())
        eventually(lambda: mine in links(pid))
        send_packet(service.sock, local.to_local.encode(local.Start(ClientId(1), "nobody")))
        _, beside, _, _ = client.recvmsg(4096, socket.CMSG_SPACE(12))
        sender, uid, _ = struct.unpack("=iII", next(data for _, kind, data in beside if kind == socket.SCM_CREDENTIALS))
        assert (sender, uid) == (pid, NOBODY)


def kill_local(daemon: Daemon) -> None:
    """Kills the local process, and returns when another is there."""
    daemon.kill_service("local")


def test_a_killed_local_process_is_started_again_and_channels_go_on(daemon: Daemon) -> None:
    server, client = pair(daemon)
    with RawClient(daemon) as known:
        known.hello().list()
        kill_local(daemon)
        assert moves_data(server, client)
        assert known.list()["type"] == "listing"  # a connection that main knew goes on
        other_server, other_client = pair(daemon, "other")
        assert moves_data(other_server, other_client)
        for vchan in (client, server, other_server, other_client):
            vchan.close()
    assert status(daemon.local_pid)["Uid"].split()[0] == str(NOBODY)
    assert "killed by signal 9" in daemon.log()


def test_a_connection_that_only_the_killed_local_process_knew_ends(daemon: Daemon) -> None:
    with RawClient(daemon) as new, RawClient(daemon) as greeted:
        greeted.hello()
        greeted.say(b"")  # it is read after the hello: then both have been
        greeted.hear_error("protocol")
        kill_local(daemon)
        new.hear_end()


def test_a_client_that_dies_while_the_local_process_is_down_is_seen_dead(daemon: Daemon) -> None:
    with acting_as(daemon):
        server = offer(0, "x")
    code = "import libxenvchan_shim as v; c = v.connect(0, 'x'); c.send(b'last'); print('there', flush=True); input()"
    with Program(PYTHON, "-c", code, env=daemon.environment()) as client:
        client.expect("there")
        os.kill(daemon.pid, signal.SIGSTOP)
        os.kill(daemon.local_pid, signal.SIGKILL)
        client.process.kill()
        client.process.wait()
        client.status = -signal.SIGKILL
        os.kill(daemon.pid, signal.SIGCONT)
    while server.state is not State.GONE:
        server.wait()
    assert server.recv(4) == b"last"
    server.close()
    eventually(lambda: "local" in daemon.services())


def test_a_local_process_that_is_killed_over_and_over_ends_the_daemon_with_a_sentence(start: Start, tmp_path: Path) -> None:
    started = start(tmp_path)
    server, client = pair(started)
    for _ in range(6):
        assert started.process.poll() is None
        kill_local(started)
    assert started.process.wait() == 1
    last = started.log().splitlines()[-1]
    assert "the local process ended 6 times in a row" in last
    assert "Traceback" not in started.log()
    assert list(started.runtime_dir.iterdir()) == []
    assert moves_data(server, client)
    client.close()
    assert server.state is State.GONE
    server.close()


def test_a_local_process_that_is_killed_now_and_then_is_always_started_again(daemon: Daemon) -> None:
    for _ in range(3):
        for _ in range(3):
            kill_local(daemon)
        assert daemon.channels() == []


def test_the_local_process_is_killed_with_many_connections_to_restore(daemon: Daemon) -> None:
    """More than fit into the socket to it: main is still sending when it is killed."""
    with ExitStack() as stack:
        many = []
        for _ in range(500):
            many.append(stack.enter_context(RawClient(daemon)))
            many[-1].hello().list()
        kill_local(daemon)
        os.kill(daemon.local_pid, signal.SIGKILL)
        assert many[0].list()["type"] == "listing"
        assert many[-1].list()["type"] == "listing"
    assert "Traceback" not in daemon.log()


def test_only_the_client_whose_bytes_were_being_read_is_dropped(daemon: Daemon) -> None:
    with RawClient(daemon) as rogue, RawClient(daemon) as first, RawClient(daemon) as second:
        rogue.say(b"not JSON")
        rogue.hear_error("protocol")
        number = int(daemon.log().rpartition(", client ")[2].partition(":")[0]) + 1  # connections are numbered as they come
        assert first.hello().offer(path="first")["type"] == "grant"
        assert second.hello().offer(path="second")["type"] == "grant"
        # The page in which the local process notes whom it reads, until it is done with that.
        eventually(lambda: is_asleep(daemon.local_pid))
        marker = next(
            each for each in Path(f"/proc/{daemon.local_pid}/fd").iterdir() if "memfd:kvmchand-local" in str(each.readlink())
        )
        with marker.open("r+b") as page:
            page.write(struct.pack("=Q", number))
        kill_local(daemon)
        first.hear_end()
        assert [each["path"] for each in second.list()["channels"]] == ["/local/domain/0/second"]
    assert f"client {number} is dropped" in daemon.log()


def test_a_marker_is_seen_from_both_sides() -> None:
    page = os.memfd_create("test")
    os.ftruncate(page, 4096)
    ours, theirs = Marker(page), Marker(page)
    os.close(page)
    seen = [ours.get()]
    for client in (ClientId(1), ClientId(2**63 - 1)):
        theirs.set(client)
        seen.append(ours.get())
    theirs.clear()
    assert [*seen, ours.get()] == [None, 1, 2**63 - 1, None]
    ours.close()
    theirs.close()


def local_socket(daemon: Daemon) -> socket.socket:
    """The local process's socket to main, as somebody has it who took over the process."""
    return socket_of(daemon.local_pid)


@pytest.mark.parametrize(
    ("packet", "fds"),
    [
        (b"not JSON", 0),
        (b'{"type":"ask","client":-1,"request":"x"}', 0),
        (b'{"type":"ask","client":1,"request":"not JSON"}', 0),
        (b'{"type":"ask","client":1,"request":"\\ud800"}', 0),
        (b'{"type":"ask","client":99,"request":"{\\"type\\":\\"list\\",\\"after\\":0}"}', 1),
        (b'{"type":"ask","client":9223372036854775807,"request":"{\\"type\\":\\"list\\",\\"after\\":0}"}', 1),
        (bytes(40000), 0),
        (bytes(40000), 253),
    ],
)
def test_a_local_process_that_was_taken_over_harms_no_channel(daemon: Daemon, packet: bytes, fds: int) -> None:
    server, client = pair(daemon)
    before = daemon.local_pid
    with local_socket(daemon) as taken_over, open("/dev/null") as other:  # noqa: PTH123
        socket.send_fds(taken_over, [packet], [other.fileno()] * fds)
    eventually(lambda: daemon.services().get("local", before) != before)
    assert moves_data(server, client)
    client.close()
    server.close()


def test_a_local_process_can_not_pass_off_its_own_socket_as_a_clients(daemon: Daemon) -> None:
    before = daemon.local_pid
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with local_socket(daemon) as taken_over, ours, theirs:
        packet = b'{"type":"ask","client":99,"request":"{\\"type\\":\\"list\\",\\"after\\":0}"}'
        socket.send_fds(taken_over, [packet], [theirs.fileno()])
        eventually(lambda: daemon.services().get("local", before) != before)
        theirs.close()
        assert ours.recv(4096) == b""


# ---- main ----


def kill_main(daemon: Daemon) -> None:
    local = os.pidfd_open(daemon.local_pid)
    daemon.kill()
    select.select([local], [], [])  # until it has ended, too
    os.close(local)


def test_channels_go_on_when_main_is_killed_and_a_close_is_noticed(start: Start, tmp_path: Path) -> None:
    started = start(tmp_path)
    server, client = pair(started)
    client.send(b"before")
    kill_main(started)
    assert moves_data_after(server, client)
    client.send(b"last")
    client.close()
    assert server.recv(4) == b"last"
    assert server.recv(1) == b""
    with pytest.raises(EndOfStream):
        server.take(1)
    server.close()


def moves_data_after(server: Vchan, client: Vchan) -> bool:
    return server.recv(6) == b"before" and moves_data(server, client)


BLOCKED: dict[str, Callable[[Vchan], object]] = {
    "wait": lambda vchan: vchan.wait(),
    "take": lambda vchan: vchan.take(100),
    "recv": lambda vchan: vchan.recv(100),
    "sendall": lambda vchan: vchan.sendall(bytes(1 << 20)),
}


@pytest.mark.parametrize("call", BLOCKED)
def test_a_blocked_call_ends_when_its_peer_dies_after_main(start: Start, tmp_path: Path, call: str) -> None:
    started = start(tmp_path)
    with acting_as(started):
        server = offer(0, "x")
    code = "import libxenvchan_shim as v; c = v.connect(0, 'x'); print('there', flush=True); input()"
    with Program(PYTHON, "-c", code, env=started.environment()) as client:
        client.expect("there")
        server.wait()  # of the connect
        kill_main(started)
        client.status = -signal.SIGKILL
        killer = os.fork()
        if killer == 0:
            os.kill(client.pid, signal.SIGKILL)  # from beside, as we block; which comes first does not matter
            os._exit(0)
        if call == "recv":
            assert BLOCKED[call](server) == b""
        else:
            with pytest.raises(OSError) as caught:
                BLOCKED[call](server)
            assert caught.value.errno == errno.EPIPE
        os.waitpid(killer, 0)
        assert server.state is State.GONE
    server.close()


# ---- descriptors ----


def test_main_short_of_descriptors_refuses_and_goes_on(own_daemon: Daemon) -> None:
    limits = resource.prlimit(own_daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(own_daemon.pid, resource.RLIMIT_NOFILE, (90, limits[1]))
    with ExitStack() as stack, acting_as(own_daemon):
        opened: list[Vchan] = []
        with pytest.raises(OutOfResources, match="LimitNOFILE") as caught:
            for number in range(100):
                opened.append(stack.enter_context(offer(0, f"x{number}")))
        assert caught.value.errno == errno.EMFILE
        assert opened
        # Refused connections do not add up.
        for _ in range(100):
            with pytest.raises(OutOfResources):
                offer(0, "more")
        opened.pop().close()
        opened.pop().close()
        offer(0, "fits-again").close()
    resource.prlimit(own_daemon.pid, resource.RLIMIT_NOFILE, limits)


def test_the_local_process_short_of_descriptors_ends_connections_and_goes_on(own_daemon: Daemon) -> None:
    limits = resource.prlimit(own_daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(own_daemon.pid, resource.RLIMIT_NOFILE, (30, limits[1]))
    kill_local(own_daemon)  # the next has the limit from main, which has its own back
    resource.prlimit(own_daemon.pid, resource.RLIMIT_NOFILE, limits)
    with ExitStack() as stack:
        many = [stack.enter_context(RawClient(own_daemon)) for _ in range(40)]
        many[-1].hear_end()
        assert many[0].hello().list()["type"] == "listing"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as over:
            over.connect(str(own_daemon.socket_path()))
            assert over.recv(100) == b""
    # Until it has seen that they are gone, it has no descriptor for another.
    eventually(lambda: len(list(Path(f"/proc/{own_daemon.local_pid}/fd").iterdir())) < 15)
    assert own_daemon.channels() == []
