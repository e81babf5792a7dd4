# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests without an operating system, which run with KVM and without it: their streams, and what
they do with their devices.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmchand.ids import HOST_PEER
from kvmchand.wire import client, control
from rig.bare import BareEnd
from rig.bare_domain import BareHost
from rig.bare_qemu import BareQemu
from rig.compiler import compile_c, our_flags
from rig.deadline import eventually
from rig.guest import connect, offer
from rig.ivshmem import ALICE, MIB, A, Rig
from rig.network import HostProgram
from rig.paths import ROOT
from rig.rounds import rounds
from rig.served import await_event, interrupt, plug, plugged, unplug

STREAM = ROOT / "tests" / "py" / "vm" / "programs" / "stream.c"
SIZES = {"tcg": MIB, "kvm": MIB // 8}
"""Bytes of a stream. A KVM within a virtual machine may emulate each instruction of this guest."""
CALL = 65536
MANY = 255
"""Vectors, more than the guest tells apart."""
LARGE = 64 * MIB
"""Bytes that no window of the bridge has."""


@pytest.fixture(scope="session")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that sends bytes of a pattern, and checks those that come."""
    return compile_c(tmp_path_factory.mktemp("stream"), STREAM, "-O2", *our_flags())


# ---- streams ----


def start(host: BareHost, *words: object) -> HostProgram:
    return HostProgram([str(each) for each in words], host.environment())


def finish(program: HostProgram, end: BareEnd, size: int) -> None:
    """Assert that each side has got all bytes, and each of them right."""
    program.wait_line("done")
    program.end_input()
    program.wait_line("closed")
    assert program.wait() == 0, program.lines
    end.wait_closed()
    assert (end.received, end.sent, end.wrong) == (size, size, 0)


def test_streams_between_host_and_guest_bring_each_byte_whoever_serves(
    bare_host: BareHost, stream: Path, accelerator: str
) -> None:
    size = SIZES[accelerator]
    alice = bare_host.guest("alice", accelerator)
    here, there = "/local/domain/0/data/bare", f"/local/domain/{alice.domain}/data/bare"
    serving = start(bare_host, stream, "server", alice.domain, here, 1, size, size, CALL)
    serving.wait_line("offered")
    client = alice.open_end(1, connect(0, f"{here}/0"), send=size, is_server=False)
    server = alice.open_end(2, offer(0, f"{there}/0", CALL), send=size, is_server=True)
    connecting = start(bare_host, stream, "client", alice.domain, there, 1, size, size, CALL)
    finish(serving, client, size)
    finish(connecting, server, size)
    (link,) = (each for each in alice.machine.bare_devices() if each is not alice.control)
    assert sorted(link.interrupts) == [0, 1], "each channel's events came by its own vector"
    for number in (1, 2):
        alice.close(number)


def test_a_stream_between_two_guests_brings_each_byte(bare_host: BareHost, accelerator: str) -> None:
    size = SIZES[accelerator]
    alice, bob = (bare_host.guest(name, accelerator) for name in ("alice", "bob"))
    path = f"/local/domain/{alice.domain}/data/bare"
    server = alice.open_end(1, offer(bob.domain, path, CALL), send=size, is_server=True, grows=True)
    client = bob.open_end(1, connect(alice.domain, path), send=size, is_server=False, grows=True)
    for end in (server, client):
        end.wait_received(size)
    client.close()
    server.wait_closed()
    for guest in (alice, bob):
        guest.close(1)


# ---- devices ----


def test_every_vector_of_a_device_interrupts_the_guest_and_can_be_rung_by_it(qemu: BareQemu, rig: Rig) -> None:
    device, there = plugged(qemu, rig, vectors=MANY)
    assert (there.peer, there.vectors, there.size) == (A, MANY, MIB)
    for vector in range(MANY):
        told = there.told(vector)
        interrupt(rig, device, vector)
        there.wait_interrupts(told, max(0, vector - told) + 1)
    for vector in (0, 1, MANY - 1):
        there.ring(HOST_PEER, vector)
        await_event(rig, device, vector)
    os.pwrite(there.memory, b"guest", 0)
    assert os.pread(rig.devices.memory(device), 5, 0) == b"guest"


def test_an_event_of_a_masked_vector_comes_when_it_is_unmasked(qemu: BareQemu, rig: Rig) -> None:
    device, there = plugged(qemu, rig)
    there.mask(1)
    interrupt(rig, device, 1)
    interrupt(rig, device, 0)
    there.wait_interrupts(0, 1)
    assert there.interrupts[1] == 0
    there.mask(1, False)
    there.wait_interrupts(1, 1)
    there.enable(False)
    there.enable(True)
    interrupt(rig, device, 1)
    there.wait_interrupts(1, 2)


def test_a_device_that_fits_into_no_window_is_said_to_have_no_room(qemu: BareQemu, rig: Rig) -> None:
    plug(qemu, rig, rig.device(ALICE, size=LARGE, without_kvm=not qemu.kvm))
    qemu.wait(lambda: qemu.no_room == [LARGE], "the guest finds room")
    plugged(qemu, rig)


def test_a_guest_has_many_devices_at_once(qemu: BareQemu, rig: Rig) -> None:
    pairs = [plugged(qemu, rig, size=MIB // 8) for _ in range(8)]
    for device, there in pairs:
        interrupt(rig, device, 1)
        there.wait_interrupts(1, 1)
        os.pwrite(there.memory, bytes([device.number]), 0)
    for device, _ in pairs:
        assert os.pread(rig.devices.memory(device), 1, 0) == bytes([device.number])


@pytest.mark.usefixtures("require_bare_kvm")
@pytest.mark.parametrize("accelerator", ["kvm"])
@pytest.mark.parametrize("policy", ["obedient", "careless"])
def test_devices_come_and_go(qemu: BareQemu, rig: Rig, policy: str) -> None:
    qemu.set_policy(policy)
    staying, there = plugged(qemu, rig)
    for _ in range(3):
        device, other = plugged(qemu, rig, vectors=8)
        interrupt(rig, device, 7)
        other.wait_interrupts(7, 1)
        unplug(qemu, rig, device)
        assert list(qemu.devices.values()) == [there]
    interrupt(rig, staying, 0)
    there.wait_interrupts(0, 1)


@pytest.mark.usefixtures("require_bare_kvm")
@pytest.mark.parametrize("accelerator", ["kvm"])
def test_a_stubborn_guest_keeps_its_device_until_it_relents(qemu: BareQemu, rig: Rig) -> None:
    device, there = plugged(qemu, rig)
    qemu.set_policy("stubborn")
    eventually(lambda: rig.devices.has_read(device, ALICE))
    qemu.ask_unplug(f"device-{device.number}")
    plugged(qemu, rig)  # it has looked at what shall go meanwhile
    interrupt(rig, device, 0)
    there.wait_interrupts(0, 1)
    qemu.set_policy("obedient")
    qemu.wait_unplugged(f"device-{device.number}")
    rig.until_told(("unplugged", device.number, ALICE))
    assert len(qemu.devices) == 1


def test_an_eager_guest_uses_a_device_that_it_finds_without_waiting(qemu: BareQemu, rig: Rig) -> None:
    qemu.set_policy("eager")
    device, there = plugged(qemu, rig)
    interrupt(rig, device, 0)
    there.wait_interrupts(0, 1)
    there.ring(HOST_PEER, 0)
    await_event(rig, device, 0)


def test_a_guest_that_is_reset_finds_its_devices_again(bare_host: BareHost, accelerator: str) -> None:
    alice = bare_host.guest("alice", accelerator)
    before = {each.peer for each in alice.machine.bare_devices()}
    alice.part()
    alice.machine.reset()
    assert {each.peer for each in alice.machine.bare_devices()} >= before


@pytest.mark.usefixtures("require_bare_kvm")
@pytest.mark.parametrize("accelerator", ["kvm"])
def test_channels_for_which_a_guest_has_no_window_are_refused_and_leave_nothing(bare_host: BareHost, accelerator: str) -> None:
    alice = bare_host.guest("alice", accelerator)
    path = f"/local/domain/{alice.domain}/data/bare"
    for number in rounds(50, 5):
        alice.request(number, offer(0, f"{path}/{number}", MIB))
        alice.machine.wait(lambda number=number: len(alice.machine.no_room) > number, "no device comes")  # type: ignore[misc]
        alice.say(control.Unusable(0, "it has no window"))
        refused = alice.answer(number)
        assert isinstance(refused, client.Error), refused
        assert "it has no window" in refused.sentence
    eventually(lambda: [each["devices"] for each in bare_host.listing()["guests"]] == [2])
    alice.open_end(1, offer(0, path, CALL), send=0, is_server=True)
    alice.close(1)
