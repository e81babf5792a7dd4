# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices for which a guest has no room: who is told, what is not plugged, and what goes on."""

from __future__ import annotations

import pytest

from kvmchand.errors import LimitReached
from kvmchand.ids import Size
from kvmchand.wire import client as wire
from kvmchand.wire import control
from libxenvchan_shim import State, Vchan
from libxenvchan_shim import offer as offer_on_host
from rig.daemon import acting_as
from rig.deadline import eventually
from rig.guest import ALICE, BOB, Guest, ScriptedHost, connect, offer

MIB = 1 << 20
LARGE = "data/large"
LARGE_PATH = f"/local/domain/0/{LARGE}"
NO_WINDOW = "no window for a device of 4194304 bytes, only for 2097152"


def say_room(guest: Guest, size: int, bridge: str = "") -> None:
    """Say for how large a device the guest has room, and wait until the host has heard it."""
    guest.say(control.Room(Size(size), bridge))
    assert guest.is_answered()


def offer_large(host: ScriptedHost) -> Vchan:
    """Offer a vchan with rings of 1 MiB on the host."""
    with acting_as(host):
        return offer_on_host(ALICE, LARGE, read_min=MIB, write_min=MIB)


def links(host: ScriptedHost) -> dict[tuple[int, int], tuple[int, int]]:
    """Return the devices and the bytes of each link."""
    return {(each["domain"], each["other"]): (each["devices"], each["size"]) for each in host.listing()["links"]}


def assert_small_channels_work(host: ScriptedHost, guest: Guest, number: int) -> None:
    with acting_as(host), offer_on_host(ALICE, "data/small", read_min=1024) as near:
        far = guest.connect(number, path="/local/domain/0/data/small")
        near.sendall(b"small")
        assert far.recv(5) == b"small"
        guest.close(number)


def test_a_server_is_told_at_once_that_its_peer_has_no_room(host: ScriptedHost, alice: Guest) -> None:
    say_room(alice, 2 * MIB)
    before = links(host)
    with pytest.raises(LimitReached, match=NO_WINDOW) as refused:
        offer_large(host)
    assert "prepare-domain --link-size" in str(refused.value)
    assert links(host) == before
    assert_small_channels_work(host, alice, 1)


def test_a_server_in_a_guest_is_told_of_its_peers_room_and_what_helps_two_guests(
    host: ScriptedHost, alice: Guest, bob: Guest
) -> None:
    say_room(bob, 2 * MIB)
    sentence = alice.refused(1, offer(BOB, LARGE, MIB), "limit")
    assert f"domain {BOB} has {NO_WINDOW}" in sentence
    assert "pcie-to-pci-bridge" in sentence
    assert "--link-size" not in sentence
    assert (ALICE, BOB) not in links(host)


def test_a_server_that_came_before_the_guests_daemon_is_told_when_that_says_its_room(host: ScriptedHost, alice: Guest) -> None:
    before = links(host)
    with offer_large(host) as near:
        say_room(alice, 4 * MIB)
        assert near.state is State.WAITING
        say_room(alice, 2 * MIB)
        eventually(lambda: near.state is State.GONE)
        assert "offers no vchan" in alice.refused(1, connect(path=LARGE_PATH), "not-found")
        assert_small_channels_work(host, alice, 2)
    assert links(host) == before


def test_a_server_is_told_that_its_peer_could_not_use_the_device(host: ScriptedHost, alice: Guest) -> None:
    before = links(host)
    with offer_large(host) as near:
        alice.request(1, connect(path=LARGE_PATH))
        host.hypervisor.wait(alice.new_devices, "there is no device for it")
        alice.say(control.Unusable(0, "it got no address"))
        answer = alice.answer(1)
        assert isinstance(answer, wire.Error), answer
        assert "it got no address" in answer.sentence
        eventually(lambda: near.state is State.GONE)
        assert_small_channels_work(host, alice, 2)
    eventually(lambda: links(host) == before)


def test_a_large_device_has_room_for_the_next_large_channels(host: ScriptedHost, alice: Guest) -> None:
    say_room(alice, 64 * MIB)
    alice.offer(1, path="first", least=MIB, grows=True)
    for number in range(2, 8):
        alice.offer(number, path=f"next/{number}", least=MIB)
    assert links(host)[0, ALICE] == (2, 17 * MIB)


def test_a_device_goes_behind_the_bridge_that_the_guest_names_and_the_next_waits_for_another_word(
    host: ScriptedHost, alice: Guest
) -> None:
    say_room(alice, 4 * MIB, "02.1/00.0")
    alice.offer(1, path="first", least=MIB, grows=True)
    alice.offer(2, path="second", least=MIB, grows=True)
    say_room(alice, 4 * MIB, "02.0/00.0" + "x" * 4000)
    alice.offer(3, path="third", least=MIB, grows=True)
    assert [each[:9] for each in alice.machine.bridges] == ["", "", "02.1/00.0", "", "02.0/00.0"]
    assert all(len(each) <= 100 for each in alice.machine.bridges)


def test_a_vchan_of_the_same_domains_on_another_device_is_not_given_up(host: ScriptedHost, alice: Guest) -> None:
    with acting_as(host), offer_on_host(ALICE, "data/small", read_min=1024) as small, offer_large(host) as large:
        say_room(alice, 2 * MIB)
        eventually(lambda: large.state is State.GONE)
        assert small.state is State.WAITING
        alice.connect(1, path="/local/domain/0/data/small")
        alice.close(1)
