# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps vchans from working on this machine: findings, each with what to do.

On a host it looks at libvirt and at each running domain's machine; in a guest at VFIO, the vIOMMU and the ivshmem devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kvmchand import prepare
from kvmchand.errors import KvmchanError
from kvmchand.linux import pci
from kvmchand.prepare import libvirt
from kvmchand.wire.client import Listing

IVSHMEM = (0x1AF4, 0x1110)
WRITE_BACK = 500
"""MB/s above which memory is cached: uncached reads take a bus cycle each, and are far below this."""
_MODULES = ("vfio_pci", "vfio_iommu_type1")


class Grade(Enum):
    """How bad a finding is."""

    OK = "ok"
    """As it should be."""
    NOTE = "note"
    """Worth knowing; vchans work."""
    BAD = "bad"
    """Something does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    grade: Grade
    subject: str
    sentence: str

    @property
    def is_bad(self) -> bool:
        return self.grade is Grade.BAD

    def __str__(self) -> str:
        return f"{self.grade.value:4}  {self.subject}: {self.sentence}"


def examine(listed: Listing | KvmchanError, uri: str, root: Path = pci.SYS) -> list[Finding]:
    """`listed`: what the daemon shows, or why it does not. A machine with ivshmem devices is a guest."""
    devices = ivshmem_functions(root)
    return [daemon(listed), *(guest(listed, devices, root) if devices else host(listed, uri))]


def daemon(listed: Listing | KvmchanError) -> Finding:
    if isinstance(listed, KvmchanError):
        return Finding(Grade.BAD, "kvmchand", listed.sentence)
    return Finding(
        Grade.OK, "kvmchand", f"it answers, and knows {len(listed.domains)} domains and {len(listed.channels)} channels"
    )


# ---- a guest ----


def ivshmem_functions(root: Path = pci.SYS) -> list[pci.Function]:
    found = []
    try:
        addresses = pci.addresses(root)
    except pci.SysfsError:
        return []
    for address in addresses:
        try:
            function = pci.function(address, root)
        except pci.SysfsError:
            continue
        if (function.vendor, function.device) == IVSHMEM:
            found.append(function)
    return found


def guest(listed: Listing | KvmchanError, devices: list[pci.Function], root: Path) -> Iterator[Finding]:
    for module in _MODULES:
        if (root / "module" / module).exists():
            yield Finding(Grade.OK, "module", f"{module} is loaded")
        else:
            yield Finding(Grade.BAD, "module", f"{module} is not there: modprobe {module.replace('vfio_pci', 'vfio-pci')}")
    groups = [each.name for each in (root / "kernel/iommu_groups").glob("*")]
    if groups and all(pci.is_noiommu(each, root) for each in groups):
        yield Finding(Grade.NOTE, "vIOMMU", "there is none, and VFIO drives devices without, as noiommu in the settings allows")
    elif groups:
        yield Finding(Grade.OK, "vIOMMU", "the kernel has put devices into IOMMU groups")
    else:
        yield Finding(
            Grade.BAD,
            "vIOMMU",
            "there is none: kvmchan prepare-domain on the host, and intel_iommu=on on the kernel's command line",
        )
    speeds = {} if isinstance(listed, KvmchanError) else {each.address: each.speed for each in listed.devices}
    for function in devices:
        yield from _device(function, speeds.get(function.address), root)


def _device(function: pci.Function, speed: int | None, root: Path) -> Iterator[Finding]:
    name = f"device {function.address}"
    if len(function.bars) < 3 or not function.bars[2].size:
        yield Finding(
            Grade.BAD, name, "its memory has no address, for the bridge's window is full: kvmchan prepare-domain on the host"
        )
        return
    if function.driver != "vfio-pci":
        driver = function.driver or "no driver"
        yield Finding(Grade.BAD, name, f"it has {driver} and not vfio-pci: is kvmchand guest running? its log says more")
        return
    for member in pci.group_members(function.group, root):
        other = pci.function(member, root)
        if other.driver not in ("", "vfio-pci", "pcieport"):
            yield Finding(
                Grade.BAD, name, f"its IOMMU group {function.group} has {member} in it, which the driver {other.driver} has"
            )
    if speed is None:
        yield Finding(Grade.BAD, name, "kvmchand guest does not use it: its log says why")
    elif speed < WRITE_BACK:
        yield Finding(
            Grade.NOTE,
            name,
            f"its {function.bars[2].size} bytes are mapped uncached: {speed} MB/s read; expect vchans to be slow",
        )
    else:
        yield Finding(Grade.OK, name, f"its {function.bars[2].size} bytes are mapped write-back: {speed} MB/s read")


# ---- a host ----


def host(listed: Listing | KvmchanError, uri: str) -> Iterator[Finding]:
    if libvirt is None:
        yield Finding(Grade.BAD, "libvirt", "its Python module is not there: install python3-libvirt (libvirt-python)")
        return
    libvirt.registerErrorHandler(lambda *_error: None, None)
    try:
        connection = libvirt.openReadOnly(uri)
    except libvirt.libvirtError as error:
        yield Finding(Grade.BAD, "libvirt", f"{uri} can't be reached: {error}: start libvirtd, or give --uri")
        return
    try:
        yield Finding(
            Grade.OK, "libvirt", f"version {_version(connection.getLibVersion())}, QEMU {_version(connection.getVersion())}"
        )
        linked = set() if isinstance(listed, KvmchanError) else {each.domain for each in listed.guests if each.ready}
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            yield from _domain(domain, linked)
    except libvirt.libvirtError as error:
        yield Finding(Grade.BAD, "libvirt", f"{uri} does not answer: {error}")
    finally:
        connection.close()


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _domain(domain: Any, linked: set[Any]) -> Iterator[Finding]:
    name = f"domain {domain.ID()} ({domain.name()})"
    yield from machine(name, domain.name(), domain.XMLDesc())
    if domain.ID() in linked:
        yield Finding(Grade.OK, name, "its kvmchand is linked to this host's")
    else:
        yield Finding(Grade.BAD, name, "no kvmchand in it is linked to this host's: start kvmchand guest there, and doctor")


def machine(subject: str, name: str, xml: str) -> Iterator[Finding]:
    """Of a domain's live XML."""
    made = prepare.prepare(xml)
    for obstacle in made.obstacles:
        yield Finding(Grade.BAD, subject, obstacle)
    for change in made.changes:
        yield Finding(Grade.NOTE, subject, f"it lacks {change}: kvmchan prepare-domain {name} --apply")
    if not made.obstacles and not made.changes:
        have = len(ElementTree.fromstring(xml).findall("devices/shmem"))
        yield Finding(Grade.OK, subject, f"its machine has all that vchans need, and {have} ivshmem devices")
