# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a device is unplugged from a guest: never before its QEMU has read all of it, and never from
a QEMU without KVM.

The scripted hypervisor fails the test when it is asked for anything else.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kvmchand.ids import DomainId, Size
from kvmchand.wire import client as wire
from kvmchand.wire import control
from rig.deadline import eventually
from rig.fixtures import Run
from rig.guest import ALICE, BOB, STALE_PEER, STALE_VECTORS, Guest, Plugged, ScriptedHost, connect, offer

REMEDY = "as it runs without KVM: shut it down and start it again, or run it with KVM"


@pytest.fixture
def plain(host: ScriptedHost) -> Guest:
    """A guest without KVM."""
    return host.guest(ALICE, kvm=False).greet()


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
    """Until the hypervisor has done all that main has asked of it so far: what this asks for comes
    after that.
    """
    guest.offer(900, guest.domain, "settled", grows=True)
    guest.close(900)


# ---- without KVM ----


def test_a_device_that_can_not_be_used_stays_and_counts_until_its_domain_ends(
    host: ScriptedHost, plain: Guest, bob: Guest
) -> None:
    device = fail_device(plain, 1, offer(BOB))
    host.wait_log(f"domain {ALICE}, which runs without KVM, keeps device")
    settle(host, bob)
    assert device.path in plain.machine.devices
    assert devices(host) == {ALICE: 3, BOB: 4}  # the one that failed is Bob's by its peers, and never went in
    # The next request gets another.
    server = plain.offer(2, BOB, grows=True)
    assert server.peer != device.peer
    plain.stop()
    eventually(lambda: devices(host) == {BOB: 3})
    assert Path(device.path).name not in host.devices_left()


def test_a_device_that_is_with_two_guests_goes_from_the_one_with_kvm_alone(host: ScriptedHost, plain: Guest, bob: Guest) -> None:
    server = plain.offer(1, BOB, grows=True)
    far = bob.connect(1, ALICE, f"/local/domain/{ALICE}/x", grows=True)
    here, there = plain.wait_device(server.peer), bob.wait_device(far.peer)
    plain.say(control.Unusable(here.peer, "I can not use it any more"))
    plain.close(1)
    bob.close(1)
    host.hypervisor.wait(lambda: there.path not in bob.machine.devices, "the device is left in the guest with KVM")
    assert here.path in plain.machine.devices


def test_a_device_whose_other_guest_has_gone_stays(host: ScriptedHost, plain: Guest) -> None:
    kept = []
    for _ in range(3):
        bob = host.guest(BOB).greet()
        server = plain.offer(1, BOB, grows=True)
        bob.connect(1, ALICE, f"/local/domain/{ALICE}/x", grows=True)
        kept.append(plain.wait_device(server.peer).path)
        bob.stop()
        host.wait_log(f"domain {BOB} (guest-{BOB}) is gone", len(kept))
        plain.close(1)
    assert len(set(kept)) == 3
    assert set(kept) < plain.machine.devices.keys()
    assert devices(host) == {ALICE: 5}


def test_a_device_that_is_idle_is_used_again(host: ScriptedHost, plain: Guest, bob: Guest) -> None:
    used = set()
    for number in range(5):
        server = plain.offer(1, BOB, grows=not number)
        client = bob.connect(1, ALICE, f"/local/domain/{ALICE}/x", grows=not number)
        used.add((server.peer, client.peer))
        for guest, end in ((plain, server), (bob, client)):
            end.close()
            guest.close(1)
    assert len(used) == 1
    assert devices(host) == {ALICE: 3, BOB: 3}


def test_a_device_stays_usable_when_the_guest_starts_anew(host: ScriptedHost, plain: Guest) -> None:
    plain.offer(1)
    before = set(plain.machine.devices)
    plain.part()
    host.hypervisor.reboot(plain.machine)
    host.wait_log(f"domain {ALICE} (guest-{ALICE}) starts anew")
    plain.greet().offer(1)
    assert set(plain.machine.devices) == before


def test_a_device_that_was_not_got_in_counts_no_more(host: ScriptedHost, plain: Guest) -> None:
    plain.machine.refusal = "its bridges have no free slot"
    assert "no free slot" in plain.refused(1, offer(ALICE), "limit")
    plain.machine.refusal = ""
    assert devices(host) == {ALICE: 2}
    plain.offer(1, ALICE, grows=True)


def test_the_limit_is_reached_with_a_sentence_that_says_what_to_do(run: Run) -> None:
    host = run("[limits]\nguest_devices = 4")
    plain = host.guest(ALICE, kvm=False).greet()
    for number in range(2):
        fail_device(plain, number, offer(ALICE, f"x/{number}"))
    sentence = plain.refused(2, offer(ALICE, "x/2"), "limit")
    assert sentence.startswith(f"domain {ALICE} has 4 devices: guest_devices in the host's settings; 2 of them are of no use")
    assert REMEDY in sentence
    host.wait_log(REMEDY)
    assert len(plain.machine.devices) == 4
    # What it has goes on.
    plain.offer(3)
    plain.stop()
    host.wait_log(f"domain {ALICE} (guest-{ALICE}) is gone")
    again = host.guest(ALICE, kvm=False).greet()
    again.offer(1, ALICE, grows=True)


def test_a_guest_with_kvm_that_has_enough_devices_is_not_told_to_get_it(run: Run) -> None:
    host = run("[limits]\nguest_devices = 3")
    alice = host.guest(ALICE).greet()
    alice.machine.is_stubborn = True
    fail_device(alice, 1, offer(ALICE))
    assert "KVM" not in alice.refused(2, offer(ALICE), "limit")


def test_devices_of_one_channel_each_stay_when_it_ends(run: Run) -> None:
    host = run("[limits]\nguest_devices = 4\n[links]\ndedicated = true")
    plain = host.guest(ALICE, kvm=False).greet()
    paths = []
    for number in range(3):
        end = plain.offer(number, path=str(number), grows=number > 0)
        paths.append(plain.wait_device(end.peer).path)
        end.close()
        plain.close(number)
    assert len(set(paths)) == 3
    assert set(paths) < plain.machine.devices.keys()
    assert REMEDY in plain.refused(3, offer(path="3"), "limit")


def test_devices_of_an_earlier_daemon_count(run: Run) -> None:
    host = run("[limits]\nguest_devices = 5")
    plain = host.guest(ALICE, kvm=False, left=2).greet()
    plain.offer(1, ALICE, grows=True)
    sentence = plain.refused(2, offer(ALICE, "y", 1 << 20), "limit")
    assert f"domain {ALICE} has 5 devices" in sentence
    assert "2 of them are of no use" in sentence
    assert REMEDY in sentence


def test_a_guest_full_of_an_earlier_daemons_devices_is_not_served_and_the_log_says_what_to_do(run: Run) -> None:
    host = run("[limits]\nguest_devices = 5")
    machine = host.hypervisor.start(ALICE, kvm=False, left=5)
    host.wait_log(f"domain {ALICE} (guest-{ALICE}) gets no control device: domain {ALICE} has 5 devices")
    assert REMEDY in host.log()
    host.guest(BOB).greet()
    assert machine.devices == {}
    host.hypervisor.stop(machine)


def test_a_qemu_that_reads_late_gets_its_device_whole_though_the_ivshmem_process_is_killed(run: Run) -> None:
    host = run("[links]\nvectors = 255")
    host.guest(BOB).greet()
    plain = host.guest(ALICE, kvm=False).greet()
    plain.machine.is_lazy = True
    plain.request(1, offer(BOB))
    host.hypervisor.wait(plain.new_devices, "no device")
    (device,) = plain.new_devices()
    os.kill(host.services()["ivshmem"], signal.SIGKILL)
    host.wait_log("the ivshmem process ended")
    device.read()
    assert plain.take_device().path == device.path
    assert isinstance(plain.answer(1), control.Granted)
    assert devices(host)[ALICE] == 3


# ---- with KVM ----


def test_a_device_that_can_not_be_used_is_unplugged(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    device = fail_device(alice, 1, offer(BOB))
    host.hypervisor.wait(lambda: device.path not in alice.machine.devices, "the device is left")
    eventually(lambda: devices(host) == {ALICE: 2, BOB: 2})


def test_a_device_whose_other_guest_has_gone_is_unplugged(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    server = alice.offer(1, BOB, grows=True)
    bob.connect(1, ALICE, f"/local/domain/{ALICE}/x", grows=True)
    path = alice.wait_device(server.peer).path
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


# ---- what is done first, with KVM ----


def share_and_lose(alice: Guest, bob: Guest, *, vectors: int | None = None) -> Plugged:
    """Alice uses a device that she shares with Bob, who then goes; the device."""
    alice.request(1, offer(BOB))
    device = alice.take_device(vectors)
    assert isinstance(alice.answer(1), control.Granted)
    bob.stop()
    alice.close(1)
    return device


def test_a_device_that_a_guest_uses_is_unplugged_when_its_daemon_has_let_go(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    device = share_and_lose(alice, bob)
    alice.hear_release(device.peer)
    bob = host.guest(BOB).greet()
    settle(host, bob)
    assert alice.machine.unplugging == []
    assert device.path in alice.machine.devices
    alice.say(control.Released(device.peer))
    host.hypervisor.wait(lambda: device.path not in alice.machine.devices, "the device is left")
    eventually(lambda: devices(host) == {ALICE: 2, BOB: 3})
    assert "did not say" not in host.log()


def test_a_device_that_is_not_let_go_is_unplugged_after_a_while_and_its_routes_are_lost(
    host: ScriptedHost, alice: Guest, bob: Guest
) -> None:
    device = share_and_lose(alice, bob)
    host.hypervisor.wait(lambda: device.path not in alice.machine.devices, "the device is left")
    host.wait_log(f"domain {ALICE} did not say that it let go of device")


def test_a_device_of_a_guest_that_was_reset_has_no_interrupts_to_be_turned_off(
    host: ScriptedHost, alice: Guest, bob: Guest
) -> None:
    server = alice.offer(1, BOB, grows=True)
    path = alice.wait_device(server.peer).path
    alice.part()
    host.hypervisor.reboot(alice.machine)
    host.wait_log(f"domain {ALICE} (guest-{ALICE}) starts anew")
    bob.stop()
    host.hypervisor.wait(lambda: path not in alice.machine.devices, "the device is left")
    assert "did not say" not in host.log()


def test_a_device_that_a_guest_loses_by_itself_is_not_used_any_more(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    alice.request(1, offer(BOB))
    device = alice.take_device()
    assert isinstance(alice.answer(1), control.Granted)
    alice.say(control.Released(device.peer))
    host.hypervisor.wait(lambda: device.path in alice.machine.unplugging or device.path not in alice.machine.devices, "it stays")
    alice.close(1)
    alice.offer(2, BOB, grows=True)


def test_a_device_that_comes_when_it_was_given_up_is_taken_back(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    alice.machine.is_late = True
    assert "in time" in alice.refused(1, offer(BOB), "limit")
    eventually(lambda: devices(host) == {ALICE: 2, BOB: 2})
    alice.machine.is_late = False
    alice.offer(1, BOB, grows=True)


# ---- an earlier daemon's devices ----


def test_a_guest_gets_its_control_device_before_earlier_ones_go_and_the_others_after(host: ScriptedHost) -> None:
    alice = host.guest(ALICE, left=2)
    alice.machine.is_stubborn = True
    alice.meet().say(control.Hello(control.VERSION))
    host.hypervisor.wait(lambda: len(alice.machine.unplugging) == 2, "the earlier daemon's devices are left")
    assert alice.hear() == control.Welcome(DomainId(ALICE))
    host.hypervisor.let_go(alice.machine)
    host.hypervisor.wait(lambda: len(alice.machine.devices) == 2, "there is no device of the link")


def test_earlier_devices_that_do_not_go_keep_the_guest_from_nothing_and_keep_their_ids(host: ScriptedHost) -> None:
    alice = host.guest(ALICE, left=2)
    alice.machine.is_stubborn = True
    alice.greet().offer(1)
    peers = {each.peer for each in alice.machine.devices.values()}
    assert not peers & {STALE_PEER, STALE_PEER + 1}
    alice.say(control.Ready(STALE_PEER, STALE_VECTORS))  # its daemon has just started, and takes it for ours
    alice.hear_release(STALE_PEER)
    alice.say(control.Released(STALE_PEER))
    alice.offer(2)


def test_earlier_devices_of_a_guest_without_a_daemon_go_too(host: ScriptedHost) -> None:
    alice = host.guest(ALICE, left=2)
    host.hypervisor.wait(lambda: alice.machine.stale == (), "the earlier daemon's devices are left")


def test_earlier_devices_of_a_domain_that_is_not_served_go_too(host: ScriptedHost) -> None:
    machine = host.hypervisor.start(ALICE, left=2, lack="it is not prepared")
    host.hypervisor.wait(lambda: machine.stale == (), "the earlier daemon's devices are left")
    host.hypervisor.stop(machine)


# ---- windows ----


def test_a_device_for_which_a_guest_has_no_window_is_not_plugged(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    alice.say(control.Room(Size(2 << 20), ""))
    before = set(alice.machine.devices)
    for number in range(50):
        sentence = alice.refused(number, offer(BOB, f"large/{number}", 1 << 20), "limit")
    assert "no window for a device of 4194304 bytes, only for 2097152" in sentence
    assert "ask for smaller rings" in sentence
    assert set(alice.machine.devices) == before
    assert devices(host) == {ALICE: 2, BOB: 2}
    alice.offer(1, BOB, grows=True)
    alice.say(control.Room(Size(8 << 20), ""))
    alice.offer(2, BOB, "large", 1 << 20, grows=True)
