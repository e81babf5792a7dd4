# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a guest's daemon has its kernel make room for devices, and what it says of the room."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from kvmchand.ids import Size
from kvmchand.linux import bridges, pci
from kvmchand.linux.bridges import Bridge
from kvmchand.linux.pci import Bar, Function, SysfsError
from kvmchand.services.vfio.windows import Windows
from kvmchand.wire.vfio import Room

MIB = 1 << 20
LARGEST = Size(1 << 34)
NOWHERE = Bar(0, 0)
TOPS = {"0000:02:01.0": "0000:00:02.0", "0000:02:02.0": "0000:00:02.0", "0000:04:01.0": "0000:00:02.1"}
"""Functions behind two bridges, and what these are in on the root complex."""
FIRST, SECOND, ELSEWHERE = TOPS


class Kernel:
    """One with bridges. `widens`: up to which window it takes from registers."""

    def __init__(self, *found: Bridge) -> None:
        self.bridges = list(found)
        self.widens = int(LARGEST)
        self.locks = False
        self.anew: list[str] = []

    def find(self, _is_idle: Callable[[Function], bool]) -> list[Bridge]:
        return self.bridges

    def widen(self, found: Iterable[Bridge], size: int) -> None:
        if self.locks:
            raise SysfsError("it is in lockdown")
        chosen = list(found)
        self.find_anew([each.top for each in chosen])
        if size <= self.widens:
            self.bridges = [each._replace(room=size // 2) if each in chosen else each for each in self.bridges]

    def find_anew(self, tops: Iterable[str]) -> None:
        self.anew += tops


def narrow(number: int, room: int = 0, *, is_idle: bool = True) -> Bridge:
    return Bridge(f"0000:0{2 * number + 1}:00.0", f"0000:00:02.{number}", f"02.{number}/00.0", room, is_idle)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(narrow(0), narrow(1, 2 * MIB))
    monkeypatch.setattr(bridges, "bridges", made.find)
    monkeypatch.setattr(bridges, "widen", made.widen)
    monkeypatch.setattr(bridges, "find_anew", made.find_anew)
    monkeypatch.setattr(pci, "way", lambda address: [TOPS[address], address])
    return made


def arrived(address: str, *bars: Bar) -> Function:
    return Function(address, 0x1AF4, 0x1110, 1, "", "", bars or (Bar(1, 256), Bar(2, 4096), Bar(3, MIB)))


# ---- at the start ----


def test_narrow_bridges_are_widened_once(kernel: Kernel) -> None:
    windows = Windows()
    for _ in range(2):
        windows.widen()
        assert kernel.anew == ["0000:00:02.0", "0000:00:02.1"]
        assert [each.room for each in kernel.bridges] == [128 * MIB] * 2


def test_a_bridge_that_is_in_use_or_wide_stays_as_it_is(kernel: Kernel) -> None:
    kernel.bridges = [narrow(0, is_idle=False), narrow(1, 64 * MIB)]
    Windows().widen()
    assert kernel.anew == []


def test_a_machine_with_few_addresses_is_asked_for_less(kernel: Kernel) -> None:
    kernel.widens = 100 * MIB
    Windows().widen()
    assert [each.room for each in kernel.bridges] == [8 * MIB] * 2


def test_a_kernel_in_lockdown_is_left_alone(kernel: Kernel, capfd: pytest.CaptureFixture[str]) -> None:
    kernel.locks = True
    Windows().widen()
    assert "it is in lockdown" in capfd.readouterr().err


def test_on_arm64_no_bridge_is_widened_ahead(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridges, "ON_PORTS", True)
    Windows().widen()
    assert kernel.anew == []


# ---- when a device has come ----


def test_a_device_with_addresses_can_be_used(kernel: Kernel) -> None:
    assert not Windows().make_room([arrived(FIRST)])
    assert kernel.anew == []


@pytest.mark.parametrize("lacks", [0, 1, 2])
def test_a_device_without_addresses_comes_again_with_all_that_is_behind_its_bridge(kernel: Kernel, lacks: int) -> None:
    bars = [Bar(1, 256), Bar(2, 4096), Bar(3, MIB)]
    bars[lacks] = NOWHERE
    assert Windows().make_room([arrived(FIRST, *bars), arrived(SECOND), arrived(ELSEWHERE)])
    assert kernel.anew == ["0000:00:02.0"]


def test_a_device_behind_a_bridge_in_use_does_not_come_again(kernel: Kernel) -> None:
    kernel.bridges = [narrow(0, is_idle=False)]
    assert not Windows().make_room([arrived(FIRST, NOWHERE)])
    assert kernel.anew == []


def test_a_device_comes_again_once(kernel: Kernel) -> None:
    windows = Windows()
    assert windows.make_room([arrived(FIRST, NOWHERE)])
    assert not windows.make_room([arrived(FIRST, NOWHERE), arrived(SECOND, NOWHERE)]), "no other finds room there, either"
    assert kernel.anew == ["0000:00:02.0"]


def test_the_next_device_at_a_place_comes_again_too(kernel: Kernel) -> None:
    windows = Windows()
    for _ in range(2):
        assert windows.make_room([arrived(FIRST, NOWHERE)])
        assert not windows.make_room([arrived(FIRST)])
    assert kernel.anew == ["0000:00:02.0"] * 2


def test_what_can_not_be_told_keeps_no_device_from_being_judged(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_address: str) -> list[str]:
        raise SysfsError("it is gone")

    monkeypatch.setattr(pci, "way", fail)
    assert not Windows().make_room([arrived(FIRST, NOWHERE)])


# ---- what the host is told ----


def test_an_idle_bridge_has_room_for_anything_until_a_device_got_none(kernel: Kernel) -> None:
    windows = Windows()
    kernel.bridges = [narrow(0, MIB)]
    assert windows.room() == Room(LARGEST, "02.0/00.0")
    windows.make_room([arrived(FIRST, NOWHERE)])
    assert windows.room() == Room(LARGEST, "02.0/00.0")
    windows.make_room([arrived(FIRST, NOWHERE)])
    assert windows.room() == Room(Size(MIB), "02.0/00.0")


def test_the_room_is_that_of_the_bridge_that_has_most(kernel: Kernel) -> None:
    kernel.bridges = [narrow(0, MIB, is_idle=False), narrow(1, 4 * MIB, is_idle=False)]
    assert Windows().room() == Room(Size(4 * MIB), "02.1/00.0")


def test_room_that_can_not_be_told_is_none(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.bridges = []
    assert Windows().room() is None

    def fail(_is_idle: Callable[[Function], bool]) -> list[Bridge]:
        raise SysfsError("something goes")

    monkeypatch.setattr(bridges, "bridges", fail)
    assert Windows().room() is None
