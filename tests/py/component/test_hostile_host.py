# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that may say anything, to a real guest's daemon: what the daemon does not believe, and
that it goes on.
"""

from __future__ import annotations

import itertools
import os
import select
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest

from kvmchand.channels.page import LEFT_INDEXES, RIGHT_INDEXES
from kvmchand.ids import CONTROL_PEER, HOST, ChannelId, ClientId, Size
from kvmchand.wire import client as wire
from kvmchand.wire import control, vfio
from kvmchand.wire.codec import PACKET_MAX
from rig.clients import RawClient, StoreClient
from rig.deadline import eventually
from rig.host import CLIENT_LIVE, DOMAIN, SERVER_LIVE, Client, Device, GuestDaemon
from rig.words import set_word, word

PEER, SIZE, VECTORS = 5, 65536, 4
HUGE_PEER, HUGE = 6, 1 << 33


@pytest.fixture
def guest(fresh: GuestDaemon) -> GuestDaemon:
    """Linked to its host."""
    return fresh.greet()


@pytest.fixture
def device(guest: GuestDaemon) -> Device:
    made = guest.plug(PEER, SIZE, VECTORS)
    assert guest.hear() == control.Ready(PEER, VECTORS)
    return made


@dataclass(frozen=True)
class Grant:
    """An honest one; a test spoils a part of it."""

    channel: int = 1
    path: str = "/x"
    left_order: int = 10
    right_order: int = 11
    peer: int = PEER
    offset: int = 4096
    vector: int = 2
    events: str = "doorbell"
    doorbell_value: int = 3 << 16 | 2

    def to(self, client: Client, *, number: int = 0, serial: int = 0) -> control.Granted:
        parts: dict[str, Any] = dict(vars(self))
        peer, vector = parts.pop("peer"), parts.pop("vector")
        grant = wire.Grant(doorbell=Size(0), **parts)
        return control.Granted(ClientId(number or client.number), serial or client.ask.serial, peer, vector, grant)


def assert_granted(client: Client, guest: GuestDaemon, device: Device) -> dict[str, Any]:
    """An honest grant is passed on, whatever was before it."""
    guest.say(Grant().to(client))
    reply = client.hear()
    assert (reply["type"], reply["events"], reply["offset"], reply["doorbell"]) == ("grant", "doorbell", 4096, SIZE)
    memory, event = reply["fds"]
    assert os.fstat(memory).st_ino == os.fstat(device.memory).st_ino
    os.eventfd_write(device.events[2], 1)
    assert select.select([event], [], [], 0)[0]
    os.eventfd_read(event)
    return reply


def test_channels_that_share_a_vector_each_get_its_events(guest: GuestDaemon, device: Device) -> None:
    with Client(guest) as one, Client(guest) as other, Client(guest) as alone:
        events = []
        for client in (one, other):
            guest.say(Grant(channel=client.number, vector=3, events="shared doorbell").to(client))
            reply = client.hear()
            assert reply["events"] == "shared doorbell"
            events.append(reply["fds"][1])
        assert_granted(alone, guest, device)
        for _ in range(3):
            os.eventfd_write(device.events[3], 1)
            for event in events:
                assert select.select([event], [], [], 0)[0]
                with select.epoll.fromfd(os.dup(event)) as shared:
                    assert len(shared.poll(0)) == 1
                assert not select.select([event], [], [], 0)[0]
        for client in (one, other, alone):
            close(client, guest)


def close(client: Client, guest: GuestDaemon) -> None:
    client.sock.shutdown(1)
    assert guest.hear() == control.Close(client.number)
    guest.say(control.Closed(client.number))
    client.hear_end()
    client.close()


# ---- a host that is not there yet ----


def test_a_guest_does_not_say_that_it_is_a_domain_before_the_host_says_which(fresh: GuestDaemon) -> None:
    ready, *_ = fresh.log_path.read_text().splitlines()
    assert ready == f"kvmchand: ready: {fresh.runtime_dir}/kvmchand.sock (this guest)"
    with RawClient(fresh) as client:
        client.say(b"nonsense")
        fresh.wait_log("this guest, client ")
    with StoreClient(fresh.runtime_dir / "store.sock") as store:
        store.sock.sendall(b"\xff" * 64)
        fresh.wait_log("this guest, store client ")
    fresh.greet()
    assert "domain 0" not in fresh.log_path.read_text()


# ---- an honest host ----


def test_a_request_and_its_grant_pass_and_a_close_waits_for_the_host(guest: GuestDaemon, device: Device) -> None:
    with Client(guest) as client:
        assert_granted(client, guest, device)
        client.sock.shutdown(1)
        assert guest.hear() == control.Close(client.number)
        assert not select.select([client.sock], [], [], 0)[0]
        guest.say(control.Closed(client.number))
        client.hear_end()


def test_requests_wait_for_the_link_to_come_up(fresh: GuestDaemon) -> None:
    with RawClient(fresh) as client:
        client.hello().say({"type": "get-domains", "first": 0})
        fresh.greet()
        asked = fresh.hear_ask()
        assert asked.request == wire.GetDomains(0)
        fresh.say(control.Reply(asked.client, asked.serial, wire.Domains(DOMAIN, (), more=False)))
        assert client.hear()["own"] == DOMAIN
    assert fresh.hear() == control.Close(asked.client)


def test_a_listing_has_the_guests_own_devices_first_and_then_the_hosts_pages(guest: GuestDaemon) -> None:
    cursors = [0, 7, 0]
    with RawClient(guest) as client:
        own = client.hello().list()
        assert [each["address"] for each in own["devices"]] == [guest.control.address]
        assert own["domains"] == []
        after = own["following"]
        for cursor, following in itertools.pairwise(cursors):
            client.say({"type": "list", "after": after})
            asked = guest.hear_ask()
            assert asked.request == wire.List(Size(cursor))
            domains = (wire.DomainInfo(HOST, "host", "host", ""),)
            guest.say(control.Reply(asked.client, asked.serial, wire.Listing(domains, (), (), (), (), Size(following))))
            page = client.hear()
            assert page["domains"] == [{"domain": HOST, "kind": "host", "name": "host", "uuid": ""}]
            assert page["devices"] == []
            assert page["following"] > after or not following
            after = page["following"]
        assert after == 0
    assert guest.hear() == control.Close(asked.client)


def test_a_listing_that_goes_on_where_no_page_is_is_an_error(guest: GuestDaemon) -> None:
    with RawClient(guest) as client:
        client.say({"type": "list", "after": client.hello().list()["following"]})
        asked = guest.hear_ask()
        guest.say(control.Reply(asked.client, asked.serial, wire.Listing((), (), (), (), (), Size(2**62))))
        client.hear_error("protocol")
        client.hear_end()
    assert guest.hear() == control.Close(asked.client)


# ---- grants that can't be ----

SPOILT: dict[str, dict[str, Any]] = {
    "events that are a host's": {"events": "eventfd"},
    "events of no kind": {"events": ""},
    "a device that is not there": {"peer": PEER + 1},
    "no device": {"peer": 0},
    "a device below 0": {"peer": -1},
    "the control device": {"peer": CONTROL_PEER, "vector": 0},
    "a left ring too small": {"left_order": 9},
    "a right ring too small": {"right_order": 0},
    "a ring below 0": {"left_order": -12},
    "a ring larger than the device": {"right_order": 16},
    "a ring of 2 GiB": {"right_order": 31},
    "a ring beyond all memory": {"left_order": 2**31 - 1},
    "one page too far": {"offset": SIZE},
    "the last byte too far": {"left_order": 12, "offset": SIZE - 2 * 4096 + 1},
    "far beyond": {"offset": 2**63 - 1},
    "the vector after the last": {"vector": VECTORS},
    "a vector below 0": {"vector": -1},
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_grant_outside_a_device_is_refused_and_the_next_client_is_served(guest: GuestDaemon, device: Device, case: str) -> None:
    with Client(guest) as client:
        guest.say(replace(Grant(), **SPOILT[case]).to(client))
        client.hear_error("protocol")
        guest.wait_log(f"the host's answer to client {client.number} is invalid: ")
    assert guest.hear() == control.Close(client.number)
    with Client(guest) as another:
        assert_granted(another, guest, device)
    assert "is lost" not in guest.log()


def test_a_ring_that_no_end_can_have_is_refused_though_the_device_has_room(guest: GuestDaemon) -> None:
    guest.plug(HUGE_PEER, HUGE, 1)
    assert guest.hear() == control.Ready(HUGE_PEER, 1)
    with Client(guest) as client:
        guest.say(replace(Grant(), peer=HUGE_PEER, vector=0, right_order=31).to(client))
        client.hear_error("protocol")


def test_what_fills_a_device_to_the_last_byte_is_granted(guest: GuestDaemon, device: Device) -> None:
    with Client(guest) as client:
        guest.say(replace(Grant(), left_order=12, offset=SIZE - 2 * 4096, vector=VECTORS - 1).to(client))
        assert client.hear()["type"] == "grant"


# ---- answers that can't be ----


@pytest.mark.parametrize(
    "reply",
    [wire.Grant(ChannelId(1), "/x", 10, 11, "socket", Size(0), Size(0), Size(0)), wire.Pages(Size(1), 1, Size(0))],
    ids=lambda reply: type(reply).__name__,
)
def test_memory_that_is_granted_as_to_a_client_of_the_hosts_is_an_error_to_that_client(
    guest: GuestDaemon, device: Device, reply: wire.Reply
) -> None:
    with Client(guest) as client, Client(guest) as another:
        guest.say(control.Reply(client.number, client.ask.serial, reply))
        assert "the host" in client.hear_error("protocol")
        client.hear_end()
        assert guest.hear() == control.Close(client.number)
        assert_granted(another, guest, device)


def test_what_nobody_asked_for_is_nobodys(guest: GuestDaemon, device: Device) -> None:
    error = wire.Error("busy", "nobody wants to know")
    with RawClient(guest) as idle, Client(guest) as client:
        idle.hello()
        for number in (1, client.number + 1, 2**63 - 1):
            guest.say(Grant().to(client, number=number))
            guest.say(control.Reply(ClientId(number), client.ask.serial, error))
            guest.say(control.Closed(ClientId(number)))
        guest.say(control.Closed(client.number))
        for serial in (client.ask.serial + 1, client.ask.serial - 1, -1, 2**31 - 1):
            guest.say(Grant().to(client, serial=serial or -2))
            guest.say(control.Reply(client.number, serial, error))
        assert_granted(client, guest, device)
        # Answered once, it is not answered again.
        guest.say(Grant().to(client))
        guest.say(control.Reply(client.number, client.ask.serial, error))
        idle.say({"type": "get-domains", "first": 0})
        asked = guest.hear_ask()
        guest.say(control.Reply(asked.client, asked.serial, error))
        idle.hear_error("busy")
        assert not select.select([idle.sock, client.sock], [], [], 0)[0]


# ---- bytes that can't be ----


def packet(data: bytes) -> bytes:
    return control.LENGTH.pack(len(data)) + data


def replying(reply: bytes) -> bytes:
    return packet(b'{"type":"reply","client":1,"serial":1,"reply":' + reply + b"}")


BAD = {
    "a packet of nothing": bytes(4),
    "a packet of one byte more than the most": control.LENGTH.pack(PACKET_MAX + 1),
    "a packet of all that 32 bits can say": b"\xff" * 4,
    "no JSON": packet(b"{"),
    "an unknown message": packet(b'{"type":"shell"}'),
    "what only a guest says": packet(b'{"type":"hello","version":1}'),
    "an ill-typed message": packet(b'{"type":"welcome","domain":null}'),
    "half a surrogate pair": packet(rb'{"type":"refused","sentence":"\ud800"}'),
    "a reply that is a text": replying(b'""'),
    "a reply that is a packet": replying(rb'"{\"type\":\"done\"}"'),
    "a reply that lacks its fields": replying(b'{"type":"listing"}'),
    "a reply that is a request": replying(b'{"type":"hello","version":3}'),
    "an ill-typed reply": replying(b'{"type":"error","code":1,"sentence":""}'),
    "bytes behind a message that has none": packet(b'{"type":"again"}\nx'),
    "fewer bytes than the message says": packet(b'{"type":"store-output","client":1,"data":2,"answers":true}\nx'),
}


@pytest.mark.parametrize("case", BAD)
def test_a_host_whose_bytes_can_not_be_loses_the_link_and_is_met_anew(guest: GuestDaemon, device: Device, case: str) -> None:
    client = Client(guest)
    reply = assert_granted(client, guest, device)
    guest.put(BAD[case])
    guest.wait_log("the link to the host is lost: ")
    # Its channel's other end can't be reached any more: its wait ends, and so does its connection.
    assert select.select([reply["fds"][1]], [], [])[0]
    client.hear_end()
    client.close()
    guest.greet()
    assert guest.hear() == control.Ready(PEER, VECTORS)
    with Client(guest) as another:
        assert_granted(another, guest, device)


def test_an_index_that_can_not_be_true_loses_the_link(guest: GuestDaemon, device: Device) -> None:
    cons = word(guest.page, RIGHT_INDEXES)
    set_word(guest.page, RIGHT_INDEXES + 4, cons + (1 << control.RIGHT_ORDER) + 1)
    guest.wake()
    guest.wait_log("the link to the host is lost: the peer broke the ring's rules")
    guest.greet()
    assert guest.hear() == control.Ready(PEER, VECTORS)


def test_a_page_that_can_not_be_is_not_attached_to(fresh: GuestDaemon) -> None:
    fresh.wait_started()
    for at in (LEFT_INDEXES, LEFT_INDEXES + 4, RIGHT_INDEXES, RIGHT_INDEXES + 4):
        set_word(fresh.page, at, at << 20)
    # No event, so it looks only by its own clock: now and then, and not all the time.
    began = time.monotonic()
    fresh.page[CLIENT_LIVE], fresh.page[SERVER_LIVE] = 2, 1
    lost = "the link to the host is lost: the server's ring indexes are impossible"
    eventually(lambda: fresh.log().count(lost) >= 3)
    assert time.monotonic() - began > 1.5
    fresh.page[CLIENT_LIVE] = 0
    fresh.greet()


def test_a_host_that_hangs_up_ends_the_channels_and_is_met_anew(guest: GuestDaemon, device: Device) -> None:
    client = Client(guest)
    reply = assert_granted(client, guest, device)
    guest.page[SERVER_LIVE] = 0
    guest.wake()
    guest.wait_log("the link to the host is lost: the other end is gone")
    assert select.select([reply["fds"][1]], [], [])[0]
    client.hear_end()
    client.close()
    guest.greet()
    assert guest.hear() == control.Ready(PEER, VECTORS)


def test_a_host_that_refuses_is_quoted_in_one_line(fresh: GuestDaemon) -> None:
    fresh.meet()
    assert fresh.hear() == control.Hello(control.VERSION)
    fresh.say(control.Refused("use the\nkvmchand: same release\x1b[2J"))
    fresh.wait_log("the host's kvmchand refuses this one: use the?kvmchand: same release?[2J")


def test_why_a_host_refuses_is_said_once(fresh: GuestDaemon) -> None:
    before = len(fresh.log())
    for sentence in ("use the same release", "use the same release", "use another release"):
        fresh.meet()
        assert fresh.hear() == control.Hello(control.VERSION)
        fresh.say(control.Refused(sentence))
        fresh.page[SERVER_LIVE] = 0
        fresh.wake()
        fresh.wait_started()
    fresh.greet()
    said = [line for line in fresh.log()[before:].splitlines() if "refuses" in line or "is lost" in line]
    assert said == [
        f"kvmchand: warning: the host's kvmchand refuses this one: use {each} release" for each in ("the same", "another")
    ]


def test_a_flood_of_the_hosts_is_read_to_its_end(guest: GuestDaemon, device: Device) -> None:
    for _ in range(5000):
        guest.say(control.Closed(ClientId(1)))
    with Client(guest) as client:
        assert_granted(client, guest, device)


# ---- devices ----


def test_a_device_that_goes_ends_the_channels_on_it_alone(guest: GuestDaemon, device: Device) -> None:
    other = guest.plug(PEER + 1, SIZE, VECTORS)
    assert guest.hear() == control.Ready(PEER + 1, VECTORS)
    with Client(guest) as client, Client(guest) as staying:
        reply = assert_granted(client, guest, device)
        guest.say(replace(Grant(), peer=PEER + 1).to(staying))
        memory, _ = staying.hear()["fds"]
        assert os.fstat(memory).st_ino == os.fstat(other.memory).st_ino
        guest.unplug(device)
        assert select.select([reply["fds"][1]], [], [])[0]
        client.hear_end()
        assert guest.hear() == control.Close(client.number)
        assert guest.hear() == control.Released(PEER)
        assert not select.select([staying.sock], [], [], 0)[0]
    assert guest.hear() == control.Close(staying.number)


def test_a_device_that_the_host_wants_back_is_let_go_and_the_channels_on_it_end(guest: GuestDaemon, device: Device) -> None:
    with Client(guest) as client:
        reply = assert_granted(client, guest, device)
        guest.say(control.Release(PEER))
        assert guest.hear_vfio() == vfio.Release(device.address)
        assert select.select([reply["fds"][1]], [], [])[0]
        client.hear_end()
        assert guest.hear() == control.Close(client.number)
        guest.unplug(device)
        assert guest.hear() == control.Released(PEER)


@pytest.mark.parametrize("peer", [CONTROL_PEER, PEER + 1, -1])
def test_a_device_that_is_not_there_or_the_control_device_is_not_let_go(guest: GuestDaemon, device: Device, peer: int) -> None:
    guest.say(control.Release(peer))
    assert guest.hear() == control.Released(peer)
    with Client(guest) as client:
        assert_granted(client, guest, device)
    assert guest.hear() == control.Close(client.number)


def test_the_host_hears_for_how_large_a_device_there_is_room(fresh: GuestDaemon) -> None:
    fresh.tell(vfio.Room(Size(2 << 20), "02.1/00.0"))
    fresh.greet()
    assert fresh.hear_any() == control.Room(Size(2 << 20), "02.1/00.0")
    fresh.tell(vfio.Room(Size(0), "02.0/00.0"))
    assert fresh.hear_any() == control.Room(Size(0), "02.0/00.0")


def test_the_newest_device_of_an_id_counts(guest: GuestDaemon, device: Device) -> None:
    again = Device(PEER, SIZE, VECTORS)
    again.address = "0000:07:01.0"
    guest.add(again)
    assert guest.hear() == control.Ready(PEER, VECTORS)
    with Client(guest) as client:
        assert_granted(client, guest, again)
