# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest that may write anything, on a real host: what it can do, and that it harms nothing but
its own channels.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import struct
import threading
import time
from pathlib import Path

import pytest

from kvmchand.ids import PAGE, ClientId, Size
from kvmchand.services.control.process import QUEUE_MAX
from kvmchand.wire import client as wire
from kvmchand.wire import control, store
from kvmchand.wire.codec import PACKET_MAX
from libxenvchan_shim import State, Vchan
from libxenvchan_shim import connect as host_connect
from libxenvchan_shim import offer as host_offer
from rig.daemon import acting_as
from rig.deadline import eventually
from rig.fixtures import Run
from rig.guest import (
    ALICE,
    BOB,
    CLIENT_LIVE,
    LEFT_BYTES,
    LEFT_CONS,
    LEFT_PROD,
    LEFT_RING,
    NONE_YET,
    RIGHT_CONS,
    RIGHT_PROD,
    End,
    Guest,
    ScriptedHost,
    connect,
    offer,
)
from rig.processes import is_asleep, stopped
from rig.words import set_word, word


def channel(host: ScriptedHost, guest: Guest) -> tuple[Vchan, End]:
    """Between a client on the host, which the caller closes, and a server in the guest, its client
    1.
    """
    far = guest.offer(1)
    with acting_as(host):
        near = host_connect(guest.domain, f"/local/domain/{guest.domain}/x")
    return near, far


FDS_OF_BOTH_ENDS, SPARE_FDS = 7, 1000
"""What a channel costs this process, which has both of its ends."""


def assert_alive(one: Vchan | End, other: Vchan | End) -> None:
    """Bytes pass both ways."""
    for sender, receiver in ((one, other), (other, one)):
        data = os.urandom(64)
        sender.send(data)
        assert receiver.recv(64) == data


def wait_gone(vchan: Vchan) -> None:
    """Until its peer is: each wait takes the events so far, as the one that connecting leaves."""
    while vchan.state is not State.GONE:
        vchan.wait()


# ---- an honest guest ----


def test_bytes_pass_both_ways_between_a_guests_server_and_a_client_on_the_host(host: ScriptedHost, alice: Guest) -> None:
    server = alice.offer(1)
    with acting_as(host):
        client = host_connect(ALICE, f"/local/domain/{ALICE}/x")
    client.send(b"to the guest")
    assert server.recv(12) == b"to the guest"
    server.send(b"to the host")
    assert client.recv(11) == b"to the host"
    server.close()
    alice.close(1)
    wait_gone(client)
    client.close()
    assert host.channels() == []


def test_bytes_pass_both_ways_between_a_server_on_the_host_and_a_guests_client(host: ScriptedHost, alice: Guest) -> None:
    with acting_as(host):
        server = host_offer(ALICE, "/local/domain/0/x", read_min=PAGE, write_min=PAGE)
    client = alice.connect(1, 0, "/local/domain/0/x")
    client.send(b"to the host")
    assert server.recv(11) == b"to the host"
    server.send(b"to the guest")
    assert client.recv(12) == b"to the guest"
    server.close()
    assert not client.is_open()
    client.close()
    alice.close(1)


def test_bytes_pass_both_ways_between_two_guests(alice: Guest, bob: Guest) -> None:
    server = alice.offer(1, BOB, grows=True)
    client = bob.connect(1, ALICE, f"/local/domain/{ALICE}/x", grows=True)
    assert_alive(server, client)
    client.close()
    bob.close(1)
    assert not server.is_open()


def test_bytes_pass_between_two_clients_of_one_guest(alice: Guest) -> None:
    server = alice.offer(1, ALICE, grows=True)
    client = alice.connect(2, ALICE)
    assert_alive(server, client)


def test_a_guest_sees_its_own_channels_and_no_guests_and_links(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    alice.offer(1, path="mine")
    bob.offer(1, path="not-hers")
    listing = alice.ask(2, wire.List(Size(0)))
    assert [each.path for each in listing.channels] == [f"/local/domain/{ALICE}/mine"]
    assert (listing.guests, listing.links, listing.devices) == ((), (), ())
    seen = host.listing()
    assert sorted(each["path"] for each in seen["channels"]) == [f"/local/domain/{ALICE}/mine", f"/local/domain/{BOB}/not-hers"]
    assert [(each["name"], each["ready"]) for each in seen["guests"]] == [("guest-11", True), ("guest-12", True)]


# ---- bytes that can't be ----


def packet(data: bytes) -> bytes:
    return control.LENGTH.pack(len(data)) + data


def asking(request: bytes) -> bytes:
    """A client's request, by a guest's daemon that looks at nothing."""
    return packet(b'{"type":"ask","client":50,"serial":1,"pid":1,"request":' + request + b"}")


BAD = {
    "a packet of nothing": (bytes(4), "a packet of 0 bytes"),
    "a packet of one byte more than the most": (
        control.LENGTH.pack(PACKET_MAX + 1) + bytes(PACKET_MAX + 1),
        "bytes came",
    ),
    "a packet of all that 32 bits can say": (b"\xff" * 4, "a packet of 4294967295 bytes"),
    "zeroes": (bytes(LEFT_BYTES), "a packet of 0 bytes"),
    "bytes for which a packet to main has no room beside its head": (
        packet(control.to_host.encode(store.Request(ClientId(1), bytes(PACKET_MAX - 60)))),
        f"at most {PACKET_MAX} are allowed",
    ),
    "no UTF-8": (packet(b"\xff\xfe{}"), "not JSON"),
    "no JSON": (packet(b'{"type":"hello"'), "not JSON"),
    "JSON of great depth": (packet(b"[" * PACKET_MAX), "not JSON"),
    "a number of many digits": (packet(b'{"type":"close","client":' + b"9" * 20000 + b"}"), "not JSON"),
    "no object": (packet(b"[]"), "unknown message"),
    "no type": (packet(b"{}"), "unknown message"),
    "a type that is none": (packet(b'{"type":{}}'), "unknown message"),
    "an unknown message": (packet(b'{"type":"reboot-host"}'), "unknown message 'reboot-host'"),
    "what only the host says": (packet(b'{"type":"welcome","domain":0}'), "unknown message 'welcome'"),
    "what only main says": (packet(b'{"type":"detach","session":2}'), "unknown message 'detach'"),
    "text for a number": (packet(b'{"type":"close","client":"1"}'), "in 'client' an integer"),
    "a client below 0": (packet(b'{"type":"close","client":-1}'), "in 'client' an integer"),
    "a client over 63 bits": (packet(b'{"type":"close","client":9223372036854775808}'), "in 'client' an integer"),
    "a fraction": (packet(b'{"type":"ready","peer":2.0,"vectors":1}'), "in 'peer' an integer"),
    "a missing field": (packet(b'{"type":"ready","peer":2}'), "a field 'vectors'"),
    "a field too many": (packet(b'{"type":"close","client":1,"domain":12}'), "no field 'domain'"),
    "bytes behind a message that has none": (packet(b'{"type":"close","client":1}\nx'), "no bytes behind it"),
    "fewer bytes than the message says": (
        packet(b'{"type":"store-request","client":1,"data":2}\nx'),
        "'data' the number of",
    ),
    "more bytes than the message says": (
        packet(b'{"type":"store-request","client":1,"data":0}\nx'),
        "'data' the number of",
    ),
    "a request that is no JSON": (asking(b"offer"), "not JSON"),
    "a request that is a text": (asking(b'"offer"'), "in 'request' a message that is known"),
    "a request that is a packet": (asking(rb'"{\"type\":\"list\",\"after\":0}"'), "in 'request' a message that is known"),
    "a request that is a reply": (asking(b'{"type":"error","code":"","sentence":""}'), "known, not 'error'"),
    "a client's own hello": (asking(b'{"type":"hello","version":2}'), "hello"),
    "half a surrogate pair in a request": (
        asking(rb'{"type":"connect","domain":0,"path":"\ud800","waits":false}'),
        "whole characters",
    ),
    "an ill-typed request": (asking(b'{"type":"list","after":null}'), "in 'after' an integer"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_guest_whose_bytes_can_not_be_loses_its_session_alone_and_may_start_anew(
    host: ScriptedHost, alice: Guest, bob: Guest, case: str
) -> None:
    data, sentence = BAD[case]
    near, far = channel(host, bob)
    lost = alice.offer(1)
    alice.put(data)
    alice.hear_end()
    host.wait_log(f"the control link to domain {ALICE} is lost: ")
    (line,) = [line for line in host.log().splitlines() if "is lost: " in line]
    assert sentence in line
    assert [each["server"] for each in host.channels()] == [BOB], "its channel is left"
    lost.close()
    alice.greet().offer(1)
    assert_alive(near, far)
    near.close()


def test_what_comes_before_hello_ends_the_session(host: ScriptedHost) -> None:
    alice = host.guest(ALICE).meet()
    alice.request(1, offer())
    assert alice.hear_end() == []
    host.wait_log("before its hello")
    alice.greet().offer(1)


@pytest.mark.parametrize("version", [0, control.VERSION + 1, -(2**31), 2**31 - 1])
def test_a_daemon_of_another_version_is_told_which_is_spoken_here(host: ScriptedHost, version: int) -> None:
    alice = host.guest(ALICE).meet()
    alice.say(control.Hello(version))
    (refused,) = alice.hear_end()
    assert isinstance(refused, control.Refused)
    assert f"speaks version {control.VERSION}, and the guest's {version}" in refused.sentence


def test_a_daemon_that_was_refused_is_heard_later(host: ScriptedHost) -> None:
    alice = host.guest(ALICE).meet()
    alice.say(control.Hello(control.VERSION + 1))
    alice.hear_end()
    alice.greet()


def test_why_a_daemon_is_refused_is_said_once(host: ScriptedHost) -> None:
    before = len(host.log())
    alice = host.guest(ALICE)
    for _ in range(2):
        alice.meet().say(control.Hello(control.VERSION + 1))
        alice.hear_end()
    alice.greet()
    assert host.log()[before:].count(f"the control link to domain {ALICE} is lost") == 1


def test_half_a_packet_is_waited_for_and_forgotten_with_the_session(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    alice.put(control.LENGTH.pack(100) + b'{"type":"ask",')
    assert bob.is_answered()
    alice.greet()
    host.wait_log(f"the control link to domain {ALICE} is lost: the other end is gone")
    assert alice.is_answered()


def test_a_packet_that_comes_byte_by_byte_is_one(alice: Guest) -> None:
    data = control.to_host.encode(control.Close(ClientId(7)))
    for byte in packet(data):
        alice.put(bytes([byte]))
        alice.ring()
    assert alice.hear() == control.Closed(ClientId(7))


@pytest.mark.parametrize("live", [1, 2, 3, 77, 255])
def test_a_live_byte_that_is_not_0_means_there(alice: Guest, live: int) -> None:
    alice.page[CLIENT_LIVE] = live
    alice.ring()
    assert alice.is_answered()


def test_a_live_byte_of_0_ends_the_session(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    alice.page[CLIENT_LIVE] = 0
    alice.ring()
    alice.page[CLIENT_LIVE] = 77
    alice.page[CLIENT_LIVE] = 0
    alice.ring()
    host.wait_log(f"the control link to domain {ALICE} is lost: the other end is gone")
    alice.greet()
    assert bob.is_answered()


@pytest.mark.parametrize("beyond", [LEFT_BYTES + 1, 2**31, 2**32 - 1], ids=["by one", "by far", "back"])
def test_a_written_index_that_can_not_be_true_ends_the_session(host: ScriptedHost, alice: Guest, bob: Guest, beyond: int) -> None:
    assert alice.is_answered()
    set_word(alice.page, LEFT_PROD, word(alice.page, LEFT_CONS) + beyond)
    alice.ring()
    host.wait_log(f"the control link to domain {ALICE} is lost: the peer broke the ring's rules")
    alice.hear_end()
    assert bob.is_answered()
    assert alice.greet().is_answered()


@pytest.mark.parametrize("beyond", [1 << 17, 2**31])
def test_a_read_index_that_can_not_be_true_ends_the_session(host: ScriptedHost, alice: Guest, bob: Guest, beyond: int) -> None:
    with contextlib.suppress(OSError):
        for number in range(600):  # more than the ring has room for
            set_word(alice.page, RIGHT_CONS, word(alice.page, RIGHT_PROD) + beyond)
            alice.request(number, wire.List(Size(0)))
            alice.ring()
    host.wait_log(f"the control link to domain {ALICE} is lost: the peer broke the ring's rules")
    assert bob.is_answered()
    assert alice.greet().is_answered()


def test_the_hosts_own_indexes_are_not_read_from_the_page(host: ScriptedHost, alice: Guest) -> None:
    lie = 0x55555555
    with stopped(host.services()["control"]):
        alice.request(1, wire.List(Size(0)))
        for where in (LEFT_CONS, RIGHT_PROD):
            set_word(alice.page, where, lie)
    # It goes on where it was, and says so.
    eventually(lambda: lie not in (word(alice.page, LEFT_CONS), word(alice.page, RIGHT_PROD)))
    assert isinstance(alice.answer(1), wire.Listing)
    assert alice.is_answered()


def test_bytes_that_change_while_they_are_read_harm_no_one_else(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    near, far = channel(host, bob)
    ends = threading.Event()

    def flip() -> None:
        chance = random.Random(1)
        while not ends.is_set():
            alice.page[LEFT_RING + chance.randrange(4096)] = chance.randrange(256)

    flipping = threading.Thread(target=flip)
    flipping.start()
    try:
        for _ in range(20):
            with contextlib.suppress(OSError):
                for _ in range(20):
                    alice.request(1, wire.List(Size(0)))
                    alice.ring()
            assert_alive(near, far)
            assert bob.is_answered()
            alice.meet()
            with contextlib.suppress(OSError):
                alice.say(control.Hello(control.VERSION))
    finally:
        ends.set()
        flipping.join()
    alice.greet()
    near.close()


# ---- whose it is ----


@pytest.mark.parametrize(
    "path", [f"/local/domain/{BOB}/x", "/local/domain/0/x", "/x", "/local/domain/1", f"/local/domain/{ALICE}"]
)
def test_a_guest_offers_below_its_own_node_alone(host: ScriptedHost, alice: Guest, bob: Guest, path: str) -> None:
    assert str(ALICE) in alice.refused(1, offer(BOB, path), "denied")
    host.wait_log(f"domain {ALICE}, client")
    assert host.channels() == []


def test_a_guest_connects_to_what_is_for_it_alone(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    near, far = channel(host, bob)
    alice.refused(1, connect(BOB, f"/local/domain/{BOB}/x"), "denied")
    alice.refused(1, connect(0, f"/local/domain/{BOB}/x"), "not-found")
    assert_alive(near, far)
    near.close()


def test_a_clients_number_means_the_guests_own_client(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    near, far = channel(host, bob)
    for number in (1, 2**40 + 1, 2**63 - 1):
        alice.close(number)
    assert_alive(near, far)
    alice.offer(1)
    alice.close(1)
    assert_alive(near, far)
    near.close()


def test_a_guest_speaks_of_its_own_devices_alone(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    loop = bob.offer(1, BOB, grows=True)
    assert alice.machine.of_peer(loop.peer) is None
    for peer in (loop.peer, 0, 1, -1, 2**31 - 1, -(2**31)):
        alice.say(control.Ready(peer, 0))
        alice.say(control.Ready(peer, -(2**31)))
        alice.say(control.Ready(peer, 2**31 - 1))
        if peer != 0:
            alice.say(control.Unusable(peer, "it is not mine"))
    assert alice.is_answered()
    assert_alive(loop, bob.connect(2, BOB))
    bob.offer(3, path="y")
    alice.offer(4)


def test_no_memory_is_in_two_guests_but_their_pairs(alice: Guest, bob: Guest) -> None:
    alice.offer(1, ALICE, grows=True)
    bob.offer(1, BOB, grows=True)

    def memories(guest: Guest) -> set[int]:
        return {os.fstat(each.memory).st_ino for each in guest.machine.devices.values()}

    assert len(memories(alice)) == len(memories(bob)) == 3
    assert not memories(alice) & memories(bob)
    shared = alice.offer(2, BOB, "shared", grows=True)
    bob.connect(2, ALICE, f"/local/domain/{ALICE}/shared", grows=True)
    assert memories(alice) & memories(bob) == {os.fstat(alice.wait_device(shared.peer).memory).st_ino}


def test_rings_that_nobody_asks_for_leave_room_on_a_link(host: ScriptedHost, alice: Guest) -> None:
    orders = []
    for number in range(2, 34):
        granted = alice.ask(number, offer(path=f"x{number}", least=0))
        assert isinstance(granted, control.Granted), granted
        orders.append((granted.grant.left_order, granted.grant.right_order))
    assert orders[0] == (15, 15)  # an eighth of a device of 1 MiB
    assert orders == sorted(orders, reverse=True)
    assert orders[-1] >= (10, 11)
    assert alice.new_devices() == [], "they share the first one's"


def test_a_request_that_waits_for_a_device_is_not_refused_for_another_ones(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    carol = host.guest(13).greet()
    bob.request(1, offer(13))
    alice.request(1, offer(BOB))
    host.hypervisor.wait(lambda: alice.new_devices() and bob.new_devices(), "no devices")
    (shared,) = alice.new_devices()
    alice.say(control.Unusable(shared.peer, "I say so"))
    assert isinstance(alice.answer(1), wire.Error)
    bob.take_device()
    server = bob.end(bob.answer(1), is_server=True)
    assert_alive(server, carol.connect(1, BOB, f"/local/domain/{BOB}/x", grows=True))


# ---- who else is kept waiting ----


def test_a_flood_of_requests_is_refused_with_one_line_in_the_log_and_others_are_served(run: Run) -> None:
    host = run("[limits]\nguest_requests = 100")
    alice, bob = host.guest(ALICE).greet(), host.guest(BOB).greet()
    for _ in range(10):
        for _ in range(100):
            alice.request(1, wire.List(Size(0)))
        answers = [alice.answer(1) for _ in range(100)]
        assert bob.is_answered()
    refused = [each for each in answers if isinstance(each, wire.Error)]
    assert {each.code for each in refused} == {"limit"}
    assert len(refused) > 50
    assert all("guest_requests" in each.sentence for each in refused)
    assert host.log().count("requests come faster than guest_requests") == 1
    eventually(lambda: isinstance(alice.ask(1, wire.List(Size(0))), wire.Listing))


def test_a_flood_of_what_can_not_be_refused_ends_the_session(run: Run) -> None:
    host = run("[limits]\nguest_requests = 30")
    alice, bob = host.guest(ALICE).greet(), host.guest(BOB).greet()
    with contextlib.suppress(OSError):
        for number in range(1000):
            alice.say(control.Close(ClientId(number)))
    alice.hear_end()
    host.wait_log(f"the control link to domain {ALICE} is lost: messages come many times faster than the limit")
    assert bob.is_answered()
    refused: list[object] = []

    def is_refused_by_another_session() -> bool:
        """One that comes at once says too much by its hello, and is ended as the first was."""
        with contextlib.suppress(OSError):
            refused.append(alice.greet().ask(1, wire.List(Size(0))))
        return bool(refused)

    # It does not give it more than it may have.
    eventually(is_refused_by_another_session)
    (error,) = refused
    assert isinstance(error, wire.Error)
    assert error.code == "limit"
    eventually(alice.is_answered)


def test_a_guest_gets_no_sessions_faster_than_others_can_bear(host: ScriptedHost, bob: Guest) -> None:
    alice = host.guest(ALICE)
    start = time.monotonic()
    for _ in range(4):
        alice.greet()
        alice.put(packet(b"nonsense"))
        alice.hear_end()
        assert bob.is_answered()
    assert time.monotonic() - start >= 3 * 0.2


def test_a_guest_that_does_not_read_is_lost_after_so_many_packets(run: Run) -> None:
    host = run("[limits]\nguest_requests = 100000")
    alice, bob = host.guest(ALICE).greet(), host.guest(BOB).greet()
    near, far = channel(host, bob)
    said = 0
    with contextlib.suppress(OSError):
        while "is lost" not in host.log():
            alice.request(1, wire.List(Size(0)))
            said += 1
    host.wait_log(
        f"the control link to domain {ALICE} is lost: {QUEUE_MAX} packets wait to be read by the other end: it does not"
    )
    assert said > QUEUE_MAX
    assert_alive(near, far)
    assert bob.is_answered()
    assert alice.greet().is_answered()
    near.close()


def test_requests_that_wait_cost_others_nothing_when_a_guest_says_ready_again_and_again(run: Run) -> None:
    host = run("[limits]\nguest_requests = 100000\nguest_channels = 2000")
    alice, bob = host.guest(ALICE).greet(), host.guest(BOB).greet()
    for number in range(2000):
        alice.request(number, offer(BOB, f"x/{number}"))
    host.hypervisor.wait(alice.new_devices, "no device")
    for _ in range(2000):
        alice.say(control.Ready(77, 64))
    assert bob.is_answered()
    assert alice.is_answered()
    assert bob.is_answered()


def test_sessions_that_come_and_go_in_a_flood_are_not_the_others(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    near, far = channel(host, bob)
    for _ in range(50):
        alice.meet()
    assert_alive(near, far)
    assert bob.is_answered()
    alice.greet().offer(1)
    near.close()


# ---- how much a guest can have ----


def assert_limited(host: ScriptedHost, guest: Guest, sentence: str, setting: str) -> None:
    """A refusal names the setting, and is in the log."""
    assert setting in sentence
    host.wait_log(f"domain {guest.domain}, client")
    assert any(f"domain {guest.domain}, client" in line and setting in line for line in host.log().splitlines())


def test_a_guest_has_so_many_channels_that_it_offers_and_as_many_that_it_connects_to(run: Run) -> None:
    host = run("[limits]\nguest_channels = 3")
    alice, bob = host.guest(ALICE).greet(), host.guest(BOB).greet()
    with acting_as(host):
        servers = [host_offer(ALICE, f"/local/domain/0/{number}") for number in range(4)]
    for number in range(3):
        alice.offer(number, path=str(number))
        alice.connect(10 + number, 0, f"/local/domain/0/{number}")
    assert_limited(host, alice, alice.refused(3, offer(0, "3"), "limit"), "guest_channels")
    assert_limited(host, alice, alice.refused(13, connect(0, "/local/domain/0/3"), "limit"), "guest_channels")
    bob.offer(1)
    alice.close(0)
    alice.close(10)
    alice.offer(3, path="3")
    alice.connect(13, 0, "/local/domain/0/3")
    for server in servers:
        server.close()


def test_a_guest_has_so_many_devices(run: Run) -> None:
    host = run("[limits]\nguest_devices = 3")
    alice, bob = host.guest(ALICE).greet(), host.guest(BOB).greet()
    server = alice.offer(1, ALICE, grows=True)
    assert_limited(host, alice, alice.refused(2, offer(BOB), "limit"), "guest_devices")
    bob.offer(1, ALICE, "far", grows=True)
    assert_limited(host, alice, alice.refused(2, connect(BOB, f"/local/domain/{BOB}/far"), "limit"), "guest_devices")
    assert len(alice.machine.devices) == 3
    assert_alive(server, alice.connect(3, ALICE))


def test_a_guests_devices_have_so_many_bytes(run: Run) -> None:
    host = run(f"[limits]\nguest_bytes = {4 << 20}")
    alice = host.guest(ALICE).greet()
    server = alice.offer(1, ALICE, least=1 << 18, grows=True)
    assert_limited(host, alice, alice.refused(2, offer(ALICE, "y", 1 << 20), "limit"), "guest_bytes")
    assert_alive(server, alice.connect(3, ALICE))
    assert sum(os.fstat(each.memory).st_size for each in alice.machine.devices.values()) < 4 << 20


def test_a_guest_that_lets_no_device_go_gets_no_more_of_them(run: Run) -> None:
    host = run("[limits]\nguest_devices = 4")
    alice, bob = host.guest(ALICE).greet(), host.guest(BOB).greet()
    alice.machine.is_stubborn = True
    for number in range(10):
        has_room = len(alice.machine.devices) < 4
        alice.request(number, offer(BOB, f"x/{number}"))
        if has_room:
            host.hypervisor.wait(alice.new_devices, "no device")
            (device,) = alice.new_devices()
            alice._ready.add(device.path)
            alice.say(control.Unusable(device.peer, "I can not use it"))
        last = alice.answer(number)
        assert isinstance(last, wire.Error)
        assert last.code == "limit"
    assert "guest_devices" in last.sentence
    assert len(alice.machine.devices) == 4
    host.hypervisor.let_go(alice.machine)
    eventually(lambda: [each["devices"] for each in host.listing()["guests"]] == [2, 2])
    alice.offer(11, BOB, grows=True)
    assert bob.is_answered()


def test_a_guest_has_so_many_clients_without_a_channel(run: Run) -> None:
    host = run("[limits]\nguest_channels = 1\nguest_requests = 100000")
    alice, bob = host.guest(ALICE).greet(), host.guest(BOB).greet()
    most = 2 + 1024
    for number in range(most):
        alice.refused(number, connect(0, "/local/domain/0/none"), "not-found")
    assert "guest_channels" in alice.refused(most, connect(0, "/local/domain/0/none"), "limit")
    host.wait_log(f"domain {ALICE} is refused another client: it has {most}")
    alice.close(0)
    alice.refused(most, connect(0, "/local/domain/0/none"), "not-found")
    assert bob.is_answered()


def test_what_a_guest_writes_makes_no_lines_in_the_log_or_on_others_terminals(
    host: ScriptedHost, alice: Guest, bob: Guest
) -> None:
    server = bob.offer(1, ALICE, grows=True)
    alice.request(1, connect(BOB, f"/local/domain/{BOB}/x"))
    host.hypervisor.wait(alice.new_devices, "no device")
    (device,) = alice.new_devices()
    alice.say(control.Unusable(device.peer, "no\nkvmchand: all is well\x1b[2J"))
    answer = alice.answer(1)
    assert isinstance(answer, wire.Error)
    assert answer.sentence.isprintable()
    assert not any(line.startswith("kvmchand: all is well") for line in host.log().splitlines())
    server.close()


def test_a_guest_with_a_local_domains_number_is_not_that_domain(run: Run) -> None:
    host = run("", domains=(ALICE,))
    bob = host.guest(BOB).greet()
    host.hypervisor.start(ALICE)
    host.wait_log(f"domain {ALICE} (guest-{ALICE})")
    assert f"domain {ALICE} (guest-{ALICE}) is not served" in host.log()
    with acting_as(host, ALICE):
        server = host_offer(0, "x", read_min=1024, write_min=1024)
    with acting_as(host):
        client = host_connect(ALICE, f"/local/domain/{ALICE}/x")
    host.hypervisor.stop(host.hypervisor.machines[ALICE])
    assert bob.is_answered()
    assert_alive(server, client)
    client.close()
    server.close()


# ---- lives and deaths ----


def test_many_answers_at_once_are_no_fault_of_the_link_process(run: Run) -> None:
    host = run("[limits]\nguest_requests = 100000\nguest_channels = 3000")
    alice, bob = host.guest(ALICE).greet(), host.guest(BOB).greet()
    before = host.services()["control"]
    for number in range(3000):
        alice.request(number, offer(BOB, f"x/{number}"))
    host.hypervisor.wait(alice.new_devices, "no device")
    (device,) = alice.new_devices()
    alice.say(control.Unusable(device.peer, "no"))
    for number in range(3000):
        assert isinstance(alice.answer(number), wire.Error)
    assert bob.is_answered()
    assert host.services()["control"] == before


def test_a_machine_that_is_destroyed_leaves_nothing_and_its_peers_know(host: ScriptedHost, bob: Guest) -> None:
    alice = host.guest(ALICE).greet()
    near, _ = channel(host, alice)
    shared = alice.offer(2, BOB, "y", grows=True)
    peer = bob.connect(1, ALICE, f"/local/domain/{ALICE}/y", grows=True)
    assert_alive(shared, peer)
    shared.send(b"last words")
    bob.request(2, connect(ALICE, "/local/domain/11/z"))
    assert isinstance(bob.answer(2), wire.Error)
    waiting = bob.offer(3, ALICE, "for-alice")
    alice.stop()
    wait_gone(near)
    assert peer.recv(10) == b"last words"
    eventually(lambda: not peer.is_open() and not waiting.is_open())
    bob.refused(4, connect(ALICE, f"/local/domain/{ALICE}/y"), "not-found")
    for number in (1, 3):
        bob.close(number)
    near.close()
    eventually(lambda: [each["domain"] for each in host.listing()["guests"]] == [BOB])
    eventually(lambda: len(bob.machine.devices) == 2)
    assert bob.is_answered()


def test_a_machine_that_reboots_starts_anew_with_its_devices(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    for _ in range(20):
        near, _ = channel(host, alice)
        host.hypervisor.reboot(alice.machine)
        wait_gone(near)
        near.close()
        # Its channels end first, and then its session, which it must not meet.
        eventually(lambda: alice.page[CLIENT_LIVE] == NONE_YET)
        alice.greet()
    assert len(alice.machine.devices) == 2
    assert "is lost" not in host.log()
    assert bob.is_answered()


def kill_link(host: ScriptedHost, *, reading: int = 0) -> None:
    """Ends the control process, in the midst of reading a session's bytes, or nobody's."""
    pid = host.services()["control"]
    eventually(lambda: is_asleep(pid))
    os.kill(pid, signal.SIGSTOP)
    fds = Path(f"/proc/{pid}/fd").iterdir()
    marker = next(each for each in fds if str(each.readlink()).startswith("/memfd:kvmchand-control"))
    with marker.open("r+b") as file:
        file.write(struct.pack("=Q", reading))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: host.services().get("control", pid) != pid)


def test_sessions_and_channels_outlive_the_link_process(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    near, far = channel(host, bob)
    alice.put(control.LENGTH.pack(len(control.to_host.encode(control.Close(ClientId(7))))))
    kill_link(host)
    alice.put(control.to_host.encode(control.Close(ClientId(7))))
    assert alice.answer(7) == control.Closed(ClientId(7))
    for _ in range(5):
        kill_link(host)
        assert alice.is_answered()
        assert bob.is_answered()
        assert_alive(near, far)
    assert "is lost" not in host.log()
    near.close()


def test_the_guest_whose_bytes_ended_the_link_process_loses_its_session_alone(run: Run) -> None:
    host = run("")
    alice, bob = host.guest(ALICE).greet(), host.guest(BOB).greet()  # sessions 1 and 2, as the host is new
    near, far = channel(host, bob)
    kill_link(host, reading=1)
    host.wait_log(f"the control link to domain {ALICE} is lost: its bytes ended the control process")
    assert bob.is_answered()
    assert_alive(near, far)
    alice.hear_end()
    assert alice.greet().is_answered()
    near.close()


def test_a_ring_that_was_broken_while_the_link_process_was_away_ends_the_session(
    host: ScriptedHost, alice: Guest, bob: Guest
) -> None:
    pid = host.services()["control"]
    eventually(lambda: is_asleep(pid))
    os.kill(pid, signal.SIGSTOP)
    for where in (LEFT_CONS, LEFT_PROD, RIGHT_CONS, RIGHT_PROD):
        set_word(alice.page, where, where << 20)
    os.kill(pid, signal.SIGKILL)
    host.wait_log(f"the control link to domain {ALICE} is lost: ")
    assert bob.is_answered()
    assert alice.greet().is_answered()


# ---- the devices of a link ----


def test_a_link_grows_by_another_device_when_its_memory_is_full(run: Run) -> None:
    host = run("[links]\nsize = 16384\nvectors = 4")
    alice = host.guest(ALICE).greet()
    ends = [alice.offer(number, path=str(number)) for number in range(4)]
    ends.append(alice.offer(4, path="4", grows=True))
    assert len({end.peer for end in ends}) == 2
    assert [end.is_shared for end in ends] == [False] * 4 + [True]
    assert [alice.wait_device(end.peer).vectors for end in ends[3:]] == [5, 8]  # so others find some, too
    with acting_as(host):
        clients = [host_connect(ALICE, f"/local/domain/{ALICE}/{number}") for number in range(5)]
    for client, end in zip(clients, ends, strict=True):
        assert_alive(client, end)
    assert host.listing()["links"] == [{"domain": 0, "other": ALICE, "devices": 2, "size": 32768, "channels": 5}]
    for number, client in enumerate(clients):
        client.close()
        alice.close(number)
    assert host.listing()["links"] == [{"domain": 0, "other": ALICE, "devices": 2, "size": 32768, "channels": 0}]


def test_channels_beyond_the_vectors_of_a_device_share_some_and_miss_no_event(run: Run) -> None:
    host = run("[links]\nsize = 262144\nvectors = 4")
    alice = host.guest(ALICE).greet()
    numbers = range(24)
    ends = [alice.offer(number, path=str(number)) for number in numbers]
    assert [end.is_shared for end in ends] == [False] * 4 + [True] * 20
    assert len({(end.peer, end.vector) for end in ends}) == 5
    with acting_as(host):
        clients = [host_connect(ALICE, f"/local/domain/{ALICE}/{number}") for number in numbers]
    waiting = [threading.Thread(target=echo, args=(client,)) for client in clients]
    for each in waiting:
        each.start()
    for turn in range(3):
        for number in numbers:
            data = struct.pack("=II", turn, number)
            ends[number].send(data)
            assert ends[number].recv(len(data)) == data
    for end in ends:
        end.close()
    for each in waiting:
        each.join()
    for number, client in enumerate(clients):
        client.close()
        alice.close(number)
    again = [alice.offer(number, path=str(number)).is_shared for number in numbers]
    assert again == [False] * 4 + [True] * 20


def test_two_thousand_channels_of_one_guest_work(run: Run) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(2000, (hard - SPARE_FDS) // FDS_OF_BOTH_ENDS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        host = run("[links]\nsize = 16777216")
        alice = host.guest(ALICE).greet()
        ends = [alice.offer(number, path=str(number)) for number in range(count)]
        with acting_as(host):
            clients = [host_connect(ALICE, f"/local/domain/{ALICE}/{number}") for number in range(count)]
        for client, end in zip(clients, ends, strict=True):
            assert_alive(client, end)
        ((link,), (guest,)) = host.listing()["links"], host.listing()["guests"]
        assert (link["devices"], link["channels"], guest["devices"]) == (1, count, 2)
        for number, client in enumerate(clients):
            client.close()
            alice.close(number)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def echo(client: Vchan) -> None:
    """Send back what comes, until the peer closes."""
    while data := client.recv(64):
        client.sendall(data)


def test_a_channel_that_is_larger_than_a_device_gets_one_that_it_fits(run: Run) -> None:
    host = run("[links]\nsize = 65536")
    alice = host.guest(ALICE).greet()
    end = alice.offer(1, ALICE, least=65536, grows=True)
    assert os.fstat(alice.wait_device(end.peer).memory).st_size == 262144
    client = alice.connect(2, ALICE)
    data = os.urandom(65536)
    end.send(data)
    assert client.recv(65536) == data


def test_a_server_on_the_host_grows_the_link_when_its_guest_connects(run: Run) -> None:
    host = run("[links]\nsize = 8192")
    alice = host.guest(ALICE).greet()
    with acting_as(host):
        servers = [host_offer(ALICE, f"/local/domain/0/{number}", read_min=1024, write_min=1024) for number in range(3)]
    ends = [alice.connect(number, 0, f"/local/domain/0/{number}", grows=number == 2) for number in range(3)]
    for server, end in zip(servers, ends, strict=True):
        assert_alive(server, end)
        server.close()


def test_dedicated_devices_have_one_channel_each_and_go_with_it(run: Run) -> None:
    host = run("[links]\ndedicated = true")
    alice = host.guest(ALICE).greet()
    first = alice.offer(1, path="1")
    second = alice.offer(2, path="2", grows=True)
    assert first.peer != second.peer
    assert alice.wait_device(first.peer).memory != alice.wait_device(second.peer).memory
    paths = [alice.wait_device(end.peer).path for end in (first, second)]
    first.close()
    alice.close(1)
    host.hypervisor.wait(lambda: paths[0] not in alice.machine.devices, "the device is left")
    assert paths[1] in alice.machine.devices
    eventually(lambda: Path(paths[0]).name not in host.devices_left())
    third = alice.offer(3, path="3", grows=True)
    assert alice.wait_device(third.peer).path not in paths


def test_a_slice_that_is_used_again_is_zero(host: ScriptedHost, alice: Guest) -> None:
    first = alice.offer(1, path="1", least=4096)
    with acting_as(host):
        client = host_connect(ALICE, f"/local/domain/{ALICE}/1")
    first.send(b"secret" * 500)
    client.send(b"secret" * 500)
    device = alice.wait_device(first.peer)
    size = 4096 + 2 * 4096
    assert os.pread(device.memory, size, first.grant.offset).count(b"secret") == 1000
    client.close()
    first.close()
    alice.close(1)
    second = alice.offer(2, path="2", least=4096)
    assert (second.peer, second.grant.offset) == (first.peer, first.grant.offset)
    there = os.pread(device.memory, size, second.grant.offset)
    assert there[CLIENT_LIVE] == 2
    assert there[24:] == bytes(size - 24)  # what follows the page's head


def test_a_device_that_does_not_get_into_a_guest_refuses_what_waits_for_it(host: ScriptedHost, alice: Guest, bob: Guest) -> None:
    alice.machine.refusal = "its bridges have no free slot: add another"
    assert "its bridges have no free slot: add another" in alice.refused(1, offer(BOB), "limit")
    host.wait_log(f"did not get into domain {ALICE}: its bridges have no free slot")
    alice.machine.refusal = ""
    server = alice.offer(1, BOB, grows=True)
    bob.machine.refusal = "its bridges have no free slot: add another"
    assert "its bridges" in bob.refused(1, connect(ALICE, f"/local/domain/{ALICE}/x"), "limit")
    bob.machine.refusal = ""
    server.close()
    alice.close(1)
    eventually(lambda: len(alice.machine.devices) == 2)


def test_a_guest_with_fewer_vectors_than_its_device_shares_them_sooner(run: Run) -> None:
    host = run("[links]\nvectors = 8")
    alice = host.guest(ALICE).greet()
    alice.request(1, offer(ALICE))
    alice.take_device(vectors=2)
    server = alice.end(alice.answer(1), is_server=True)
    other = alice.offer(2, ALICE, "y")
    assert other.peer == server.peer
    assert all(end.is_shared and end.vector == 1 for end in (server, other))
    assert_alive(server, alice.connect(3, ALICE))
    assert_alive(other, alice.connect(4, ALICE, "y"))


def test_pairs_in_the_settings_are_linked_when_both_guests_are_there(run: Run) -> None:
    host = run('[links]\npairs = [["guest-11", "guest-12"]]')
    alice = host.guest(ALICE).greet()
    assert len(alice.machine.devices) == 2
    bob = host.guest(BOB).greet()  # one device is to the host, and another comes
    for guest in (alice, bob):
        guest.take_device()
    eventually(lambda: alice.is_answered() and bob.is_answered())
    server = alice.offer(1, BOB)
    assert_alive(server, bob.connect(1, ALICE, f"/local/domain/{ALICE}/x"))
