# SPDX-License-Identifier: LGPL-2.1-or-later
"""What our libxenctrl knows, as programs for Xen ask it: domains, the event channels of vchans; and
what it says of the rest.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from rig.daemon import Daemon
from rig.deadline import eventually
from rig.guest import ScriptedHost
from rig.paths import LIBDIR, PYTHON, ROOT, XEN_MINOR, XEN_RELEASE
from rig.processes import run
from rig.xen_program import LIBRARIES, OLD_NAMES, Start, compile_xen, start_in

SELF = 0x7FF0
PATH = "/local/domain/1/data/vchan/2/7"


def test_domains_are_the_daemons(xen: Start) -> None:
    with xen(0) as program:
        assert program.numbers("domains 0 100") == [0, 1, 2]
        assert program.numbers("domains 0 2") == [0, 1]
        assert program.numbers("domains 1 1") == [1]
        assert program.numbers("domains 2 1000") == [2]
        assert program.ask("domains 3 10") == "ESRCH"
        assert program.ask("domains 4294967295 10") == "ESRCH"
        assert program.ask("domains 0 0") == "none"


def test_more_domains_than_are_told_of_at_once(tmp_path: Path, xen_program: Path) -> None:
    many = Daemon(tmp_path, domains=range(1, 301))
    try:
        done = run(xen_program, input="domains 0 1000\ndomains 5 270\n", env=many.environment(LD_LIBRARY_PATH=LIBRARIES))
        lines = [[int(each) for each in line.split()] for line in done.stdout.splitlines()]
        assert lines == [list(range(301)), list(range(5, 275))]
        many.stop()
    finally:
        many.kill()


def test_domains_are_all_found_where_long_names_leave_room_for_few_in_an_answer(host: ScriptedHost, xen_program: Path) -> None:
    numbers = range(11, 51)
    machines = [host.hypervisor.start(each, name=f"{each:x>2000}") for each in numbers]
    host.wait_log("is here", len(machines))
    done = run(xen_program, input="domains 0 1000\ndomains 12 20\n", env=host.environment(LD_LIBRARY_PATH=LIBRARIES))
    lines = [[int(each) for each in line.split()] for line in done.stdout.splitlines()]
    assert lines == [[0, *numbers], list(range(12, 32))]
    for machine in machines:
        host.hypervisor.stop(machine)


# xc_domaininfo_t of these releases: the domain in 2 bytes, 2 of nothing, the flags in 4; 112 bytes
# in all.
SINGLE = r"""
import ctypes, errno, struct, sys
library = ctypes.CDLL(sys.argv[1], use_errno=True)
library.xc_interface_open.restype = ctypes.c_void_p
single = library.xc_domain_getinfo_single
single.argtypes = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p
handle = library.xc_interface_open(None, None, 0)
for domain in (0, 2, 1, 3, 65535, 2**32 - 1):
    info = ctypes.create_string_buffer(b"\xaa" * 256, 256)
    results = single(handle, domain, info), single(handle, domain, None)
    if results == (0, 0):
        is_whole = not any(info.raw[8:112]) and info.raw[112:] == b"\xaa" * 144
        print(*struct.unpack_from("=HxxI", info), is_whole)
    else:
        print(*results, errno.errorcode[ctypes.get_errno()], info.raw == b"\xaa" * 256)
assert library.xc_interface_close(ctypes.c_void_p(handle)) == 0
"""


@pytest.mark.parametrize("release", ["4.18", "4.22"])
def test_one_domain_is_asked_for_as_later_releases_do(daemon: Daemon, release: str) -> None:
    library = LIBDIR / f"xen-{release}" / f"libxenctrl.so.{release}"
    said = run(PYTHON, "-c", SINGLE, library, env=daemon.environment(1)).stdout.splitlines()
    running, hvm = 1 << 5, 1 << 1
    there = [f"{domain} {running | (hvm if domain else 0)} True" for domain in (0, 2, 1)]
    assert said == there + ["-1 -1 ESRCH True"] * 3


def test_a_vchans_state_is_seen_as_qubes_looks_at_it(xen: Start) -> None:
    with xen(1) as server, xen(2) as client:
        port = server.number(f"server 2 {PATH}")
        assert server.ask("open") == "waiting"
        assert server.ask(f"status {SELF} {port}") == "unbound 2"
        joined = client.number(f"client 1 {PATH}")
        assert (server.ask("open"), client.ask("open")) == ("connected", "connected")
        assert server.ask(f"status {SELF} {port}") == f"interdomain 2 {joined}"
        assert client.ask(f"status {SELF} {joined}") == f"interdomain 1 {port}"
        client.ok("vchan_close")
        assert server.ask("open") == "disconnected"
        assert server.ask(f"status {SELF} {port}") == "unbound 2"
        server.ok("vchan_close")
        assert server.ask(f"status {SELF} {port}") == "closed"


def test_status_of_a_vchan_in_another_process_is_the_daemons(xen: Start) -> None:
    with xen(1) as server, xen(2) as client, xen(0) as host:
        port = server.number(f"server 2 {PATH}")
        assert host.ask(f"status 1 {port}") == "unbound 2"
        joined = client.number(f"client 1 {PATH}")
        assert host.ask(f"status 1 {port}") == f"interdomain 2 {joined}"
        assert server.ask(f"status 1 {port}") == f"interdomain 2 {joined}", "by the number too"


def test_killed_client_is_gone_to_qubes(xen: Start) -> None:
    with xen(1) as server, xen(2) as client:
        server.number(f"server 2 {PATH}")
        client.number(f"client 1 {PATH}")
        client.kill()
        eventually(lambda: server.ask("open") == "disconnected")


# Whichever libxenvchan of ours it is.
PRELOADED = {"LD_PRELOAD": "libxenvchan-preload.so", "LD_LIBRARY_PATH": f"{LIBRARIES}:{LIBDIR}"}


@pytest.mark.parametrize("environment", [{}, PRELOADED], ids=["linked", "preloaded"])
def test_own_vchan_is_looked_at_without_the_daemon(daemon: Daemon, xen_program: Path, environment: dict[str, str]) -> None:
    xen = start_in(daemon, xen_program, **environment)
    with xen(1) as server, xen(2) as client:
        port = server.number(f"server 2 {PATH}")
        joined = client.number(f"client 1 {PATH}")
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            assert server.ask(f"status {SELF} {port}") == f"interdomain 2 {joined}"
            assert (server.ask("open"), client.ask("open")) == ("connected", "connected")
        finally:
            daemon.process.send_signal(signal.SIGCONT)


def test_events_by_the_vchans_own_handle(xen: Start) -> None:
    with xen(1) as server, xen(2) as client:
        port = server.number(f"server 2 {PATH}")
        joined = client.number(f"client 1 {PATH}")
        assert server.number("vchan_pending") == port  # of the client that came
        client.ok("vchan_notify")
        assert server.number("vchan_pending") == port
        server.ok("vchan_notify")
        assert client.number("vchan_pending") == joined


def test_what_only_a_hypervisor_has_fails_and_says_so_once(tmp_path: Path) -> None:
    program = compile_xen(tmp_path, "unsupported.c")
    done = run(program, "ctrl", env={"KVMCHAN_RUNTIME_DIR": str(tmp_path), "LD_LIBRARY_PATH": LIBRARIES})
    why = "not emulated by kvmchan, which is no hypervisor"
    assert done.stderr.splitlines() == [f"kvmchan: xc_domain_pause: {why}", f"kvmchan: xc_map_foreign_pages: {why}"]
    *logged, failed, last = done.stdout.splitlines()
    assert logged == [f"log 8 -1 kvmchan: xc_domain_unpause: {why}", f"log 8 -1 kvmchan: xc_get_tot_pages: {why}"]
    asked = "xc_domain_getinfo_single" if XEN_MINOR >= 18 else "xc_domain_getinfo"
    assert re.fullmatch(rf"log 8 -1 kvmchan: {asked}: (no kvmchand answers at .*)", failed)
    assert last == "last " + failed.removeprefix(f"log 8 -1 kvmchan: {asked}: ")


@pytest.mark.parametrize("names", [(), OLD_NAMES], ids=["names", "old-names"])
def test_what_the_other_libraries_do_not_emulate_fails_and_is_told_once(tmp_path: Path, names: tuple[str, ...]) -> None:
    program = compile_xen(tmp_path, "unsupported.c", *names)
    done = run(program, "devices", env={"LD_LIBRARY_PATH": LIBRARIES})
    why = "not emulated by kvmchan: "
    functions = [[line.partition(f": {why}")[0] for line in text.splitlines()] for text in (done.stderr, done.stdout)]
    assert functions[0] == ["kvmchan: xenevtchn_bind_virq", "kvmchan: xengnttab_grant_copy"]
    logged = ("xenevtchn_restrict", "xenevtchn_fdopen", "xengntshr_fd")
    assert functions[1] == [f"log 8 -1 kvmchan: {function}" for function in logged]


def test_event_channels_and_pages_by_the_names_that_libxenctrl_has_for_them(daemon: Daemon, tmp_path: Path) -> None:
    program = compile_xen(tmp_path, "xen.c", *OLD_NAMES)
    compat = (ROOT / "libxenvchan_shim" / "csrc" / "xen" / "libxenctrl_compat.c").read_text()
    names = set(re.findall(r"^[a-z].*?(xc_\w+)\(", compat, re.MULTILINE)) - {"xc_evtchn_bind_virq"}
    assert len(names) == 22
    called = run("nm", "-D", "--undefined-only", program).stdout
    assert names <= set(re.findall(r"\bxc_\w+", called))
    assert not re.search(r"\bxen(evtchn|gnttab|gntshr)_", called)
    xen = start_in(daemon, program)
    with xen(1) as one, xen(2) as two:
        one.number("evtchn")
        two.number("evtchn")
        port = one.number("bind 2")
        joined = two.number(f"join 1 {port}")
        assert two.number("pending") == joined
        two.ok(f"unmask {joined}")
        assert (one.number("ready"), two.number("ready")) == (0, 0)
        one.ok(f"notify {port}")
        assert (two.number("ready"), two.number("pending")) == (1, joined)

        refs = one.numbers("share 2 2 1")
        one.number("poke 4096 5")
        two.ok(f"map 3 1:{refs[1]} 1:{refs[0]}")
        assert two.number("peek 0") == 5
        two.ok("unmap")
        (own,) = two.numbers("share 2 1 1")
        two.number("poke 0 6")
        two.ok(f"map 1 2:{own} 1:{refs[1]}")
        assert (two.number("peek 0"), two.number("peek 4096")) == (6, 5)
        two.ok("unmap")
        two.ok(f"map_notify 3 1 {refs[0]} 20 {joined}")
        two.number("poke 20 1")
        two.ok("unmap")
        assert one.number("pending") == port
        assert one.number("peek 20") == 0
        one.ok("unshare")
        ref = one.number(f"share_notify 2 21 {port}")
        one.number("poke 21 1")
        two.ok(f"map 1 1:{ref}")
        assert two.number("peek 21") == 1
        one.ok("unshare")
        assert two.number("peek 21") == 0
        two.ok(f"unmask {joined}")
        assert two.number("pending") == joined

        two.ok(f"unbind {joined}")
        assert one.ask(f"status {SELF} {port}") == "unbound 2"
        for each in (one, two):
            for close in ("evtchn_close", "gntshr_close", "gnttab_close"):
                each.ok(close)


def test_program_that_only_opens_its_handles_starts_no_python(xen_program: Path) -> None:
    done = run(xen_program, input="fds\n", env={"LD_LIBRARY_PATH": LIBRARIES, "LD_DEBUG": "files"})
    assert done.stdout == "3\n"
    assert f"libxenctrl.so.{XEN_RELEASE}" in done.stderr
    assert "_cffi_backend" not in done.stderr
