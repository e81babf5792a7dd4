# SPDX-License-Identifier: LGPL-2.1-or-later
"""PCI functions as a sysfs on disk shows them, good and bad, and what the kernel's events say."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmchand.linux import pci
from kvmchand.linux.pci import Bar, Event, Function, SysfsError
from rig.sysfs import ADDRESS, RESOURCES, Sysfs

OTHER = "0000:00:03.0"
NONE = Bar(0, 0)


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


# ---- functions ----


def test_a_function_is_what_its_files_say(sysfs: Sysfs) -> None:
    sysfs.add(group="7", driver="vfio-pci")
    bars = (Bar(0xFE800000, 0x100), Bar(0xFE801000, 0x1000), Bar(0xFC00000000, 0x100000), NONE, NONE, NONE)
    assert pci.function(ADDRESS, sysfs.root) == Function(ADDRESS, 0x1AF4, 0x1110, 1, "vfio-pci", "7", bars)


def test_a_function_may_have_no_driver_and_no_group(sysfs: Sysfs) -> None:
    sysfs.add()
    seen = pci.function(ADDRESS, sysfs.root)
    assert (seen.driver, seen.group) == ("", "")


@pytest.mark.parametrize("flags", ["0x0000000000000000", "0x000000002014220c"], ids=["none", "without an address"])
def test_a_bar_that_got_no_address_has_no_size(sysfs: Sysfs, flags: str) -> None:
    lines = RESOURCES.splitlines()
    lines[2] = f"0x0000000000000000 0x00000000000fffff {flags}"
    (sysfs.add() / "resource").write_text("\n".join(lines))
    assert pci.function(ADDRESS, sysfs.root).bars[2].size == 0


@pytest.mark.parametrize("name", ["vendor", "device", "revision", "resource"])
def test_a_function_that_lacks_a_file_can_not_be_judged(sysfs: Sysfs, name: str) -> None:
    (sysfs.add() / name).unlink()
    with pytest.raises(SysfsError, match=name):
        pci.function(ADDRESS, sysfs.root)


@pytest.mark.parametrize("name", ["vendor", "device", "revision"])
@pytest.mark.parametrize("text", ["", "0x\n", "six", "0x1af4 0x1af4", "\0", "\xff"])
def test_a_garbled_number_is_an_error(sysfs: Sysfs, name: str, text: str) -> None:
    (sysfs.add() / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(SysfsError, match=name):
        pci.function(ADDRESS, sysfs.root)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0x0 0xfff\n", id="two words"),
        pytest.param("0x0 0xfff 0x200 0x0\n", id="four words"),
        pytest.param("\n", id="an empty line"),
        pytest.param("0x0 0xzzz 0x200\n", id="no number"),
        pytest.param("0x2000 0x1000 0x200\n", id="an end before the start"),
        pytest.param("-0x1 0x1000 0x200\n", id="a negative start"),
        pytest.param("\xff\xfe", id="no text"),
    ],
)
def test_garbled_resources_are_an_error(sysfs: Sysfs, text: str) -> None:
    (sysfs.add() / "resource").write_bytes(text.encode("latin-1"))
    with pytest.raises(SysfsError, match="resource"):
        pci.function(ADDRESS, sysfs.root)


def test_resources_may_end_early(sysfs: Sysfs) -> None:
    (sysfs.add() / "resource").write_text("".join(RESOURCES.splitlines(keepends=True)[:1]))
    assert pci.function(ADDRESS, sysfs.root).bars == (Bar(0xFE800000, 0x100),)


@pytest.mark.parametrize("address", ["", "../../../etc", "0000:04:01", "0000:04:01.8", "04:01.0", f"{ADDRESS}\n", "x" * 5000])
def test_what_is_no_address_is_not_looked_for(sysfs: Sysfs, address: str) -> None:
    with pytest.raises(SysfsError, match="no PCI address"):
        pci.function(address, sysfs.root)


def test_addresses_are_all_that_are_there(sysfs: Sysfs) -> None:
    sysfs.add(ADDRESS)
    sysfs.add(OTHER)
    assert pci.addresses(sysfs.root) == [OTHER, ADDRESS]


def test_a_machine_without_pci_says_so(tmp_path: Path) -> None:
    with pytest.raises(SysfsError, match="no PCI devices"):
        pci.addresses(tmp_path)


def test_a_group_has_its_members(sysfs: Sysfs) -> None:
    sysfs.add(ADDRESS, group="7")
    sysfs.add(OTHER, group="7")
    assert pci.group_members("7", sysfs.root) == [OTHER, ADDRESS]
    assert pci.group_members("8", sysfs.root) == []


def test_a_group_that_vfio_made_is_told_from_an_iommus(sysfs: Sysfs) -> None:
    sysfs.add(ADDRESS, group="7")
    sysfs.add(OTHER, group="8")
    (sysfs.root / "kernel/iommu_groups/8/name").write_text("vfio-noiommu\n")
    assert not pci.is_noiommu("7", sysfs.root)
    assert pci.is_noiommu("8", sysfs.root)


def test_an_iommu_is_there_if_a_group_is_its(sysfs: Sysfs) -> None:
    assert not pci.has_iommu(sysfs.root)
    sysfs.add(OTHER, group="8")
    (sysfs.root / "kernel/iommu_groups/8/name").write_text("vfio-noiommu\n")
    assert not pci.has_iommu(sysfs.root)
    sysfs.add(ADDRESS, group="7")
    assert pci.has_iommu(sysfs.root)


# ---- drivers ----


class Kernel:
    """Notes what is written to sysfs, and does what the kernel would."""

    def __init__(self, sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
        self._sysfs = sysfs
        self.said: list[tuple[str, str]] = []
        self.takes = True
        monkeypatch.setattr(pci, "_write", self._write)

    def _write(self, path: Path, text: str) -> None:
        self.said.append((path.name, text))
        match path.name:
            case "unbind":
                (self._sysfs.folder(text) / "driver").unlink()
            case "drivers_probe" if self.takes:
                self._sysfs.give(text, self.said[0][1])


@pytest.fixture
def kernel(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(sysfs, monkeypatch)


def test_a_driver_is_named_before_the_one_before_lets_go_and_the_kernel_looks_for_one(sysfs: Sysfs, kernel: Kernel) -> None:
    sysfs.add(driver="uio")
    pci.bind(ADDRESS, "vfio-pci", sysfs.root)
    assert kernel.said == [("driver_override", "vfio-pci"), ("unbind", ADDRESS), ("drivers_probe", ADDRESS)]
    assert pci.function(ADDRESS, sysfs.root).driver == "vfio-pci"


def test_nobody_is_asked_to_let_go_of_a_function_without_a_driver(sysfs: Sysfs, kernel: Kernel) -> None:
    sysfs.add()
    pci.bind(ADDRESS, "vfio-pci", sysfs.root)
    assert kernel.said == [("driver_override", "vfio-pci"), ("drivers_probe", ADDRESS)]


def test_a_driver_that_has_the_function_is_not_asked_again(sysfs: Sysfs, kernel: Kernel) -> None:
    sysfs.add(driver="vfio-pci")
    pci.bind(ADDRESS, "vfio-pci", sysfs.root)
    assert kernel.said == []


def test_a_driver_that_does_not_take_the_function_is_an_error(sysfs: Sysfs, kernel: Kernel) -> None:
    sysfs.add()
    kernel.takes = False
    with pytest.raises(SysfsError, match=f"{ADDRESS} can't be given to vfio-pci"):
        pci.bind(ADDRESS, "vfio-pci", sysfs.root)


def test_a_function_that_is_gone_can_not_be_given_to_a_driver(sysfs: Sysfs) -> None:
    with pytest.raises(SysfsError, match="driver_override can't be written: No such file or directory"):
        pci.bind(ADDRESS, "vfio-pci", sysfs.root)


def test_a_function_is_removed_and_all_are_looked_for_again(sysfs: Sysfs) -> None:
    folder = sysfs.add()
    pci.remove(ADDRESS, sysfs.root)
    assert (folder / "remove").read_text() == "1"
    pci.rescan(sysfs.root)
    assert (sysfs.root / "bus/pci/rescan").read_text() == "1"


# ---- events ----


def uevent(action: str = "add", address: str = ADDRESS, subsystem: str = "pci") -> bytes:
    path = f"/devices/pci0000:00/{address}"
    fields = [f"{action}@{path}", f"ACTION={action}", f"DEVPATH={path}", f"SUBSYSTEM={subsystem}", f"PCI_SLOT_NAME={address}"]
    return "\0".join([*fields, "SEQNUM=1234", ""]).encode()


@pytest.mark.parametrize("action", ["add", "bind", "remove"])
def test_an_event_names_what_happened_to_which_function(action: str) -> None:
    assert pci.parse_event(uevent(action)) == Event(action, ADDRESS)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0" * 100, id="zeros"),
        pytest.param(uevent("change"), id="an action that is nothing to us"),
        pytest.param(uevent(subsystem="net"), id="another subsystem"),
        pytest.param(uevent(address="../../x"), id="no address"),
        pytest.param(uevent(address=""), id="an empty address"),
        pytest.param(uevent().partition(b"\0")[2], id="no head"),
        pytest.param(uevent().replace(b"PCI_SLOT_NAME", b"PCI_SLOT"), id="no slot"),
        pytest.param(uevent().replace(b"ACTION=add", b"ACTION=\xff"), id="no text"),
        pytest.param(b"libudev\0" + uevent().partition(b"\0")[2], id="udev's own"),
    ],
)
def test_what_is_no_event_of_a_function_says_nothing(data: bytes) -> None:
    assert pci.parse_event(data) is None


def test_a_truncated_event_is_none_or_the_whole() -> None:
    whole = uevent()
    seen = {pci.parse_event(whole[:length]) for length in range(len(whole))}
    assert seen == {None, Event("add", ADDRESS)}


def test_no_bytes_raise() -> None:
    chance = random.Random(3)
    for _ in range(5000):
        data = bytearray(uevent())
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(data))
            data[at : at + chance.randint(0, 4)] = chance.randbytes(chance.randint(0, 4))
        event = pci.parse_event(bytes(data))
        assert event is None or (event.action in ("add", "bind", "remove") and pci._ADDRESS.fullmatch(event.address))


@pytest.fixture
def events() -> Iterator[pci.Events]:
    made = pci.Events()
    yield made
    made.close()


def test_waiting_events_are_dropped(events: pci.Events) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, events.sock.proto) as sender:
        try:
            for _ in range(3):
                sender.sendto(uevent(), (events.sock.getsockname()[0], 0))
        except PermissionError:
            pytest.skip("only root may send such events")
    events.drop()
    with pytest.raises(BlockingIOError):
        events.sock.recv(1)


def test_an_event_that_another_process_sends_is_not_believed(events: pci.Events) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, events.sock.proto) as liar:
        try:
            liar.sendto(uevent(), (events.sock.getsockname()[0], 0))
        except PermissionError:
            pytest.skip("only root may send such events")
        assert events.take() is None
        with pytest.raises(BlockingIOError):
            events.sock.recv(1)  # it had come


def test_no_event_is_waited_for(events: pci.Events) -> None:
    assert not os.get_blocking(events.sock.fileno())
    assert events.take() is None


# ---- capabilities ----


def config(*capabilities: tuple[int, int, int], has_list: bool = True) -> bytes:
    """A configuration space with capabilities: where each is, its id, and where the next is."""
    data = bytearray(256)
    data[6] = 0x10 if has_list else 0
    data[0x34] = capabilities[0][0] if capabilities else 0
    for at, number, following in capabilities:
        data[at : at + 2] = bytes([number, following])
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "has"),
    [
        (config((0x40, 0x05, 0x50), (0x50, 0x11, 0)), True),
        (config((0x40, 0x05, 0x50), (0x50, 0x10, 0)), False),
        (config((0x40, 0x11, 0), has_list=False), False),
        (config(), False),
        (config((0x40, 0x05, 0x50), (0x50, 0x05, 0x40)), False),  # for ever
        (config((0x40, 0x11, 0))[:64], True),  # all that one who is not root may read
        (b"", True),
    ],
)
def test_a_function_has_interrupts_of_its_own_if_it_says_so(sysfs: Sysfs, data: bytes, has: bool) -> None:
    folder = sysfs.add()
    assert pci.function(ADDRESS, sysfs.root).has_msix
    (folder / "config").write_bytes(data)
    assert pci.function(ADDRESS, sysfs.root).has_msix == has
