# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests as prepare-domain leaves them by default, on the firmwares that there are: each leaves
bridges other windows.

test_installed.py has UEFI on processors whose width of addresses it trusts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmchand.admin.prepare import prepare
from rig import libvirtd
from rig.machine import OVMF, Machine
from rig.network import Network, running
from rig.streams import MIB, move

FIRMWARES: dict[str, dict[str, Any]] = {
    "SeaBIOS": {},
    "UEFI with narrow addresses": {"uefi": True, "cpu": "Nehalem"},
    "a kernel that widens no bridge ahead": {"uefi": True, "cpu": "Nehalem", "words": "lockdown=integrity"},
}


WIDENED = list(FIRMWARES)[:2]
"""Without KVM, the devices of an earlier daemon keep their bridges in use: who has no more room
there has none for the next daemon's."""


@pytest.fixture(scope="module")
def firmware(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A host's daemon and two prepared guests, on a libvirtd of their own."""
    machine_is = FIRMWARES[request.param]
    if machine_is and not OVMF.exists():
        libvirtd.lack(f"there is no {OVMF}: ./run test installs it as root")
    with libvirtd.running(tmp_path_factory.mktemp("lv")) as hypervisor:
        made = Network(hypervisor, tmp_path_factory.mktemp("net"), bridges=0, **machine_is)
        for machine in made.machines:
            machine.xml = prepare(machine.xml).after
        with running(made):
            yield made


@pytest.fixture
def sides(firmware: Network) -> Iterator[list[Machine | None]]:
    """The host and two guests; and no channel when the test has ended."""
    yield from firmware.lend()


@pytest.mark.parametrize("firmware", FIRMWARES, indirect=True)
@pytest.mark.parametrize(("server", "client"), [(0, 1), (1, 0), (1, 2)], ids=["to a guest", "from a guest", "between guests"])
def test_the_largest_rings_fit(firmware: Network, stream: Path, sides: list[Machine | None], server: int, client: int) -> None:
    move(firmware, stream, sides[server], sides[client], out=3 * MIB, back=3 * MIB, ring=MIB)
    move(firmware, stream, sides[server], sides[client], out=5000, back=5000, channels=3)


@pytest.mark.parametrize("firmware", WIDENED, indirect=True)
def test_the_next_daemon_of_the_host_reaches_the_guests(firmware: Network, stream: Path, sides: list[Machine | None]) -> None:
    firmware.daemon.kill()
    firmware.start_host()
    firmware.restore()
    for server, client in ((0, 1), (1, 2)):
        move(firmware, stream, sides[server], sides[client], out=3 * MIB, back=3 * MIB, ring=MIB)
