# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever ends, the other end of each channel learns of it at once, nothing is left, and what
returns can open channels.
"""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from libxenvchan_shim import State, offer
from rig.daemon import acting_as
from rig.deadline import eventually, in_time
from rig.machine import Machine, Program
from rig.network import HostProgram, Network
from rig.streams import MIB, finish, move

AT_ONCE = 1.0
"""Seconds within which a death is learnt of."""
PATH = "data/life"


def at_once() -> AbstractContextManager[None]:
    return in_time(AT_ONCE, "the news of an end")


def pair(
    network: Network, watch: Path, server: Machine | None, client: Machine | None
) -> tuple[HostProgram | Program, HostProgram | Program]:
    """An open channel, of two programs that wait for each other to go."""
    here, there = network.domain_of(server), network.domain_of(client)
    path = f"/local/domain/{here}/{PATH}"
    serving = network.run_on(server, watch, "server", str(there), path)
    serving.wait_line("offered")
    connecting = network.run_on(client, watch, "client", str(here), path)
    for each in (serving, connecting):
        each.wait_line("open")
    return serving, connecting


def assert_usable(network: Network, stream: Path, guest: Machine) -> None:
    """Host and guest, and the guest and the other one, can talk."""
    move(network, stream, None, guest, out=100_000, back=100_000)
    move(network, stream, guest, None, out=100_000, back=100_000)


# ---- programs ----


def test_a_client_is_refused_before_its_server(network: Network, watch: Path, guest: Machine) -> None:
    refused = network.run_on(guest, watch, "client", "0", f"/local/domain/0/{PATH}")
    assert refused.wait() == 1
    assert refused.lines == ["init: No such file or directory"]
    serving, connecting = pair(network, watch, None, guest)
    connecting.kill()
    serving.wait_line("gone")


@pytest.mark.parametrize("dying", ["server", "client"])
@pytest.mark.parametrize("where", ["host", "guest"])
def test_a_killed_program_is_gone_at_once(network: Network, watch: Path, guest: Machine, where: str, dying: str) -> None:
    on_guest_serves = (where == "guest") == (dying == "server")
    ends = pair(network, watch, guest if on_guest_serves else None, None if on_guest_serves else guest)
    killed, left = ends if dying == "server" else reversed(ends)
    with at_once():
        killed.kill(signal.SIGKILL)
        left.wait_line("gone")
    assert left.wait() == 0


def test_a_killed_program_in_one_guest_is_gone_at_once_in_the_other(
    network: Network, watch: Path, guest: Machine, other: Machine
) -> None:
    serving, connecting = pair(network, watch, guest, other)
    with at_once():
        connecting.kill(signal.SIGKILL)
        serving.wait_line("gone")


# ---- guests ----


def test_a_destroyed_guest_is_gone_at_once_and_the_other_is_not_touched(
    network: Network, watch: Path, stream: Path, guest: Machine, other: Machine
) -> None:
    move(network, stream, guest, other, out=100_000, back=100_000)
    on_host, _ = pair(network, watch, None, guest)
    staying, kept = pair(network, watch, other, None)
    before = other.devices()
    with acting_as(network.daemon), offer(guest.domain, "data/never") as waiting:
        guest.virsh("destroy", guest.name)
        with at_once():
            on_host.wait_line("gone")
        # No client will come any more.
        eventually(lambda: waiting.state is State.GONE)
    assert "gone" not in staying.lines + kept.lines
    kept.kill()
    staying.wait_line("gone")
    guest.destroy()
    network.restore()
    assert_usable(network, stream, guest)
    move(network, stream, guest, other, out=100_000, back=100_000)
    # Without KVM the other keeps the devices that it had with the one that is gone.
    assert before < other.devices()


@pytest.mark.parametrize("how", ["reset", "crash"])
def test_a_guest_that_starts_anew_has_no_channels_and_can_open_some(
    network: Network, watch: Path, stream: Path, guest: Machine, other: Machine, how: str
) -> None:
    domain, before = guest.domain, guest.devices()
    on_host, _ = pair(network, watch, None, guest)
    guest.reboot(how)
    on_host.wait_line("gone")
    guest.wait_ready()
    assert guest.domain == domain, "it is another QEMU"
    network.start_daemon(guest)
    network.wait_linked(guest)
    assert_usable(network, stream, guest)
    move(network, stream, guest, other, out=100_000, back=100_000)
    assert before <= guest.devices()


def test_a_guest_that_shuts_down_is_gone(network: Network, watch: Path, stream: Path, guest: Machine) -> None:
    on_host, _ = pair(network, watch, None, guest)
    guest.reboot("off")
    on_host.wait_line("gone")
    eventually(lambda: not guest.is_running())
    guest.destroy()
    network.restore()
    assert_usable(network, stream, guest)


def test_a_paused_guest_goes_on_where_it_was(network: Network, watch: Path, guest: Machine) -> None:
    serving, connecting = pair(network, watch, None, guest)
    guest.virsh("suspend", guest.name)
    guest.virsh("resume", guest.name)
    serving.kill()
    connecting.wait_line("gone")


# ---- links: before a guest has many devices, which take windows and vectors ----


def test_a_channel_larger_than_a_device_gets_one_of_its_own(network: Network, stream: Path, guest: Machine) -> None:
    move(network, stream, None, guest, out=MIB, back=MIB, ring=MIB // 2)


def test_a_link_grows_past_one_device(network: Network, stream: Path, guest: Machine, other: Machine) -> None:
    move(network, stream, guest, other, channels=3, out=MIB, back=MIB, ring=256 * 1024)
    links = {(each["domain"], each["other"]): each["devices"] for each in network.daemon.listing()["links"]}
    assert links[min(guest.domain, other.domain), max(guest.domain, other.domain)] >= 3


# ---- daemons ----


def test_a_killed_guest_daemon_is_gone_at_once_and_can_be_started_again(
    network: Network, watch: Path, stream: Path, guest: Machine
) -> None:
    on_host, in_guest = pair(network, watch, None, guest)
    with at_once():
        network.daemons[guest.name].kill(signal.SIGKILL)
        on_host.wait_line("gone")
    in_guest.wait_line("gone")
    network.start_daemon(guest)
    network.wait_linked(guest)
    assert_usable(network, stream, guest)


@pytest.mark.parametrize("service", ["local", "control", "ivshmem", "libvirt"])
def test_a_killed_service_of_the_host_is_not_noticed(
    network: Network, watch: Path, stream: Path, guest: Machine, other: Machine, service: str
) -> None:
    serving, connecting = pair(network, watch, None, guest)
    before = network.daemon.services()[service]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: network.daemon.services().get(service, before) != before, network.daemon.log)
    assert_usable(network, stream, guest)
    move(network, stream, guest, other, out=100_000, back=100_000)
    assert "gone" not in serving.lines + connecting.lines
    connecting.kill()
    serving.wait_line("gone")


@pytest.mark.parametrize("service", ["local", "ctrl", "vfio"])
def test_a_killed_service_of_a_guest_leaves_it_usable(
    network: Network, watch: Path, stream: Path, guest: Machine, service: str
) -> None:
    def pid() -> str:
        # One that has ended has no command line; the agent does not wait for orphans.
        look = f"for each in $(grep -lx kvmchand-{service} /proc/[0-9]*/comm 2>/dev/null)"
        return guest.run(
            "sh", "-c", f"{look}; do grep -qs . ${{each%comm}}cmdline && echo ${{each%/comm}}; done; :"
        ).removeprefix("/proc/")

    before = pid()
    guest.run("sh", "-c", f"kill -9 {before}")  # the shell's own: a bare Debian 13 has no other
    eventually(lambda: pid() not in ("", before))
    network.wait_linked(guest)
    assert_usable(network, stream, guest)


@pytest.mark.last
def test_a_killed_host_daemon_is_gone_at_once_and_guests_find_the_next(
    network: Network, watch: Path, stream: Path, guest: Machine, other: Machine
) -> None:
    serving, connecting = pair(network, watch, guest, other)
    before = guest.devices(), other.devices()
    with at_once():
        network.daemon.kill()
        for each in (serving, connecting):
            each.wait_line("gone")
    network.start_host()
    network.restore()
    assert_usable(network, stream, guest)
    move(network, stream, guest, other, out=100_000, back=100_000)
    # Without KVM they keep the devices of the daemon before until they end.
    assert before[0] < guest.devices()
    assert before[1] < other.devices()


@pytest.mark.last
def test_what_a_guest_offers_outlives_the_hosts_daemon(network: Network, stream: Path, guest: Machine) -> None:
    path, numbers = f"/local/domain/{guest.domain}/{PATH}", [str(each) for each in (1, MIB, MIB, 65536, 65536)]
    serving = network.run_on(guest, stream, "server", "0", path, *numbers)
    serving.wait_line("offered")
    network.daemon.process.terminate()
    network.daemon.process.wait()
    network.start_host()
    network.restore()
    eventually(lambda: [each["state"] for each in network.daemon.channels()] == ["waiting"], network.daemon.log)
    connecting = network.run_on(None, stream, "client", str(guest.domain), path, *numbers)
    finish(serving, connecting)
