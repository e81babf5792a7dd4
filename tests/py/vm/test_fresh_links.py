# SPDX-License-Identifier: LGPL-2.1-or-later
"""Links that no other test has made larger: this is to run before those of guests' lives."""

from __future__ import annotations

from pathlib import Path

from libxenvchan_shim import State, offer
from rig.daemon import acting_as
from rig.machine import Machine
from rig.network import Network
from rig.streams import move

PATH = "data/fresh"
RING = 65536


def test_two_hundred_channels_at_once_on_one_link(network: Network, stream: Path, guest: Machine) -> None:
    move(network, stream, None, guest, channels=200, out=5000, back=5000, ring=1)


def test_a_slice_has_nothing_of_the_channel_before(network: Network, guest: Machine) -> None:
    with acting_as(network.daemon), offer(guest.domain, PATH, read_min=RING, write_min=RING) as first:
        first.put(b"secret" * 1000)
    with acting_as(network.daemon), offer(guest.domain, PATH, read_min=RING, write_min=RING) as second:
        assert second.state is State.WAITING
        assert network.daemon.channels()[0]["client_ready"] == 0
