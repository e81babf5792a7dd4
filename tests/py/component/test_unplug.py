# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a device is unplugged from a guest: never before its QEMU has read all of it.

The scripted hypervisor fails the test when it is asked for anything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvmchand.wire import client as wire
from kvmchand.wire import control
from rig.deadline import eventually
from rig.guest import ALICE, BOB, Guest, Plugged, ScriptedHost, connect, offer


def devices(host: ScriptedHost) -> dict[int, int]:
    """How many devices count for each guest."""
    return {each["domain"]: each["devices"] for each in host.listing()["guests"]}


def fail_device(guest: Guest, number: int, request: Any) -> Plugged:
    """Has the guest say that it can't use the device that a client's request needs; the device."""
    guest.request(number, request)
    guest.host.hypervisor.wait(guest.new_devices, f"domain {guest.domain} gets no device")
    (device,) = guest.new_devices()
    guest._ready.add(device.path)
    guest.say(control.Unusable(device.peer, "I can not use it"))
    answer = guest.answer(number)
    assert isinstance(answer, wire.Error), answer
    assert answer.code == "limit"
    assert "I can not use it" in answer.sentence
    return device


def settle(host: ScriptedHost, guest: Guest) -> None:
    """Until the hypervisor has done all that main has asked of it so far: what this asks for comes after that."""
    guest.offer(900, guest.domain, "settled", grows=True)
    guest.close(900)


def test_a_device_that_can_not_be_used_is_unplugged(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    device = fail_device(alice, 1, offer(BOB))
    host.hypervisor.wait(lambda: device.path not in alice.machine.devices, "the device is left")
    eventually(lambda: devices(host) == {ALICE: 2, BOB: 2})


def test_a_device_whose_other_guest_has_gone_is_unplugged(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    server = alice.offer(1, BOB, grows=True)
    bob.connect(1, ALICE, f"/local/domain/{ALICE}/x", grows=True)
    path = alice.wait_device(server.grant.peer).path
    bob.stop()
    alice.close(1)
    host.hypervisor.wait(lambda: path not in alice.machine.devices, "the device is left")
    eventually(lambda: devices(host) == {ALICE: 2})


def test_a_device_is_unplugged_when_its_qemu_has_read_all_of_it(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    alice.machine.is_lazy = True
    device = fail_device(alice, 1, offer(BOB))
    settle(host, bob)
    assert alice.machine.unplugging == []
    assert device.path in alice.machine.devices
    assert devices(host)[ALICE] == 3
    device.read()
    host.hypervisor.wait(lambda: device.path not in alice.machine.devices, "the device is left")
    eventually(lambda: devices(host)[ALICE] == 2)


def test_a_guest_that_ends_while_its_qemu_still_reads_leaves_nothing(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    alice.machine.is_lazy = True
    device = fail_device(alice, 1, connect_to(bob))
    alice.stop()
    host.wait_log(f"domain {ALICE} (guest-{ALICE}) is gone")
    bob.close(1)
    eventually(lambda: devices(host) == {BOB: 2})
    assert Path(device.path).name not in host.devices_left()


def connect_to(server: Guest) -> wire.Connect:
    """To a vchan that the other guest offers, on a device that it has."""
    server.offer(1, ALICE, grows=True)
    return connect(server.domain, f"/local/domain/{server.domain}/x")
