# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unchanged C programs talk across the border, every byte checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rig.machine import Machine
from rig.network import Network

pytestmark = pytest.mark.xdist_group("guests")

MIB = 1 << 20


def move(
    network: Network,
    stream: Path,
    server: Machine | None,
    client: Machine | None,
    *,
    channels: int = 1,
    out: int,
    back: int,
    call: int = 65536,
    ring: int = 65536,
) -> None:
    """`out` bytes from the server to the client and `back` the other way, at once, on each of so many channels."""
    here, there = network.domain_of(server), network.domain_of(client)
    path = f"/local/domain/{here}/data/stream"
    numbers = [str(each) for each in (channels, out, back, call, ring)]
    serving = network.run_on(server, stream, "server", str(there), path, *numbers)
    serving.wait_line("offered")
    numbers = [str(each) for each in (channels, back, out, call, ring)]
    connecting = network.run_on(client, stream, "client", str(here), path, *numbers)
    for each in (serving, connecting):
        each.wait_line("done")
    for each in (connecting, serving):
        each.end_input()
        each.wait_line("closed")
        assert each.wait() == 0, each.lines


def test_host_to_guest(network: Network, stream: Path, guest: Machine) -> None:
    move(network, stream, None, guest, out=64 * MIB, back=0)


def test_guest_to_host(network: Network, stream: Path, guest: Machine) -> None:
    move(network, stream, None, guest, out=0, back=64 * MIB)


def test_host_and_guest_each_way_at_once(network: Network, stream: Path, guest: Machine) -> None:
    move(network, stream, guest, None, out=64 * MIB, back=64 * MIB)


def test_guest_to_guest_each_way_at_once(network: Network, stream: Path, guest: Machine, other: Machine) -> None:
    move(network, stream, guest, other, out=64 * MIB, back=64 * MIB)


def test_within_a_guest(network: Network, stream: Path, guest: Machine) -> None:
    move(network, stream, guest, guest, out=MIB, back=MIB)


@pytest.mark.parametrize("ring", [1, 1024, 4096])
def test_small_rings(network: Network, stream: Path, guest: Machine, ring: int) -> None:
    move(network, stream, None, guest, out=100_000, back=100_000, ring=ring)


def test_a_guest_lists_its_channels_only(network: Network, guest: Machine) -> None:
    listed = json.loads(network.listing_in(guest))
    assert listed["channels"] == []
    assert {"domain": guest.domain, "kind": "guest"} in listed["domains"]
