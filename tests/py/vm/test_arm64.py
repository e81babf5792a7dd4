# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests of arm64, which QEMU emulates here, and this machine's programs. ./run arm64 runs this."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import libvirtd
from rig.arm64 import ROOT, Arm64Network
from rig.machine import Machine
from rig.network import GUEST_ENVIRONMENT, Network, running
from rig.paths import KVMCHAN, PYTHON
from rig.streams import MIB, move

C_TESTS = ROOT / "opt/build/tests/c"
"""The tests of the data plane in C, in the guests' root."""


@pytest.fixture(scope="module")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A host's daemon and two prepared guests, on a libvirtd of their own."""
    with (
        libvirtd.running(tmp_path_factory.mktemp("lv")) as hypervisor,
        running(Arm64Network(hypervisor, tmp_path_factory.mktemp("net"))) as made,
    ):
        yield made


@pytest.fixture
def sides(arm64: Network) -> Iterator[list[Machine | None]]:
    """The host and two guests; and no channel when the test has ended."""
    yield from arm64.lend()


@pytest.mark.parametrize(
    ("server", "client"),
    [(0, 1), (1, 0), (1, 2), (1, 1)],
    ids=["to a guest", "from a guest", "between guests", "within a guest"],
)
def test_streams(arm64: Network, stream: Path, sides: list[Machine | None], server: int, client: int) -> None:
    move(arm64, stream, sides[server], sides[client], out=8 * MIB, back=8 * MIB)
    move(arm64, stream, sides[server], sides[client], out=3 * MIB, back=3 * MIB, ring=MIB)
    move(arm64, stream, sides[server], sides[client], out=5000, back=5000, channels=3)


def test_the_doctor_finds_a_guest_in_order(arm64: Network, sides: list[Machine | None]) -> None:
    arm64.machines[0].run(PYTHON, str(KVMCHAN), "doctor", env=GUEST_ENVIRONMENT)


@pytest.mark.parametrize("name", sorted(each.name for each in C_TESTS.glob("test_*-plain")))
def test_the_data_plane(arm64: Network, sides: list[Machine | None], name: str) -> None:
    arm64.machines[0].run(f"/{C_TESTS.relative_to(ROOT) / name}")


def test_the_next_daemon_of_the_host_reaches_the_guests(arm64: Network, stream: Path, sides: list[Machine | None]) -> None:
    arm64.daemon.kill()
    arm64.start_host()
    arm64.restore()
    move(arm64, stream, sides[0], sides[1], out=3 * MIB, back=3 * MIB, ring=MIB)
