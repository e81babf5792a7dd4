# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest that is detached, and attached again: its channels end, it has no device meanwhile, and
what is offered to it waits.
"""

from __future__ import annotations

import os
import select
import signal

import pytest

from kvmchand.channels.page import CLIENT_NONE_YET, Page
from kvmchand.channels.registry import Side
from kvmchand.channels.rings import Rings
from kvmchand.errors import NotFound
from kvmchand.ids import CONTROL_PEER
from kvmchand.wire import client as wire
from kvmchand.wire import control
from libxenvchan_shim import State, Vchan
from libxenvchan_shim import connect as connect_here
from libxenvchan_shim import offer as offer_here
from rig.daemon import acting_as
from rig.deadline import eventually
from rig.detaching import attach, detach, detaching, kvmchan, release
from rig.fixtures import Run
from rig.guest import ALICE, BOB, Guest, ScriptedHost, ScriptedPlugged, connect, offer
from rig.streams import MIB

NAME = f"guest-{ALICE}"
AGAIN = 21
"""The number of Alice's domain when it has started again."""


def await_state(vchan: Vchan, state: State) -> None:
    """Woken by events only."""
    while vchan.state is not state:
        select.select([vchan._event_fd()], [], [])
        vchan.wait()


def known(host: ScriptedHost, domain: int = ALICE) -> dict[str, object]:
    (found,) = (each for each in host.listing()["guests"] if each["domain"] == domain)
    return {name: found[name] for name in ("ready", "devices", "detached")}


# ---- what ends, and what waits ----


def test_channels_end_at_once_and_the_devices_are_taken_out(host: ScriptedHost, alice: Guest) -> None:
    with acting_as(host):
        served = offer_here(ALICE, "served")
        far_client = alice.connect(1, 0, "/local/domain/0/served")
        far_server = alice.offer(2, 0, "far")
        used = connect_here(ALICE, "far")
        for end, far in ((served, far_client), (used, far_server)):
            await_state(end, State.OPEN)
            far.send(b"last")
        with detaching(host, NAME):
            for end in (served, used):  # before the guest has done anything
                await_state(end, State.GONE)
                assert end.recv(100) == b"last"
                assert end.recv(100) == b""
            release(alice)
            alice.hear_end()
        assert alice.machine.devices == {}
        assert known(host) == {"ready": False, "devices": 0, "detached": True}
        with pytest.raises(NotFound, match="it is detached: kvmchan attach"):
            connect_here(ALICE, "far")
        for end in (served, used):
            end.close()


def test_a_guest_that_is_attached_again_finds_what_was_offered_to_it(host: ScriptedHost, alice: Guest) -> None:
    with acting_as(host), offer_here(ALICE, "waits") as waiting, offer_here(ALICE, "used") as used:
        alice.connect(1, 0, "/local/domain/0/used")
        waiting.send(b"early")
        detach(host, alice)
        assert (waiting.state, used.state) == (State.WAITING, State.GONE)
        attach(host, alice)
        assert known(host) == {"ready": True, "devices": 2, "detached": False}
        for number, (server, path) in enumerate(((waiting, "waits"), (used, "used")), 1):
            far = alice.connect(number, 0, f"/local/domain/0/{path}")
            await_state(server, State.OPEN)
            if server is waiting:
                assert far.recv(5) == b"early"
            far.send(b"anew")
            assert server.recv(100) == b"anew"
            server.send(b"yes")
            assert far.recv(3) == b"yes"
            alice.close(number)
        alice.offer(3)
        with connect_here(ALICE, "x") as ours:
            assert ours.state is State.OPEN


def test_what_is_offered_to_a_detached_guest_is_found_later(host: ScriptedHost, alice: Guest) -> None:
    detach(host, alice)
    with acting_as(host), offer_here(ALICE, "late") as server:
        attach(host, alice)
        alice.connect(1, 0, "/local/domain/0/late")
        await_state(server, State.OPEN)
        alice.close(1)


def test_it_may_be_detached_again_and_again_and_nothing_is_left(host: ScriptedHost, alice: Guest) -> None:
    before = host.fds()
    for _ in range(4):
        with acting_as(host), offer_here(ALICE, "waits"):
            detach(host, alice)
            attach(host, alice)
            alice.connect(1, 0, "/local/domain/0/waits")
            alice.close(1)
        eventually(lambda: host.fds() == before, lambda: f"{host.fds()} {before}")
    assert "did not say" not in host.log()


def test_a_guest_may_offer_to_one_that_is_detached(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    server = bob.offer(1, ALICE, grows=True)
    there = bob.wait_device(server.peer)
    detach(host, alice)
    assert there.path in bob.machine.devices
    attach(host, alice)
    client = alice.connect(1, BOB, f"/local/domain/{BOB}/x", grows=True)
    client.send(b"found")
    assert server.recv(5) == b"found"
    alice.close(1)


def test_its_clients_are_not_answered_by_a_session_that_is_ending(host: ScriptedHost, alice: Guest) -> None:
    with detaching(host, NAME):
        (device,) = (each for each in alice.machine.devices.values() if each.peer != CONTROL_PEER)
        alice.hear_release(device.peer)
        alice.request(1, offer())
        alice.say(control.Released(device.peer))
        assert [type(each) for each in alice.hear_end()] == [control.Detached, control.Refused]


@pytest.mark.parametrize("how", ["detached", "stopped"])
def test_what_a_guest_offers_stays_in_the_memory_that_the_guest_still_has(host: ScriptedHost, alice: Guest, how: str) -> None:
    """There its daemon sees that no client has come, and its programs what they have written."""
    server = alice.offer(1)
    server.send(b"early")
    (device,) = (each for each in alice.machine.devices.values() if each.peer != CONTROL_PEER)
    memory = os.dup(device.memory)
    page, rings = Page(memory, server.grant.offset), Rings(server.grant.left_order, server.grant.right_order)
    try:
        if how == "detached":
            with detaching(host, NAME):
                alice.hear_release(device.peer)
                seen = page.live(Side.CLIENT), page.ready(rings).client
                alice.say(control.Released(device.peer))
                alice.hear_end()
        else:
            host.process.send_signal(signal.SIGTERM)
            assert host.process.wait() == 0
            seen = page.live(Side.CLIENT), page.ready(rings).client
        assert seen == (CLIENT_NONE_YET, 5)
    finally:
        os.close(memory)


# ---- guests that do not let go ----


def test_a_guests_daemon_that_says_nothing_is_not_waited_for(host: ScriptedHost, alice: Guest) -> None:
    with detaching(host, NAME):
        alice.hear_end()
    assert alice.machine.devices == {}


@pytest.mark.parametrize("is_reset", [False, True])
def test_what_is_offered_on_a_device_that_was_not_let_go_is_over_in_the_same_qemu(
    host: ScriptedHost, alice: Guest, is_reset: bool
) -> None:
    """QEMU may still have the device's events, and ends if it gets them once more."""
    with acting_as(host), offer_here(ALICE, "waits") as server:
        (before,) = (each.path for each in alice.machine.devices.values() if each.peer != CONTROL_PEER)
        with detaching(host, NAME):
            if is_reset:
                host.wait_log("is detached")
                alice.part()
                host.hypervisor.reboot(alice.machine)
        alice.part()
        assert server.state is State.WAITING
        attach(host, alice)
        await_state(server, State.GONE)
        with offer_here(ALICE, "again") as again:
            alice.connect(1, 0, "/local/domain/0/again")
            await_state(again, State.OPEN)
            assert before not in alice.machine.devices
            alice.close(1)


def test_what_is_offered_on_a_device_that_was_not_let_go_is_found_in_another_qemu(host: ScriptedHost, alice: Guest) -> None:
    with acting_as(host), offer_here(ALICE, "waits") as server:
        with detaching(host, NAME):
            pass
        alice.stop()
        again = host.guest(AGAIN, uuid=alice.machine.uuid).greet()
        again.connect(1, 0, "/local/domain/0/waits")
        await_state(server, State.OPEN)
        again.close(1)


def test_a_guest_without_a_daemon_is_detached(host: ScriptedHost) -> None:
    silent = host.guest(ALICE)
    with detaching(host, NAME):
        pass
    assert silent.machine.devices == {}
    attach(host, silent)


def test_an_earlier_daemons_devices_go_too(host: ScriptedHost) -> None:
    alice = host.guest(ALICE, left=2)
    alice.machine.is_stubborn = True
    alice.meet()
    with detaching(host, NAME):
        host.hypervisor.wait(lambda: len(alice.machine.unplugging) == 3, "not all devices are unplugged")
        alice.part()
        host.hypervisor.let_go(alice.machine)
    assert (alice.machine.devices, alice.machine.stale) == ({}, ())


def test_a_guest_that_is_reset_while_it_is_asked_to_let_go_stays_detached(host: ScriptedHost, alice: Guest) -> None:
    alice.machine.is_stubborn = True
    with detaching(host, NAME):
        release(alice)
        alice.hear_end()
        host.hypervisor.wait(lambda: len(alice.machine.unplugging) == 2, "the devices are not asked for")
        assert "still has to let go of 2 devices" in kvmchan(host, "attach", NAME)
        alice.part()
        host.hypervisor.reboot(alice.machine)
        host.wait_log(f"domain {ALICE} ({NAME}) starts anew")
        assert known(host) == {"ready": False, "devices": 2, "detached": True}
        host.hypervisor.let_go(alice.machine)
    alice.machine.is_stubborn = False
    attach(host, alice)


def test_a_reset_ends_the_wait_for_the_guests_daemon_to_let_go(host: ScriptedHost, alice: Guest) -> None:
    with detaching(host, NAME):
        (device,) = (each for each in alice.machine.devices.values() if each.peer != CONTROL_PEER)
        alice.hear_release(device.peer)
        alice.part()
        host.hypervisor.reboot(alice.machine)
    assert alice.machine.devices == {}
    assert "did not say" not in host.log()
    attach(host, alice)


# ---- guests that end meanwhile ----


def test_a_guest_that_returns_under_another_number_finds_what_was_offered_to_it(host: ScriptedHost, alice: Guest) -> None:
    with acting_as(host), offer_here(ALICE, "waits") as server:
        server.send(b"early")
        detach(host, alice)
        alice.stop()
        host.wait_log(f"domain {ALICE} ({NAME}) is gone")
        assert server.state is State.WAITING
        again = host.guest(AGAIN, uuid=alice.machine.uuid).greet()
        far = again.connect(1, 0, "/local/domain/0/waits")
        assert far.recv(5) == b"early"
        await_state(server, State.OPEN)
        again.close(1)


def test_a_domain_that_has_the_number_of_one_that_is_away_finds_nothing_of_it(host: ScriptedHost, alice: Guest) -> None:
    with acting_as(host), offer_here(ALICE, "waits") as server:
        detach(host, alice)
        alice.stop()
        host.wait_log(f"domain {ALICE} ({NAME}) is gone")
        other = host.guest(ALICE, uuid="another").greet()
        assert f"this is domain {ALICE}" in other.refused(1, connect(0, "/local/domain/0/waits"), "denied")
        assert server.state is State.WAITING
        assert all(each["client"] > 2**30 for each in host.channels())
        again = host.guest(AGAIN, uuid=alice.machine.uuid).greet()
        again.connect(1, 0, "/local/domain/0/waits")
        await_state(server, State.OPEN)
        again.close(1)


def test_a_guest_that_returns_finds_what_another_guest_offered_to_it(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    server = bob.offer(1, ALICE, grows=True)
    detach(host, alice)
    alice.stop()
    host.wait_log(f"domain {ALICE} ({NAME}) is gone")
    again = host.guest(AGAIN, uuid=alice.machine.uuid).greet()
    client = again.connect(1, BOB, f"/local/domain/{BOB}/x", grows=True)
    client.send(b"found")
    assert server.recv(5) == b"found"
    again.close(1)


def test_who_offers_to_a_domain_that_is_undefined_while_it_is_away_learns_it(host: ScriptedHost, alice: Guest) -> None:
    with acting_as(host), offer_here(ALICE, "waits") as server:
        detach(host, alice)
        host.hypervisor.undefine(alice.machine.uuid)  # it still runs
        alice.stop()
        host.wait_log(f"domain {ALICE} ({NAME}) is gone")
        assert server.state is State.WAITING
        host.hypervisor.undefine(alice.machine.uuid)
        await_state(server, State.GONE)


def test_who_offers_to_a_domain_that_returns_without_kvm_learns_it(host: ScriptedHost, alice: Guest) -> None:
    with acting_as(host), offer_here(ALICE, "waits") as server:
        detach(host, alice)
        alice.stop()
        again = host.guest(AGAIN, uuid=alice.machine.uuid, kvm=False)
        await_state(server, State.GONE)
        again.greet()


def test_a_server_may_go_while_its_client_is_away(host: ScriptedHost, alice: Guest) -> None:
    with acting_as(host), offer_here(ALICE, "waits"):
        detach(host, alice)
        alice.stop()
        host.wait_log(f"domain {ALICE} ({NAME}) is gone")
    eventually(lambda: host.devices_left() == [])
    host.guest(AGAIN, uuid=alice.machine.uuid).greet()


def test_a_guest_with_the_memory_of_an_old_session_is_greeted_anew(host: ScriptedHost, alice: Guest) -> None:
    """Its daemon says what it would have said before it was saved."""
    alice.offer(1)
    ids = [each.peer for each in alice.machine.devices.values()]
    detach(host, alice)
    alice.stop()
    again = host.guest(AGAIN, uuid=alice.machine.uuid)
    again.meet().say(control.Close(1))  # type: ignore[arg-type]
    again.hear_end()
    again.greet()
    for peer in ids:
        again.say(control.Released(peer + 20))
        again.say(control.Ready(peer + 20, 64))
    again.say(control.Close(1))  # type: ignore[arg-type]
    assert again.answer(1) == control.Closed(1)  # type: ignore[arg-type]
    again.offer(1)


# ---- what is refused ----


@pytest.mark.parametrize("name", [str(ALICE), f"uuid-{ALICE}"])
def test_a_guest_is_named_by_its_number_or_uuid_too(host: ScriptedHost, alice: Guest, name: str) -> None:
    alice.part()
    with detaching(host, name):
        pass
    assert kvmchan(host, "attach", name) == ""
    alice.take_control().greet()


def test_what_is_no_guest_is_not_detached(run: Run) -> None:
    host = run("", domains=(1,))
    for command in ("detach", "attach"):
        assert "no domain that is served is called 'nobody'" in kvmchan(host, command, "nobody")
        for name in ("host", "0", "1"):
            assert "is no guest" in kvmchan(host, command, name)
        assert "there is no domain 99" in kvmchan(host, command, "99")


def test_a_guest_that_is_not_detached_may_be_attached(host: ScriptedHost, alice: Guest) -> None:
    assert kvmchan(host, "attach", NAME) == ""
    alice.offer(1)


def test_only_the_hosts_administrator_detaches(run: Run) -> None:
    host = run("", domains=(1,))
    alice = host.guest(ALICE).greet()
    assert "only root on the host" in kvmchan(host, "detach", str(ALICE), domain=1)
    for request in (wire.Detach(ALICE), wire.Attach(ALICE)):
        assert "only root on the host" in alice.refused(1, request, "denied")
    alice.offer(1)


def test_without_kvm_nothing_ends_and_the_sentence_says_why(host: ScriptedHost) -> None:
    plain = host.guest(ALICE, kvm=False).greet()
    with acting_as(host):
        plain.offer(1)
        with connect_here(ALICE, "x") as ours:
            before = set(plain.machine.devices)
            sentence = kvmchan(host, "detach", NAME)
            assert "runs without KVM" in sentence
            assert "Nothing has changed" in sentence
            assert ours.state is State.OPEN
    assert set(plain.machine.devices) == before
    assert known(host) == {"ready": True, "devices": 2, "detached": False}


def test_a_device_from_the_domains_start_stays_and_the_sentence_says_so(host: ScriptedHost) -> None:
    uuid, path = f"uuid-{ALICE}", host.runtime_dir / "ivshmem" / "start"
    host.hypervisor.prepare(uuid, path.name, MIB, 4)
    eventually(path.exists)
    present = ScriptedPlugged(str(path), 4)
    guest = host.guest(ALICE)
    sentence = kvmchan(host, "detach", NAME)
    assert "has a device from its start, which can't be unplugged" in sentence
    assert "Nothing has changed" in sentence
    assert not known(host)["detached"]
    host.hypervisor.unprepare(uuid)
    guest.stop()
    present.unplug()


def test_a_paused_guest_can_not_let_go(host: ScriptedHost, alice: Guest) -> None:
    host.hypervisor.pause(alice.machine)
    host.wait_log(f"domain {ALICE} is paused")
    assert "resume it first (virsh resume). Nothing has changed" in kvmchan(host, "detach", NAME)
    host.hypervisor.pause(alice.machine, False)
    host.wait_log(f"domain {ALICE} goes on")
    detach(host, alice)
    attach(host, alice)
