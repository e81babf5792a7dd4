# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs for Xen across the border.

Debian's own: vchan-socket-proxy with files both ways, on our libxenvchan and on Debian's over our
libraries below it, and the store's tools. And one on Qubes' libvchan.
"""

from __future__ import annotations

import hashlib
import shlex
import socket
from pathlib import Path

import pytest

from rig.compiler import compile_c, our_flags
from rig.machine import Machine, Program
from rig.network import HostProgram, Network
from rig.paths import BUILD, KVMCHAN, LIBDIR, PYTHON, REFERENCE, REFERENCE_LIBDIR, REFERENCE_LIBXENVCHAN, REFERENCE_PROGRAMS, ROOT

PROXY = REFERENCE_PROGRAMS / "vchan-socket-proxy"
FILES_BYTES = 200_000


@pytest.fixture(params=["ours", "debian's"])
def first(request: pytest.FixtureRequest) -> str:
    """The folder that the loader looks into first, below the tree, which the guests see."""
    folder = BUILD / "tests" / "vm" / "debian"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / REFERENCE_LIBXENVCHAN.name
    library.unlink(missing_ok=True)
    library.symlink_to(REFERENCE_LIBXENVCHAN)
    return str(folder if request.param == "debian's" else LIBDIR)


@pytest.fixture
def files() -> list[Path]:
    """Two with bytes that repeat nowhere, below the tree."""
    made = []
    for name in ("there", "back"):
        path = BUILD / "tests" / "vm" / f"{name}.bin"
        path.write_bytes(hashlib.shake_128(name.encode()).digest(FILES_BYTES))
        made.append(path)
    return made


def quoted(path: object) -> str:
    return shlex.quote(str(path))


def shell(network: Network, machine: Machine | None, script: str) -> HostProgram | Program:
    """A shell in which Xen's programs find our libraries and our store, whatever else of Xen's they
    need, and themselves.
    """
    libraries, programs = quoted(REFERENCE_LIBDIR), quoted(REFERENCE / "bin")
    script = f"LD_LIBRARY_PATH=$LD_LIBRARY_PATH:{libraries} PATH=$PATH:{programs}; export LD_LIBRARY_PATH PATH; {script}"
    return network.run_on(machine, PYTHON, KVMCHAN, "exec", "--", "sh", "-c", script)


def proxy(
    network: Network, machine: Machine | None, mode: str, first: str, peer: int, path: str, source: Path, target: str
) -> HostProgram | Program:
    """With a file for its input, which then stays open until the program's own ends."""
    command = shlex.join([str(PROXY), f"--mode={mode}", str(peer), path, "-"])
    return shell(
        network,
        machine,
        f"{{ cat {quoted(source)}; cat; }} | LD_LIBRARY_PATH={quoted(first)}:$LD_LIBRARY_PATH {command} >{quoted(target)}",
    )


def wait_digest(network: Network, machine: Machine | None, target: str) -> str:
    """Of a file, once it has all its bytes."""
    looking = shell(
        network,
        machine,
        f'until [ "$(stat -c %s {target} 2>/dev/null)" = {FILES_BYTES} ]; do sleep 0.1; done; sha256sum {target}',
    )
    line = looking.wait_line(target)
    assert looking.wait() == 0
    return line.split()[0]


@pytest.mark.parametrize("server", ["host", "guest"])
def test_files_pass_both_ways_through_a_proxy_on_each_side(
    network: Network, guest: Machine, first: str, files: list[Path], server: str, tmp_path: Path
) -> None:
    sides: list[Machine | None] = [None, guest] if server == "host" else [guest, None]
    numbers = [network.domain_of(each) for each in sides]
    path = f"/local/domain/{numbers[0]}/data/{tmp_path.name}"
    targets = [str(tmp_path / "out") if each is None else f"/tmp/{path.replace('/', '-')}" for each in sides]
    serving = proxy(network, sides[0], "server", first, numbers[1], path, files[0], targets[0])
    connecting = proxy(network, sides[1], "client", first, numbers[0], path, files[1], targets[1])
    for side, target, source in zip(sides, targets, reversed(files), strict=True):
        assert wait_digest(network, side, target) == hashlib.sha256(source.read_bytes()).hexdigest()
    serving.end_input()
    assert serving.wait() == 0
    connecting.end_input()
    assert connecting.wait() == 0


TURNS = 2
ECHO = """
import hashlib, socket, sys
path, turns, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for turn in range(turns):
    sock = socket.socket(socket.AF_UNIX)
    while True:
        try:
            sock.connect(path)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            pass
    assert sock.recv(1) == b"!"
    sock.sendall(hashlib.shake_128(f"there {turn}".encode()).digest(size))
    back = b""
    while len(back) < size:
        more = sock.recv(65536)
        assert more, f"ended at {len(back)}"
        back += more
    assert back == hashlib.shake_128(f"back {turn}".encode()).digest(size)
    sock.close()
print("all", flush=True)
"""


def test_clients_in_a_guest_reach_a_server_on_the_host_one_after_the_other_through_sockets(
    network: Network, guest: Machine, tmp_path: Path
) -> None:
    path, size = "/local/domain/0/data/sockets", 20_000
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "in"))
        listening.listen()
        shell(network, None, shlex.join(["exec", str(PROXY), "--mode=server", str(guest.domain), path, str(tmp_path / "in")]))
        shell(network, guest, shlex.join(["exec", str(PROXY), "--mode=client", "0", path, "/tmp/sockets"]))
        clients = network.run_on(guest, PYTHON, "-c", ECHO, "/tmp/sockets", str(TURNS), str(size))
        for turn in range(TURNS):
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as incoming:
                # The server's proxy takes the events of bytes that come while it waits for its
                # client, and would not look for them until the next event.
                connection.sendall(b"!")
                assert incoming.read(size) == hashlib.shake_128(f"there {turn}".encode()).digest(size)
                connection.sendall(hashlib.shake_128(f"back {turn}".encode()).digest(size))
                assert incoming.read() == b""  # the client has gone
        clients.wait_line("all")
        assert clients.wait() == 0


def test_the_store_is_one_for_the_host_and_its_guests(network: Network, guest: Machine) -> None:
    home = f"/local/domain/{guest.domain}"
    script = f"xenstore-read domid name && xenstore-write data/x there && xenstore-chmod data/x n{guest.domain} r0 && echo done"
    done = shell(network, guest, script)
    done.wait_line("done")
    assert done.lines[:2] == [str(guest.domain), guest.name]
    assert done.wait() == 0
    reading = shell(network, None, f"xenstore-read {home}/data/x {home}/name && xenstore-rm {home}/data/x")
    assert reading.wait() == 0
    assert reading.lines == ["there", guest.name]
    refused = shell(network, guest, "xenstore-read /local/domain/0/name; xenstore-write /local/domain/0/data/x y || echo refused")
    refused.wait_line("refused")
    refused.wait()


def test_a_guest_sees_what_the_host_writes_and_a_domain_that_goes(network: Network, guest: Machine, other: Machine) -> None:
    gone = other.domain
    # Only domain 0 and those it permits are told.
    assert shell(network, None, f"xenstore-chmod @releaseDomain n0 r{guest.domain}").wait() == 0
    watching = shell(network, guest, "exec xenstore-watch -n 3 data/seen @releaseDomain")
    watching.wait_line("data/seen")
    watching.wait_line("@releaseDomain")
    assert shell(network, None, f"xenstore-write /local/domain/{guest.domain}/data/seen x").wait() == 0
    assert watching.wait() == 0
    assert watching.lines == ["data/seen", "@releaseDomain", "data/seen"]
    watching = shell(network, guest, "exec xenstore-watch -n 2 @releaseDomain")
    watching.wait_line("@releaseDomain")
    other.destroy()
    assert watching.wait() == 0
    absent = shell(network, None, f"xenstore-exists /local/domain/{gone} || echo absent")
    absent.wait_line("absent")
    absent.wait()
    tidied = shell(network, None, f"xenstore-rm /local/domain/{guest.domain}/data/seen && xenstore-chmod @releaseDomain n0")
    assert tidied.wait() == 0


@pytest.mark.parametrize("server", ["host", "guest"])
def test_a_client_of_qubes_waits_for_its_server_at_the_other_side(network: Network, guest: Machine, server: str) -> None:
    program = compile_c(BUILD / "tests" / "vm", ROOT / "tests" / "c" / "programs" / "qubes.c", *our_flags("vchan"))
    sides: list[Machine | None] = [None, guest] if server == "host" else [guest, None]
    numbers = [network.domain_of(each) for each in sides]
    serving, connecting = (network.run_on(each, program) for each in sides)
    connecting.write(f"client {numbers[0]} 7\n")
    serving.write(f"server {numbers[1]} 7 4096 4096\nwait\nfill 100000\nclose\n")
    connecting.write("drain 100000\nopen\nclose\n")
    serving.wait_line("100000")
    connecting.wait_line("100000")
    for each in (serving, connecting):
        each.end_input()
        assert each.wait() == 0, each.lines
    assert serving.lines == ["ok", "0", "100000", "ok"]
    assert connecting.lines[:2] == ["ok", "100000"]
    assert connecting.lines[-1] == "ok"
