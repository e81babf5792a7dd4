# SPDX-License-Identifier: LGPL-2.1-or-later
"""A libvirtd, a host's daemon and two guests, which the tests share; and programs that run on
either side of the border.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.compiler import compile_c, our_flags
from rig.libvirtd import PrivateLibvirtd
from rig.machine import Machine
from rig.network import Network, running
from rig.paths import BUILD

collect_ignore = [] if "KVMCHAN_TEST_ARM64" in os.environ else ["test_arm64.py"]
"""./run arm64 makes what that one needs."""
PROGRAMS = Path(__file__).parent / "programs"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda each: each.get_closest_marker("last") is not None)


@pytest.fixture(scope="session")
def stream() -> Path:
    """A compiled program that moves bytes and checks each."""
    return _compiled("stream")


@pytest.fixture(scope="session")
def watch() -> Path:
    """A compiled program that waits for its peer to go."""
    return _compiled("watch")


def _compiled(name: str) -> Path:
    # Below the tree, which the guests see as it is here; their /tmp is their own.
    folder = BUILD / "tests" / "vm"
    folder.mkdir(parents=True, exist_ok=True)
    return compile_c(folder, PROGRAMS / f"{name}.c", "-O2", *our_flags())


@pytest.fixture(scope="session")
def network(libvirtd: PrivateLibvirtd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A host's daemon, and two guests that were started at once, each with a daemon."""
    with running(Network(libvirtd, tmp_path_factory.mktemp("net"))) as made:
        yield made


@pytest.fixture
def guest(network: Network) -> Iterator[Machine]:
    """The first guest, ready; and no channel when the test has ended."""
    network.restore()
    yield network.machines[0]
    network.assert_clean()


@pytest.fixture
def other(network: Network, guest: Machine) -> Machine:
    """The second guest."""
    return network.machines[1]
