# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store for programs in guests: a host's real daemon with guests that say anything, and a
guest's real daemon with such a host.
"""

from __future__ import annotations

import errno
import os
import signal

import pytest

from kvmchand.ids import ClientId
from kvmchand.services.store.streams import OUTPUT_MAX
from kvmchand.wire import control, store
from kvmchand.xenstore import protocol
from kvmchand.xenstore.protocol import Kind
from rig.clients import StoreClient, packet, write_packet
from rig.deadline import eventually
from rig.guest import ALICE, BOB, Guest, ScriptedHost, offer
from rig.host import GuestDaemon
from rig.processes import is_asleep

FIRST, SECOND = ClientId(1001), ClientId(1002)
"""Connections in a guest, by numbers that no client of the guest's has."""


# ---- guests that the test is ----


def payloads(data: bytes) -> list[tuple[int, bytes]]:
    """The kinds and payloads of whole packets."""
    found = []
    while data:
        kind, _, _, length = protocol.HEADER.unpack_from(data)
        assert len(data) >= protocol.HEADER.size + length, "a packet is not whole"
        found.append((kind, data[protocol.HEADER.size : protocol.HEADER.size + length]))
        data = data[protocol.HEADER.size + length :]
    return found


def hear(guest: Guest, number: ClientId) -> store.Output | store.Ended:
    """What the store tells a connection next, which takes it."""
    message = guest.answer(number)
    assert isinstance(message, store.Output | store.Ended), message
    if isinstance(message, store.Output):
        guest.say(store.Taken(number))
    return message


def ask(guest: Guest, number: ClientId, request: bytes) -> tuple[int, bytes]:
    """A request's reply; events before and beside it are passed over."""
    guest.say(store.Request(number, request))
    while True:
        output = hear(guest, number)
        assert isinstance(output, store.Output), output
        if output.answers:
            (found,) = [each for each in payloads(output.data) if each[0] != Kind.WATCH_EVENT]
            return found


def read(guest: Guest, number: ClientId, path: str) -> bytes:
    kind, payload = ask(guest, number, packet(Kind.READ, path))
    assert kind == Kind.READ, payload
    return payload


def await_event(guest: Guest, number: ClientId, payload: bytes) -> None:
    while True:
        output = hear(guest, number)
        assert isinstance(output, store.Output), output
        if (Kind.WATCH_EVENT, payload) in payloads(output.data):
            return


def test_a_program_in_a_guest_is_of_the_guests_domain(host: ScriptedHost, alice: Guest) -> None:
    assert read(alice, FIRST, "domid") == b"11"
    assert read(alice, FIRST, "name") == b"guest-11"
    assert read(alice, FIRST, "vm") == b"/vm/uuid-11"
    assert ask(alice, FIRST, write_packet("data/x", "1")) == (Kind.WRITE, protocol.OK)
    assert ask(alice, FIRST, write_packet("/local/domain/0/x", "1")) == (Kind.ERROR, b"EACCES\0")
    with StoreClient(host.store_path()) as looking:
        assert looking.read(f"/local/domain/{ALICE}/data/x") == "1"
        assert looking.permissions(f"/local/domain/{ALICE}/data/x") == [f"n{ALICE}"]


def test_events_come_to_a_guest_and_wait_for_those_before_to_be_taken(host: ScriptedHost, alice: Guest) -> None:
    assert ask(alice, FIRST, packet(Kind.WATCH, "data", "t")) == (Kind.WATCH, protocol.OK)
    with StoreClient(host.store_path()) as writer:
        writer.write(f"/local/domain/{ALICE}/data/0", "x")
        first = alice.answer(FIRST)
        if b"data/0" not in first.data:  # the watch's first event had to wait for the reply to be taken
            alice.say(store.Taken(FIRST))
            first = alice.answer(FIRST)
        assert not first.answers
        for number in range(1, 4):
            writer.write(f"/local/domain/{ALICE}/data/{number}", "x")
        assert read(alice, SECOND, "domid") == b"11"  # all the same, in its turn
        alice.say(store.Taken(FIRST))
        output = hear(alice, FIRST)
        assert isinstance(output, store.Output)
        assert payloads(output.data) == [(Kind.WATCH_EVENT, f"data/{number}\0t\0".encode()) for number in range(1, 4)]


def test_a_guests_vchan_stands_in_the_store_and_goes_when_its_nodes_are_removed(host: ScriptedHost, alice: Guest) -> None:
    end = alice.offer(1, 0, "x")
    channel = end.grant.channel
    assert read(alice, FIRST, "x/ring-ref") == str(channel).encode()
    with StoreClient(host.store_path()) as looking:
        assert looking.read(f"/local/domain/{ALICE}/x/event-channel") == str(2 * channel)
        assert ask(alice, FIRST, packet(Kind.RM, "x")) == (Kind.RM, protocol.OK)
        assert not looking.exists(f"/local/domain/{ALICE}/x")
    alice.close(1)


def test_a_guest_that_is_gone_is_gone_from_the_store_and_watchers_hear_of_it(host: ScriptedHost, alice: Guest) -> None:
    assert ask(alice, FIRST, write_packet("data/x", "1")) == (Kind.WRITE, protocol.OK)
    with StoreClient(host.store_path()) as looking:
        looking.watch("@releaseDomain", "gone")
        looking.watch("@introduceDomain", "new")
        looking.watch(f"/local/domain/{ALICE}/data", "data")
        alice.stop()
        looking.await_event("@releaseDomain", "gone")
        with pytest.raises(FileNotFoundError):
            looking.children(f"/local/domain/{ALICE}")
        host.guest(BOB)
        looking.await_event("@introduceDomain", "new")
        assert looking.read(f"/local/domain/{BOB}/name") == "guest-12"


def test_a_guests_connections_end_with_its_session(host: ScriptedHost, alice: Guest) -> None:
    ask(alice, FIRST, packet(Kind.WATCH, "data", "t"))
    alice.greet()
    with StoreClient(host.store_path()) as writer:
        writer.write(f"/local/domain/{ALICE}/data", "x")
    # The same number is another connection now, of which the watch is not.
    assert read(alice, FIRST, "domid") == b"11"
    assert alice.is_answered()
    assert not any(isinstance(each, store.Output) for each in alice._heard)


def test_a_guests_connections_end_with_the_link_process(host: ScriptedHost, alice: Guest) -> None:
    with StoreClient(host.store_path()) as writer:
        ask(alice, FIRST, packet(Kind.WATCH, "data", "t"))
        eventually(lambda: is_asleep(host.service("control")))
        host.kill_service("control")
        while not isinstance(alice.hear(), control.Again):
            pass
        writer.write(f"/local/domain/{ALICE}/data", "x")
        assert read(alice, SECOND, "domid") == b"11"
        assert not any(isinstance(each, store.Output) for each in alice._heard)


def test_a_guests_connections_outlive_the_store_process(host: ScriptedHost, alice: Guest) -> None:
    with StoreClient(host.store_path()) as writer:
        alice.say(store.Request(FIRST, packet(Kind.WATCH, "data", "t")))
        await_event(alice, FIRST, b"data\0t\0")
        eventually(lambda: is_asleep(host.service("store")))
        host.kill_service("store")
        writer.write(f"/local/domain/{ALICE}/data", "x")
        await_event(alice, FIRST, b"data\0t\0")
        assert read(alice, FIRST, "data") == b"x"


def test_a_guest_whose_request_was_under_way_as_the_store_process_died_is_told_the_end(host: ScriptedHost, alice: Guest) -> None:
    assert read(alice, FIRST, "domid") == b"11"
    os.kill(host.service("store"), signal.SIGSTOP)
    alice.say(store.Request(FIRST, packet(Kind.READ, "domid")))
    assert alice.is_answered()
    host.kill_service("store")
    assert isinstance(hear(alice, FIRST), store.Ended)
    assert read(alice, SECOND, "domid") == b"11"


@pytest.mark.parametrize(
    "data", [b"", b"x", packet(Kind.READ, "domid")[:-1], packet(Kind.READ, "domid") + b"x", protocol.HEADER.pack(2, 0, 0, 5000)]
)
def test_what_is_no_whole_request_ends_the_guests_connection_and_no_other(host: ScriptedHost, alice: Guest, data: bytes) -> None:
    assert read(alice, SECOND, "domid") == b"11"
    alice.say(store.Request(FIRST, data))
    assert isinstance(hear(alice, FIRST), store.Ended)
    assert read(alice, SECOND, "domid") == b"11"


def test_a_request_before_the_answer_to_the_one_before_ends_the_session(host: ScriptedHost, alice: Guest) -> None:
    os.kill(host.service("store"), signal.SIGSTOP)
    for _ in range(2):
        alice.say(store.Request(FIRST, packet(Kind.READ, "domid")))
    alice.hear_end()
    os.kill(host.service("store"), signal.SIGCONT)
    assert read(alice.greet(), FIRST, "domid") == b"11"


def test_a_guest_has_so_many_connections_and_the_next_is_ended(host: ScriptedHost, alice: Guest) -> None:
    for number in range(1, 1025):
        assert read(alice, ClientId(number), "domid") == b"11"
    alice.say(store.Request(ClientId(5000), packet(Kind.READ, "domid")))
    assert isinstance(hear(alice, ClientId(5000)), store.Ended)
    alice.say(store.Ended(ClientId(1)))
    assert read(alice, ClientId(5001), "domid") == b"11"


def test_a_guest_that_asks_faster_than_it_may_is_answered_later_and_its_other_requests_are_not_refused(
    host: ScriptedHost, alice: Guest
) -> None:
    for _ in range(3000):
        assert read(alice, FIRST, "domid") == b"11"
    assert alice.is_answered()
    end = alice.offer(1, 0, "x")
    assert end.grant.channel


def test_taken_and_ended_of_connections_that_are_not_there_mean_nothing(host: ScriptedHost, alice: Guest) -> None:
    for number in (0, 1, 2**63 - 1):
        alice.say(store.Taken(ClientId(number)))
        alice.say(store.Ended(ClientId(number)))
    assert read(alice, FIRST, "domid") == b"11"
    assert alice.refused(1, offer(99), "not-found")


# ---- a host that the test is ----


@pytest.fixture
def guest(fresh: GuestDaemon) -> GuestDaemon:
    """Linked to its host."""
    return fresh.greet()


def hear_request(guest: GuestDaemon) -> store.Request:
    request = guest.hear()
    assert isinstance(request, store.Request), request
    return request


def reply(payload: bytes, kind: int = Kind.READ) -> bytes:
    return protocol.HEADER.pack(kind, 0, 0, len(payload)) + payload


def event(path: bytes) -> bytes:
    return reply(path + b"\0t\0", Kind.WATCH_EVENT)


def test_requests_and_what_answers_them_pass_whole(guest: GuestDaemon) -> None:
    with StoreClient(guest.store_path()) as client:
        for _ in range(3):
            for byte in packet(Kind.READ, "domid"):
                client.say(bytes([byte]))
            asked = hear_request(guest)
            assert asked.data == packet(Kind.READ, "domid")
            guest.say(store.Output(asked.client, event(b"a") + reply(b"7") + event(b"b"), True))
            assert client.reply() == b"7"
            assert guest.hear() == store.Taken(asked.client)
            assert [client.event() for _ in range(2)] == [("a", "t"), ("b", "t")]
        client.close()
        assert guest.hear() == store.Ended(asked.client)


def test_one_request_of_a_connection_is_under_way_and_others_do_not_wait_for_it(guest: GuestDaemon) -> None:
    with StoreClient(guest.store_path()) as client, StoreClient(guest.store_path()) as other:
        client.say(packet(Kind.READ, "a") + packet(Kind.READ, "b"))
        first = hear_request(guest)
        other.say(packet(Kind.READ, "c"))
        second = hear_request(guest)
        assert (first.data, second.data) == (packet(Kind.READ, "a"), packet(Kind.READ, "c"))
        guest.say(store.Output(first.client, reply(b"1"), True))
        heard = [guest.hear(), guest.hear()]
        assert store.Taken(first.client) in heard
        assert store.Request(first.client, packet(Kind.READ, "b")) in heard
        for number in (first.client, second.client):
            guest.say(store.Output(number, reply(b"2"), True))
        assert [client.reply(), client.reply(), other.reply()] == [b"1", b"2", b"2"]
        for _ in range(2):
            assert isinstance(guest.hear(), store.Taken)
    assert {type(guest.hear()) for _ in range(2)} == {store.Ended}


def test_requests_wait_for_the_link_to_the_host(fresh: GuestDaemon) -> None:
    with StoreClient(fresh.store_path()) as client:
        client.say(packet(Kind.READ, "domid"))
        asked = hear_request(fresh.greet())
        fresh.say(store.Output(asked.client, reply(b"7"), True))
        assert client.reply() == b"7"
        assert fresh.hear() == store.Taken(asked.client)
    assert fresh.hear() == store.Ended(asked.client)


def test_connections_that_the_host_knows_end_with_the_session_and_others_go_on(guest: GuestDaemon) -> None:
    with StoreClient(guest.store_path()) as known, StoreClient(guest.store_path()) as new:
        known.say(packet(Kind.READ, "domid"))
        hear_request(guest)
        guest.make_page()
        guest.page[20] = 0  # the host is another one
        guest.wake()
        known.hear_end()
        guest.greet()
        new.say(packet(Kind.READ, "domid"))
        asked = hear_request(guest)
        guest.say(store.Output(asked.client, reply(b"7"), True))
        assert new.reply() == b"7"
        assert guest.hear() == store.Taken(asked.client)
    assert guest.hear() == store.Ended(asked.client)


@pytest.mark.parametrize("by", ["host", "guest"])
def test_connections_end_where_messages_may_be_lost(guest: GuestDaemon, by: str) -> None:
    with StoreClient(guest.store_path()) as client:
        client.say(packet(Kind.READ, "domid"))
        asked = hear_request(guest)
        if by == "host":
            guest.say(control.Again())
        else:
            guest.kill_service("control")
        client.hear_end()
        assert guest.hear() == store.Ended(asked.client)


def test_the_host_ends_a_connection(guest: GuestDaemon) -> None:
    with StoreClient(guest.store_path()) as client:
        client.say(packet(Kind.READ, "domid"))
        asked = hear_request(guest)
        guest.say(store.Ended(asked.client))
        client.hear_end()
        assert guest.hear() == store.Ended(asked.client)


def test_what_the_host_says_of_connections_that_are_not_there_means_nothing(guest: GuestDaemon) -> None:
    with StoreClient(guest.store_path()) as client:
        for number in (0, 1, 2**63 - 1):
            guest.say(store.Output(ClientId(number), reply(b"x"), True))
            guest.say(store.Ended(ClientId(number)))
        client.say(packet(Kind.READ, "domid"))
        asked = hear_request(guest)
        guest.say(store.Output(asked.client, reply(b"7"), True))
        assert client.reply() == b"7"
        assert guest.hear() == store.Taken(asked.client)
    assert guest.hear() == store.Ended(asked.client)


def test_a_host_that_waits_for_nobody_fills_no_more_than_a_connections_share(guest: GuestDaemon) -> None:
    with StoreClient(guest.store_path()) as deaf:
        deaf.say(packet(Kind.READ, "domid"))
        asked = hear_request(guest)
        flood = store.Output(asked.client, bytes(store.OUTPUT_BYTES), False)
        for _ in range(2 * OUTPUT_MAX // store.OUTPUT_BYTES):
            guest.say(flood)
        guest.wait_log("does not read what it watches")
        deaf.hear_end()
        while guest.hear() != store.Ended(asked.client):
            pass


def test_idle_connections_outlive_the_forwarding_process_and_those_with_a_request_under_way_end(guest: GuestDaemon) -> None:
    with StoreClient(guest.store_path()) as idle, StoreClient(guest.store_path()) as asking:
        idle.say(packet(Kind.READ, "domid"))
        first = hear_request(guest)
        guest.say(store.Output(first.client, reply(b"7"), True))
        assert idle.reply() == b"7"
        assert guest.hear() == store.Taken(first.client)
        asking.say(packet(Kind.READ, "domid"))
        second = hear_request(guest)
        eventually(lambda: is_asleep(guest.service("forward")))
        guest.kill_service("forward")
        asking.hear_end()
        assert guest.hear() == store.Ended(second.client)
        guest.say(store.Output(first.client, event(b"a"), False))
        assert idle.event() == ("a", "t")
        assert guest.hear() == store.Taken(first.client)
    assert guest.hear() == store.Ended(first.client)


def test_a_program_whose_bytes_are_no_request_is_dropped_in_the_guest(guest: GuestDaemon) -> None:
    with StoreClient(guest.store_path()) as rogue, StoreClient(guest.store_path()) as other:
        rogue.say(b"\xff" * 100)
        rogue.hear_end()
        other.say(packet(Kind.READ, "domid"))
        asked = hear_request(guest)
        guest.say(store.Output(asked.client, reply(errno.errorcode[errno.EPERM].encode() + b"\0", Kind.ERROR), True))
        with pytest.raises(PermissionError):
            other.reply()
        assert guest.hear() == store.Taken(asked.client)
    assert guest.hear() == store.Ended(asked.client)
