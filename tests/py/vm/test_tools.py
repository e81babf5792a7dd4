# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kvmchan ls and doctor show of guests, on the host and in them."""

from __future__ import annotations

import json
import re
import subprocess

from machine import Machine
from network import GUEST_ENVIRONMENT, Network
from support import DEADLINE, KVMCHAN, PYTHON

MIB = 1 << 20


def doctor_on_host(network: Network) -> tuple[int, str]:
    command = [str(KVMCHAN), "doctor", "--uri", network.machines[0].uri]
    done = subprocess.run(command, env=network.daemon.environment(), capture_output=True, text=True, timeout=DEADLINE)
    assert done.stderr == ""
    return done.returncode, done.stdout


def doctor_in(guest: Machine) -> tuple[int, str]:
    program = guest.start(PYTHON, str(KVMCHAN), "doctor", env=GUEST_ENVIRONMENT)
    return program.wait(), "\n".join(program.lines)


def test_ls_shows_guests_and_links_on_the_host_and_devices_in_a_guest(network: Network, guest: Machine, other: Machine) -> None:
    listed = network.daemon.listing()
    domain = guest.domain
    assert {each["name"]: (each["domain"], each["ready"]) for each in listed["guests"]} == {
        guest.name: (domain, True),
        other.name: (other.domain, True),
    }
    (link,) = [each for each in listed["links"] if (each["domain"], each["other"]) == (0, domain)]
    assert link["devices"] >= 1
    assert link["size"] >= MIB
    assert listed["devices"] == []
    inside = json.loads(network.listing_in(guest))
    assert (inside["guests"], inside["links"], inside["channels"]) == ([], [], [])
    assert {"domain": domain, "kind": "guest"} in inside["domains"]
    sizes = sorted(each["size"] for each in inside["devices"])
    assert sizes[0] == 128 * 1024, "there is no control device"
    assert MIB in sizes
    assert all(re.fullmatch(r"0000:[0-9a-f]{2}:[0-9a-f]{2}\.0", each["address"]) for each in inside["devices"])


def test_the_doctor_finds_nothing_wrong_on_either_side(network: Network, guest: Machine) -> None:
    status, said = doctor_on_host(network)
    assert status == 0, said
    assert f"domain {guest.domain} ({guest.name}): its kvmchand is linked to this host's" in said
    status, said = doctor_in(guest)
    assert status == 0, said
    assert "vIOMMU: there is one" in said
    assert re.search(r"128 KiB, 1 vectors; its memory is mapped write-back: \d+ MB/s", said)
    assert re.search(r"1 MiB, \d+ vectors; its memory is mapped write-back: \d+ MB/s", said)


def test_the_doctor_says_on_both_sides_that_a_guest_has_no_daemon(network: Network, guest: Machine) -> None:
    network.daemons[guest.name].end()
    status, said = doctor_in(guest)
    assert status == 1
    assert re.search(r"bad +kvmchand guest: no kvmchand answers at /run/kvmchand/kvmchand.sock", said)
    status, said = doctor_on_host(network)
    assert status == 1
    assert re.search(rf"bad +domain {guest.domain} \({guest.name}\): no kvmchand in it is linked to this host's: start", said)
