# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whichever process of ours fails in a QEMU's handshake, and at whichever message: the QEMU neither
ends nor stands still for ever.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvmchand.linux.burst import Burst
from kvmchand.services.ivshmem import unread
from rig.bare_qemu import BareQemu, QmpError
from rig.deadline import eventually
from rig.ivshmem import ALICE, BOB, A, Qemu, Rig
from rig.main_process import MainProcess
from rig.processes import is_stopped, next_fd, stopped
from rig.rounds import random_moments, rounds
from rig.served import ROOM, SMALL, appear, assert_works, name_of, plugged, start, unplug

REFUSED = "server sent version -1"
"""What QEMU says that was told to fail the device."""
NOBODY = "Connection refused"
"""What it says if nobody listens any more."""
VECTORS = 64
MANY = 255


class Guests:
    """A guest with room for one more device: another one where the last is full, as those without
    KVM never lose a device.
    """

    def __init__(self, make: Callable[[], BareQemu], undo: ExitStack) -> None:
        self._make = make
        self._undo = undo
        self._plugged = ROOM

    def next(self) -> BareQemu:
        if self._plugged == ROOM:
            self._undo.close()
            self._guest = self._undo.enter_context(self._make()).wait_ready()
            self._plugged = 0
        self._plugged += not self._guest.kvm
        return self._guest


@pytest.fixture
def guests(bare_kernel: Path, tmp_path_factory: pytest.TempPathFactory, accelerator: str) -> Iterator[Guests]:
    """Guests that nobody serves yet."""
    with ExitStack() as undo:
        yield Guests(lambda: BareQemu(tmp_path_factory.mktemp("qemu"), bare_kernel, accelerator), undo)


@pytest.fixture
def served_guests(rig: Rig, bare_kernel: Path, tmp_path_factory: pytest.TempPathFactory, accelerator: str) -> Iterator[Guests]:
    """Guests that `rig` serves."""
    with ExitStack() as undo:
        yield Guests(lambda: start(rig, bare_kernel, tmp_path_factory.mktemp("qemu"), accelerator), undo)


def stop_for_a_moment(pid: int) -> None:
    with stopped(pid):
        eventually(lambda: is_stopped(pid))


def has_ended(qemu: Qemu) -> bool:
    """Return whether the server has ended a connection, read or not."""
    return unread.has_gone(qemu.sock)


def wait_devices(guest: BareQemu, count: int) -> None:
    guest.wait(lambda: len(guest.devices) == count, "the guest does not get its device")


def assert_answers(guest: BareQemu) -> None:
    """Assert that the machine runs: its QEMU answers, and its processor."""
    guest.command("query-status")
    guest.set_policy("obedient")


# ---- the ivshmem process ----


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_guest_gets_its_device_whenever_the_ivshmem_process_is_killed_or_stopped(
    rig: Rig, served_guests: Guests, number: signal.Signals
) -> None:
    with random_moments() as moments:
        for _ in rounds(100, 8):
            guest, pid = served_guests.next(), rig.pid()
            with moments.strike(
                lambda pid=pid: os.kill(pid, number) if number == signal.SIGKILL else stop_for_a_moment(pid)  # type: ignore[misc]
            ):
                device, there = plugged(guest, rig, vectors=VECTORS, size=SMALL)
            assert_works(rig, device, there)
            rig.settle()
            if guest.kvm:
                unplug(guest, rig, device)
            rig.devices.remove(device)


def test_a_qemu_gets_all_of_a_handshake_that_did_not_fit_though_the_ivshmem_process_is_killed(
    rig: Rig, qemu: BareQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Burst, "make_room", lambda _burst, _sock: None)
    device = rig.device(ALICE, BOB, vectors=MANY, without_kvm=not qemu.kvm)
    qemu.connect(name_of(device), rig.devices.socket_path(device, ALICE))
    rig.until(lambda: rig.devices.is_connected(device, ALICE))
    assert not rig.devices._port(device, ALICE).is_served
    os.kill(rig.pid(), signal.SIGKILL)
    qemu.begin_add(name_of(device), MANY)
    qemu.end_add(name_of(device))
    rig.until_told(("served", device.number, ALICE))
    assert_works(rig, device, qemu.wait_device())


# ---- main ----


def test_a_guest_gets_its_device_whenever_main_is_stopped(guests: Guests, tmp_path: Path) -> None:
    with ExitStack() as undo, random_moments() as moments:
        served = None
        for number in rounds(100, 8):
            guest = guests.next()
            if served is not guest:
                main, served = undo.enter_context(MainProcess(tmp_path, kvm=guest.kvm)), guest
            name, path, known = f"device-{number}", main.device(VECTORS), len(guest.devices)
            with moments.strike(lambda main=main: stop_for_a_moment(main.pid)):  # type: ignore[misc]
                guest.plug(name, path, VECTORS)
            wait_devices(guest, known + 1)
            if guest.kvm:
                guest.unplug(name)


def test_a_guest_goes_on_whenever_main_is_killed(guests: Guests, tmp_path: Path) -> None:
    with random_moments() as moments:
        for number in rounds(100, 8):
            guest = guests.next()
            name, known = f"device-{number}", len(guest.devices)
            with MainProcess(tmp_path, kvm=guest.kvm) as main:
                path = main.device(VECTORS)
                with moments.strike(main.kill):
                    is_plugged = get_or_refuse(guest, name, path)
            if is_plugged:
                wait_devices(guest, known + 1)
                if guest.kvm:
                    guest.unplug(name)
            assert_answers(guest)


def get_or_refuse(guest: BareQemu, name: str, path: Path) -> bool:
    """Return whether QEMU gets a device, and assert that it has a good reason if not."""
    try:
        guest.plug(name, path, VECTORS)
    except QmpError as refusal:
        assert REFUSED in str(refusal) or NOBODY in str(refusal)
        return False
    return True


@pytest.mark.parametrize("reads", ["before", "after"])
@pytest.mark.parametrize("ends", ["killed", "told to end"])
def test_a_qemu_that_is_told_everything_gets_its_device_though_main_ends(
    guests: Guests, tmp_path: Path, ends: str, reads: str
) -> None:
    guest = guests.next()
    with MainProcess(tmp_path, kvm=guest.kvm) as main:
        guest.connect("early", main.device(VECTORS))
        for _ in range(2):
            main.device(VECTORS)  # in the turn of the second, it has served the QEMU
        if reads == "before":
            guest.begin_add("early", VECTORS)
        if ends == "killed":
            main.kill()
        else:
            main.end()
        if reads == "after":
            main.await_end_of_listening()
            guest.command("query-status")
            guest.begin_add("early", VECTORS)
        guest.end_add("early")
    wait_devices(guest, 1)
    assert_answers(guest)


@pytest.mark.parametrize("reads", ["before", "after"])
def test_a_qemu_that_waits_when_main_is_killed_is_refused_and_its_guest_goes_on(
    guests: Guests, tmp_path: Path, reads: str
) -> None:
    guest = guests.next()
    with MainProcess(tmp_path, kvm=guest.kvm) as main:
        path = main.device(VECTORS)
        main.stop()
        guest.connect("late", path)
        if reads == "before":
            guest.begin_add("late", VECTORS)
        main.kill()
        if reads == "after":
            main.await_end_of_listening()
            guest.command("query-status")
            guest.begin_add("late", VECTORS)
        with pytest.raises(QmpError, match=REFUSED):
            guest.end_add("late")
    assert_answers(guest)
    with MainProcess(tmp_path, kvm=guest.kvm) as main:
        guest.plug("next", main.device(VECTORS), VECTORS)
        wait_devices(guest, 1)


def test_a_qemu_that_waits_when_main_is_told_to_end_is_served_or_refused(guests: Guests, tmp_path: Path) -> None:
    guest = guests.next()
    with MainProcess(tmp_path, kvm=guest.kvm) as main:
        path = main.device(VECTORS)
        main.stop()
        guest.connect("late", path)
        main.end()
        main.go_on()
        guest.begin_add("late", VECTORS)
        try:
            guest.end_add("late")
            count = 1
        except QmpError as refusal:
            assert REFUSED in str(refusal)
            count = 0
    wait_devices(guest, count)
    assert_answers(guest)


def test_a_qemu_that_waits_when_its_device_is_removed_is_refused_and_its_guest_goes_on(rig: Rig, guests: Guests) -> None:
    guest = guests.next()
    device = rig.device(ALICE, without_kvm=not guest.kvm)
    guest.connect(name_of(device), rig.devices.socket_path(device, ALICE))
    rig.devices.remove(device)
    guest.command("query-status")
    guest.begin_add(name_of(device), device.vectors)
    with pytest.raises(QmpError, match=REFUSED):
        guest.end_add(name_of(device))
    assert_answers(guest)


def test_a_qemu_that_has_not_read_when_its_device_is_removed_gets_it(rig: Rig, qemu: BareQemu) -> None:
    device = rig.device(ALICE, without_kvm=not qemu.kvm)
    qemu.connect(name_of(device), rig.devices.socket_path(device, ALICE))
    rig.until_told(("served", device.number, ALICE))
    rig.devices.remove(device)
    rig.settle()
    qemu.command("query-status")
    qemu.begin_add(name_of(device), device.vectors)
    qemu.end_add(name_of(device))
    qemu.wait_device()


def test_a_qemu_that_main_lacks_descriptors_for_is_refused_and_served_when_it_has_them(rig: Rig, qemu: BareQemu) -> None:
    device = rig.device(ALICE, without_kvm=not qemu.kvm)
    path = rig.devices.socket_path(device, ALICE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_fd(), hard))
    try:
        for name in ("first", "second"):
            qemu.connect(name, path)
            rig.until(lambda: rig.devices._spare.is_lent)
            qemu.command("query-status")
            qemu.begin_add(name, device.vectors)
            with pytest.raises(QmpError, match=REFUSED):
                qemu.end_add(name)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_answers(qemu)
    assert_works(rig, device, appear(qemu, rig, device))


def test_a_qemu_is_refused_while_a_stranger_has_its_device_and_served_after_that(rig: Rig, qemu: BareQemu) -> None:
    device = rig.device(ALICE, without_kvm=not qemu.kvm)
    stranger = rig.qemu(device, ALICE)
    rig.until_told(("served", device.number, ALICE))
    qemu.connect(name_of(device), rig.devices.socket_path(device, ALICE))
    rig.settle()
    qemu.command("query-status")
    qemu.begin_add(name_of(device), device.vectors)
    with pytest.raises(QmpError, match=REFUSED):
        qemu.end_add(name_of(device))
    assert_answers(qemu)
    stranger.close()
    rig.until_told(("unplugged", device.number, ALICE))
    there = appear(qemu, rig, device)
    rig.qemu(device, ALICE).hear_refusal()
    assert_works(rig, device, there)


def test_main_ends_though_a_qemu_does_not_read(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "PATIENCE", 0.1)
    device = rig.device(ALICE)
    idle = rig.qemu(device, ALICE)
    rig.until_told(("served", device.number, ALICE))
    rig.devices.close()
    assert idle.rest() == 3 + 2 * device.vectors


def test_main_keeps_only_so_many_connections_that_are_not_read(rig: Rig) -> None:
    idle = []
    for _ in range(unread._KEPT_MAX + 1):
        device = rig.device(ALICE)
        idle.append(rig.qemu(device, ALICE))
        rig.until_told(("served", device.number, ALICE))
        rig.devices.remove(device)
    rig.settle()
    first, *others = idle
    assert has_ended(first)
    assert not any(map(has_ended, others))
    for each in others:
        each.hear(3 + 2 * 2)
    for each in others:
        each.hear_end()


# ---- after the handshake ----


def test_a_qemu_hears_nothing_after_its_handshake_but_the_end_of_its_device(rig: Rig) -> None:
    device, other = rig.device(ALICE, BOB), rig.device(ALICE)
    alice = rig.qemu(device, ALICE)
    alice.hear_handshake(A)
    rig.until_told(("served", device.number, ALICE))
    for event in (alice.fds["event 0.1"], alice.fds["event 3.0"], rig.devices.event(device, A, 1)):
        for each, domain in ((device, BOB), (other, ALICE)):
            peer = rig.qemu(each, domain)
            rig.until_told(("served", each.number, domain))
            peer.close()
            rig.until_told(("unplugged", each.number, domain))
        os.eventfd_write(event, 1)
        rig.kill()
        rig.settle()  # with another device, which is removed
        assert alice.has_heard_all()
    rig.devices.remove(other)
    rig.settle()
    assert alice.has_heard_all()
    rig.devices.remove(device)
    alice.hear_end()
