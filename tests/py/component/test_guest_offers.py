# SPDX-License-Identifier: LGPL-2.1-or-later
"""What programs in a guest offer while the link to the host, and its devices, come and go."""

from __future__ import annotations

import ctypes
import errno
import os
import select
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvmchand.channels.page import Page
from kvmchand.channels.rings import Rings
from kvmchand.errors import ChannelClosed
from kvmchand.ids import ChannelId, DomainId, Size
from kvmchand.wire import client as wire
from kvmchand.wire import control, dataplane, vfio
from libxenvchan_shim import State, Vchan, listen, offer
from rig.daemon import acting_as
from rig.deadline import eventually
from rig.host import DOMAIN, Device, GuestDaemon

RINGS = Rings(12, 12)
SIZE, VECTORS = 65536, 4
PLACE, VECTOR = 4096, 2
OTHER = DomainId(9)
"""The guest's number when it has come back."""


class Host:
    """The guest's host, with a device for what the guest offers."""

    def __init__(self, guest: GuestDaemon) -> None:
        self.guest = guest
        self._peer = 4
        self.device = self.plug()
        self._ends: list[Any] = []

    def plug(self) -> Device:
        self._peer += 1
        self.device = self.guest.plug(self._peer, SIZE, VECTORS)
        assert self.guest.hear() == control.Ready(self._peer, VECTORS)
        return self.device

    def grant(self, ask: control.Ask, place: int = PLACE, vector: int = VECTOR) -> None:
        """Grant a server's end of the device."""
        assert isinstance(ask.request, wire.Offer)
        Page(self.device.memory, place).initialize(RINGS)
        path = f"/local/domain/{DOMAIN}/x"
        grant = wire.Grant(ChannelId(7), path, RINGS.left, RINGS.right, "doorbell", Size(place), Size(0), Size(3 << 16 | vector))
        self.guest.say(control.Granted(ask.client, ask.serial, self.device.peer, vector, grant))

    def connect(self, place: int = PLACE, vector: int = VECTOR, device: Device | None = None) -> Any:
        """Be the client of that end."""
        device = device or self.device
        made = dataplane.attach(
            dataplane.Grant(
                region_fd=os.dup(device.memory),
                event_fd=os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC),
                notify_fd=os.dup(device.events[vector]),
                control_fd=-1,
                is_server=0,
                left_order=RINGS.left,
                right_order=RINGS.right,
                events=dataplane.EVENTFD,
                offset=place,
            )
        )
        self._ends.append(made)
        return made

    def lose(self) -> None:
        """End the session, and take the device out."""
        self.guest.hang_up()
        self.guest.unplug(self.device)

    def come_back(self, domain: DomainId = DOMAIN) -> control.Ask:
        """Begin another session, in which the guest offers again; with another device."""
        self.guest.greet(domain)
        ask = self.guest.hear_ask()
        self.plug()
        return ask

    def offer_again(self) -> None:
        self.grant(self.come_back())

    def close(self) -> None:
        for end in self._ends:
            dataplane.detach(end)


@pytest.fixture
def host(fresh: GuestDaemon) -> Iterator[Host]:
    made = Host(fresh.greet())
    yield made
    made.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def asked(host: Host, pool: ThreadPoolExecutor, call: Callable[[], Any]) -> Any:
    """What a program's offer returns when the host has granted it."""
    with acting_as(host.guest):
        opening = pool.submit(call)
        host.grant(host.guest.hear_ask())
        return opening.result()


@pytest.fixture
def server(host: Host, pool: ThreadPoolExecutor) -> Iterator[Vchan]:
    made = asked(host, pool, lambda: offer(0, "x", read_min=4096, write_min=4096))
    yield made
    if not made.closed:
        close(host, pool, made)


def close(host: Host, pool: ThreadPoolExecutor, vchan: Vchan) -> None:
    """Close an end that the host knows of."""
    closing = pool.submit(vchan.close)
    while not isinstance(message := host.guest.hear(), control.Close):
        pass
    host.guest.say(control.Closed(message.client))
    closing.result()


def mappings(device: Device) -> int:
    """How often this process has a device mapped."""
    inode = f" {os.fstat(device.memory).st_ino} "
    return Path("/proc/self/maps").read_text().count(inode)


def take_move(vchan: Vchan) -> None:
    """Take an event, such as comes with a move."""
    select.select([vchan._event_fd()], [], [])
    vchan.wait()


def await_mappings(vchan: Vchan, device: Device, count: int) -> None:
    """Woken by events only."""
    while mappings(device) != count:
        take_move(vchan)


def await_state(vchan: Vchan, state: State) -> None:
    """Woken by events only."""
    while vchan.state is not state:
        take_move(vchan)


def assert_over(server: Vchan) -> None:
    await_state(server, State.GONE)
    with pytest.raises(ChannelClosed) as caught:
        server.take(1)
    assert caught.value.errno == errno.EPIPE
    server.close()


def send(end: Any, data: bytes) -> None:
    assert dataplane.send(end, data, len(data)) == len(data)


def recv(end: Any, size: int) -> bytes:
    data = ctypes.create_string_buffer(size)
    eventually(lambda: dataplane.recv(end, data, size) == size)
    return data.raw


def test_a_server_goes_on_waiting_without_a_device_and_is_found_on_another(host: Host, server: Vchan) -> None:
    fd, before = server._event_fd(), host.device
    server.send(b"early")
    assert mappings(before) == 2
    host.lose()
    await_mappings(server, before, 0)
    server.send(b", and later")
    host.offer_again()
    await_mappings(server, host.device, 2)
    assert (server._event_fd(), server.state) == (fd, State.WAITING)
    far = host.connect()
    assert recv(far, 16) == b"early, and later"
    send(far, b"found")
    assert server.take(5) == b"found"
    server.send(b"yes")
    assert recv(far, 3) == b"yes"


@pytest.mark.parametrize("call", ["take", "wait"])
def test_a_blocked_call_goes_on_until_the_client_comes(host: Host, server: Vchan, pool: ThreadPoolExecutor, call: str) -> None:
    def wait() -> bytes:
        while call == "wait" and server.state is not State.OPEN:
            server.wait()
        return server.take(5)

    waiting: Future[bytes] = pool.submit(wait)
    before = host.device
    host.lose()
    eventually(lambda: mappings(before) == 0)
    host.offer_again()
    send(host.connect(), b"found")
    assert waiting.result() == b"found"


def test_a_client_that_comes_before_the_server_has_moved_is_heard(host: Host, server: Vchan) -> None:
    server.send(b"early")
    host.lose()
    host.offer_again()
    far = host.connect()
    send(far, b"first")
    assert server.state is State.WAITING  # it has not looked yet
    assert server.take(5) == b"first"
    assert (server.state, recv(far, 5)) == (State.OPEN, b"early")


def test_it_moves_as_often_as_the_link_is_lost(host: Host, server: Vchan) -> None:
    for number in range(4):
        host.lose()
        server.send(b"%d" % number)
        host.offer_again()
    far = host.connect()
    send(far, b"found")
    assert server.take(5) == b"found"
    assert recv(far, 4) == b"0123"


def test_moves_that_a_server_has_not_seen_yet_are_taken_together(host: Host, server: Vchan) -> None:
    before = host.device
    for _ in range(4):
        host.lose()
        host.offer_again()
    host.connect()
    await_state(server, State.OPEN)
    assert (mappings(before), mappings(host.device)) == (0, 3)


def test_the_connection_of_a_server_ends(host: Host, server: Vchan) -> None:
    send(host.connect(), b"last")
    assert server.state is State.OPEN
    host.lose()
    await_state(server, State.GONE)
    assert server.take(4) == b"last"
    assert_over(server)


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "not seen"])
def test_a_client_that_comes_while_its_device_goes_is_cut_off(host: Host, server: Vchan, seen: bool) -> None:
    """The guest's daemon has found none yet, and the server may have."""
    before = host.device
    host.guest.hang_up()
    far = host.connect(device=before)
    if seen:
        assert server.state is State.OPEN
    assert_over(server)
    dataplane.hang_up(far)


def test_an_end_that_was_written_in_place_ends(host: Host, server: Vchan) -> None:
    server.reserve(5).release()
    host.lose()
    assert_over(server)


def test_what_is_offered_again_is_what_it_was(host: Host, server: Vchan) -> None:
    host.lose()
    ask = host.come_back(OTHER)
    assert ask.request == wire.Offer(0, "x", Size(4096), Size(4096), False)
    host.grant(ask)


def test_a_listener_goes_on_listening_and_its_connections_end(host: Host, pool: ThreadPoolExecutor) -> None:
    listener = asked(host, pool, lambda: listen(0, "x", read_min=4096, write_min=4096))
    with acting_as(host.guest):
        accepting = pool.submit(listener.accept)
        host.connect()
        host.grant(host.guest.hear_ask(), PLACE * 8, 1)
        accepted = accepting.result()
        again = pool.submit(listener.accept)
        host.lose()
        with pytest.raises(ChannelClosed):
            accepted.take(1)
        accepted.close()
        host.grant(host.come_back(), PLACE, 3)
        host.connect(PLACE, 3)
        host.grant(host.guest.hear_ask(), PLACE * 8, 1)
        found = again.result()
        close(host, pool, found)
        close(host, pool, listener)


def test_a_guest_that_is_detached_keeps_what_it_offers(host: Host, server: Vchan) -> None:
    before = host.device
    host.guest.say(control.Detached())
    host.guest.say(control.Release(before.peer))
    assert host.guest.hear_vfio() == vfio.Release(before.address)
    host.guest.unplug(before)
    assert host.guest.hear() == control.Released(before.peer)
    await_mappings(server, before, 0)
    host.guest.hang_up()
    host.offer_again()
    send(host.connect(), b"found")
    assert server.take(5) == b"found"


def test_a_device_that_only_goes_ends_what_is_offered_on_it(host: Host, server: Vchan) -> None:
    host.guest.say(control.Release(host.device.peer))
    assert_over(server)
    host.guest.unplug(host.device)


def test_a_server_that_the_host_refuses_to_offer_again_learns_it(host: Host, server: Vchan) -> None:
    host.lose()
    ask = host.come_back()
    host.guest.say(control.Reply(ask.client, ask.serial, wire.Error("denied", "it is another's by now")))
    assert_over(server)
    assert "can't be offered again: it is another's by now" in host.guest.log()


def test_a_grant_of_other_rings_is_refused(host: Host, server: Vchan) -> None:
    host.lose()
    ask = host.come_back()
    grant = wire.Grant(ChannelId(7), "/x", 12, 13, "doorbell", Size(PLACE), Size(0), Size(3 << 16))
    host.guest.say(control.Granted(ask.client, ask.serial, host.device.peer, VECTOR, grant))
    assert_over(server)
    assert "it has other rings than before" in host.guest.log()


def test_a_server_learns_that_its_daemon_was_killed_while_there_was_no_link(host: Host, server: Vchan) -> None:
    before = host.device
    host.lose()
    await_mappings(server, before, 0)
    host.guest.process.kill()
    host.guest.process.wait()
    assert_over(server)


def test_a_server_may_close_while_there_is_no_link(host: Host, server: Vchan) -> None:
    host.lose()
    host.guest.wait_log("the link to the host is lost")
    server.close()
    host.guest.greet()
    host.plug()


def test_a_server_may_close_while_it_is_offered_again(host: Host, server: Vchan, pool: ThreadPoolExecutor) -> None:
    host.lose()
    host.come_back()
    close(host, pool, server)
