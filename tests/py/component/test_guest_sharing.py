# SPDX-License-Identifier: LGPL-2.1-or-later
"""Event channels, shared pages and clients that wait, with ends in guests: scripted guests on a
real host, and a scripted host for a real guest's daemon.
"""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Iterator
from typing import Any

import pytest

from kvmchand.errors import NotFound
from kvmchand.ids import Size
from kvmchand.wire import client, control
from rig.clients import RawClient
from rig.connection import Connection
from rig.daemon import acting_as
from rig.deadline import eventually
from rig.guest import ALICE, BOB, Guest, ScriptedHost, connect, offer
from rig.host import GuestDaemon

PAGE = mmap.PAGESIZE


@pytest.fixture
def here(host: ScriptedHost) -> Iterator[Connection]:
    """A connection of domain 0's."""
    with acting_as(host), Connection.from_environment() as connection:
        yield connection


def page_of(guest: Guest, given: control.Shared, at: int, size: int = 4) -> bytes:
    """What a guest sees in pages it was given."""
    assert isinstance(given, control.Shared), given
    return os.pread(guest.wait_device(given.peer).memory, size, given.pages.offset + at)


def write(guest: Guest, given: control.Shared, at: int, data: bytes) -> None:
    os.pwrite(guest.wait_device(given.peer).memory, data, given.pages.offset + at)


def share(peer: int, pages: int = 2) -> client.Share:
    return client.Share(peer, pages, True)


def test_a_guest_shares_pages_with_the_host(alice: Guest, here: Connection) -> None:
    given = alice.ask(1, share(0))
    mapped, fd = here.map(ALICE, given.pages.ref, writable=True)
    with mmap.mmap(fd, mapped.pages * PAGE, offset=mapped.offset) as memory:
        os.close(fd)
        assert memory[:] == bytes(2 * PAGE)
        write(alice, given, PAGE + 1, b"near")
        assert memory[PAGE + 1 : PAGE + 5] == b"near"
        memory[0:4] = b"back"
        assert page_of(alice, given, 0) == b"back"


def test_two_guests_share_pages_and_the_second_gets_the_device_for_it(alice: Guest, bob: Guest) -> None:
    alice.request(1, share(BOB))
    alice.take_device()
    given = alice.answer(1)
    bob.request(1, client.Map(ALICE, given.pages.ref, True))
    bob.take_device()
    mapped = bob.answer(1)
    write(alice, given, 0, b"here")
    assert page_of(bob, mapped, 0) == b"here"


def test_pages_are_no_others_until_all_have_let_them_go_and_are_zero_then(
    host: ScriptedHost, alice: Guest, here: Connection
) -> None:
    given = alice.ask(1, share(0))
    _, fd = here.map(ALICE, given.pages.ref, writable=True)
    os.close(fd)
    write(alice, given, 0, b"mine")
    alice.close(1)
    other = alice.ask(2, share(0))
    assert other.pages.offset != given.pages.offset
    here.close_channel()
    eventually(lambda: page_of(alice, given, 0) == bytes(4))
    third = alice.ask(3, share(0))
    assert third.pages.offset == given.pages.offset
    assert third.pages.ref not in (given.pages.ref, other.pages.ref)


def test_when_a_guest_is_destroyed_its_peer_finds_the_byte_cleared_and_is_woken(
    alice: Guest, host: ScriptedHost, here: Connection
) -> None:
    given = alice.ask(1, share(0))
    bound = alice.ask(2, client.Bind(0))
    port = client.port_of(bound.grant.channel, is_server=True)
    assert alice.ask(1, client.Notify(True, Size(5), Size(port))) == client.Done()
    mapped, fd = here.map(ALICE, given.pages.ref, writable=True)
    with acting_as(host), Connection.from_environment() as joining:
        grant = joining.join(ALICE, Size(port))
        for each in (grant.region, grant.notify):
            os.close(each)
        assert select.select([grant.event], [], [])[0]
        os.eventfd_read(grant.event)
        with mmap.mmap(fd, mapped.pages * PAGE, offset=mapped.offset) as memory:
            os.close(fd)
            memory[5] = 1
            alice.stop()
            assert select.select([grant.event], [], [])[0]
            eventually(lambda: memory[5] == 0)
        os.close(grant.event)


def test_an_event_channel_wakes_a_guest_and_the_host(alice: Guest, host: ScriptedHost) -> None:
    bound = alice.ask(1, client.Bind(0))
    device = alice.wait_device(bound.peer)
    with acting_as(host), Connection.from_environment() as joining:
        grant = joining.join(ALICE, Size(client.port_of(bound.grant.channel, is_server=True)))
        os.close(grant.region)
        assert select.select([grant.event], [], [])[0]
        os.eventfd_read(grant.event)
        os.eventfd_write(grant.notify, 1)
        woken = device.event(device.peer, bound.vector)
        assert select.select([woken], [], [])[0]
        os.eventfd_write(device.event(bound.grant.doorbell_value >> 16, bound.grant.doorbell_value & 0xFFFF), 1)
        assert select.select([grant.event], [], [])[0]
        for each in (grant.event, grant.notify):
            os.close(each)


def test_a_guests_client_waits_for_a_server_on_the_host(alice: Guest, host: ScriptedHost, here: Connection) -> None:
    alice.request(1, client.Connect(0, "/local/domain/0/late", True))
    assert alice.is_answered()
    grant = here.offer(ALICE, "late", Size(1), Size(1))
    assert alice.answer(1) == client.Vacant()
    end = alice.end(alice.ask(1, client.Connect(0, "/local/domain/0/late", True)), is_server=False)
    assert end.is_open()
    for each in (grant.region, grant.event, grant.notify):
        os.close(each)


def test_who_waits_for_a_guests_offer_is_told_when_the_guest_is_gone(alice: Guest, host: ScriptedHost, here: Connection) -> None:
    here.ask_to_connect(ALICE, f"/local/domain/{ALICE}/never", waits=True)
    alice.greet()  # its daemon starts anew, and may offer it yet
    assert not select.select([here._sock], [], [], 0)[0]
    alice.stop()
    with pytest.raises(NotFound, match=f"no domain {ALICE}"):
        here.answer(waits=True)


def test_a_client_waits_on_where_the_device_it_needed_is_taken_away(alice: Guest, bob: Guest) -> None:
    path = f"/local/domain/{ALICE}/x"
    peer = alice.offer(1, BOB, path, grows=True).peer
    bob.request(1, client.Connect(ALICE, path, True))
    bob.host.hypervisor.wait(bob.new_devices, "bob gets no device")
    bob.lose(bob.new_devices()[0])
    alice.close(1)
    alice.host.hypervisor.wait(lambda: alice.machine.of_peer(peer) is None, "the other guest keeps the device")
    assert bob.is_answered()
    alice.offer(2, BOB, path, grows=True)
    assert bob.answer(1) == client.Vacant()
    bob.request(1, client.Connect(ALICE, path, True))
    bob.take_device()
    assert bob.end(bob.answer(1), is_server=False).is_open()


def test_a_guests_clients_that_wait_are_forgotten_with_its_daemon(alice: Guest, here: Connection) -> None:
    alice.request(1, client.Connect(0, "/local/domain/0/late", True))
    alice.greet()
    grant = here.offer(ALICE, "late", Size(1), Size(1))
    assert alice.is_answered()
    assert isinstance(alice.ask(1, connect(0, "/local/domain/0/late")), control.Granted)
    for each in (grant.region, grant.event, grant.notify):
        os.close(each)


def test_a_guest_shares_no_more_than_its_devices_may_be(alice: Guest) -> None:
    sentence = alice.refused(1, share(0, 1 << 17), "limit")
    assert "guest_bytes" in sentence
    assert isinstance(alice.ask(2, offer(0)), control.Granted)


# ---- a real guest's daemon ----


PEER, SIZE = 5, 65536


@pytest.fixture
def guest(fresh: GuestDaemon) -> GuestDaemon:
    """Linked to its host."""
    return fresh.greet()


def asked_for_pages(guest: GuestDaemon, asking: RawClient) -> control.Ask:
    asking.hello().say({"type": "share", "peer": 0, "pages": 2, "writable": True})
    return guest.hear_ask()


def pages(ask: control.Ask, **spoilt: Any) -> control.Shared:
    peer = spoilt.pop("peer", PEER)
    given = client.Pages(**{"ref": Size(9), "pages": 2, "offset": Size(PAGE), **spoilt})
    return control.Shared(ask.client, ask.serial, peer, given)


def test_a_guests_program_gets_the_pages_within_the_device(guest: GuestDaemon) -> None:
    device = guest.plug(PEER, SIZE, 1)
    guest.hear()
    with RawClient(guest) as asking:
        ask = asked_for_pages(guest, asking)
        guest.say(pages(ask))
        reply = asking.hear()
        assert (reply["type"], reply["ref"], reply["pages"], reply["offset"]) == ("pages", 9, 2, PAGE)
        assert os.fstat(reply["fds"][0]).st_ino == os.fstat(device.memory).st_ino


@pytest.mark.parametrize(
    "spoilt",
    [
        {"peer": PEER + 1},
        {"peer": 1},
        {"pages": 0},
        {"pages": -1},
        {"pages": 16},
        {"pages": 2**31 - 1},
        {"offset": Size(SIZE - PAGE)},
        {"offset": Size(2**63 - 1)},
    ],
    ids=str,
)
def test_pages_outside_a_device_are_refused(guest: GuestDaemon, spoilt: dict[str, Any]) -> None:
    guest.plug(PEER, SIZE, 1)
    guest.hear()
    with RawClient(guest) as asking:
        guest.say(pages(asked_for_pages(guest, asking), **spoilt))
        asking.hear_error("protocol")


def test_pages_end_with_the_device_they_are_on(guest: GuestDaemon) -> None:
    device = guest.plug(PEER, SIZE, 1)
    guest.hear()
    with RawClient(guest) as asking:
        ask = asked_for_pages(guest, asking)
        guest.say(pages(ask))
        asking.hear()
        guest.unplug(device)
        asking.hear_end()
        asking.let_go()
        guest.until(lambda: isinstance(guest.hear(), control.Close), "the host is not told")


def test_who_breaks_the_protocol_goes_though_it_has_pages(guest: GuestDaemon) -> None:
    guest.plug(PEER, SIZE, 1)
    guest.hear()
    with RawClient(guest) as asking:
        guest.say(pages(asked_for_pages(guest, asking)))
        asking.hear()
        asking.say({"type": "bind", "peer": 0})
        ask = guest.hear_ask()
        guest.say(control.Reply(ask.client, ask.serial, client.Error("protocol", "one connection for each")))
        asking.hear_error("protocol")
        asking.hear_end()
    assert guest.hear() == control.Close(ask.client)


def test_pages_in_a_reply_as_for_a_client_of_the_hosts_own_are_not_believed(guest: GuestDaemon) -> None:
    with RawClient(guest) as asking:
        ask = asked_for_pages(guest, asking)
        guest.say(control.Reply(ask.client, ask.serial, client.Pages(Size(9), 2, Size(0))))
        asking.hear_error("protocol")
    assert guest.hear() == control.Close(ask.client)
