# SPDX-License-Identifier: LGPL-2.1-or-later
"""PCI functions as sysfs shows them, and the kernel's events when they come and go.

See Linux's Documentation/ABI/testing/sysfs-bus-pci. `root` is where sysfs is mounted.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SYS = Path("/sys")
PAGE = 4096
_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_NOIOMMU_GROUP = "vfio-noiommu"
_UEVENT_BYTES = 8192
_RESOURCES = 6
_CONFIG_BYTES, _STATUS, _HAS_CAPABILITIES, _CAPABILITIES = 256, 6, 0x10, 0x34
_MSIX, _EXPRESS = 0x11, 0x10
_BRIDGE = 0x0604
"""The class and subclass of a bridge from PCI to PCI."""
_EXPRESS_PORTS = (4, 5, 6)
"""The types of a root port, an upstream and a downstream port (PCI Express Base 3.0, 7.8.2)."""
_WINDOWS = 4
"""The last lines of a bridge's resources are its windows."""
_MEMORY = 0x200
"""In a resource's flags: it is memory (IORESOURCE_MEM)."""
_NOWHERE = 0x30000000
"""In a resource's flags: it has a size, but no address (IORESOURCE_UNSET, IORESOURCE_DISABLED)."""


class SysfsError(Exception):
    """What sysfs shows of a function is invalid, or cannot be read."""


class Bar(NamedTuple):
    """The range of a base address register. Its size is 0 if it has no address."""

    start: int
    size: int


class Function(NamedTuple):
    """One PCI function. `driver`: its name, or "". `group`: its IOMMU group, or ""."""

    address: str
    vendor: int
    device: int
    revision: int
    driver: str
    group: str
    bars: tuple[Bar, ...]
    has_msix: bool = True
    """True also if that cannot be told."""


def _folder(address: str, root: Path) -> Path:
    return root / "bus/pci/devices" / address


def _number(path: Path) -> int:
    try:
        return int(path.read_text(), 0)
    except (OSError, ValueError) as error:
        raise SysfsError(f"{path} can't be read: {error}") from error


def _link(path: Path) -> str:
    try:
        return path.readlink().name
    except OSError:
        return ""


def _bars(path: Path) -> tuple[Bar, ...]:
    try:
        lines = path.read_text().splitlines()[:_RESOURCES]
        ranges = [tuple(int(word, 16) for word in line.split()) for line in lines]
        return tuple(_bar(*each) for each in ranges)
    except (OSError, ValueError, TypeError) as error:
        raise SysfsError(f"{path} can't be read: {error}") from error


def _bar(start: int, end: int, flags: int) -> Bar:
    if not flags or flags & _NOWHERE:
        return Bar(start, 0)
    if not 0 <= start <= end:
        raise ValueError(f"no range is from {start:#x} to {end:#x}")
    return Bar(start, end - start + 1)


def _capability(config: Path, wanted: int) -> bytes | None:
    """Return a capability of a function and what follows it, or None if its list has none such.

    See PCI Local Bus Specification 3.0, 6.7. Raises SysfsError if the list cannot be read.
    """
    try:
        data = config.read_bytes()[:_CONFIG_BYTES]
    except OSError as error:
        raise SysfsError(f"{config} can't be read: {error}") from error
    if len(data) < _CONFIG_BYTES:
        raise SysfsError(f"{config} can be read by root only")
    at = data[_CAPABILITIES] & ~3 if data[_STATUS] & _HAS_CAPABILITIES else 0
    for _ in range(_CONFIG_BYTES // 4):
        if not at:
            return None
        if data[at] == wanted:
            return data[at:]
        at = data[at + 1] & ~3
    return None


def _may_have_msix(config: Path) -> bool:
    try:
        return _capability(config, _MSIX) is not None
    except SysfsError:
        return True


def function(address: str, root: Path = SYS) -> Function:
    """Return a function as sysfs shows it. Raises SysfsError if it is missing or invalid."""
    if not _ADDRESS.fullmatch(address):
        raise SysfsError(f"{address[:40]!r} is no PCI address")
    folder = _folder(address, root)
    return Function(
        address,
        _number(folder / "vendor"),
        _number(folder / "device"),
        _number(folder / "revision"),
        _link(folder / "driver"),
        _link(folder / "iommu_group"),
        _bars(folder / "resource"),
        _may_have_msix(folder / "config"),
    )


def bridge(address: str, root: Path = SYS) -> str:
    """Return the bridge that a function is behind, or "" if it is on a root complex."""
    try:
        *above, _ = way(address, root)
    except SysfsError:
        return ""
    return above[-1] if above else ""


def way(address: str, root: Path = SYS) -> list[str]:
    """Return the bridges that a function is behind, from the root complex on, and the function.

    Raises SysfsError if the function is gone.
    """
    try:
        path = _folder(address, root).resolve(strict=True)
    except OSError as error:
        raise SysfsError(f"{address} is gone: {error}") from error
    return [part for part in path.parts if _ADDRESS.fullmatch(part)]


def windows(address: str, root: Path = SYS) -> tuple[Bar, ...]:
    """Return the ranges of memory that a bridge forwards to the functions behind it."""
    path = _folder(address, root) / "resource"
    try:
        lines = path.read_text().splitlines()[_RESOURCES:][-_WINDOWS:]
        ranges = [tuple(int(word, 16) for word in line.split()) for line in lines]
        return tuple(
            Bar(start, end - start + 1)
            for start, end, flags in ranges
            if flags & _MEMORY and not flags & _NOWHERE and start <= end
        )
    except (OSError, ValueError) as error:
        raise SysfsError(f"{path} can't be read: {error}") from error


def largest_fit(window: Bar, bars: Iterable[Bar]) -> int:
    """Return the size of the largest free range in a window.

    Ranges are aligned to their size, as the memory of devices is.
    """
    start, end = window.start, window.start + window.size
    taken = sorted((bar.start, bar.start + bar.size) for bar in bars if bar.size and start <= bar.start < end)
    best = 0
    for first, behind in [*taken, (end, end)]:
        size = 1 << max(0, first - start).bit_length() >> 1
        while size and (start + size - 1) // size * size + size > first:
            size >>= 1
        best = max(best, size)
        start = max(start, behind)
    return best


def is_bridge(address: str, root: Path = SYS) -> bool:
    """Return whether a function is a bridge from PCI to PCI. Raises SysfsError."""
    return _number(_folder(address, root) / "class") >> 8 == _BRIDGE


def is_express_port(address: str, root: Path = SYS) -> bool:
    """Return whether a bridge is a port of PCI Express. Raises SysfsError."""
    express = _capability(_folder(address, root) / "config", _EXPRESS)
    return express is not None and (express[2] >> 4) in _EXPRESS_PORTS


def addresses(root: Path = SYS) -> list[str]:
    """Return the addresses of all functions, sorted."""
    try:
        return sorted(each.name for each in (root / "bus/pci/devices").iterdir())
    except OSError as error:
        raise SysfsError(f"sysfs shows no PCI devices: {error}") from error


def group_members(group: str, root: Path = SYS) -> list[str]:
    """Return the addresses of the functions in an IOMMU group."""
    try:
        return sorted(each.name for each in (root / "kernel/iommu_groups" / group / "devices").iterdir())
    except OSError:
        return []


def is_noiommu(group: str, root: Path = SYS) -> bool:
    """Return whether VFIO made the group, for a device that no IOMMU confines."""
    try:
        return (root / "kernel/iommu_groups" / group / "name").read_text().strip() == _NOIOMMU_GROUP
    except OSError:
        return False  # the kernel names no others


def has_iommu(root: Path = SYS) -> bool:
    """Return whether the kernel uses an IOMMU, which need not confine every function."""
    try:
        groups = [each.name for each in (root / "kernel/iommu_groups").iterdir()]
    except OSError:
        return False
    return not all(is_noiommu(each, root) for each in groups)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise SysfsError(f"{path} can't be written: {error.strerror}") from error


def has_driver(driver: str, root: Path = SYS) -> bool:
    """Return whether the kernel has a driver, built in or as a module that is loaded."""
    return (root / "bus/pci/drivers" / driver).exists()


def write_config(address: str, offset: int, data: bytes, root: Path = SYS) -> None:
    """Write registers of a function's configuration space.

    Raises SysfsError. A kernel in lockdown, as UEFI's Secure Boot has it, lets nobody do that.
    """
    path = _folder(address, root) / "config"
    try:
        with path.open("r+b", buffering=0) as config:
            config.seek(offset)
            config.write(data)
    except OSError as error:
        raise SysfsError(f"{path} can't be written: {error.strerror}") from error


def bind(address: str, driver: str, root: Path = SYS) -> None:
    """Give a function to a driver, and take it from its present one."""
    folder = _folder(address, root)
    if _link(folder / "driver") == driver:
        return
    _write(folder / "driver_override", driver)
    if (folder / "driver").exists():
        _write(folder / "driver/unbind", address)
    _write(root / "bus/pci/drivers_probe", address)
    if _link(folder / "driver") != driver:
        raise SysfsError(f"{address} can't be given to {driver}: the kernel's log says why")


def remove(address: str, root: Path = SYS) -> None:
    """Make the kernel forget a function until rescan()."""
    _write(_folder(address, root) / "remove", "1")


def rescan(root: Path = SYS) -> None:
    """Make the kernel look for functions, and give addresses to those that have none."""
    _write(root / "bus/pci/rescan", "1")


class Event(NamedTuple):
    """A PCI function appeared ("add"), got a driver ("bind") or went ("remove")."""

    action: str
    address: str


def parse_event(data: bytes) -> Event | None:
    """Return what a uevent says if it is about a PCI function, else None."""
    head, *fields = data.split(b"\0")
    if b"@" not in head:
        return None
    values = dict(field.split(b"=", 1) for field in fields if b"=" in field)
    try:
        address = values.get(b"PCI_SLOT_NAME", b"").decode("ascii")
        action = values.get(b"ACTION", b"").decode("ascii")
    except UnicodeDecodeError:
        return None
    if values.get(b"SUBSYSTEM") != b"pci" or action not in ("add", "bind", "remove") or not _ADDRESS.fullmatch(address):
        return None
    return Event(action, address)


class Events:
    """The kernel's uevents. `sock` is readable when some are waiting."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT)
        self.sock.bind((0, _KERNEL_GROUP))

    def take(self) -> Event | None:
        """Return the next event, or None if it is not about a PCI function.

        Raises OSError ENOBUFS if events were lost.
        """
        try:
            data, (sender, _) = self.sock.recvfrom(_UEVENT_BYTES)
        except BlockingIOError:
            return None
        return parse_event(data) if sender == 0 else None

    def drop(self) -> None:
        """Drop the events that are waiting: whoever looks at sysfs now sees what they would say."""
        while True:
            try:
                self.sock.recv(_UEVENT_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()
