# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bridges to conventional PCI as a sysfs on disk shows them, and what the kernel is told to widen
them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmchand.linux import bridges, pci
from kvmchand.linux.bridges import Bridge
from rig.sysfs import Sysfs

PORT, BRIDGE, CHILD = "0000:00:02.0", "0000:01:00.0", "0000:02:01.0"
OTHER_PORT, OTHER_BRIDGE = "0000:00:02.1", "0000:03:00.0"
ROOT_PORT, TO_CONVENTIONAL = 4, 7
MIB = 1 << 20


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


def add_pair(sysfs: Sysfs, windows: list[tuple[int, int]], port: str = PORT, bridge: str = BRIDGE) -> None:
    """Add a root port with a bridge in it. No device of ours can be right behind the port."""
    sysfs.add_bridge(port, [(0x200000000, 64 * MIB)], express_type=ROOT_PORT, driver="pcieport")
    sysfs.add_bridge(bridge, windows, behind=port, express_type=TO_CONVENTIONAL, driver="shpchp")


def has_no_driver(function: pci.Function) -> bool:
    return not function.driver


# ---- what there is ----


@pytest.mark.parametrize(
    ("windows", "taken", "room"),
    [
        ([(0xE0000000, 2 * MIB)], None, 2 * MIB),
        ([(0xE0000000, 2 * MIB), (0x100000000, 4 * MIB)], None, 4 * MIB),
        ([(0xE0100000, 2 * MIB)], None, MIB),  # none larger would be aligned
        ([(0xE0000000, 2 * MIB)], (0xE0000000, 4096), MIB),
        ([(0xE0000000, MIB)], (0xE0000000, MIB), 0),
        ([], None, 0),
    ],
)
def test_the_room_of_a_bridge_is_what_its_windows_have_left(
    sysfs: Sysfs, windows: list[tuple[int, int]], taken: tuple[int, int] | None, room: int
) -> None:
    add_pair(sysfs, windows)
    if taken is not None:
        sysfs.add_device(CHILD, *taken, behind=BRIDGE)
    assert bridges.bridges(has_no_driver, sysfs.root) == [Bridge(BRIDGE, PORT, "02.0/00.0", room, is_idle=True)]


def test_a_bridge_on_the_root_complex_has_no_port(sysfs: Sysfs) -> None:
    sysfs.add_bridge(PORT, [(0xE0000000, MIB)])
    assert bridges.bridges(has_no_driver, sysfs.root) == [Bridge(PORT, PORT, "02.0", MIB, is_idle=True)]


def test_a_machine_may_have_no_bridge(sysfs: Sysfs) -> None:
    sysfs.add_device(PORT, 0, MIB)
    assert bridges.bridges(has_no_driver, sysfs.root) == []


def test_only_the_bridge_with_a_function_in_use_is_not_idle(sysfs: Sysfs) -> None:
    add_pair(sysfs, [])
    add_pair(sysfs, [], OTHER_PORT, OTHER_BRIDGE)
    sysfs.add_device(CHILD, 0, MIB, behind=BRIDGE, driver="vfio-pci")
    assert [each.is_idle for each in bridges.bridges(has_no_driver, sysfs.root)] == [False, True]


def test_on_arm64_devices_go_into_ports_with_no_bridge_in_them(sysfs: Sysfs) -> None:
    add_pair(sysfs, [(0xE0000000, MIB)])
    for port, taken in ((OTHER_PORT, "vfio-pci"), ("0000:00:02.2", "")):
        sysfs.add_bridge(port, [(0xF0000000, 2 * MIB)], express_type=ROOT_PORT, driver="pcieport")
        sysfs.add_device(f"0000:0{3 if taken else 4}:00.0", 0xF0000000, MIB if taken else 0x1000, behind=port, driver=taken)
    found = bridges.bridges(has_no_driver, sysfs.root, on_ports=True)
    assert [(each.place, each.is_idle) for each in found] == [("02.2", True)], "a port that is in use takes nothing more"


def hide_config(sysfs: Sysfs) -> None:
    (sysfs.folder(BRIDGE) / "config").write_bytes(bytes(64))


def lose_class(sysfs: Sysfs) -> None:
    (sysfs.folder(BRIDGE) / "class").unlink()


def garble_windows(sysfs: Sysfs) -> None:
    (sysfs.folder(BRIDGE) / "resource").write_text("0x0 0x0 0x0\n" * 13 + "nonsense\n" * 4)


@pytest.mark.parametrize("break_it", [hide_config, lose_class, garble_windows])
def test_what_can_not_be_told_is_an_error(sysfs: Sysfs, break_it: Callable[[Sysfs], None]) -> None:
    add_pair(sysfs, [(0xE0000000, MIB)])
    break_it(sysfs)
    with pytest.raises(pci.SysfsError):
        bridges.bridges(has_no_driver, sysfs.root)


def test_a_function_that_is_gone_is_behind_nothing(sysfs: Sysfs) -> None:
    with pytest.raises(pci.SysfsError, match="is gone"):
        pci.way(CHILD, sysfs.root)


# ---- what the kernel is told ----


def rescan(sysfs: Sysfs) -> Path:
    return sysfs.root / "bus/pci/rescan"


def test_bridges_are_widened_by_their_registers_and_found_anew(sysfs: Sysfs) -> None:
    add_pair(sysfs, [(0xE0000000, MIB)])
    add_pair(sysfs, [], OTHER_PORT, OTHER_BRIDGE)
    before = (sysfs.folder(BRIDGE) / "config").read_bytes()
    bridges.widen(bridges.bridges(has_no_driver, sysfs.root), 256 * MIB, sysfs.root)
    for port, bridge in ((PORT, BRIDGE), (OTHER_PORT, OTHER_BRIDGE)):
        config = (sysfs.folder(bridge) / "config").read_bytes()
        base, limit, upper_base, upper_limit = struct.unpack_from("<HHII", config, 0x24)
        start, last = upper_base << 32 | base << 16, upper_limit << 32 | limit << 16 | 0xFFFFF
        assert last - start + 1 == 256 * MIB
        assert (config[:0x24], config[0x30:]) == (before[:0x24], before[0x30:])
        assert (sysfs.folder(port) / "remove").read_text() == "1"
        assert not (sysfs.folder(bridge) / "remove").exists()
    assert rescan(sysfs).read_text() == "1"


def test_what_went_by_itself_keeps_nothing_from_being_found_anew(sysfs: Sysfs) -> None:
    sysfs.add_bridge(PORT, [])
    bridges.find_anew([OTHER_PORT, PORT], sysfs.root)
    assert (sysfs.folder(PORT) / "remove").read_text() == "1"
    assert rescan(sysfs).read_text() == "1"


def test_a_kernel_that_lets_nobody_write_registers_is_an_error_and_nothing_goes(sysfs: Sysfs) -> None:
    add_pair(sysfs, [])
    found = bridges.bridges(has_no_driver, sysfs.root)
    (sysfs.folder(BRIDGE) / "config").unlink()
    with pytest.raises(pci.SysfsError, match="config can't be written"):
        bridges.widen(found, 256 * MIB, sysfs.root)
    assert not (sysfs.folder(PORT) / "remove").exists()
    assert not rescan(sysfs).exists()
