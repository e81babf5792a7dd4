# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pages that programs for Xen share, by our libxengnttab: who may map them, and what comes of them
at the end.
"""

from __future__ import annotations

from collections import Counter

import pytest

from rig.daemon import Daemon
from rig.deadline import eventually
from rig.xen_program import Start, XenProgram, bound, two_handles

PAGE = 4096
READ, WRITE = 1, 2
NONE = 0xFFFFFFFF
"""No offset, or no event channel, of a notification."""


def mapped(program: XenProgram, prot: int, domain: int, *refs: int) -> None:
    program.ok(f"map {prot} " + " ".join(f"{domain}:{ref}" for ref in refs))


@pytest.mark.parametrize("domains", [(0, 1), (1, 0), (1, 2), (1, 1)])
def test_shared_pages_are_one_memory(xen: Start, domains: tuple[int, int]) -> None:
    with xen(domains[0]) as owner, xen(domains[1]) as peer:
        refs = owner.numbers(f"share {domains[1]} 3 1")
        assert refs == list(range(refs[0], refs[0] + 3))
        mapped(peer, READ | WRITE, domains[0], *refs)
        assert [owner.number(f"peek {page * PAGE}") for page in range(3)] == [0, 0, 0]
        for page in range(3):
            owner.number(f"poke {page * PAGE} {page + 1}")
            assert peer.number(f"peek {page * PAGE}") == page + 1
            peer.number(f"poke {page * PAGE + PAGE - 1} {page + 7}")
            assert owner.number(f"peek {page * PAGE + PAGE - 1}") == page + 7


def test_pages_are_mapped_in_the_order_they_are_asked_for(xen: Start) -> None:
    """Some more than once, and of two shares."""
    with xen(1) as owner, xen(2) as peer:
        second = owner.numbers("share 2 4 1")
        for page in range(4):
            owner.number(f"poke {page * PAGE} {20 + page}")
        first = owner.numbers("share 2 4 1")
        for page in range(4):
            owner.number(f"poke {page * PAGE} {10 + page}")
        wanted = [second[3], first[1], first[2], first[0], second[0], second[1], first[1]]
        mapped(peer, READ, 1, *wanted)
        assert [peer.number(f"peek {page * PAGE}") for page in range(7)] == [23, 11, 12, 10, 20, 21, 11]
        peer.ok("unmap")


def test_pages_of_several_domains_are_mapped_side_by_side(xen: Start) -> None:
    with xen(0) as host, xen(1) as owner, xen(2) as peer:
        shared = []
        for domain, program in ((0, host), (1, owner), (2, peer)):
            (ref,) = program.numbers("share 2 1 0")
            program.number(f"poke 5 {30 + domain}")
            shared.append(f"{domain}:{ref}")
        peer.ok(f"map {READ} " + " ".join([*shared, shared[1]]))
        assert [peer.number(f"peek {page * PAGE + 5}") for page in range(4)] == [30, 31, 32, 31]


def test_a_rings_worth_of_pages(xen: Start) -> None:
    with xen(1) as owner, xen(2) as peer:
        refs = owner.numbers("share 2 256 1")
        mapped(peer, READ | WRITE, 1, *reversed(refs))
        for page in range(0, 256, 15):
            peer.number(f"poke {page * PAGE + 1} {page % 251}")
            assert owner.number(f"peek {(255 - page) * PAGE + 1}") == page % 251


def test_pages_shared_to_be_read_can_only_be_read(xen: Start) -> None:
    with xen(1) as owner, xen(2) as peer:
        (ref,) = owner.numbers("share 2 1 0")
        assert peer.ask(f"map {READ | WRITE} 1:{ref}") == "EACCES"
        mapped(peer, READ, 1, ref)
        owner.number("poke 9 4")
        assert peer.number("peek 9") == 4
        peer.tell("poke 9 5")
        assert peer.process.wait() == -11
        peer.status = -11


def test_pages_are_for_the_domain_they_were_shared_with(xen: Start) -> None:
    with xen(1) as owner, xen(2) as peer, xen(0) as host:
        (ref,) = owner.numbers("share 2 1 1")
        assert host.ask(f"map {READ} 1:{ref}") == "EACCES"
        assert owner.ask(f"map {READ} 1:{ref}") == "EACCES"
        assert peer.ask(f"map {READ} 0:{ref}") == "ENOENT"
        assert peer.ask(f"map {READ} 1:{ref + 1}") == "ENOENT"
        assert peer.ask(f"map {READ} 1:8") == "ENOENT"
        assert peer.ask(f"map {READ} 1:{ref} 1:{ref + 1}") == "ENOENT", "all or nothing"
        assert owner.ask("share 99 1 1") == "ENOENT"
        assert owner.ask("share 2 0 1") == "EINVAL"
        assert owner.ask("share 2 -1 1") == "EINVAL"
        mapped(peer, READ, 1, ref)


def test_failure_leaves_nothing(daemon: Daemon, xen: Start) -> None:
    with xen(1) as owner, xen(2) as peer:
        (ref,) = owner.numbers("share 2 1 0")
        before = peer.number("fds")
        # Some of them may be on their way out.
        main = Counter(daemon.fds()["main"])
        assert peer.ask(f"map {READ} 1:{ref} 1:{ref} 0:{ref}") == "ENOENT"
        assert peer.ask(f"map_notify {READ} 1 {ref} {NONE} 4000") == "ENOENT"
        assert peer.number("fds") == before
        eventually(lambda: Counter(daemon.fds()["main"]) <= main)


def test_unmap_is_of_what_was_mapped(xen: Start) -> None:
    with xen(1) as owner, xen(2) as peer:
        refs = owner.numbers("share 2 2 1")
        mapped(peer, READ, 1, *refs)
        peer.ok("unmap")
        assert peer.ask("unmap") == "EINVAL"
        owner.ok("unshare")
        assert owner.ask("unshare") == "EINVAL"
        assert peer.ask(f"map {READ} 1:{refs[0]}") == "ENOENT"


def test_mapping_outlives_the_share(xen: Start) -> None:
    with xen(1) as owner, xen(2) as peer:
        (ref,) = owner.numbers("share 2 1 1")
        mapped(peer, READ | WRITE, 1, ref)
        owner.number("poke 3 8")
        owner.ok("unshare")
        assert peer.number("peek 3") == 8
        peer.number("poke 3 9")
        peer.ok("unmap")


@pytest.mark.parametrize("end", ["unshare", "munmap", "kill"])
def test_end_of_a_share_clears_a_byte_and_sends_an_event(xen: Start, end: str) -> None:
    with two_handles(xen) as (owner, peer):
        port, joined = bound(owner, peer)
        ref = owner.number(f"share_notify 2 21 {port}")
        mapped(peer, READ, 1, ref)
        owner.number("poke 21 1")
        owner.number("poke 22 1")
        let_go(owner, end, "gntshr_close")
        assert peer.number("pending") == joined
        assert (peer.number("peek 21"), peer.number("peek 22")) == (0, 1)


@pytest.mark.parametrize("end", ["unmap", "munmap", "kill"])
def test_end_of_a_mapping_clears_a_byte_and_sends_an_event(xen: Start, end: str) -> None:
    with two_handles(xen) as (owner, peer):
        port, joined = bound(owner, peer)
        (ref,) = owner.numbers("share 2 1 1")
        peer.ok(f"map_notify {READ | WRITE} 1 {ref} 20 {joined}")
        owner.number("poke 20 1")
        owner.number("poke 21 1")
        let_go(peer, end, "gnttab_close")
        assert owner.number("pending") == port
        assert (owner.number("peek 20"), owner.number("peek 21")) == (0, 1)


def let_go(program: XenProgram, end: str, close: str) -> None:
    if end == "kill":
        program.kill()
        return
    program.ok(end)
    if end == "munmap":
        # Xen's own libxenvchan lets go of its rings like this.
        program.ok(close)


def test_handle_may_be_closed_before_its_pages_are_unmapped(xen: Start) -> None:
    with two_handles(xen) as (owner, peer):
        port, joined = bound(owner, peer)
        ref = owner.number(f"share_notify 2 21 {port}")
        mapped(peer, READ, 1, ref)
        owner.number("poke 21 1")
        owner.ok("gntshr_close")
        owner.number("poke 22 5")
        assert (peer.number("peek 21"), peer.number("peek 22")) == (1, 5)
        owner.ok("munmap")
        assert peer.number("pending") == joined
        assert peer.number("peek 21") == 0


def test_notification_is_of_a_byte_or_an_event_or_neither(xen: Start) -> None:
    with two_handles(xen) as (owner, peer):
        port, joined = bound(owner, peer)
        ref = owner.number(f"share_notify 2 21 {NONE}")
        mapped(peer, READ, 1, ref)
        owner.number("poke 21 1")
        owner.ok("unshare")
        assert peer.number("peek 21") == 0
        owner.number(f"share_notify 2 {NONE} {NONE}")
        owner.ok("unshare")
        assert peer.ask("ready") == "0"
        owner.number(f"share_notify 2 {NONE} {port}")
        owner.ok("unshare")
        assert peer.number("pending") == joined


def test_notification_that_can_not_be(xen: Start) -> None:
    with xen(1) as owner, xen(2) as peer:
        assert owner.ask("share_notify 2 4096 4294967295") == "EINVAL"
        assert owner.ask("share_notify 2 0 0") == "EINVAL"
        assert owner.ask("share_notify 2 0 4000") == "ENOENT"
        (ref,) = owner.numbers("share 2 1 0")
        assert peer.ask(f"map_notify {READ} 1 {ref} 0 {NONE}") == "EINVAL"
        peer.ok(f"map_notify {READ} 1 {ref} {NONE} {NONE}")


def test_a_childs_close_leaves_the_parents_pages(xen: Start) -> None:
    with xen(1) as owner, xen(2) as peer:
        owner.number("evtchn")
        ref = owner.number(f"share_notify 2 21 {NONE}")
        mapped(peer, READ, 1, ref)
        owner.number("poke 21 1")
        owner.ok("fork")
        mapped(peer, READ, 1, ref)
        assert peer.number("peek 21") == 1
        owner.ok("unshare")
        assert peer.number("peek 21") == 0
