# SPDX-License-Identifier: LGPL-2.1-or-later
"""Event channels and shared pages, as the stand-ins for Xen's libraries ask for them, between two
domains of a real daemon.
"""

from __future__ import annotations

import mmap
import os
import resource
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from kvmchand.errors import AccessDenied, Busy, InvalidArgument, LimitReached, NotFound, ProtocolError
from kvmchand.ids import Size
from kvmchand.wire import client
from libxenvchan_shim.connection import Granted
from rig.clients import RawClient
from rig.connection import Connection
from rig.daemon import Daemon, acting_as, serving
from rig.deadline import eventually
from rig.paths import PYTHON
from rig.processes import NOBODY, next_fd, run_as, stopped
from rig.program import Program

PAGE = mmap.PAGESIZE
IDLE_MAX = 1024
"""Connections without a channel that a domain may have."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    yield from serving(Daemon(tmp_path_factory.mktemp("sharing"), domains=(1, 2, 3)), request)


@pytest.fixture(autouse=True)
def _clean(daemon: Daemon) -> Iterator[None]:
    """Each ends in time, with nothing left in the daemon or here."""
    free = next_fd()
    yield
    daemon.assert_clean()
    assert next_fd() == free


class Domain:
    """Connections of one domain. At the end all are closed, as a program's that ends."""

    def __init__(self, daemon: Daemon, number: int) -> None:
        self._daemon = daemon
        self.number = number
        self._undo = ExitStack()

    def open(self) -> Connection:
        with acting_as(self._daemon, self.number):
            return self._undo.enter_context(Connection.from_environment())

    def own(self, fd: int) -> int:
        self._undo.callback(os.close, fd)
        return fd

    def event(self, grant: Granted) -> int:
        """What an event channel's end is woken by."""
        os.close(grant.region)
        return self.own(grant.event)

    def bind(self, peer: int) -> tuple[Size, int, Connection]:
        connection = self.open()
        grant = connection.bind(peer)
        return Size(client.port_of(grant.grant.channel, is_server=True)), self.event(grant), connection

    def join(self, domain: int, port: int) -> tuple[Size, int, Connection]:
        connection = self.open()
        grant = connection.join(domain, Size(port))
        return Size(client.port_of(grant.grant.channel, is_server=False)), self.event(grant), connection

    def share(self, peer: int, pages: int, *, writable: bool = True) -> tuple[client.Pages, mmap.mmap, Connection]:
        connection = self.open()
        return *self._mapped(*connection.share(peer, pages, writable=writable), writable=True), connection

    def map(self, domain: int, ref: int, *, writable: bool = True) -> tuple[client.Pages, mmap.mmap, Connection]:
        connection = self.open()
        return *self._mapped(*connection.map(domain, Size(ref), writable=writable), writable=writable), connection

    def _mapped(self, given: client.Pages, fd: int, *, writable: bool) -> tuple[client.Pages, mmap.mmap]:
        try:
            access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            memory = mmap.mmap(fd, given.pages * PAGE, mmap.MAP_SHARED, access, offset=given.offset)
        finally:
            os.close(fd)
        self._undo.callback(memory.close)
        return given, memory

    def close(self) -> None:
        self._undo.close()


@pytest.fixture
def one(daemon: Daemon) -> Iterator[Domain]:
    made = Domain(daemon, 1)
    yield made
    made.close()


@pytest.fixture
def two(daemon: Daemon) -> Iterator[Domain]:
    made = Domain(daemon, 2)
    yield made
    made.close()


@pytest.fixture
def three(daemon: Daemon) -> Iterator[Domain]:
    made = Domain(daemon, 3)
    yield made
    made.close()


def is_pending(event: int) -> bool:
    return bool(select.select([event], [], [], 0)[0])


def take(event: int) -> None:
    """Waits for an event, and takes all there are."""
    assert select.select([event], [], [])[0]
    assert os.read(event, 64).strip(b"\0") == b""


def port(domain: Domain, number: int, of: int = -1) -> tuple[str, int, int]:
    asking = domain.open()
    found = asking.port(of, Size(number))
    asking.close()
    return found.state, found.domain, found.port


# ---- event channels ----


def test_events_go_both_ways_between_the_ends_of_an_event_channel(one: Domain, two: Domain) -> None:
    number, here, _ = one.bind(2)
    _, there, _ = two.join(1, number)
    take(there)  # as on Xen, one is pending when it has been joined
    for sender, receiver in ((here, there), (there, here)):
        assert not is_pending(receiver)
        os.write(sender, b"\0")
        take(receiver)


def test_a_port_is_unbound_then_interdomain_then_unbound_then_closed(one: Domain, two: Domain) -> None:
    number, here, connection = one.bind(2)
    assert port(one, number) == ("unbound", 2, 0)
    remote, _, joined = two.join(1, number)
    assert port(one, number) == ("interdomain", 2, remote)
    assert port(two, remote) == ("interdomain", 1, number)
    joined.close_channel()
    take(here)  # told that its peer has gone
    assert port(one, number) == ("unbound", 2, 0)
    assert port(two, remote) == ("closed", 0, 0)
    two.join(1, number)
    connection.close_channel()
    assert port(one, number) == ("closed", 0, 0)
    assert port(two, remote) == ("unbound", 1, 0)


def test_a_vchan_has_ports_too(one: Domain) -> None:
    offering = one.open()
    grant = offering.offer(2, "vchan", Size(1), Size(1))
    one.own(grant.region)
    one.own(grant.event)
    number = client.port_of(grant.grant.channel, is_server=True)
    assert port(one, number) == ("unbound", 2, 0)


@pytest.mark.parametrize("off", [1, 2, -2, 1 << 40])
def test_a_port_that_is_none_can_not_be_joined(one: Domain, two: Domain, off: int) -> None:
    number, _, _ = one.bind(2)
    with pytest.raises(NotFound):
        two.join(1, max(number + off, 0))


def test_a_vchan_is_no_event_channel_to_join(one: Domain, two: Domain) -> None:
    grant = one.open().offer(2, "vchan", Size(1), Size(1))
    one.own(grant.region)
    one.own(grant.event)
    with pytest.raises(NotFound):
        two.join(1, client.port_of(grant.grant.channel, is_server=True))


def test_only_the_domain_it_is_for_joins_an_event_channel_and_one_at_a_time(one: Domain, two: Domain, three: Domain) -> None:
    number, _, _ = one.bind(2)
    with pytest.raises(AccessDenied, match="for domain 2, and this is domain 3"):
        three.join(1, number)
    two.join(1, number)
    with pytest.raises(Busy):
        two.join(1, number)


def test_a_domain_asks_about_its_own_ports_and_the_host_about_any(daemon: Daemon, one: Domain, two: Domain) -> None:
    number, _, _ = one.bind(2)
    with pytest.raises(AccessDenied, match="domain 2 may not ask"):
        port(two, number, of=1)
    host = Domain(daemon, 0)
    assert port(host, number, of=1) == ("unbound", 2, 0)
    assert port(host, number) == ("closed", 0, 0)
    host.close()


# ---- shared pages ----


def test_what_is_written_to_shared_pages_is_read_at_the_other_side(one: Domain, two: Domain) -> None:
    given, here, _ = one.share(2, 3)
    assert given.pages == 3
    assert here[:] == bytes(3 * PAGE)
    for ref in range(given.ref, given.ref + 3):
        mapped, there, _ = two.map(1, ref)
        assert (mapped.ref, mapped.pages) == (given.ref, 3)
        at = (ref - given.ref) * PAGE
        here[at : at + 5] = b"there"
        assert there[at : at + 5] == b"there"
        there[at : at + 4] = b"back"
        assert here[at : at + 5] == b"backe"


def test_pages_shared_for_reading_can_not_be_mapped_for_writing_whatever_the_program_does(one: Domain, two: Domain) -> None:
    given, here, _ = one.share(2, 1, writable=False)
    with pytest.raises(AccessDenied):
        two.map(1, given.ref)
    connection = two.open()
    _, fd = connection.map(1, given.ref, writable=False)
    two.own(fd)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(fd, b"x", 0)
    with mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as there:
        here[0:4] = b"read"
        assert there[0:4] == b"read"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_who_is_not_root_can_not_open_pages_shared_for_reading_once_more_for_writing(one: Domain, two: Domain) -> None:
    given, _, _ = one.share(2, 1, writable=False)
    _, fd = two.open().map(1, given.ref, writable=False)
    two.own(fd)
    code = f"""
print(os.readlink('/proc/self/fd/{fd}'), len(os.read({fd}, 1)))
try:
    os.open('/proc/self/fd/{fd}', os.O_RDWR)
except PermissionError:
    print("refused")
"""
    assert run_as(NOBODY, code, fds=[fd]) == "/memfd:kvmchan (deleted) 1\nrefused\n"


def test_shared_pages_can_not_be_made_smaller_under_the_other_side(one: Domain, two: Domain) -> None:
    connection = one.open()
    given, fd = connection.share(2, 2, writable=True)
    one.own(fd)
    _, there, _ = two.map(1, given.ref)
    for size in (0, PAGE, 3 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    assert there[2 * PAGE - 1] == 0


def test_pages_are_for_one_domain(one: Domain, three: Domain) -> None:
    given, _, _ = one.share(2, 1)
    with pytest.raises(AccessDenied, match="for domain 2, and this is domain 3"):
        three.map(1, given.ref)


def test_a_share_that_is_over_can_not_be_mapped_but_who_has_it_keeps_it(one: Domain, two: Domain) -> None:
    given, here, connection = one.share(2, 1)
    _, there, _ = two.map(1, given.ref)
    here[0:4] = b"kept"
    connection.close_channel()
    assert there[0:4] == b"kept"
    with pytest.raises(NotFound):
        two.map(1, given.ref)


def test_a_domain_shares_no_more_than_max_shared(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path_factory.mktemp("max-shared")
    settings = folder / "settings.toml"
    settings.write_text(f"[limits]\nmax_shared = {4 * PAGE}\n")
    for small in serving(Daemon(folder, "--config", str(settings)), request):
        sharing = Domain(small, 1)
        sharing.share(2, 4)
        with pytest.raises(LimitReached, match="max_shared"):
            sharing.share(2, 1)
        sharing.close()


def test_a_connection_has_a_channel_or_pages_and_not_both(one: Domain, two: Domain) -> None:
    given, _, _ = one.share(2, 1)
    number, _, event_channel = two.bind(1)
    with pytest.raises(ProtocolError, match="one connection"):
        event_channel.map(1, Size(given.ref), writable=True)
    openings: tuple[Callable[[Connection], object], ...] = (
        lambda sharing: sharing.bind(1),
        lambda sharing: sharing.offer(1, "both", Size(1), Size(1)),
        lambda sharing: sharing.connect(1, "/local/domain/1/none", waits=True),
        lambda sharing: sharing.join(2, number),
    )
    for open_end in openings:
        _, _, sharing = two.share(1, 1)
        with pytest.raises(ProtocolError, match="one connection"):
            open_end(sharing)


@pytest.mark.parametrize("what", ["shares", "mappings", "visitors"])
def test_no_domain_takes_all_of_the_daemons_descriptors(
    daemon: Daemon, one: Domain, two: Domain, three: Domain, what: str
) -> None:
    given, _, _ = one.share(2, 1)
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (160, limits[1]))
    try:
        with pytest.raises(LimitReached, match=r"domain 2 has its share.* LimitNOFILE"):
            for _ in range(100):
                if what == "shares":
                    two.share(1, 1)
                elif what == "mappings":
                    two.map(1, given.ref)
                else:
                    visitor = waiting(two, 1, "/local/domain/1/never")
                    two.open().domains(0)
                    if select.select([visitor._sock], [], [], 0)[0]:
                        visitor.answer(waits=True)
        three.bind(1)
        three.share(1, 1)
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)


# ---- what is done when a holder goes ----


@pytest.mark.parametrize("mapper", [False, True], ids=["sharer", "mapper"])
@pytest.mark.parametrize("how", ["close", "loss"])
def test_at_its_end_the_byte_is_cleared_and_the_other_side_woken(one: Domain, two: Domain, mapper: bool, how: str) -> None:
    given, here, shared = one.share(2, 2)
    _, there, mapped = two.map(1, given.ref)
    number, event_here, _ = one.bind(2)
    remote, event_there, _ = two.join(1, number)
    take(event_there)
    leaving, memory, own, stays, woken = (
        (mapped, there, remote, here, event_here) if mapper else (shared, here, number, there, event_there)
    )
    leaving.notify(Size(PAGE + 7), own, clears=True)
    stays[PAGE + 6 : PAGE + 9] = b"\1\1\1"
    assert not is_pending(woken)
    if how == "close":
        leaving.close_channel()
    else:
        leaving.close()
        assert not is_pending(woken)  # as long as it is mapped
        memory.close()
    take(woken)
    assert stays[PAGE + 6 : PAGE + 9] == b"\1\0\1"


def test_the_byte_is_cleared_before_the_event_though_the_event_channel_ended_first(one: Domain, two: Domain) -> None:
    given, _, shared = one.share(2, 1)
    _, there, _ = two.map(1, given.ref)
    number, _, event_channel = one.bind(2)
    _, woken, _ = two.join(1, number)
    take(woken)
    shared.notify(Size(0), number, clears=True)
    there[0] = 1
    event_channel.close_channel()
    assert not is_pending(woken)  # which shall mean that the byte is cleared
    shared.close_channel()
    take(woken)
    assert there[0] == 0


def test_a_notice_needs_pages_a_byte_of_them_and_a_port_of_ours(one: Domain, two: Domain) -> None:
    given, _, shared = one.share(2, 1, writable=False)
    with pytest.raises(InvalidArgument, match="4096"):
        shared.notify(Size(PAGE), Size(0), clears=True)
    with pytest.raises(NotFound, match="no event channel 12345"):
        shared.notify(Size(0), Size(12345), clears=True)
    number, _, event_channel = two.bind(1)
    with pytest.raises(NotFound):
        shared.notify(Size(0), number, clears=True)
    _, _, mapped = two.map(1, given.ref, writable=False)
    with pytest.raises(InvalidArgument, match="only be read"):
        mapped.notify(Size(0), Size(0), clears=True)
    with pytest.raises(ProtocolError, match="neither shares nor maps"):
        event_channel.notify(Size(0), Size(0), clears=True)


CRASHES = """
import mmap, os
from libxenvchan_shim.connection import Connection
from kvmchand.wire import client
sharing, binding = Connection.from_environment(), Connection.from_environment()
sharing.send(client.Share(2, 1, True))
given, fd = sharing.take_pages()
memory = mmap.mmap(fd, mmap.PAGESIZE)
binding.send(client.Bind(2))
port = client.port_of(binding.take_grant().grant.channel, is_server=True)
sharing.send(client.Notify(True, 0, port))
sharing.take_done()
memory[0] = 1
print(given.ref, port, flush=True)
input()
"""


def test_the_peer_of_a_program_that_is_killed_finds_the_byte_cleared_and_is_woken(daemon: Daemon, two: Domain) -> None:
    with Program(PYTHON, "-c", CRASHES, env=daemon.environment(1)) as victim:
        ref, number = map(int, victim.line().split())
        _, memory, _ = two.map(1, ref)
        remote, woken, _ = two.join(1, number)
        take(woken)
        assert memory[0] == 1
        os.kill(victim.pid, signal.SIGKILL)
        victim.status = -signal.SIGKILL
        eventually(lambda: memory[0] == 0)
        take(woken)
        eventually(lambda: port(two, remote)[0] == "unbound")


# ---- domains ----


def test_domains_are_told_in_order_from_any_number_on(daemon: Daemon, two: Domain) -> None:
    asking = two.open()
    for first, expected in ((0, [0, 1, 2, 3]), (2, [2, 3]), (4, []), (-5, [0, 1, 2, 3])):
        found = asking.domains(first)
        assert (found.own, [each.domain for each in found.domains]) == (2, expected)


# ---- clients that wait for an offer ----


def waiting(domain: Domain, server: int, path: str) -> Connection:
    connection = domain.open()
    connection.ask_to_connect(server, path, waits=True)
    return connection


def granted(domain: Domain, connection: Connection) -> Granted:
    grant = connection.answer(waits=True)
    domain.own(grant.region)
    domain.own(grant.event)
    return grant


def offer(domain: Domain, path: str, *, peer: int = 2, once: bool = False) -> Connection:
    connection = domain.open()
    grant = connection.offer(peer, path, Size(1), Size(1), once=once)
    domain.own(grant.region)
    domain.own(grant.event)
    return connection


def test_a_client_that_waits_is_connected_when_its_server_comes(one: Domain, two: Domain) -> None:
    early = waiting(two, 1, "/local/domain/1/late")
    offer(one, "other")
    assert not select.select([early._sock], [], [], 0)[0]
    offer(one, "late")
    assert granted(two, early).grant.path == "/local/domain/1/late"


def test_of_those_that_waited_the_first_to_ask_again_is_connected_and_the_next_when_it_has_gone(one: Domain, two: Domain) -> None:
    first, second, third = (waiting(two, 1, "/local/domain/1/late") for _ in range(3))
    two.open().domains(0)  # all are heard by now
    offer(one, "late")
    granted(two, second)
    third.close()
    assert first.take_grant_or_vacancy() is None  # it was told, too
    first.ask_to_connect(1, "/local/domain/1/late", waits=True)
    two.open().domains(0)
    assert not select.select([first._sock], [], [], 0)[0]
    second.close_channel()
    granted(two, first)


def test_one_that_left_its_wait_keeps_no_other_away(one: Domain, two: Domain) -> None:
    left = waiting(two, 1, "/local/domain/1/late")
    later = waiting(two, 1, "/local/domain/1/late")
    two.open().domains(0)  # both are heard by now
    offer(one, "late")
    granted(two, later)
    later.close_channel()
    offer(one, "late")
    granted(two, waiting(two, 1, "/local/domain/1/late"))
    assert select.select([left._sock], [], [], 0)[0], "it has not read what it was told"


def test_a_client_that_waits_for_a_domain_that_is_not_there_is_refused(two: Domain) -> None:
    with pytest.raises(NotFound, match="there is no domain 99"):
        waiting(two, 99, "/local/domain/99/x").answer(waits=True)


def test_a_client_that_may_not_connect_does_not_wait(one: Domain, three: Domain) -> None:
    offer(one, "for-two")
    with pytest.raises(AccessDenied):
        waiting(three, 1, "/local/domain/1/for-two").answer(waits=True)


def test_an_offer_for_one_client_is_found_by_no_other_and_its_channel_goes_on(one: Domain, two: Domain) -> None:
    offer(one, "once", once=True)
    first = waiting(two, 1, "/local/domain/1/once")
    granted(two, first)
    with pytest.raises(NotFound):
        two.open().connect(1, "/local/domain/1/once")
    later = waiting(two, 1, "/local/domain/1/once")
    first.close_channel()
    offer(one, "other")
    assert not select.select([later._sock], [], [], 0)[0]
    offer(one, "once")
    granted(two, later)


def test_a_request_before_the_answer_to_the_one_before_ends_the_connection(daemon: Daemon) -> None:
    with RawClient(daemon, 2) as raw:
        raw.hello().say({"type": "connect", "domain": 1, "path": "/local/domain/1/never", "waits": True})
        raw.say({"type": "list", "after": 0})
        assert "before the answer" in raw.hear_error("protocol")
        raw.hear_end()


MAPPED_ONLY = """
import os, sys
import libxenvchan_shim
vchans = [libxenvchan_shim.connect(1, f"/local/domain/1/{name}") for name in "ab"]
os.closerange(3, 1 << 12)
print("mapped", flush=True)
sys.stdin.read()
"""


def test_ends_that_are_found_gone_at_once_leave_room_for_those_that_wait(daemon: Daemon, one: Domain, two: Domain) -> None:
    for name in "ab":
        offer(one, name)
    with Program(PYTHON, "-c", MAPPED_ONLY, env=daemon.environment(2)) as victim:
        assert victim.line() == "mapped"
        visitors = [waiting(two, 1, f"/local/domain/1/{name}") for name in "aabb"]
        two.open().domains(0)
        assert not select.select([each._sock for each in visitors], [], [], 0)[0]
        with stopped(daemon.pid):
            os.kill(victim.pid, signal.SIGKILL)
            victim.status = -signal.SIGKILL
            os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        for first, second in (visitors[:2], visitors[2:]):
            granted(two, first)
            first.close_channel()
            granted(two, second)


def test_who_waited_and_holds_nothing_does_not_stay_beyond_its_domains_room(daemon: Daemon, one: Domain, two: Domain) -> None:
    visitors = [waiting(two, 1, "/local/domain/1/for-three") for _ in range(IDLE_MAX + 8)]
    two.open().domains(0)  # all are heard by now
    offer(one, "for-three", peer=3)
    for each in visitors:
        with pytest.raises(AccessDenied):
            each.answer(waits=True)
    two.open().domains(0)
    gone = [not each._sock.recv(1) for each in visitors[:9]]
    assert all(gone)
    assert visitors[9].domains(0).own == 2


@pytest.fixture
def narrow(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One with two channels for a domain, and few descriptors."""
    folder = tmp_path_factory.mktemp("narrow")
    settings = folder / "settings.toml"
    settings.write_text("[limits]\nmax_channels = 2\n")
    yield from serving(Daemon(folder, "--config", str(settings)), request)


def test_no_more_clients_wait_than_a_domain_may_have_channels(narrow: Daemon) -> None:
    there = Domain(narrow, 2)
    first, second = (waiting(there, 1, "/local/domain/1/never") for _ in range(2))
    with pytest.raises(LimitReached, match="max_channels"):
        waiting(there, 1, "/local/domain/1/never").answer(waits=True)
    other = Domain(narrow, 1)
    waiting(other, 1, "/local/domain/1/never")
    first.close()
    third = waiting(there, 1, "/local/domain/1/other")
    there.open().domains(0)
    assert not select.select([second._sock, third._sock], [], [], 0)[0]
    there.close()
    other.close()
