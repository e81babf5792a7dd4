# SPDX-License-Identifier: LGPL-2.1-or-later
"""Event channels of programs for Xen, by our libxenevtchn: between two domains, processes and
handles.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rig.daemon import Daemon
from rig.deadline import eventually
from rig.xen_program import LIBRARIES, Start, XenProgram, bound, start_in, two_handles

SELF = 0x7FF0
"""DOMID_SELF."""


@pytest.mark.parametrize("domains", [(0, 1), (1, 0), (1, 2), (0, 0), (2, 2)])
def test_events_go_both_ways(xen: Start, domains: tuple[int, int]) -> None:
    with two_handles(xen, domains) as (one, other):
        ports = bound(one, other, domains)
        for teller, told in ((0, 1), (1, 0), (0, 1)):
            programs = (one, other)
            programs[teller].ok(f"notify {ports[teller]}")
            assert programs[told].number("pending") == ports[told]
            programs[told].ok(f"unmask {ports[told]}")
            assert programs[told].ask("ready") == "0"


def test_binding_to_a_port_makes_an_event_pending_where_it_is_bound_and_none_where_it_was_offered(xen: Start) -> None:
    with two_handles(xen) as (one, other):
        port = one.number("bind 2")
        joined = other.number(f"join 1 {port}")
        assert other.ask("ready") == "1"
        assert other.number("pending") == joined
        assert one.ask("ready") == "0"


def test_event_while_masked_is_pending_when_unmasked(xen: Start) -> None:
    with two_handles(xen) as (one, other):
        port, joined = bound(one, other)
        one.ok(f"notify {port}")
        assert other.number("pending") == joined
        one.ok(f"notify {port}")
        one.ok(f"notify {port}")
        assert other.ask("ready") == "0", "it is masked"
        other.ok(f"unmask {joined}")
        assert other.ask("ready") == "1"
        assert other.number("pending") == joined
        other.ok(f"unmask {joined}")
        assert other.ask("ready") == "0", "two events while masked are one"


def test_pending_waits_for_an_event(xen: Start) -> None:
    with two_handles(xen) as (one, other):
        port, joined = bound(one, other)
        other.tell("pending")
        one.ok(f"notify {port}")
        other.expect(str(joined))


def test_nonblocking_handle_never_waits(xen: Start) -> None:
    with two_handles(xen) as (one, other):
        port, joined = bound(one, other)
        other.ok("nonblock")
        assert other.ask("pending") == "EAGAIN"
        one.ok(f"notify {port}")
        assert other.number("pending") == joined
        assert other.ask("pending") == "EAGAIN"


def test_many_ports_of_a_handle_all_get_their_events(xen: Start) -> None:
    with two_handles(xen) as (one, other):
        ports = dict(bound(one, other) for _ in range(40))
        for port in ports:
            one.ok(f"notify {port}")
        assert {other.number("pending") for _ in ports} == set(ports.values())
        assert other.ask("ready") == "0"


def test_a_noisy_port_does_not_keep_a_quiet_one_back(xen: Start) -> None:
    with two_handles(xen) as (one, other):
        noisy, quiet = bound(one, other), bound(one, other)
        one.ok(f"notify {noisy[0]}")
        one.ok(f"notify {quiet[0]}")
        came = []
        for _ in range(2):
            came.append(other.number("pending"))
            one.ok(f"notify {noisy[0]}")
            other.ok(f"unmask {came[-1]}")
        assert set(came) == {noisy[1], quiet[1]}


def test_handles_of_a_process_are_apart(xen: Start) -> None:
    with xen(1) as one:
        first, second = one.number("evtchn"), one.number("evtchn")
        one.ok(f"use {first}")
        port = one.number("bind 1")
        one.ok(f"use {second}")
        joined = one.number(f"join {SELF} {port}")
        assert one.number("pending") == joined
        assert one.ask(f"notify {port}") == "ENOTCONN"
        one.ok(f"notify {joined}")
        one.ok(f"use {first}")
        assert one.number("pending") == port


def test_handle_has_both_ends_of_a_channel(xen: Start) -> None:
    with xen(1) as one:
        one.number("evtchn")
        port, joined = bound(one, one, (SELF, SELF))
        one.ok(f"notify {port}")
        assert one.number("pending") == joined
        one.ok(f"notify {joined}")
        assert one.number("pending") == port


def test_what_no_handle_has_bound(xen: Start) -> None:
    with two_handles(xen) as (one, other):
        port, joined = bound(one, other)
        for command in ("notify", "unbind"):
            assert one.ask(f"{command} {joined}") == "ENOTCONN"
            assert one.ask(f"{command} 0") == "ENOTCONN"
        one.ok(f"unmask {joined}")
        one.ok(f"unbind {port}")
        assert one.ask(f"unbind {port}") == "ENOTCONN"


def test_event_where_nobody_is_bound_is_dropped(xen: Start) -> None:
    with two_handles(xen) as (one, other):
        port = one.number("bind 2")
        one.ok(f"notify {port}")
        joined = other.number(f"join 1 {port}")
        assert other.number("pending") == joined
        other.ok(f"unmask {joined}")
        assert other.ask("ready") == "0"
        other.ok(f"unbind {joined}")
        one.ok(f"notify {port}")


def test_only_the_domain_that_a_port_is_for_can_join_and_once(xen: Start) -> None:
    with xen(1) as one, xen(2) as other, xen(0) as host:
        for each in (one, other, host):
            each.number("evtchn")
        port = one.number("bind 2")
        assert host.ask(f"join 1 {port}") == "EACCES"
        assert other.ask(f"join 1 {port + 2}") == "ENOENT"
        assert other.ask(f"join 0 {port}") == "ENOENT"
        other.number(f"join 1 {port}")
        assert other.ask(f"join 1 {port}") == "EBUSY"
        assert other.ask("join 99 2") == "ENOENT"
        assert other.ask("bind 99") == "ENOENT"
        assert other.ask("bind 2147483648") == "EINVAL"


def test_port_is_free_again_when_its_peer_has_unbound(xen: Start) -> None:
    with two_handles(xen) as (one, other):
        port, joined = bound(one, other)
        other.ok(f"unbind {joined}")
        assert one.ask(f"status {SELF} {port}") == "unbound 2"
        again = other.number(f"join 1 {port}")
        assert other.number("pending") == again
        one.ok("nonblock")
        one.ask("pending")  # the daemon may have told it of the end
        one.ok(f"unmask {port}")
        other.ok(f"notify {again}")
        assert one.number("pending") == port


def test_status_follows_an_event_channel(xen: Start) -> None:
    with xen(1) as one, xen(2) as other, xen(0) as host:
        one.number("evtchn")
        other.number("evtchn")
        assert one.ask(f"status {SELF} 4000") == "closed"
        port = one.number("bind 2")
        for asking, domain in ((one, SELF), (one, 1), (host, 1)):
            assert asking.ask(f"status {domain} {port}") == "unbound 2"
        joined = other.number(f"join 1 {port}")
        assert one.ask(f"status {SELF} {port}") == f"interdomain 2 {joined}"
        assert other.ask(f"status {SELF} {joined}") == f"interdomain 1 {port}"
        assert other.ask(f"status 1 {port}") == "EACCES"
        one.ok(f"unbind {port}")
        assert one.ask(f"status {SELF} {port}") == "closed"


def test_killed_peer_leaves_a_port_that_works_on(xen: Start) -> None:
    with two_handles(xen) as (one, other):
        port, _ = bound(one, other)
        other.kill()
        eventually(lambda: one.ask(f"status {SELF} {port}") == "unbound 2")
        one.ok(f"notify {port}")
        with xen(2) as third:
            third.number("evtchn")
            joined = third.number(f"join 1 {port}")
            assert third.number("pending") == joined


def test_handle_whose_peer_and_daemon_are_gone_is_told_once(tmp_path: Path, xen_program: Path) -> None:
    daemon = Daemon(tmp_path)
    xen = start_in(daemon, xen_program)
    try:
        with two_handles(xen) as (one, other):
            port, _ = bound(one, other)
            daemon.kill()
            other.kill()
            assert one.number("pending") == port
            one.ok(f"unmask {port}")
            assert one.ask("ready") == "0", "or whoever selects on it would spin"
            one.ok(f"notify {port}")
            one.ok(f"unbind {port}")
    finally:
        daemon.kill()


def test_a_childs_close_leaves_the_parents_channels(xen: Start) -> None:
    with two_handles(xen) as (one, other):
        port, joined = bound(one, other)
        one.ok("fork")
        other.ok(f"notify {joined}")
        assert one.number("pending") == port
        one.ok(f"unmask {port}")
        assert one.ask(f"status {SELF} {port}") == f"interdomain 2 {joined}"


def test_closed_handle_leaves_nothing(daemon: Daemon, xen: Start) -> None:
    with xen(1) as one, xen(2) as other:
        before = one.number("fds")
        one.number("evtchn")
        other.number("evtchn")
        for _ in range(3):
            bound(one, other)
        one.number("bind 0")
        assert len(daemon.fds()["main"]) > len(daemon.baseline["main"])
        one.ok("evtchn_close")
        assert one.number("fds") == before
        other.ok("evtchn_close")
        daemon.assert_clean()


def test_without_a_daemon_there_are_handles_and_no_channels(tmp_path: Path, xen_program: Path) -> None:
    environment = {"KVMCHAN_RUNTIME_DIR": str(tmp_path), "LD_LIBRARY_PATH": LIBRARIES}
    with XenProgram(xen_program, env=environment) as program:
        program.number("evtchn")
        for command in ("bind 1", "domains 0 10", "share 1 1 1"):
            assert program.ask(command) == "ECONNREFUSED"
