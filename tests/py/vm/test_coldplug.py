# SPDX-License-Identifier: LGPL-2.1-or-later
"""A domain that was prepared with --link-size has its link to the host from its start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.deadline import eventually
from rig.libvirtd import PrivateLibvirtd
from rig.machine import Machine
from rig.network import Network
from rig.paths import KVMCHAN
from rig.processes import run
from rig.streams import MIB, move

SIZE = 64 * MIB


@pytest.fixture
def large(network: Network, guest: Machine, libvirtd: PrivateLibvirtd, tmp_path: Path) -> Iterator[Machine]:
    """A persistent domain of its own, prepared and not started yet."""
    made = Machine(libvirtd.uri, "large", tmp_path)
    made.define()
    try:
        prepare(network, libvirtd, str(SIZE))
        yield made
    finally:
        made.destroy()
        made.virsh("undefine", "large")


def prepare(network: Network, libvirtd: PrivateLibvirtd, size: str) -> None:
    command = (str(KVMCHAN), "prepare-domain", "large", "--link-size", size, "--apply", "--uri", libvirtd.uri)
    run(*command, env=network.daemon.environment())


def sockets(network: Network) -> list[str]:
    return [each.name for each in (network.daemon.runtime_dir / "ivshmem").iterdir() if each.name.startswith("start-")]


def test_a_prepared_domain_has_its_link_from_its_start(
    network: Network, stream: Path, large: Machine, libvirtd: PrivateLibvirtd
) -> None:
    eventually(lambda: len(sockets(network)) == 1)
    large.start_defined()
    large.wait_ready()
    network.start_daemon(large)
    network.wait_linked(large)
    move(network, stream, None, large, out=8 * MIB, back=8 * MIB, ring=MIB // 2)
    move(network, stream, large, None, out=8 * MIB, back=8 * MIB, channels=4, ring=MIB // 2)
    domain = large.domain
    link = next(each for each in network.daemon.listing()["links"] if each["other"] == domain)
    assert (link["devices"], link["size"]) == (1, SIZE), "nothing was plugged"
    devices = json.loads(network.listing_in(large))["devices"]
    assert {"0000:00:10.0": SIZE}.items() <= {each["address"]: each["size"] for each in devices}.items()
    # Each start is served, also one right after the end of the one before, and so is none.
    for _ in range(2):
        large.destroy()
        large.virsh("start", "large", "--paused")
        large.virsh("destroy", "large")
    eventually(lambda: all(each["other"] != domain for each in network.daemon.listing()["links"]))
    prepare(network, libvirtd, "0")
    eventually(lambda: sockets(network) == [])
