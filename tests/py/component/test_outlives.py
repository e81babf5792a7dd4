# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the host's daemon outlives: another one beside it, and a sleep."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from libxenvchan_shim import State
from libxenvchan_shim import connect as connect_here
from libxenvchan_shim import offer as offer_here
from rig.daemon import Daemon, acting_as
from rig.deadline import eventually
from rig.domains import Host as Machines
from rig.guest import ALICE, Guest, ScriptedHost, connect
from rig.network import Host
from rig.processes import is_stopped


def test_a_second_daemon_in_another_folder_serves_no_domain_of_the_same_libvirt(machines: Machines, tmp_path: Path) -> None:
    one = machines.create_prepared("one")
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    first = Host(folders[0], domains=(), libvirt=machines.libvirtd.uri)
    second = None
    try:
        eventually(lambda: f"domain {one} (one) is here" in first.log(), first.log)
        eventually(lambda: len(machines.shmems("one")) == 1)
        second = Host(folders[1], domains=(1,), libvirt=machines.libvirtd.uri)
        sentence = (
            f"no virtual machines are served: another kvmchand, process {first.pid}, serves those of {machines.libvirtd.uri}"
        )
        eventually(lambda: sentence in second.log(), second.log)
        with acting_as(second), offer_here(1, "x") as server, acting_as(second, 1), connect_here(0, "/local/domain/0/x"):
            assert server.state is State.OPEN
        two = machines.create_prepared("two")
        eventually(lambda: f"domain {two} (two) is here" in first.log(), first.log)
        assert second.listing()["guests"] == []
        assert second.log().count("another kvmchand") == 1
        for name in ("one", "two"):
            eventually(lambda name=name: len(machines.shmems(name)) == 1)  # type: ignore[misc]
            assert all(str(path).startswith(str(first.runtime_dir)) for path in machines.paths(name))
        second.stop()
        first.stop()
        # The next one has them.
        third = Host(folders[1], domains=(), libvirt=machines.libvirtd.uri)
        eventually(lambda: f"domain {one} (one) is here" in third.log(), third.log)
        third.stop()
    finally:
        for each in (first, second):
            if each is not None:
                each.kill()


def freeze(daemon: Daemon) -> list[int]:
    """Stop all of its processes, as a machine does that is suspended."""
    pids = [daemon.pid, *daemon.services().values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: all(is_stopped(pid) for pid in pids))
    return pids


def thaw(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def test_a_daemon_that_was_suspended_goes_on_with_all_that_it_had(host: ScriptedHost, alice: Guest) -> None:
    with acting_as(host), offer_here(ALICE, "waits") as waiting, offer_here(ALICE, "used") as used:
        far = alice.connect(1, 0, "/local/domain/0/used")
        pids = freeze(host)
        far.send(b"meanwhile")  # no process of the daemon's is needed for that
        assert used.recv(9) == b"meanwhile"
        used.send(b"yes")
        assert far.recv(3) == b"yes"
        alice.request(2, connect(0, "/local/domain/0/waits"))
        thaw(pids)
        other = alice.end(alice.answer(2), is_server=False)
        other.send(b"after")
        assert waiting.recv(5) == b"after"
        assert set(host.services().values()) <= set(pids)
        alice.close(2)
        alice.close(1)


def test_a_guest_that_ends_while_the_daemon_is_suspended_is_gone_when_it_goes_on(host: ScriptedHost, alice: Guest) -> None:
    with acting_as(host), offer_here(ALICE, "used") as used:
        alice.connect(1, 0, "/local/domain/0/used")
        pids = freeze(host)
        alice.stop()
        assert used.state is State.OPEN
        thaw(pids)
        eventually(lambda: used.state is State.GONE)
    host.wait_log(f"domain {ALICE} (guest-{ALICE}) is gone")
