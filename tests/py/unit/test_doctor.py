# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the doctor finds: in a guest, by a tree of files like sysfs; on a host, by domains' XML."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kvmchand.admin import doctor, emulators, guest_findings, host_findings, prepare
from kvmchand.admin.doctor import Role
from kvmchand.admin.findings import Finding, Grade, Kind
from kvmchand.admin.shown import Shown
from kvmchand.config import LinkSettings, Settings
from kvmchand.errors import InvalidArgument, TimedOut, Unreachable, VchanError
from kvmchand.ids import DomainId, Size
from kvmchand.linux import bridges, pci
from kvmchand.services.libvirt import machine_xml
from kvmchand.services.vfio import windows
from kvmchand.services.vfio.opener import UNCOVERED
from kvmchand.wire.client import DeviceInfo, DomainInfo, Listing
from rig.domain_xml import Q35, READY, VIRT, direct
from rig.paths import ROOT

MEMORY, UNSET = 0x0014220C, 0x20000000
"""Flags of a 64-bit prefetchable range, and of one without an address."""
MIB = 1 << 20
BRIDGE, DEVICE, CONTROL = "0000:02:00.0", "0000:03:01.0", "0000:03:1f.0"
SETTINGS = Settings()
WINDOWS = (0xFD000000, 0xFE000000)
"""Where those of the bridge start: for registers, and for memory."""


def range_line(start: int, size: int, flags: int = MEMORY) -> str:
    return f"{start:#018x} {start + size - 1 if size else 0:#018x} {flags if size else 0:#018x}"


class Machine:
    """The files of a guest's machine.

    It is in order when made, with the control device and another one behind a bridge.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sys = root / "sys"
        self.devices = 0
        for module in ("vfio", "vfio_pci", "vfio_iommu_type1"):
            (self.sys / "module" / module).mkdir(parents=True)
        self.write("dev/vfio/vfio")
        self.write("proc/cmdline", "quiet intel_iommu=on\n")
        self.write("sys/firmware/acpi/tables/DMAR")
        self.add(BRIDGE, (0x1B36, 0x000E), driver="", group="3", windows=(2 * MIB, 4 * MIB))
        self.add(DEVICE, above=BRIDGE)
        self.add(CONTROL, above=BRIDGE, group="5", bars=(4096, 4096, 128 << 10))

    def write(self, path: str, text: str = "") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def add(
        self,
        address: str,
        numbers: tuple[int, int] = windows.IVSHMEM,
        *,
        above: str = "",
        revision: int = 1,
        driver: str = "vfio-pci",
        group: str = "4",
        bars: tuple[int, ...] = (4096, 4096, MIB),
        windows: tuple[int, ...] = (),
    ) -> Path:
        parent = (self.sys / "bus/pci/devices" / above).resolve() if above else self.sys / "devices/pci0000:00"
        folder = parent / address
        folder.mkdir(parents=True)
        link = self.sys / "bus/pci/devices" / address
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)
        for name, number in (("vendor", numbers[0]), ("device", numbers[1]), ("revision", revision)):
            (folder / name).write_text(f"{number:#06x}\n")
        self.devices += 1
        starts = (
            WINDOWS[0] + 0x2000 * self.devices,
            WINDOWS[0] + 0x2000 * self.devices + 0x1000,
            WINDOWS[1] + MIB * self.devices,
        )
        lines = [range_line(start, size) for start, size in zip(starts, bars, strict=True)]
        lines += [range_line(0, 0)] * (7 - len(lines))
        if windows:
            lines = [*[range_line(0, 0)] * 6, range_line(0xC0000, 0x10000)]  # a ROM
            lines += [range_line(0, 0)] * 6  # of virtual functions
            lines += [range_line(0x1000, 0x1000, 0x101)]
            lines += [*(range_line(start, size) for start, size in zip(WINDOWS, windows, strict=True)), range_line(0, 0)]
        (folder / "resource").write_text("\n".join(lines) + "\n")
        (folder / "class").write_text("0x060400\n" if windows else "0x050000\n")
        if windows:
            (folder / "config").write_bytes(bytes(256))  # without capabilities: it leads to conventional PCI
        if driver:
            self.drive(address, driver)
        if group:
            members = self.sys / "kernel/iommu_groups" / group / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(folder)
            (folder / "iommu_group").symlink_to(members.parent)
        return folder

    def drive(self, address: str, driver: str) -> None:
        link = self.folder(address) / "driver"
        link.unlink(missing_ok=True)
        if driver:
            (self.sys / "bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.sys / "bus/pci/drivers" / driver)

    def folder(self, address: str) -> Path:
        return self.sys / "bus/pci/devices" / address

    def without(self, path: str) -> None:
        """Takes a file or a folder away."""
        gone = self.root / path
        if gone.is_dir() and not gone.is_symlink():
            for each in gone.iterdir():
                self.without(str(each.relative_to(self.root)))
            gone.rmdir()
        else:
            gone.unlink()

    def without_devices(self) -> None:
        for each in (DEVICE, CONTROL):
            self.without(f"sys/bus/pci/devices/{each}")

    def findings(
        self, own: Listing | VchanError | None = None, host: Listing | VchanError | None = None, settings: Settings = SETTINGS
    ) -> list[Finding]:
        return list(doctor.examine(showing(own or shown(), host or OF_THE_HOST), settings, "", Role.GUEST, self.root))

    def bad(
        self, own: Listing | VchanError | None = None, host: Listing | VchanError | None = None, settings: Settings = SETTINGS
    ) -> list[Finding]:
        return [each for each in self.findings(own, host, settings) if each.is_bad]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def shown(*devices: tuple[str, int], speed: int = 3000) -> Listing:
    """A guest's own page, of the control device and these; else of the one that the machine has."""
    infos = tuple(DeviceInfo(address, Size(size), 64, Size(speed)) for address, size in devices or ((DEVICE, MIB),))
    return page(CONTROL_INFO, *infos)


def page(*devices: DeviceInfo) -> Listing:
    """What a guest's daemon shows by itself."""
    return Listing((), (), (), devices, (), following=Size(1 << 62))


CONTROL_INFO = DeviceInfo(CONTROL, Size(128 << 10), 1, Size(3000))
NOTHING_SHOWN = page()
OF_THE_HOST = Listing((DomainInfo(DomainId(7), "guest", "", ""),), (), (), (), (), following=Size(0))


def showing(*pages: Listing | VchanError) -> Shown:
    """A daemon that answers so."""

    def asked() -> Iterator[Listing]:
        for each in pages:
            if isinstance(each, VchanError):
                raise each
            yield each

    return Shown(asked())


def only(found: list[Finding], subject: str) -> str:
    """The one bad finding there is, which must be on this subject and say what to do."""
    (one,) = found
    assert one.subject == subject
    assert ":" in one.sentence, "it does not say what to do"
    return one.sentence


# ---- a guest in order ----


def test_a_guest_in_order(machine: Machine) -> None:
    assert [str(each) for each in machine.findings()] == [
        "ok    kvmchand guest: it answers",
        "ok    module: vfio_pci is there",
        "ok    module: vfio_iommu_type1 is there",
        "ok    vIOMMU: there is one, and the kernel uses it",
        "ok    link: the host's kvmchand answers, and 1 devices are here for channels",
        f"ok    device {DEVICE}: 1 MiB, 64 vectors; its memory is mapped write-back: 3000 MB/s read",
        f"ok    device {CONTROL}: 128 KiB, 1 vectors; its memory is mapped write-back: 3000 MB/s read",
        f"ok    bridge {BRIDGE}: it has windows of 2 MiB and 4 MiB, with room for a device of 2 MiB more",
    ]


def test_findings_are_there_before_the_host_has_answered(machine: Machine) -> None:
    daemon = showing(shown(), Unreachable("no kvmchand answers on the host"))
    found = doctor.examine(daemon, SETTINGS, "", Role.GUEST, machine.root)
    before = [next(found).subject for _ in range(4)]
    assert before == ["kvmchand guest", "module", "module", "vIOMMU"]
    assert not isinstance(daemon.whole(), Listing), "the host was asked already"


@pytest.mark.parametrize("speed", [0, 8, guest_findings.WRITE_BACK - 1])
def test_slow_memory_is_uncached(machine: Machine, speed: int) -> None:
    found = machine.findings(shown(speed=speed))
    (note,) = [each for each in found if each.grade is Grade.NOTE]
    assert f"uncached: {speed} MB/s" in note.sentence
    assert machine.bad(shown(speed=speed)) == []


def test_memory_is_write_back_from_the_limit_on(machine: Machine) -> None:
    assert all(each.grade is Grade.OK for each in machine.findings(shown(speed=guest_findings.WRITE_BACK)))


def test_a_device_on_the_root_complex_has_no_bridge(machine: Machine) -> None:
    address = "0000:00:10.0"
    machine.add(address, group="9", bars=(4096, 4096, 64 * MIB))
    found = machine.findings(shown((DEVICE, MIB), (address, 64 * MIB)))
    assert all(each.grade is Grade.OK for each in found)
    assert [each.subject for each in found if "bridge" in each.subject] == [f"bridge {BRIDGE}"]
    assert any(each.subject == f"device {address}" and "64 MiB" in each.sentence for each in found)


def test_each_device_has_its_own_findings(machine: Machine) -> None:
    machine.add("0000:03:02.0", above=BRIDGE, group="5")
    machine.add("0000:03:03.0", above=BRIDGE, group="6", driver="")
    found = machine.bad(shown((DEVICE, MIB), ("0000:03:02.0", MIB)))
    assert {each.subject for each in found} == {"device 0000:03:03.0"}


# ---- a guest that lacks something ----


def test_no_daemon(machine: Machine) -> None:
    found = machine.bad(Unreachable("no kvmchand answers: start it"))
    assert [each.subject for each in found] == ["kvmchand guest", f"device {DEVICE}", f"device {CONTROL}"]
    assert found[0].sentence == "no kvmchand answers: start it"


@pytest.mark.parametrize("module", ["vfio_pci", "vfio_iommu_type1"])
def test_a_module_that_is_absent(machine: Machine, module: str) -> None:
    machine.without(f"sys/module/{module}")
    assert f"modprobe {module}" in only(machine.bad(), "module")


def test_no_container_device(machine: Machine) -> None:
    machine.without("dev/vfio/vfio")
    assert "/dev/vfio/vfio" in only(machine.bad(), "VFIO")


def test_no_viommu_in_the_machine(machine: Machine) -> None:
    machine.without("sys/kernel/iommu_groups")
    machine.without("sys/firmware/acpi/tables/DMAR")
    said = only(machine.bad(), "vIOMMU")
    assert "prepare-domain" in said
    assert "intel_iommu=on" not in said, "it would be of no use"


@pytest.mark.parametrize("command_line", ["quiet", "intel_iommu=off", "", "intel_iommu=on intel_iommu=off"])
def test_a_viommu_that_the_kernel_is_not_told_to_use(machine: Machine, command_line: str) -> None:
    machine.without("sys/kernel/iommu_groups")
    machine.write("proc/cmdline", command_line)
    assert "put intel_iommu=on on its command line" in only(machine.bad(), "vIOMMU")


def test_a_viommu_that_the_kernel_does_not_use(machine: Machine) -> None:
    machine.without("sys/kernel/iommu_groups")
    said = only(machine.bad(), "vIOMMU")
    assert "dmesg" in said
    assert "put intel_iommu=on" not in said


def test_groups_that_vfio_made_itself_are_no_viommu(machine: Machine) -> None:
    for group in (machine.sys / "kernel/iommu_groups").iterdir():
        (group / "name").write_text("vfio-noiommu\n")
    (note,) = [each for each in machine.findings() if each.grade is not Grade.OK]
    assert (note.grade, note.subject) == (Grade.NOTE, "vIOMMU")
    assert "noiommu = true" in note.sentence


def test_no_iommu_mode_is_a_note(machine: Machine) -> None:
    machine.without("sys/kernel/iommu_groups")
    machine.write("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    assert machine.bad() == []
    machine.write("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n")
    assert [each.subject for each in machine.bad()] == ["vIOMMU"]


def test_a_device_without_an_address(machine: Machine) -> None:
    address = "0000:03:02.0"
    machine.add(address, above=BRIDGE, bars=(4096, 4096, 0))
    said = only(machine.bad(), f"device {address}")
    assert f"bridge {BRIDGE}" in said
    assert "--link-size" in said


def test_a_device_whose_doorbell_has_no_address(machine: Machine) -> None:
    machine.add("0000:03:02.0", above=BRIDGE, bars=(0, 4096, MIB))
    assert "doorbell" in only(machine.bad(), "device 0000:03:02.0")


def test_a_device_of_an_old_qemu(machine: Machine) -> None:
    machine.add("0000:03:02.0", above=BRIDGE, revision=0)
    assert "revision 0" in only(machine.bad(), "device 0000:03:02.0")


@pytest.mark.parametrize("driver", ["", "uio_pci_generic"])
def test_a_device_of_another_driver(machine: Machine, driver: str) -> None:
    machine.drive(DEVICE, driver)
    said = only(machine.bad(page(CONTROL_INFO, DeviceInfo("0000:03:02.0", Size(MIB), 64, Size(3000)))), f"device {DEVICE}")
    assert (driver or "no driver") in said
    assert "kvmchand guest" in said


@pytest.mark.parametrize(
    ("driver", "is_bad"), [("virtio-pci", True), ("nvme", True), ("", False), ("vfio-pci", False), ("pcieport", False)]
)
def test_a_group_with_another_in_it(machine: Machine, driver: str, is_bad: bool) -> None:
    machine.add("0000:03:02.0", (0x1AF4, 0x1041), above=BRIDGE, driver=driver)
    found = machine.bad()
    assert bool(found) == is_bad
    if is_bad:
        said = only(found, f"device {DEVICE}")
        assert "0000:03:02.0" in said
        assert driver in said


@pytest.mark.parametrize("group", ["", "noiommu"])
def test_a_device_that_the_viommu_does_not_cover(machine: Machine, group: str) -> None:
    address = "0000:03:02.0"
    machine.add(address, above=BRIDGE, group=group, driver="vfio-pci" if group else "")
    if group:
        machine.write(f"sys/kernel/iommu_groups/{group}/name", "vfio-noiommu\n")
    assert only(machine.bad(), f"device {address}") == UNCOVERED
    (viommu,) = [each for each in machine.findings() if each.kind is Kind.VIOMMU]
    assert str(viommu) == "ok    vIOMMU: there is one, and the kernel uses it"
    used = machine.bad(shown((DEVICE, MIB), (address, MIB)))
    assert not any(each.kind is Kind.GROUP for each in used), "with noiommu, kvmchand uses it"


def test_a_device_that_the_daemon_does_not_use(machine: Machine) -> None:
    link, device = machine.bad(page(CONTROL_INFO))
    assert link.kind is Kind.LINK
    assert "log" in only([device], f"device {DEVICE}")


def test_no_device(machine: Machine) -> None:
    machine.without_devices()
    assert "kvmchand host" in only(machine.bad(NOTHING_SHOWN), "devices")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Unreachable("the host's kvmchand refuses this one"), "the host's kvmchand refuses this one: "),
        (TimedOut("within 40 s"), "the host's kvmchand has not answered in 5 s: "),
    ],
)
def test_a_host_that_does_not_answer(machine: Machine, failure: VchanError, reason: str) -> None:
    said = only(machine.bad(host=failure), "link")
    assert said.startswith(reason)
    assert "is kvmchand host running there" in said


def test_what_an_earlier_daemon_left_is_a_note_once_the_link_works(machine: Machine) -> None:
    for number, size in ((2, MIB), (3, 128 << 10)):
        machine.add(f"0000:03:0{number}.0", above=BRIDGE, group=str(10 + number), bars=(4096, 4096, size))
    notes = [each for each in machine.findings() if each.grade is not Grade.OK]
    assert [(each.grade, each.kind, each.subject) for each in notes] == [
        (Grade.NOTE, Kind.LEFT, f"device 0000:03:0{number}.0") for number in (2, 3)
    ]
    assert all("an earlier kvmchand host left it" in each.sentence for each in notes)
    assert all("shut down" in each.sentence for each in notes)
    unlinked = machine.bad(host=Unreachable("no kvmchand answers on the host"))
    assert [each.kind for each in unlinked] == [Kind.LINK, Kind.UNUSED, Kind.UNUSED]


def test_a_device_without_an_address_is_bad_though_the_link_works(machine: Machine) -> None:
    machine.add("0000:03:02.0", above=BRIDGE, bars=(4096, 4096, 0))
    assert [each.kind for each in machine.bad()] == [Kind.ADDRESS]


def test_a_link_without_a_device_for_channels(machine: Machine) -> None:
    machine.without(f"sys/bus/pci/devices/{DEVICE}")
    said = only(machine.bad(page(CONTROL_INFO)), "link")
    assert "the control device is all that this guest has" in said
    assert "kvmchand host's log says why" in said


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ((128 << 10, 256 << 10), "no window for more than 256 KiB"),
        ((2048, 2048), "no window for one"),
    ],
)
def test_a_link_without_a_window_for_its_device(machine: Machine, windows: tuple[int, int], expected: str) -> None:
    for each in (DEVICE, BRIDGE):
        machine.without(f"sys/bus/pci/devices/{each}")
    machine.add("0000:02:01.0", (0x1B36, 0x000E), driver="", group="3", windows=windows)
    said = only(machine.bad(page(CONTROL_INFO)), "link")
    assert expected in said
    assert "kvmchan prepare-domain NAME --apply" in said


def test_a_link_whose_devices_come_with_channels(machine: Machine) -> None:
    machine.without(f"sys/bus/pci/devices/{DEVICE}")
    assert machine.bad(page(CONTROL_INFO), settings=Settings(links=LinkSettings(dedicated=True))) == []


def test_a_link_without_a_control_device_is_not_waited_for(machine: Machine) -> None:
    device = DeviceInfo(DEVICE, Size(128 << 10), 64, Size(3000))
    for own in (page(), page(device)):
        link, *_ = machine.bad(own, AssertionError("the host was asked"))  # type: ignore[arg-type]
        assert (link.kind, link.subject) == (Kind.LINK, "link")
        assert "no control device" in link.sentence


# ---- which side this is ----


SILENT = Unreachable("no kvmchand answers: start it")


def test_a_device_without_interrupts_is_somebody_else_s(machine: Machine) -> None:
    address = "0000:03:02.0"
    (machine.add(address, above=BRIDGE, driver="uio_ivshmem", group="9") / "config").write_bytes(bytes(256))
    assert machine.bad() == []
    machine.without_devices()
    assert doctor.role_of(SILENT, machine.root) is Role.HOST


@pytest.mark.parametrize("domain", ["", "run/libvirt/qemu/web.pid"])
def test_a_machine_with_a_device_is_a_guest(machine: Machine, domain: str) -> None:
    (machine.root / "run/libvirt/qemu").mkdir(parents=True)
    if domain:
        machine.write(domain)
    assert doctor.role_of(SILENT, machine.root) is Role.GUEST


@pytest.mark.parametrize(
    ("files", "role"),
    [
        ((), Role.HOST),
        (("run/libvirt/libvirt-sock",), Role.HOST),
        (("QEMU",), Role.GUEST),
        (("QEMU", "run/libvirt/libvirt-sock", "run/libvirt/qemu/autostarted"), Role.GUEST),
        (("QEMU", "run/libvirt/qemu/web.pid"), Role.HOST),
        (("Red Hat",), Role.HOST),
        (("Red Hat", "sys/bus/acpi/devices/QEMU0002:00/hid"), Role.GUEST),
        (("Dell Inc.",), Role.HOST),
    ],
)
def test_a_machine_without_devices_or_a_daemon(machine: Machine, files: tuple[str, ...], role: Role) -> None:
    machine.without_devices()
    for each in files:
        if "/" in each:
            machine.write(each)
        else:
            machine.write("sys/class/dmi/id/sys_vendor", each + "\n")
    assert doctor.role_of(SILENT, machine.root) is role


def test_a_daemon_that_answers_knows_its_side(machine: Machine) -> None:
    assert doctor.role_of(OF_THE_HOST, machine.root) is Role.HOST
    machine.without_devices()
    machine.write("run/libvirt/qemu/web.pid")
    assert doctor.role_of(NOTHING_SHOWN, machine.root) is Role.GUEST


# ---- what scripts read ----


def test_documents_name_each_kind_of_finding() -> None:
    text = (ROOT / "docs" / "guests.md").read_text()
    _, _, table = text.partition("| kind |")
    rows = [row.split("|")[1] for row in table.partition("\n\n")[0].splitlines()[2:]]
    assert sorted(name for row in rows for name in re.findall("`(.*?)`", row)) == sorted(each.value for each in Kind)


# ---- a sysfs that says what can't be ----


def test_nothing_at_all_is_there(tmp_path: Path) -> None:
    found = doctor.examine(showing(NOTHING_SHOWN), SETTINGS, "", Role.GUEST, tmp_path)
    assert [each.subject for each in found if each.is_bad] == ["module", "module", "VFIO", "vIOMMU", "devices"]


@pytest.mark.parametrize("file", ["vendor", "device", "revision", "resource"])
@pytest.mark.parametrize("text", [None, "", "no number\n", "0x\n", "0xfffffffff 0x0\n", "\0\n"])
def test_a_function_that_can_not_be_read_is_left_out(machine: Machine, file: str, text: str | None) -> None:
    address = "0000:03:02.0"
    folder = machine.add(address, (0x1AF4, 0x1041), above=BRIDGE)  # it shares the device's group
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    assert machine.bad() == []


def test_a_bridge_that_can_not_be_read_is_a_note(machine: Machine) -> None:
    (machine.folder(BRIDGE) / "resource").write_text("nonsense\n" * 17)
    found = machine.findings()
    assert [each.grade for each in found if each.subject == f"bridge {BRIDGE}"] == [Grade.NOTE]
    assert machine.bad() == []


def test_what_is_no_function_is_left_out(machine: Machine) -> None:
    (machine.sys / "bus/pci/devices/nonsense").mkdir()
    (machine.sys / "bus/pci/devices/0000:09:00.0").symlink_to(machine.sys / "nowhere")
    assert machine.bad() == []


def test_a_bridge_s_windows_are_its_ranges_of_memory(machine: Machine) -> None:
    assert [window.size for window in pci.windows(BRIDGE, machine.sys)] == [2 * MIB, 4 * MIB]
    assert pci.windows(DEVICE, machine.sys) == ()
    path = machine.folder(BRIDGE) / "resource"
    path.write_text(path.read_text().replace(range_line(WINDOWS[0], 2 * MIB), range_line(0, 2 * MIB, MEMORY | UNSET)))
    assert [window.size for window in pci.windows(BRIDGE, machine.sys)] == [4 * MIB]


def test_on_arm64_nothing_is_said_of_ports_which_take_one_device(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridges, "ON_PORTS", True)
    assert [each.subject for each in machine.findings() if each.subject.startswith("bridge")] == []


def test_a_bridge_whose_windows_are_full_is_a_note(machine: Machine) -> None:
    path = machine.folder(BRIDGE) / "resource"
    path.write_text(
        path.read_text()
        .replace(range_line(WINDOWS[1], 4 * MIB), range_line(WINDOWS[1] + 2 * MIB, MIB))
        .replace(range_line(WINDOWS[0], 2 * MIB), range_line(0, 0))
    )
    (note,) = [each for each in machine.findings() if each.grade is not Grade.OK]
    assert (note.grade, note.subject) == (Grade.NOTE, f"bridge {BRIDGE}")
    assert "no room" in note.sentence


@pytest.mark.parametrize(
    ("start", "size", "taken", "largest"),
    [
        (0x10000, 0x10000, [], 0x10000),
        (0x18000, 0x10000, [], 0x8000),
        (0x10000, 0x18000, [], 0x10000),
        (0x10000, 0x10000, [(0x10000, 0x1000)], 0x8000),
        (0x10000, 0x10000, [(0x1F000, 0x1000)], 0x8000),
        (0x10000, 0x10000, [(0x17000, 0x1000)], 0x8000),
        (0x10000, 0x10000, [(0x17000, 0x2000)], 0x4000),
        (0x10000, 0x10000, [(0x18000, 0x1000), (0x14000, 0x1000)], 0x4000),
        (0x10000, 0x10000, [(0x10000, 0x10000)], 0),
        (0x10000, 0x10000, [(0x10000, 0x8000), (0x18000, 0x8000)], 0),
        (0x10000, 0x10000, [(0x0F000, 0x1000), (0x20000, 0x1000), (0, 0)], 0x10000),
        (0x10000, 0x10000, [(0x10000, 0x8000), (0x30000, 0x1000)], 0x8000),
        (0x10000, 0x10000, [(0x10000, 0xC000), (0x11000, 0x1000)], 0x4000),
        (0x10000, 0, [], 0),
    ],
)
def test_the_largest_range_that_is_free(start: int, size: int, taken: list[tuple[int, int]], largest: int) -> None:
    assert pci.largest_fit(pci.Bar(start, size), [pci.Bar(*each) for each in taken]) == largest


# ---- a host's domains ----


def findings_of(live: str, kept: str = "", *, is_linked: bool = False) -> Iterator[Finding]:
    return host_findings.machine("domain 3 (web)", "web", live, kept, is_linked=is_linked)


def told(live: str, kept: str = "", *, is_linked: bool = False) -> str:
    """What the one finding says that is not well."""
    (one,) = [each for each in findings_of(live, kept, is_linked=is_linked) if each.grade is not Grade.OK]
    assert one.grade is (Grade.NOTE if is_linked else Grade.BAD)
    return one.sentence


PREPARED = direct("intel_iommu=on")


def test_a_prepared_domain_is_well() -> None:
    (one,) = findings_of(PREPARED, PREPARED)
    assert str(one) == (
        "ok    domain 3 (web): its machine has all that vchans need, 0 devices of ours and 62 free slots for more"
    )


def test_a_domain_without_kvm_is_a_note_with_the_remedy() -> None:
    note, well = findings_of(PREPARED.replace("<domain type='kvm'>", "<domain type='qemu'>"))
    assert (note.grade, well.grade) == (Grade.NOTE, Grade.OK)
    assert "keeps each device that it was given until it ends" in note.sentence
    assert "put type='kvm' into its XML" in note.sentence


def test_devices_of_ours_are_counted_and_their_slots_are_taken() -> None:
    devices = "".join(
        f"<shmem name='{name}'><address type='pci' bus='0x{bus:02x}' slot='0x{slot:02x}'/></shmem>"
        for name, bus, slot in (("kvmchan-1", 2, 1), ("kvmchan-start-65536", 0, 16), ("another", 4, 31))
    )
    (one,) = findings_of(PREPARED.replace("</devices>", devices + "</devices>"))
    assert "2 devices of ours and 60 free slots" in one.sentence


def test_a_domain_that_is_not_prepared() -> None:
    plain = direct("", Q35)
    said = told(plain, plain)
    assert "vIOMMU" in said
    assert "bridge" in said
    assert "kvmchan prepare-domain web --apply" in said


def test_a_domain_that_was_prepared_while_it_ran() -> None:
    plain = direct("", Q35)
    said = told(plain, prepare.prepare(plain).after)
    assert "shut down and started" in said
    assert "prepare-domain" not in said


def test_a_transient_domain_that_is_not_prepared() -> None:
    said = told(direct("", Q35))
    assert "the XML that it is made from" in said
    assert "prepare-domain" not in said


def test_what_a_linked_domain_lacks_is_a_note() -> None:
    assert "bridge" in told(direct("", Q35), direct("", Q35), is_linked=True)
    assert "i440fx" in told(Q35.replace("q35", "i440fx"), is_linked=True)


def test_a_machine_that_can_not_be_prepared() -> None:
    said = told(Q35.replace("q35", "i440fx"), Q35.replace("q35", "i440fx"))
    assert "i440fx" in said
    assert "--apply" not in said


def test_the_guest_s_kernel_is_named_until_the_guest_is_linked() -> None:
    assert [each.grade for each in findings_of(READY, READY)] == [Grade.NOTE, Grade.OK]
    assert [each.grade for each in findings_of(READY, READY, is_linked=True)] == [Grade.OK]


def full(buses: tuple[int, ...], slots: range = range(1, 32)) -> str:
    devices = "".join(
        f"<hostdev><address type='pci' domain='0x0000' bus='{bus:#04x}' slot='{slot:#04x}' function='0x0'/></hostdev>"
        for bus in buses
        for slot in slots
    )
    return PREPARED.replace("</devices>", devices + "</devices>")


def test_bridges_without_a_free_slot() -> None:
    assert "no free slot" in told(full((2, 4)), is_linked=False)
    (one,) = findings_of(full((2, 4)), is_linked=True)
    assert one.is_bad


@pytest.mark.parametrize(
    ("xml", "free"),
    [
        (PREPARED, 62),
        (full((2,)), 31),
        (full((2, 4), range(1, 31)), 2),
        (full((0, 1)), 62),
        (Q35, None),
        (PREPARED.replace("</devices>", "<x><address type='pci' bus='x' slot='1'/></x></devices>"), 62),
        (PREPARED.replace("</devices>", "<x><address type='drive' bus='2' slot='1'/></x></devices>"), 62),
        (PREPARED.replace("</devices>", "<x><address type='pci'/></x></devices>"), 62),
        (VIRT.replace("</interface>", "</interface><controller type='pci' index='2' model='pcie-root-port'/>"), 1),
    ],
    ids=["none", "one full", "nearly full", "other buses", "no bridge", "no number", "no PCI", "no bus", "arm64"],
)
def test_free_slots(xml: str, free: int | None) -> None:
    assert host_findings.free_slots(ElementTree.fromstring(xml)) == free


def test_a_domain_that_is_not_served_is_bad_if_the_settings_want_it() -> None:
    plain = direct("", Q35)
    for serve in ("prepared", "all", ("web",)):
        found = host_findings.refusal("domain 3 (web)", "web", plain, serve, is_persistent=True)
        assert found is not None
        assert (found.grade, found.subject) == (Grade.BAD, "domain 3 (web)")
        reason = machine_xml.refusal("web", machine_xml.fitness(ElementTree.fromstring(plain), is_persistent=True), serve)
        assert found.sentence == f"it is not served: {reason}"
    unwanted = host_findings.refusal("domain 3 (web)", "web", plain, ("db",), is_persistent=True)
    assert unwanted is not None
    assert unwanted.grade is Grade.NOTE


def test_nothing_is_said_of_a_domain_that_is_served() -> None:
    for serve in ("prepared", "all", ("web",)):
        assert host_findings.refusal("domain 3 (web)", "web", PREPARED, serve, is_persistent=True) is None


def test_what_libvirt_says_of_a_domain_that_is_no_xml_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no XML"):
        host_findings.refusal("domain 3 (web)", "web", "<domain>", "prepared", is_persistent=True)


# ---- a host's emulators ----

OF_QEMU = 'Misc devices:\nname "edu", bus PCI\nname "ivshmem-doorbell", bus PCI, desc "Inter-VM shared memory"\n'
WITHOUT_DOORBELL = OF_QEMU.replace("ivshmem-doorbell", "ivshmem-plain")


def emulator(folder: Path, script: str) -> str:
    """A program that is asked in place of QEMU."""
    path = folder / "emulator"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def saying(folder: Path, text: str) -> str:
    return emulator(folder, f'[ "$*" = "-device help" ] || exit 1\ncat <<"END"\n{text}END')


def test_an_emulator_that_has_the_device(tmp_path: Path) -> None:
    path = saying(tmp_path, OF_QEMU)
    assert str(emulators.finding(path)) == f"ok    emulator {path}: it has ivshmem-doorbell"


def test_an_emulator_that_is_built_without_the_device(tmp_path: Path) -> None:
    path = saying(tmp_path, WITHOUT_DOORBELL)
    said = only([emulators.finding(path)], f"emulator {path}")
    assert "built without ivshmem-doorbell" in said
    assert "install a QEMU that has it" in said


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 3", "names no devices when it is asked (status 3)"),
        ("echo nonsense", "names no devices when it is asked (status 0)"),
        ("exec yes 'name \"edu\"'", "more than 1048576 bytes"),
        ("sleep infinity & wait", "has not said in 0 s"),
    ],
    ids=["failing", "no QEMU", "endless", "silent"],
)
def test_an_emulator_that_does_not_answer_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    if "sleep" in script:
        monkeypatch.setattr(emulators, "DEADLINE", 0.1)
    found = emulators.finding(emulator(tmp_path, script))
    assert found.grade is Grade.NOTE
    assert expected in found.sentence
    assert ":" in found.sentence


def test_an_emulator_that_can_not_be_run_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    for path in (tmp_path / "none", tmp_path, tmp_path / "text"):
        found = emulators.finding(str(path))
        assert found.grade is Grade.NOTE
        assert "is it installed?" in found.sentence


def test_emulators_are_those_of_the_domains() -> None:
    one, other = (
        READY.replace("</devices>", "<emulator>/one</emulator></devices>"),
        Q35.replace("<devices>", "<devices><emulator/>"),
    )
    assert emulators.of_domains([one, other, one, "<domain>"]) == {"/one"}
    capabilities = "<capabilities><guest><arch name='{}'><emulator>/{}</emulator></arch></guest></capabilities>"
    assert emulators.of_libvirt(capabilities.format("x86_64", "intel")) == {"/intel"}
    assert emulators.of_libvirt(capabilities.format("aarch64", "arm")) == set()
    assert emulators.of_libvirt("<capabilities/>") == set()


def test_a_libvirt_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_findings, "PATIENCE", 0.1)
    uri = f"qemu+unix:///system?socket={tmp_path}/libvirt"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/libvirt")
        silent.listen()
        said = only(list(host_findings.host(NOTHING_SHOWN, uri, SETTINGS.guests.serve)), "libvirt")
    assert said == f"{uri} has not answered in 0 s: is libvirtd stopped? its log may say more"


def test_a_failure_of_the_daemon_is_the_first_finding(tmp_path: Path) -> None:
    first, *_ = doctor.examine(showing(Unreachable("nothing there: start it")), SETTINGS, "test:///nowhere", Role.HOST, tmp_path)
    assert str(first) == "bad   kvmchand host: nothing there: start it"
