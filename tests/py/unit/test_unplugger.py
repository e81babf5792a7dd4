# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a guest that does not eject a device is asked again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmchand.channels.device import Device, pair_of
from kvmchand.ids import HOST, DomainId, Size
from kvmchand.links import unplugger
from kvmchand.links.links import LinkLimits, Links
from kvmchand.links.unplugger import Unplugger
from kvmchand.runtime.loop import Loop

ALICE = DomainId(11)
READING, WRITING = range(2)


class Machine:
    """The ivshmem server and the hypervisor, as far as unplugging goes. All that QEMU was told is
    read.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[DomainId, Path]] = []

    def drain(self) -> None:
        pass

    def has_read(self, _device: Device, _domain: DomainId) -> bool:
        return True

    def socket_path(self, device: Device, _domain: DomainId) -> Path:
        return Path(f"/socket/{device.number}")

    def detach(self, domain: DomainId, socket: Path) -> None:
        self.asked.append((domain, socket))


class Rig:
    def __init__(self) -> None:
        self.loop = Loop()
        self.links = Links(LinkLimits(16, 1 << 30))
        self.machine = Machine()
        machine: object = self.machine
        self.unplugger = Unplugger(
            self.loop,
            self.links,
            machine,  # type: ignore[arg-type]
            machine,  # type: ignore[arg-type]
            lambda _domain, _message: True,
            lambda _device: None,
        )

    def device(self) -> Device:
        made = self.links.add(pair_of(HOST, ALICE), {ALICE}, Size(1 << 20), 4)
        self.links.attach(made, ALICE)
        return made

    def until_asked(self, count: int) -> None:
        while len(self.machine.asked) < count:
            self.loop.turn()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(unplugger, "EJECT_DEADLINE", 0.001)
    monkeypatch.setattr(unplugger, "RELEASE_DEADLINE", 0.001)
    made = Rig()
    yield made
    made.loop.close()


def test_a_guest_is_asked_again_until_it_ejects_and_that_is_said_once(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    device = rig.device()
    rig.unplugger.ask_back(device, ALICE)
    rig.until_asked(4)
    assert set(rig.machine.asked) == {(ALICE, rig.machine.socket_path(device, ALICE))}
    assert capfd.readouterr().err.count(f"domain {ALICE} has not let go of device {device.number}") == 1
    rig.unplugger.note_gone(device, ALICE)
    assert_quiet(rig)


def test_a_device_that_is_reported_plugged_after_it_was_asked_back_is_not_asked_back_twice(rig: Rig) -> None:
    device = rig.device()
    rig.unplugger.ask_back(device, ALICE)
    rig.unplugger.take_back(device, ALICE)
    rig.unplugger.ask_back(device, ALICE)
    assert rig.machine.asked == [(ALICE, rig.machine.socket_path(device, ALICE))]
    assert ALICE not in device.attached


def test_one_guest_that_does_not_eject_keeps_no_other_device_waiting(rig: Rig) -> None:
    first, second = rig.device(), rig.device()
    rig.unplugger.ask_back(first, ALICE)
    rig.unplugger.ask_back(second, ALICE)
    assert rig.machine.asked == [(ALICE, rig.machine.socket_path(each, ALICE)) for each in (first, second)]


def test_a_guest_that_is_gone_is_asked_no_more(rig: Rig) -> None:
    device = rig.device()
    device.enabled.add(ALICE)  # its daemon does not answer
    rig.unplugger.ask_back(device, ALICE)
    assert rig.unplugger.is_waiting(device)
    rig.until_asked(2)
    rig.unplugger.forget(ALICE)
    assert_quiet(rig)


def assert_quiet(rig: Rig) -> None:
    """Assert that nothing is left for the loop to do, but what is told it now."""
    ours = os.pipe()
    before = len(rig.machine.asked)
    os.write(ours[WRITING], b"x")
    rig.loop.add(ours[READING], lambda _events: None)
    rig.loop.turn()
    assert len(rig.machine.asked) == before
    assert not rig.loop._timers or not any(timer.is_waiting for _, _, timer in rig.loop._timers)
    rig.loop.remove(ours[READING])
    for fd in ours:
        os.close(fd)
