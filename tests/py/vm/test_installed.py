# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests as administrators make them: Debian 13 on a disk of its own, with its kernel, systemd and
Python; one starts with SeaBIOS, the other with UEFI.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvmchan
from rig import libvirtd
from rig.daemon import acting_as
from rig.deadline import eventually
from rig.installed import INSTALLED, KVMCHAN, PYTHON, InstalledNetwork
from rig.machine import OVMF, Machine
from rig.network import running
from rig.streams import MIB, move

# The examples of docs/python.md, with the rings that one gets without asking.
ECHO = """
import kvmchan
with kvmchan.listen(0, "data/echo") as listener:
    print("listening", flush=True)
    with listener.accept() as vchan:
        while data := vchan.recv(65536):
            vchan.sendall(data)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledNetwork]:
    """A host's daemon and the two guests, on a libvirtd of their own."""
    libvirtd.require()
    for path in (INSTALLED / "disk", OVMF):
        if not path.exists():
            libvirtd.lack(f"there is no {path}: ./run test tests/py/vm makes or installs it as root")
    with (
        libvirtd.running(tmp_path_factory.mktemp("lv")) as hypervisor,
        running(InstalledNetwork(hypervisor, tmp_path_factory.mktemp("net"))) as made,
    ):
        yield made


@pytest.fixture
def sides(installed: InstalledNetwork) -> Iterator[list[Machine | None]]:
    """The host and two guests; and no channel when the test has ended."""
    yield from installed.lend()


@pytest.mark.parametrize(
    ("server", "client"),
    [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2)],
    ids=["to SeaBIOS's", "from SeaBIOS's", "to UEFI's", "from UEFI's", "between both"],
)
def test_the_largest_rings_fit(
    installed: InstalledNetwork, stream: Path, sides: list[Machine | None], server: int, client: int
) -> None:
    move(installed, stream, sides[server], sides[client], out=3 * MIB, back=3 * MIB, ring=MIB)


def test_a_listener_of_python_serves_the_host(installed: InstalledNetwork, sides: list[Machine | None]) -> None:
    guest = installed.machines[0]
    serving = guest.start(PYTHON, "-c", ECHO)
    serving.wait_line("listening")
    with acting_as(installed.daemon), kvmchan.connect(guest.domain, "data/echo") as vchan:
        vchan.sendall(b"hello")
        assert vchan.recv(5) == b"hello"
    assert serving.wait() == 0, serving.lines


def test_the_doctor_finds_nothing_bad(installed: InstalledNetwork, sides: list[Machine | None]) -> None:
    for machine in installed.machines:
        found = json.loads(machine.run(KVMCHAN, "doctor", "--json"))
        assert found["role"] == "guest"
        assert [each for each in found["findings"] if each["grade"] != "ok"] == []


def test_systemd_starts_a_killed_daemon_again(installed: InstalledNetwork, stream: Path, sides: list[Machine | None]) -> None:
    guest = installed.machines[0]
    before = installed.guests()
    guest.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "kvmchand")
    eventually(lambda: installed.guests() != before, lambda: str(installed.guests()))
    installed.wait_linked(guest)
    move(installed, stream, None, guest, out=5000, back=5000)
