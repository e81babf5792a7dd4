# SPDX-License-Identifier: LGPL-2.1-or-later
"""The handshake with real QEMUs: what guests in a hurry make of it, and why a device is unplugged
only where it is.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rig.bare_qemu import BareQemu
from rig.ivshmem import ALICE, BOB, A, B, Rig
from rig.rounds import rounds
from rig.served import ROOM, SMALL, appear, assert_works, plugged, start, unplug

MANY = 255
"""Vectors."""

with_kvm = pytest.mark.parametrize("accelerator", ["kvm"])
without_kvm = pytest.mark.parametrize("accelerator", ["tcg"])


# ---- a guest that unmasks at once ----


@pytest.mark.usefixtures("require_bare_kvm")
@with_kvm
@pytest.mark.parametrize("vectors", [64, 255])
def test_a_guest_that_unmasks_at_once_outlives_each_plugging_with_kvm(qemu: BareQemu, rig: Rig, vectors: int) -> None:
    qemu.set_policy("eager")
    for _ in rounds(50, 10):
        device, there = plugged(qemu, rig, vectors=vectors)
        assert_works(rig, device, there)
        unplug(qemu, rig, device)
        rig.devices.remove(device)


@without_kvm
@pytest.mark.parametrize("vectors", [64, 255])
def test_a_guest_that_unmasks_at_once_outlives_plugging_without_kvm(qemu: BareQemu, rig: Rig, vectors: int) -> None:
    qemu.set_policy("eager")
    pairs = [plugged(qemu, rig, vectors=vectors, size=SMALL) for _ in range(ROOM)]
    for device, there in pairs:
        assert_works(rig, device, there)


@pytest.mark.parametrize("vectors", [64, 255])
def test_two_guests_that_unmask_at_once_outlive_plugging_and_ring_each_other(
    rig: Rig, bare_kernel: Path, tmp_path_factory: pytest.TempPathFactory, accelerator: str, vectors: int
) -> None:
    folders = tmp_path_factory.mktemp("alice"), tmp_path_factory.mktemp("bob")
    alice, bob = (start(rig, bare_kernel, folder, accelerator) for folder in folders)
    with alice, bob:
        for guest in (alice, bob):
            guest.wait_ready().set_policy("eager")
        for _ in rounds(50, 5) if alice.kvm else range(ROOM):
            device = rig.device(ALICE, BOB, vectors=vectors, size=SMALL, without_kvm=not alice.kvm)
            at_alice, at_bob = appear(alice, rig, device, ALICE), appear(bob, rig, device, BOB)
            assert_works(rig, device, at_alice, ALICE)
            assert_works(rig, device, at_bob, BOB)
            for vector in (0, vectors - 1):
                at_alice.ring(B, vector)
                at_bob.wait_interrupts(at_bob.told(vector), 2)
                at_bob.ring(A, vector)
                at_alice.wait_interrupts(at_alice.told(vector), 2)
            if alice.kvm:
                unplug(alice, rig, device, ALICE)
                unplug(bob, rig, device, BOB)
                rig.devices.remove(device)


# ---- unplugging ----


def plug_until_it_ends(qemu: BareQemu, rig: Rig, vectors: int, most: int) -> int:
    """Plug a device in and unplug it, until QEMU ends or it was done so often.

    Returns how often QEMU has outlived that.
    """
    for number in range(most):
        try:
            device, _ = plugged(qemu, rig, vectors=vectors)
            unplug(qemu, rig, device)
        except (AssertionError, BrokenPipeError):
            qemu.process.wait()
            qemu.kill()
            return number
        rig.devices.remove(device)
    return most


@without_kvm
def test_a_qemu_without_kvm_does_not_outlive_unplugging(qemu: BareQemu, rig: Rig) -> None:
    """It goes on watching the numbers of descriptors that it has closed."""
    assert plug_until_it_ends(qemu, rig, 64, 50) < 50, (
        "this QEMU can lose devices without KVM: it is mended, and need not keep them (Links.keepers, docs/guests.md)"
    )
    assert qemu.process.returncode < 0


@pytest.mark.usefixtures("require_bare_kvm")
@with_kvm
def test_a_qemu_with_kvm_outlives_unplugging_by_an_obedient_guest(qemu: BareQemu, rig: Rig) -> None:
    for _ in rounds(200, 20):
        device, there = plugged(qemu, rig, vectors=64)
        assert_works(rig, device, there)
        unplug(qemu, rig, device)
        rig.devices.remove(device)


ROUTES = 4096
"""Of interrupts, that a machine has with KVM (KVM_CAP_IRQ_ROUTING). Some are no device's."""


@pytest.mark.usefixtures("require_bare_kvm")
@with_kvm
def test_a_qemu_with_kvm_loses_the_routes_of_a_device_that_goes_with_its_vectors_in_use(qemu: BareQemu, rig: Rig) -> None:
    """So a domain whose guest lets devices go in this way can have only so many of them."""
    qemu.set_policy("careless")
    most = ROUTES // MANY + 1
    survived = plug_until_it_ends(qemu, rig, MANY, most)
    assert survived < most, "this QEMU frees the routes: it is mended, and need not be spared"
    assert (survived + 2) * MANY > ROUTES
