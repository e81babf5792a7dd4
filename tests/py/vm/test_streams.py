# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unchanged C programs talk across the border, every byte checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rig.machine import Machine
from rig.network import Network
from rig.streams import MIB, move


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
