# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmchan ls and doctor on a host and in its guests, in order and not."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from typing import Any

import pytest

from kvmchand.admin.guest_findings import WRITE_BACK
from libxenvchan_shim import offer
from rig.daemon import acting_as
from rig.deadline import eventually
from rig.machine import Machine
from rig.network import GUEST_ENVIRONMENT, Network
from rig.paths import KVMCHAN, PYTHON

MIB = 1 << 20


def kvmchan(network: Network, machine: Machine | None, *arguments: str) -> tuple[int, list[str]]:
    """Its status and what it says, run in a guest, or on the host where `machine` is None."""
    if machine is None:
        done = subprocess.run([KVMCHAN, *arguments], env=network.daemon.environment(), capture_output=True, text=True)
        return done.returncode, (done.stdout + done.stderr).splitlines()
    program = machine.start(PYTHON, str(KVMCHAN), *arguments, env=GUEST_ENVIRONMENT)
    return program.wait(), program.lines


def doctor(network: Network, machine: Machine | None) -> tuple[int, dict[str, list[str]]]:
    """Its status, and by subject the grades and sentences of what it found."""
    status, lines = kvmchan(network, machine, "doctor", *([] if machine else ["--uri", network.machines[0].uri]))
    found: dict[str, list[str]] = {}
    for line in lines:
        matched = re.fullmatch(r"(ok|note|bad) +(.*?): (.*)", line)
        assert matched, lines
        found.setdefault(matched[2], []).append(f"{matched[1]} {matched[3]}")
    return status, found


WITHOUT_KVM = (
    "note it runs without KVM, so that it is slow, and keeps each device that it was given until it ends: where the host has "
    "/dev/kvm, put type='kvm' into its XML (virsh edit), shut it down and start it"
)


def bad(found: dict[str, list[str]]) -> dict[str, list[str]]:
    return {subject: wrong for subject, said in found.items() if (wrong := [each for each in said if not each.startswith("ok ")])}


@pytest.fixture
def devices(network: Network, guest: Machine) -> list[dict[str, Any]]:
    """The first guest's, once it has taken all that the host gave it."""
    listed: list[dict[str, Any]] = []

    def is_settled() -> bool:
        given = next(each["devices"] for each in network.guests() if each["domain"] == guest.domain)
        listed[:] = json.loads(network.listing_in(guest))["devices"]
        return len(listed) == given

    eventually(is_settled, lambda: f"{network.guests()} {listed}")
    return listed


def test_ls_on_the_host_shows_guests_links_and_channels(
    network: Network, guest: Machine, other: Machine, devices: list[dict[str, Any]]
) -> None:
    with acting_as(network.daemon), offer(guest.domain, "data/tools"):
        status, lines = kvmchan(network, None, "ls")
    assert status == 0
    rows = [line.split() for line in lines]
    assert lines[0].startswith("domains: 0 (host), ")
    assert ["GUEST", "NAME", "KVMCHAND", "DEVICES"] in rows
    assert [str(guest.domain), "one", "yes", str(len(devices))] in rows
    assert [str(other.domain), "two", "yes"] in [row[:3] for row in rows]
    (link,) = [row for row in rows if row[0] == f"0-{guest.domain}"]
    said = next(each for each in network.daemon.listing()["links"] if each["other"] == guest.domain)
    assert link[1:3] == [str(said["devices"]), str(said["size"])]
    assert link[3] == "1", "it has that channel"
    (channel,) = [row for row in rows if row[-1] == "/local/domain/0/data/tools"]
    assert channel[2:4] == [f"{guest.domain}:-", "waiting"]


def test_ls_in_a_guest_shows_its_devices_and_channels(network: Network, guest: Machine, devices: list[dict[str, Any]]) -> None:
    there = guest.run("sh", "-c", "cd /sys/bus/pci/devices; for each in *; do echo $each $(cat $each/vendor $each/device); done")
    addresses = [line.split()[0] for line in there.splitlines() if line.endswith(" 0x1af4 0x1110")]
    assert sorted(each["address"] for each in devices) == addresses
    assert {128 << 10, MIB} <= {each["size"] for each in devices}, "the control device's, and that of the link"
    with acting_as(network.daemon), offer(guest.domain, "data/tools"):
        status, lines = kvmchan(network, guest, "ls")
    assert status == 0
    rows = [line.split() for line in lines]
    start = rows.index(["DEVICE", "BYTES", "VECTORS", "READ"]) + 1
    shown = sorted(rows[start : start + len(devices)])
    assert shown == sorted(
        [each["address"], str(each["size"]), str(each["vectors"]), str(each["speed"]), "MB/s"] for each in devices
    )
    assert [row[-1] for row in rows[start + len(devices) :]] == ["PATH", "/local/domain/0/data/tools"]


@pytest.mark.usefixtures("devices")
def test_the_doctor_finds_a_host_in_order(network: Network, guest: Machine, other: Machine) -> None:
    status, found = doctor(network, None)
    names = {f"domain {machine.domain} ({machine.name})" for machine in (guest, other)}
    assert (status, bad(found)) == (0, {each: [WITHOUT_KVM] for each in names})
    for machine in (guest, other):
        _, has, linked = found[f"domain {machine.domain} ({machine.name})"]
        assert re.match(r"ok its machine has all that vchans need, [1-9]\d* devices of ours and \d+ free slots for more", has)
        assert linked == "ok its kvmchand is linked to this host's"


def test_the_doctor_finds_a_guest_in_order(network: Network, guest: Machine, devices: list[dict[str, Any]]) -> None:
    status, found = doctor(network, guest)
    assert (status, bad(found)) == (0, {})
    assert found["kvmchand guest"][0].startswith("ok it answers")
    assert found["vIOMMU"] == ["ok there is one, and the kernel uses it"]
    (link,) = found["link"]
    assert re.fullmatch("ok the host's kvmchand answers, and [1-9]\\d* devices are here for channels", link)
    guest.run("test", "-e", "/sys/bus/acpi/devices/QEMU0002:00")  # by which a machine of QEMU's is known without a device
    for each in devices:
        (said,) = found[f"device {each['address']}"]
        speed = re.fullmatch(r"ok \d+ [KM]iB, \d+ vectors; its memory is mapped write-back: (\d+) MB/s read", said)
        assert speed, said
        assert int(speed[1]) >= WRITE_BACK
    bridges = {subject: said for subject, said in found.items() if subject.startswith("bridge ")}
    assert bridges
    for (said,) in bridges.values():
        assert re.fullmatch(r"ok it has windows of \d+ MiB and \d+ MiB, with room for a device of \d+ [KM]iB more", said), said


def test_the_doctor_says_what_to_do_where_the_guest_s_daemon_is_not_there(
    network: Network, guest: Machine, other: Machine, devices: list[dict[str, Any]]
) -> None:
    network.daemons[guest.name].kill(signal.SIGTERM)
    network.daemons[guest.name].wait()
    status, found = doctor(network, guest)
    assert status == 1
    wrong = bad(found)
    assert wrong.keys() == {"kvmchand guest", *(f"device {each['address']}" for each in devices)}
    assert wrong["kvmchand guest"][0].startswith("bad no kvmchand answers at /run/kvmchand/kvmchand.sock")
    assert "start it" in wrong["kvmchand guest"][0]
    for each in devices:
        assert wrong[f"device {each['address']}"] == ["bad kvmchand guest does not use it: is it running? its log says why"]
    eventually(lambda: any(each["domain"] == guest.domain and not each["ready"] for each in network.guests()))
    status, found = doctor(network, None)
    assert status == 1
    assert bad(found) == {
        f"domain {other.domain} (two)": [WITHOUT_KVM],
        f"domain {guest.domain} (one)": [
            WITHOUT_KVM,
            "bad no kvmchand in it is linked to this host's: start kvmchand guest there; kvmchan doctor there says more",
        ],
    }


@pytest.mark.last
def test_the_doctor_notes_in_a_guest_what_an_earlier_daemon_of_the_host_left(
    network: Network, guest: Machine, devices: list[dict[str, Any]]
) -> None:
    network.daemon.kill()
    network.start_host()
    network.restore()
    found: dict[str, list[str]] = {}

    def is_well() -> bool:
        status, said = doctor(network, guest)
        found.clear()
        found.update(said)
        return status == 0

    eventually(is_well, lambda: str(bad(found)))
    assert {f"device {each['address']}" for each in devices} <= bad(found).keys()
    for (note,) in bad(found).values():
        assert note.startswith("note nothing uses it, and the link works without it: an earlier kvmchand host left it")
