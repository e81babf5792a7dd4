# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt does with guests that are detached: it saves, restores and migrates them.

With KVM, because without it no device can be taken out.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libxenvchan_shim import Vchan
from libxenvchan_shim import connect as connect_here
from libxenvchan_shim import offer as offer_here
from rig import libvirtd
from rig.bare_domain import BareGuest, BareHost
from rig.daemon import acting_as
from rig.deadline import eventually
from rig.detaching import attach, detaching, release
from rig.guest import connect, offer

pytestmark = pytest.mark.usefixtures("require_bare_kvm")

BYTES = 3000
"""Of a stream."""
PATTERN = bytes(index % 65521 * 2654435761 % 2**32 >> 13 & 0xFF for index in range(BYTES))
"""These, as the guest has them."""
REFUSAL = "cannot migrate domain: Migration is disabled when using feature 'peer mode' in device 'ivshmem'"
"""What libvirt says of a domain with an ivshmem device."""
PATH = "/local/domain/0/waits"


@pytest.fixture
def elsewhere(bare_kernel: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareHost]:
    """Another host's daemon, on another libvirtd, to which domains can be migrated."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with (
        libvirtd.running(tmp_path_factory.mktemp("lv"), "elsewhere") as other,
        BareHost(other, folder, bare_kernel, consoles=tmp_path) as host,
    ):
        yield host


def find(guest: BareGuest, server: Vchan) -> None:
    """Assert that a guest finds what a program on its host offers to it."""
    end = guest.open_end(1, connect(0, PATH), send=BYTES, is_server=False)
    assert server.take(BYTES) == PATTERN
    server.sendall(PATTERN)
    end.wait_received(BYTES)
    end.close()
    guest.close(1)


@contextmanager
def found(host: BareHost) -> Iterator[tuple[BareGuest, Vchan]]:
    """Start a guest that finds what a program on the host offers to it."""
    alice = host.guest("alice", "kvm")
    with acting_as(host), offer_here("alice", PATH, read_min=BYTES, write_min=BYTES) as server:
        find(alice, server)
        yield alice, server


def be_found(host: BareHost, guest: BareGuest) -> None:
    """Assert that a program on the host finds what its guest offers to it."""
    end = guest.open_end(2, offer(0, "far", 2 * BYTES), send=BYTES, is_server=True)
    with acting_as(host), connect_here(guest.machine.name, "far") as client:
        assert client.take(BYTES) == PATTERN
    end.wait_closed()
    guest.close(2)


def let_go(guest: BareGuest) -> None:
    """Let go of the devices that the host wants back, their interrupts off."""
    for device in guest.machine.bare_devices():
        if device is not guest.control:
            device.enable(False)
    release(guest)


def detach(host: BareHost, guest: BareGuest) -> None:
    """Detach a guest. It may eject its control device before that has brought the session's end."""
    with detaching(host, guest.machine.name):
        let_go(guest)
    guest.part()
    guest.machine.wait(lambda: not guest.machine.devices, "the guest has devices")


def end_of(host: BareHost, guest: BareGuest) -> None:
    """Until a domain that ran here does no more."""
    guest.machine.destroy()
    eventually(lambda: f"domain {guest.domain} ({guest.machine.name}) is gone" in host.log(), host.log)


def restore(host: BareHost, image: str) -> BareGuest:
    """Let a guest go on from an image of its memory."""
    return host.guest("alice", "kvm", bring=lambda: host.libvirtd.virsh("restore", image))


def test_a_guest_is_saved_only_when_it_is_detached_and_restored_with_what_was_offered(
    bare_host: BareHost, tmp_path: Path
) -> None:
    image = str(tmp_path / "image")
    with found(bare_host) as (alice, server):
        assert REFUSAL in bare_host.libvirtd.virsh("save", "alice", image, check=False).stderr
        detach(bare_host, alice)
        bare_host.libvirtd.virsh("save", "alice", image)
        end_of(bare_host, alice)
        again = restore(bare_host, image)
        assert again.domain != alice.domain
        find(again, server)
        be_found(bare_host, again)
        # The host still has the session of a guest that was not detached, when its memory is an
        # old one.
        end_of(bare_host, again)
        once_more = restore(bare_host, image)
    with acting_as(bare_host), offer_here("alice", PATH, read_min=BYTES, write_min=BYTES) as server:
        find(once_more, server)
        be_found(bare_host, once_more)


def test_a_guest_goes_on_after_a_snapshot_and_returns_from_it(bare_host: BareHost, tmp_path: Path) -> None:
    image = str(tmp_path / "image")
    snapshot = ("snapshot-create-as", "alice", "one", "--memspec", f"file={image}")
    with found(bare_host) as (alice, server):
        assert REFUSAL in bare_host.libvirtd.virsh(*snapshot, check=False).stderr
        detach(bare_host, alice)
        bare_host.libvirtd.virsh(*snapshot)
        attach(bare_host, alice)
        find(alice, server)
        end_of(bare_host, alice)
        # It was not detached, and its memory is an old one.
        again = restore(bare_host, image)
    with acting_as(bare_host), offer_here("alice", PATH, read_min=BYTES, write_min=BYTES) as server:
        find(again, server)


def migration(guest: BareGuest, target: BareHost, tmp_path: Path) -> tuple[str, ...]:
    """Return virsh's words."""
    way = f"unix://{tmp_path}/to-{target.pid}"
    return ("migrate", "--live", guest.machine.name, target.libvirtd.uri, "--migrateuri", way)


def migrate(source: BareHost, guest: BareGuest, target: BareHost, tmp_path: Path) -> BareGuest:
    """Migrate a detached guest, and greet the other host as its daemon."""
    words = migration(guest, target, tmp_path)
    moved = target.guest(guest.machine.name, "kvm", bring=lambda: source.libvirtd.virsh(*words))
    end_of(source, guest)
    return moved


def test_a_guest_that_is_migrated_and_comes_back_finds_what_was_offered(
    bare_host: BareHost, elsewhere: BareHost, tmp_path: Path
) -> None:
    with found(bare_host) as (alice, server):
        detach(bare_host, alice)
        there = migrate(bare_host, alice, elsewhere, tmp_path)
        with acting_as(elsewhere), offer_here("alice", PATH, read_min=BYTES, write_min=BYTES) as other:
            find(there, other)
            be_found(elsewhere, there)
            detach(elsewhere, there)
            back = migrate(elsewhere, there, bare_host, tmp_path)
        find(back, server)
        be_found(bare_host, back)


def test_a_guest_whose_migration_fails_halfway_stays_and_is_attached_again(
    bare_host: BareHost, elsewhere: BareHost, tmp_path: Path
) -> None:
    with found(bare_host) as (alice, server):
        detach(bare_host, alice)
        # Its QEMU there has the memory's first bytes when it ends.
        words = ("virsh", "-q", "-c", bare_host.libvirtd.uri, *migration(alice, elsewhere, tmp_path), "--bandwidth", "1")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "alice.console"))
            listener.listen()
            with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as migrating:
                console, _ = listener.accept()
                eventually(lambda: "migration" in bare_host.libvirtd.virsh("domjobinfo", "alice").stdout.lower())
                os.kill(elsewhere.libvirtd.pid("alice"), signal.SIGKILL)
                console.close()
                _, said = migrating.communicate()
                assert migrating.returncode, said
        eventually(lambda: elsewhere.listing()["guests"] == [])
        attach(bare_host, alice)
        find(alice, server)
        be_found(bare_host, alice)


def test_a_guest_that_is_reset_while_an_unplug_is_pending_is_detached_and_comes_back(bare_host: BareHost) -> None:
    with found(bare_host) as (alice, server):
        alice.machine.set_policy("stubborn")
        with detaching(bare_host, "alice"):
            let_go(alice)
            alice.part()
            alice.machine.reset()
        assert alice.machine.devices == {}
        attach(bare_host, alice)
        find(alice, server)
        be_found(bare_host, alice)
