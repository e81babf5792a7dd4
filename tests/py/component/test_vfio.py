# SPDX-License-Identifier: LGPL-2.1-or-later
"""The vfio process's driver on a kernel that may lack anything: what it says is missing, and what
it waits for.

The kernel's part, the functions of kvmchand.linux.vfio and pci, is made up; a device's registers
and memory are a file.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvmchand.errors import VchanError
from kvmchand.ids import Size
from kvmchand.linux import bridges, pci, vfio
from kvmchand.linux.bridges import Bridge
from kvmchand.linux.pci import Bar, Function, SysfsError
from kvmchand.linux.vfio import Region
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.marker import Marker
from kvmchand.services.vfio import functions as mains
from kvmchand.services.vfio import process as service
from kvmchand.services.vfio.opener import UNCOVERED
from kvmchand.wire import control
from kvmchand.wire import vfio as wire
from kvmchand.wire.packet import Fds, receive_packet, send_packet
from rig.processes import next_fd

ADDRESS = "0000:04:01.0"
STRANGER = "0000:04:02.0"
THIRD = "0000:04:03.0"
FOURTH = "0000:04:04.0"
PORT, PLACE = "0000:00:02.0", "02.0/00.0"
IVPOSITION, COMMAND = 8, 4
PEER, VECTORS = 5, 4
BAR0 = Region(4096, 0, True)
BAR2 = Region(4096, 4096, True)
CONFIG = Region(4096, 8192, False)
IVSHMEM = Function(ADDRESS, 0x1AF4, 0x1110, 1, "", "7", (Bar(0xFE800000, 0x100), Bar(0xFE801000, 0x1000), Bar(1 << 40, 4096)))


CONTROL_PEER = 1


def refuse(number: int) -> Callable[..., int]:
    """A call that fails."""

    def call(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


class Kernel:
    """With one ivshmem function, in group 7, that VFIO can drive.

    Tests change what they are about.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.functions = {ADDRESS: IVSHMEM}
        self.noiommu_groups: set[str] = set()
        self.drivers = {"vfio-pci"}
        self.has_iommu = False
        """There is a vIOMMU, though it may not cover our function."""
        self.busy = 0
        """How many more times the group is open elsewhere."""
        self.kinds: list[int] = []
        """Of the IOMMUs that containers were set to."""
        self.opened: list[str] = []
        """Names of groups, in /dev/vfio."""
        self.regions = {vfio.BAR0: BAR0, vfio.BAR2: BAR2, vfio.CONFIG: CONFIG}
        self.vectors = VECTORS
        self.room = VECTORS
        """Interrupts that the machine has left; negative: and it says ENOSPC where it has too few.
        """
        self.removed: set[str] = set()
        self.rescanned = threading.Event()
        self.after_rescan: Function | None = None
        """What the function is then, if that is another."""
        self.memory = os.memfd_create("device")
        os.ftruncate(self.memory, 3 * 4096)
        os.pwrite(self.memory, struct.pack("<i", PEER), IVPOSITION)
        for name in (
            "addresses",
            "function",
            "group_members",
            "bind",
            "is_noiommu",
            "has_iommu",
            "has_driver",
            "remove",
            "rescan",
        ):
            monkeypatch.setattr(pci, name, getattr(self, f"_{name}"))
        self.ages: dict[str, int] = {}
        """Of control devices, by their addresses."""
        self.bridges: list[Bridge] | None = []
        """The bridge that all functions are behind, or what can't be told."""
        monkeypatch.setattr(bridges, "bridges", self._bridges)
        monkeypatch.setattr(pci, "way", lambda address: [PORT, address])
        for name in ("open_group", "open_container", "set_iommu", "open_device", "set_irqs"):
            monkeypatch.setattr(vfio, name, getattr(self, f"_{name}"))
        self.vfio(
            is_viable=lambda _group: True,
            join=lambda _group, _container: None,
            has_iommu=lambda _container, _kind: True,
            allow_noiommu=refuse(errno.ENOENT),
            region=lambda _device, index: self.regions[index],
            irq_count=lambda _device, _index: self.vectors,
        )

    def vfio(self, **functions: Callable[..., object]) -> None:
        """VFIO does so."""
        for name, function in functions.items():
            self._patch.setattr(vfio, name, function)

    def change(self, **fields: object) -> None:
        """The function is so."""
        self.functions[ADDRESS] = self.functions[ADDRESS]._replace(**fields)  # type: ignore[arg-type]

    def say_peer(self, peer: int) -> None:
        os.pwrite(self.memory, struct.pack("<i", peer), IVPOSITION)

    def command(self) -> int:
        (value,) = struct.unpack("<H", os.pread(self.memory, 2, CONFIG.offset + COMMAND))
        return int(value)

    def make_noiommu_groups(self) -> None:
        """VFIO makes a group for a function that it takes, as it has none."""
        self.change(group="")
        self.vfio(allow_noiommu=lambda: True)
        self.noiommu_groups.add("0")

    # ---- what is called ----

    def _addresses(self) -> list[str]:
        return sorted(self.functions)

    def _function(self, address: str) -> Function:
        return self.functions[address]

    def _group_members(self, group: str) -> list[str]:
        return [each.address for each in self.functions.values() if each.group == group]

    def _bind(self, address: str, driver: str) -> None:
        seen = self.functions[address]
        self.functions[address] = seen._replace(driver=driver, group=seen.group or next(iter(self.noiommu_groups), ""))

    def _remove(self, address: str, *_root: Path) -> None:
        if address == PORT:
            self.removed.add(PORT)
            return
        if address not in self.functions:
            raise SysfsError(f"{address} is not there")
        del self.functions[address]
        self.removed.add(address)

    def _rescan(self, *_root: Path) -> None:
        if self.after_rescan is not None:
            self.functions[ADDRESS] = self.after_rescan
        self.rescanned.set()

    def _has_driver(self, driver: str) -> bool:
        return driver in self.drivers

    def _has_iommu(self) -> bool:
        return self.has_iommu

    def _bridges(self, _is_idle: Callable[[Function], bool]) -> list[Bridge]:
        if self.bridges is None:
            raise SysfsError("something goes")
        return self.bridges

    def _is_noiommu(self, group: str) -> bool:
        return group in self.noiommu_groups

    def _open_group(self, name: str) -> int:
        if self.busy:
            self.busy -= 1
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self.opened.append(name)
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def _open_container(self) -> int:
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def _set_iommu(self, _container: int, kind: int) -> None:
        self.kinds.append(kind)

    def _open_device(self, _group: int, address: str) -> int:
        if address not in self.ages:
            return os.dup(self.memory)
        memory = os.memfd_create("control")
        os.ftruncate(memory, 2 * 4096 + control.DEVICE_BYTES)
        os.pwrite(memory, struct.pack("<i", CONTROL_PEER), IVPOSITION)
        os.pwrite(memory, struct.pack("<Q", self.ages[address]), 4096 + control.AGE_OFFSET)
        return memory

    def _set_irqs(self, _device: int, index: int, events: list[int]) -> int:
        if index == vfio.MSIX_IRQ and len(events) > abs(self.room):
            if self.room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.room
        return 0

    def close(self) -> None:
        os.close(self.memory)


class Uevents:
    """The kernel's events, which are lost."""

    def __init__(self) -> None:
        self.kernel, self.sock = socket.socketpair()
        self.drops = 0

    def drop(self) -> None:
        self.drops += 1

    def take(self) -> None:
        self.sock.recv(1)
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    def close(self) -> None:
        self.kernel.close()
        self.sock.close()


class Main:
    """What main hears of the vfio process."""

    def __init__(self, sock: socket.socket, functions: mains.Functions | None, uevents: Uevents) -> None:
        self._sock = sock
        self.uevents = uevents
        self._functions = functions
        self.devices: list[wire.Device] = []
        self.events = 0
        self.groups: list[str] = []

    def hear(self) -> object:
        """The next message; its descriptors go to main's functions, or are closed."""
        data, fds = receive_packet(self._sock)
        assert data, "the driver ended"
        with fds:
            message = wire.to_main.decode(data)
            self.events += len(fds) if isinstance(message, wire.Events) else 0
            understood = self._functions.decode(data, fds) if self._functions is not None else None
        if self._functions is not None and understood is not None:
            self._functions.on_message(understood)
        return message

    def say(self, message: object) -> None:
        send_packet(self._sock, wire.to_vfio.encode(message))

    def scan(self) -> None:
        """Have the driver look at all functions again."""
        self.uevents.kernel.send(b"x")

    def hear_unusable(self) -> str:
        """Asserts that the device is not used; why."""
        while not isinstance(message := self.hear(), wire.Unusable):
            assert not isinstance(message, wire.Device), "it is used"
        assert message.address == ADDRESS
        assert message.sentence.isprintable()
        return message.sentence

    def hear_device(self) -> wire.Device:
        """Asserts that the device is used, and that all its vectors come."""
        while not isinstance(message := self.hear(), wire.Device):
            assert not isinstance(message, wire.Unusable), message.sentence
        while self.events < message.vectors:
            assert isinstance(self.hear(), wire.Events)
        return message


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    before = next_fd()
    made = Kernel(monkeypatch)
    monkeypatch.setattr(service, "_MODULES", ())
    monkeypatch.setattr(service, "_TRY_AGAIN", 0.001)
    yield made
    made.close()
    assert next_fd() == before, "descriptors are left open"


@contextmanager
def driving(*, noiommu: bool = False, functions: mains.Functions | None = None) -> Iterator[Main]:
    """A driver that has been started, until the end of the `with`; main has `functions` by then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    page = os.memfd_create("page")
    os.ftruncate(page, 4096)
    with ours, theirs:
        driver = service.Driver(theirs, Marker(page))
        driver._uevents.close()
        driver._uevents = uevents = Uevents()  # type: ignore[assignment]
        thread = threading.Thread(target=driver.run)
        start: list[tuple[bytes, Sequence[int]]] = [(wire.to_vfio.encode(wire.Start(noiommu)), ())]
        for data, fds in start if functions is None else functions.first_messages():
            send_packet(ours, data, fds)
        thread.start()
        try:
            yield Main(ours, functions, uevents)
        finally:
            ours.close()
            thread.join()
            # What ends with the process otherwise.
            driver._uevents.close()
            driver._loop.close()
            driver._marker.close()
            for device in driver._devices.values():
                Fds([each for each in (device.fd, device.unplug, *device.events) if each >= 0]).close()
            for group in driver._groups._groups.values():
                Fds([group.fd, group.container]).close()
            os.close(page)


def test_a_device_that_lacks_nothing_is_used(kernel: Kernel) -> None:
    with driving() as main:
        device = main.hear_device()
    assert device == wire.Device(ADDRESS, "7", PEER, Size(4096), VECTORS, Size(BAR2.offset), Size(BAR0.offset), device.speed)
    assert device.speed > 0
    assert kernel.opened == ["7"]
    assert kernel.kinds == [vfio.TYPE1V2_IOMMU]
    assert kernel.command() & 6 == 6, "it may not use memory, or send interrupts"


def test_an_old_kernel_has_the_first_kind_of_iommu_only(kernel: Kernel) -> None:
    kernel.vfio(has_iommu=lambda _container, kind: kind == vfio.TYPE1_IOMMU)
    with driving() as main:
        main.hear_device()
    assert kernel.kinds == [vfio.TYPE1_IOMMU]


# ---- a kernel without modules ----


def test_a_kernel_without_the_driver_is_named(kernel: Kernel) -> None:
    kernel.drivers.clear()
    with driving() as main:
        sentence = main.hear_unusable()
    assert sentence.startswith("this guest's kernel has no vfio-pci: modprobe vfio-pci says why")
    assert "start kvmchand guest again" in sentence
    assert kernel.opened == []


def test_a_kernel_without_a_kind_of_iommu_is_named(kernel: Kernel) -> None:
    kernel.vfio(has_iommu=lambda _container, _kind: False)
    with driving() as main:
        sentence = main.hear_unusable()
    assert sentence.startswith("this guest's kernel has no vfio_iommu_type1: modprobe vfio_iommu_type1 says why")
    assert kernel.kinds == []


# ---- doorbells in one page ----


def plug_crowd(kernel: Kernel) -> None:
    """Two more, the doorbells of which are in the page of the first's."""
    for number, address in enumerate((STRANGER, THIRD), 1):
        bars = (Bar(IVSHMEM.bars[0].start + number * 0x100, 0x100), *IVSHMEM.bars[1:])
        kernel.functions[address] = IVSHMEM._replace(address=address, bars=bars)


def test_one_of_a_crowd_is_used_and_the_others_are_given_addresses_anew(kernel: Kernel) -> None:
    plug_crowd(kernel)
    with driving() as main:
        assert main.hear_device().address == ADDRESS
        assert kernel.rescanned.wait()
    assert kernel.removed == {STRANGER, THIRD}


@pytest.mark.parametrize("gone", [STRANGER, THIRD])
def test_one_of_a_crowd_that_goes_meanwhile_does_not_keep_the_others_from_coming_back(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    plug_crowd(kernel)

    def bind(address: str, driver: str) -> None:
        kernel._bind(address, driver)
        kernel.functions.pop(gone, None)

    monkeypatch.setattr(pci, "bind", bind)  # when the first is taken
    with driving() as main:
        assert main.hear_device().address == ADDRESS
        assert kernel.rescanned.wait()
    assert kernel.removed == {STRANGER, THIRD} - {gone}


# ---- what is missing ----


@pytest.mark.parametrize("revision", [0, 2])
def test_a_device_of_another_revision(kernel: Kernel, revision: int) -> None:
    kernel.change(revision=revision)
    with driving() as main:
        assert main.hear_unusable().startswith(f"it is revision {revision} of ivshmem")


@pytest.mark.parametrize("bars", [IVSHMEM.bars[:2], (*IVSHMEM.bars[:2], Bar(0, 0))], ids=["absent", "no address"])
def test_memory_without_an_address(kernel: Kernel, bars: tuple[Bar, ...]) -> None:
    kernel.change(bars=bars)
    with driving() as main:
        sentence = main.hear_unusable()
    assert "(BAR 2) got no address" in sentence
    assert "another pcie-root-port with a pcie-to-pci-bridge" in sentence
    assert kernel.opened == []


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV, errno.EACCES])
def test_a_group_that_can_not_be_opened(kernel: Kernel, number: int) -> None:
    kernel.vfio(open_group=refuse(number))
    with driving() as main:
        sentence = main.hear_unusable()
    assert sentence == f"its IOMMU group 7 can't be opened: {os.strerror(number)}: is the module vfio-pci there?"


def test_a_group_that_is_open_elsewhere_is_waited_for_and_complained_of_once(
    kernel: Kernel, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel.busy = 3
    with driving() as main:
        main.hear_device()
    assert kernel.busy == 0
    assert len(re.findall("IOMMU group 7 is still open elsewhere", capfd.readouterr().err)) == 1


def test_a_group_with_other_drivers_in_it_names_them(kernel: Kernel) -> None:
    kernel.functions[STRANGER] = IVSHMEM._replace(address=STRANGER, vendor=0x8086, driver="e1000e")
    kernel.functions["0000:04:00.0"] = IVSHMEM._replace(address="0000:04:00.0", vendor=0x1B36, driver="pcieport")
    kernel.vfio(is_viable=lambda _group: False)
    with driving() as main:
        sentence = main.hear_unusable()
    assert sentence == f"its IOMMU group 7 has others in it that a driver has: {STRANGER} (e1000e)"


@pytest.mark.parametrize("what", [{"driver": "uio_pci_generic"}, {"has_msix": False}], ids=["another driver's", "no doorbell"])
def test_somebody_elses_ivshmem_device_is_let_alone(
    kernel: Kernel, capfd: pytest.CaptureFixture[str], what: dict[str, Any]
) -> None:
    kernel.functions[STRANGER] = IVSHMEM._replace(address=STRANGER, **what)
    before = kernel.functions[STRANGER]
    with driving() as main:
        assert main.hear_device().address == ADDRESS
    assert kernel.functions[STRANGER] == before
    assert ("left to it" in capfd.readouterr().err) == ("driver" in what)


@pytest.mark.parametrize("call", ["open_container", "join", "set_iommu", "region", "irq_count"])
def test_whatever_vfio_refuses(kernel: Kernel, call: str) -> None:
    kernel.vfio(**{call: refuse(errno.ENODEV)})
    with driving() as main:
        assert main.hear_unusable() == "it can't be driven by VFIO: No such device"


def test_a_driver_that_takes_the_device_late_is_waited_for(kernel: Kernel) -> None:
    late = iter([errno.ENODEV] * 3)

    def open_device(group: int, address: str) -> int:
        number = next(late, 0)
        if number:
            raise OSError(number, os.strerror(number))
        return kernel._open_device(group, address)

    kernel.vfio(open_device=open_device)
    with driving() as main:
        main.hear_device()


def test_a_driver_that_never_takes_the_device_is_not_waited_for_for_ever(kernel: Kernel) -> None:
    kernel.vfio(open_device=refuse(errno.ENODEV))
    with driving() as main:
        assert main.hear_unusable() == "it can't be driven by VFIO: No such device"


@pytest.mark.parametrize(
    ("index", "region"),
    [
        (vfio.BAR0, Region(4096, 0, False)),
        (vfio.BAR0, Region(8, 0, True)),
        (vfio.BAR2, Region(4096, 4096, False)),
    ],
)
def test_bars_that_can_not_be_mapped(kernel: Kernel, index: int, region: Region) -> None:
    kernel.regions[index] = region
    with driving() as main:
        assert "can't be mapped" in main.hear_unusable()


@pytest.mark.parametrize("size", [0, 1024, 4096 * 3])
def test_memory_of_a_size_that_can_not_be(kernel: Kernel, size: int) -> None:
    kernel.regions[vfio.BAR2] = Region(size, 4096, True)
    with driving() as main:
        assert main.hear_unusable() == f"its memory has {size} bytes, which can't be"


def test_memory_that_can_not_be_read(kernel: Kernel) -> None:
    kernel.regions[vfio.BAR2] = Region(4096, 1, True)  # no page starts there
    with driving() as main:
        assert main.hear_unusable() == "it can't be driven by VFIO: Invalid argument"


@pytest.mark.parametrize("peer", [-1, 0, 0x10000, -(2**31)])
def test_an_ivshmem_id_that_can_not_be(kernel: Kernel, peer: int) -> None:
    kernel.say_peer(peer)
    with driving() as main:
        assert main.hear_unusable().startswith(f"its ivshmem id is {peer}, which can't be")


@pytest.mark.parametrize(("room", "vectors"), [(3, 3), (1, 1), (-3, 2), (-1, 1)])
def test_a_machine_with_few_interrupts_left_gives_some(kernel: Kernel, room: int, vectors: int) -> None:
    kernel.room = room
    with driving() as main:
        assert main.hear_device().vectors == vectors


def test_a_machine_without_an_interrupt_left(kernel: Kernel) -> None:
    kernel.room = 0
    with driving() as main:
        sentence = main.hear_unusable()
    assert sentence == "its interrupts can't be had: No space left on device: give the guest more processors"


def test_a_device_without_interrupts(kernel: Kernel) -> None:
    kernel.vectors = 0
    with driving() as main:
        assert main.hear_unusable() == "it has no interrupts (MSI-X)"


# ---- without a vIOMMU ----


@pytest.mark.parametrize("made_by_others", [False, True], ids=["no group", "a group that VFIO made for someone"])
def test_without_a_viommu_the_settings_decide(kernel: Kernel, made_by_others: bool) -> None:
    kernel.make_noiommu_groups()
    if made_by_others:
        kernel.change(group="0", driver="vfio-pci")
    with driving(noiommu=False) as main:
        sentence = main.hear_unusable()
    assert sentence.startswith("there is no vIOMMU: prepare the domain (kvmchan prepare-domain on the host)")
    assert kernel.opened == []


@pytest.mark.parametrize("made_by_others", [False, True], ids=["no group", "a group that VFIO made for someone"])
def test_a_viommu_that_does_not_cover_the_device(kernel: Kernel, made_by_others: bool) -> None:
    kernel.make_noiommu_groups()
    kernel.has_iommu = True
    if made_by_others:
        kernel.change(group="0", driver="vfio-pci")
    with driving(noiommu=False) as main:
        assert main.hear_unusable() == UNCOVERED
    assert kernel.opened == []


def test_without_a_viommu_vfio_makes_the_group_that_is_opened(kernel: Kernel, capfd: pytest.CaptureFixture[str]) -> None:
    kernel.make_noiommu_groups()
    with driving(noiommu=True) as main:
        device = main.hear_device()
    assert device.group == "noiommu-0"
    assert kernel.opened == ["noiommu-0"]
    assert kernel.kinds == [vfio.NOIOMMU_IOMMU]
    assert "no-IOMMU mode is turned on, as the settings allow" in capfd.readouterr().err


def test_a_device_with_a_viommu_is_confined_by_it_though_it_need_not_be(kernel: Kernel) -> None:
    kernel.vfio(allow_noiommu=lambda: True)
    with driving(noiommu=True) as main:
        assert main.hear_device().group == "7"
    assert kernel.kinds == [vfio.TYPE1V2_IOMMU]


def test_a_kernel_that_can_not_do_without_a_viommu(kernel: Kernel) -> None:
    kernel.change(group="")
    with driving(noiommu=True) as main:
        sentence = main.hear_unusable()
    assert "CONFIG_VFIO_NOIOMMU" in sentence
    assert "prepare the domain (kvmchan prepare-domain on the host)" in sentence


def test_without_a_viommu_it_takes_root(kernel: Kernel) -> None:
    kernel.make_noiommu_groups()
    kernel.vfio(open_group=refuse(errno.EPERM))
    with driving(noiommu=True) as main:
        assert "start kvmchand guest as root" in main.hear_unusable()


def test_a_function_that_gets_no_group_is_not_waited_for_for_ever(kernel: Kernel) -> None:
    kernel.make_noiommu_groups()
    kernel.noiommu_groups.clear()
    with driving(noiommu=True) as main:
        assert "made no IOMMU group for it" in main.hear_unusable()


@pytest.mark.parametrize(("text", "turned_on"), [("N\n", True), ("Y\n", False)])
def test_the_mode_is_turned_on_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, turned_on: bool) -> None:
    parameter = tmp_path / "enable_unsafe_noiommu_mode"
    monkeypatch.setattr(vfio, "_ALLOW_NOIOMMU", parameter)
    with pytest.raises(FileNotFoundError):
        vfio.allow_noiommu()
    parameter.write_text(text)
    assert vfio.allow_noiommu() == turned_on
    assert parameter.read_text().strip() == "Y"


# ---- a process after another ----


class Owner:
    """Of functions. It has what it is told of until it lets go of that."""

    def __init__(self) -> None:
        self.devices: dict[str, mains.Function] = {}

    def let_go(self) -> None:
        while self.devices:
            self.devices.popitem()[1].close()

    def on_device(self, function: mains.Function) -> None:
        self.devices[function.address] = function

    def on_removed(self, address: str) -> None:
        """Nothing: the tests hear it."""

    def on_unusable(self, address: str, sentence: str) -> None:
        raise AssertionError(f"{address}: {sentence}")

    def on_room(self, room: wire.Room) -> None:
        self.room = room

    def fail(self, error: VchanError) -> None:
        raise error


class Guest:
    """Main's part of a guest, whose vfio processes are the drivers of one `with` after another."""

    def __init__(self) -> None:
        self.owner = Owner()
        self._loop = Loop()
        self._functions = mains.Functions(self._loop, self.owner.fail, noiommu=False)

        self._functions._events = self.owner

    @contextmanager
    def driving(self) -> Iterator[Main]:
        with driving(functions=self._functions) as main:
            yield main
        self._functions.on_death(None)

    def close(self) -> None:
        self.owner.let_go()
        self._functions.close()
        self._loop.close()


@pytest.fixture
def guest(kernel: Kernel) -> Iterator[Guest]:
    """With the device in use; its first process has died."""
    made = Guest()
    with made.driving() as main:
        assert main.hear_device().address == ADDRESS
    assert list(made.owner.devices) == [ADDRESS]
    yield made
    made.close()


def plug_another(kernel: Kernel) -> None:
    """A device that is looked at after the first."""
    kernel.functions[STRANGER] = IVSHMEM._replace(address=STRANGER, group="8", bars=(Bar(0xFE802000, 0x100), *IVSHMEM.bars[1:]))


def test_the_next_process_has_the_devices_that_the_guest_has(kernel: Kernel, guest: Guest) -> None:
    before = guest.owner.devices[ADDRESS]
    plug_another(kernel)
    with guest.driving() as main:
        assert main.hear_device().address == STRANGER
    assert guest.owner.devices[ADDRESS] is before
    assert before.fd >= 0


def test_the_next_processes_leave_alone_what_the_guest_has_let_go_of(kernel: Kernel, guest: Guest) -> None:
    guest.owner.let_go()
    plug_another(kernel)
    with guest.driving() as main:
        assert main.hear_device().address == STRANGER
    guest.owner.let_go()
    kernel.functions[THIRD] = kernel.functions[STRANGER]._replace(address=THIRD, group="9", bars=IVSHMEM.bars)
    with guest.driving() as main:
        assert main.hear_device().address == THIRD


def test_the_next_process_closes_a_group_of_which_the_guest_has_let_go(guest: Guest) -> None:
    guest.owner.let_go()
    with guest.driving() as main:
        while not isinstance(message := main.hear(), wire.GroupClosed):
            assert isinstance(message, wire.Started)
        assert message.name == "7"


def test_a_device_in_the_place_of_one_that_went_while_no_process_was_there_is_used(kernel: Kernel, guest: Guest) -> None:
    guest.owner.let_go()
    gone = kernel.functions.pop(ADDRESS)
    with guest.driving() as main:
        while not isinstance(message := main.hear(), wire.Removed):
            pass
        assert message.address == ADDRESS
    kernel.functions[ADDRESS] = gone
    with guest.driving() as main:
        assert main.hear_device().address == ADDRESS
    assert list(guest.owner.devices) == [ADDRESS]


def test_a_new_control_device_gets_the_vectors_of_an_earlier_daemons_devices(kernel: Kernel) -> None:
    taken: dict[int, int] = {}

    def set_irqs(device: int, index: int, events: list[int]) -> int:
        if index == vfio.MSIX_IRQ:
            if sum(taken.values()) + len(events) > VECTORS:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken[device] = len(events)
        return 0

    kernel.vfio(set_irqs=set_irqs, disable_irqs=lambda device, _index: taken.pop(device))
    kernel.say_peer(CONTROL_PEER)
    for place, address in ((2, THIRD), (3, FOURTH)):
        bars = (Bar(0xFE800000 + place * 0x100000, 0x100), Bar(0xFE801000 + place * 0x100000, 0x1000), Bar(place << 40, 4096))
        kernel.functions[address] = IVSHMEM._replace(address=address, group=str(6 + place), bars=bars)
    with driving() as main:
        for _ in range(3):  # the kernel refuses to turn off what is off
            assert main.hear_device().vectors == VECTORS
            main.events = 0


# ---- what the host wants back, and what there is room for ----


def plug_control_device(kernel: Kernel, address: str, age: int, *, place: int) -> None:
    """Of its own memory, unlike the others. `place`: no two have the same."""
    bars = tuple(bar._replace(start=bar.start + place * 0x100000) for bar in IVSHMEM.bars)
    kernel.functions[address] = IVSHMEM._replace(address=address, group=str(place), bars=bars)
    kernel.ages[address] = age
    kernel.regions[vfio.BAR2] = Region(control.DEVICE_BYTES, 4096, True)
    kernel.regions[vfio.CONFIG] = Region(4096, 4096 + control.DEVICE_BYTES, False)
    os.ftruncate(kernel.memory, 2 * 4096 + control.DEVICE_BYTES)


def assert_no_other(kernel: Kernel, main: Main) -> None:
    """Assert that the next device that is used is one that is plugged only now."""
    kernel.functions[FOURTH] = IVSHMEM._replace(
        address=FOURTH, group="9", bars=tuple(bar._replace(start=bar.start + 0x900000) for bar in IVSHMEM.bars)
    )
    main.scan()
    main.events = 0
    assert main.hear_device().address == FOURTH


@pytest.mark.parametrize("newest", [ADDRESS, STRANGER, THIRD])
def test_of_the_control_devices_that_are_there_the_newest_is_used(kernel: Kernel, newest: str) -> None:
    for place, address in enumerate((ADDRESS, STRANGER, THIRD)):
        plug_control_device(kernel, address, 10 if address == newest else place, place=place)
    with driving() as main:
        assert main.hear_device().address == newest
        assert_no_other(kernel, main)


def test_a_control_device_that_is_seen_after_a_newer_one_is_not_used(kernel: Kernel, capfd: pytest.CaptureFixture[str]) -> None:
    plug_control_device(kernel, ADDRESS, 2, place=0)
    with driving() as main:
        main.hear_device()
        plug_control_device(kernel, STRANGER, 1, place=1)
        assert_no_other(kernel, main)
    assert f"device {STRANGER} is an earlier daemon's" in capfd.readouterr().err


@pytest.mark.parametrize("works", [True, False])
def test_a_device_that_main_releases_has_its_interrupts_turned_off_and_is_let_go(kernel: Kernel, works: bool) -> None:
    calls: list[int] = []
    kernel.vfio(disable_irqs=lambda _device, index: calls.append(index) if works else refuse(errno.EIO)())
    with driving() as main:
        main.hear_device()
        main.say(wire.Release(ADDRESS))
        assert main.hear() == wire.Removed(ADDRESS)
        assert main.hear() == wire.GroupClosed("7")
        main.say(wire.Release(ADDRESS))  # it crossed the answer
        main.say(wire.Release(STRANGER))
        assert_no_other(kernel, main)
    assert calls == [vfio.MSIX_IRQ] * works


# ---- windows ----


def plug_without_address(kernel: Kernel) -> None:
    kernel.change(bars=(*IVSHMEM.bars[:2], Bar(0, 0)))


def bridge(room: int, *, is_idle: bool) -> list[Bridge]:
    return [Bridge("0000:03:00.0", PORT, PLACE, room, is_idle)]


def test_main_is_told_of_the_windows_once_whenever_they_change(kernel: Kernel) -> None:
    kernel.bridges = bridge(1 << 20, is_idle=False)
    with driving() as main:
        main.hear_device()
        assert main.hear() == wire.Room(Size(1 << 20), PLACE)
        main.scan()
        kernel.bridges = None
        main.scan()
        kernel.bridges = bridge(0, is_idle=False)
        main.scan()
        assert main.hear() == wire.Room(Size(0), PLACE)


def test_a_device_without_addresses_comes_again_if_its_bridge_is_idle(kernel: Kernel) -> None:
    kernel.bridges = bridge(64 << 20, is_idle=True)
    plug_without_address(kernel)
    kernel.after_rescan = IVSHMEM
    with driving() as main:
        main.hear_device()
    assert kernel.removed == {PORT}


def test_a_device_that_got_no_addresses_again_is_unusable(kernel: Kernel) -> None:
    kernel.bridges = bridge(64 << 20, is_idle=True)
    plug_without_address(kernel)
    with driving() as main:
        assert "got no address" in main.hear_unusable()
    assert kernel.removed == {PORT}


def test_bridges_are_widened_before_any_device_is_used_and_events_of_that_are_dropped(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event may be lost, and one of before the loss come later: that the device went."""
    kernel.bridges = bridge(0, is_idle=True)

    def widen(_found: object, size: int) -> None:
        assert kernel.opened == []
        kernel.bridges = bridge(size, is_idle=True)

    monkeypatch.setattr(bridges, "widen", widen)
    with driving() as main:
        main.hear_device()
        assert main.uevents.drops == 1
        assert isinstance(main.hear(), wire.Room)
        kernel.bridges = bridge(0, is_idle=False)
        main.scan()
        assert main.hear() == wire.Room(Size(0), PLACE)
        assert main.uevents.drops == 2, "some were lost"
