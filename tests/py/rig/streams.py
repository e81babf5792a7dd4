# SPDX-License-Identifier: LGPL-2.1-or-later
"""Streams of bytes across the border, each byte checked by the programs at both ends."""

from __future__ import annotations

from pathlib import Path

from rig.machine import Machine, Program
from rig.network import HostProgram, Network

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
    """Move `out` bytes from the server to the client and `back` the other way, at once, on each
    channel.
    """
    here, there = network.domain_of(server), network.domain_of(client)
    path = f"/local/domain/{here}/data/stream"
    numbers = [str(each) for each in (channels, out, back, call, ring)]
    serving = network.run_on(server, stream, "server", str(there), path, *numbers)
    serving.wait_line("offered")
    numbers = [str(each) for each in (channels, back, out, call, ring)]
    connecting = network.run_on(client, stream, "client", str(here), path, *numbers)
    finish(serving, connecting)


def finish(serving: HostProgram | Program, connecting: HostProgram | Program) -> None:
    """Wait until both have moved all bytes, and let them close."""
    # The client first: if it can't connect, its server waits for ever, and does not know why.
    for each in (connecting, serving):
        each.wait_line("done")
    for each in (connecting, serving):
        each.end_input()
        each.wait_line("closed")
        assert each.wait() == 0, each.lines
