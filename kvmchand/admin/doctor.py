# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps vchans from working on this machine: findings, each with a remedy.

On a host it looks at libvirt and at the machine of each running domain; in a guest at VFIO, the
vIOMMU and the ivshmem devices. What cannot be read becomes a finding, or is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kvmchand.admin import prepare
from kvmchand.admin.prepare import libvirt
from kvmchand.errors import VchanError
from kvmchand.linux import pci
from kvmchand.wire.client import DeviceInfo, GuestInfo, Listing

IVSHMEM = (0x1AF4, 0x1110)
REVISION = 1
"""The revision of ivshmem with a doorbell (QEMU's ivshmem-spec)."""
WRITE_BACK = 500
"""MB/s above which memory counts as cached: uncached reads cost a bus cycle each, and are far
slower.
"""
_DRIVER = "vfio-pci"
_MODULES = ("vfio_pci", "vfio_iommu_type1")
_BRIDGES = ("pcie-to-pci-bridge", "pci-bridge")
_SLOTS = range(1, 32)
"""The slots of a conventional PCI bridge."""
_PREFIX = "kvmchan-"
"""Begins the names of our devices in a domain's XML."""


class Grade(Enum):
    """How bad a finding is."""

    OK = "ok"
    """As it should be."""
    NOTE = "note"
    """Worth knowing; vchans work."""
    BAD = "bad"
    """Something does not work."""


class Role(Enum):
    """The side that a machine is examined as."""

    HOST = "host"
    GUEST = "guest"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    grade: Grade
    subject: str
    sentence: str

    @property
    def is_bad(self) -> bool:
        """Return whether something does not work."""
        return self.grade is Grade.BAD

    def __str__(self) -> str:
        return f"{self.grade.value:4}  {self.subject}: {self.sentence}"


def examine(listed: Listing | VchanError, uri: str, role: Role | None = None, root: Path = Path("/")) -> list[Finding]:
    """Return the findings about this machine.

    `listed`: what the daemon shows, or why it shows nothing. `role`: None to find out. `root`: the
    directory with /sys and the like.
    """
    if role is None:
        role = role_of(root)
    return [daemon(listed, role), *(guest(listed, root) if role is Role.GUEST else host(listed, uri))]


def daemon(listed: Listing | VchanError, role: Role) -> Finding:
    """Return the finding about the daemon itself."""
    subject = f"kvmchand {role.value}"
    if isinstance(listed, VchanError):
        return Finding(Grade.BAD, subject, listed.sentence)
    return Finding(Grade.OK, subject, f"it answers, and knows {len(listed.domains)} domains and {len(listed.channels)} channels")


def role_of(root: Path) -> Role:
    """Return the role of this machine.

    A machine with ivshmem devices is a guest. So is one of QEMU's, unless it runs a libvirt.
    """
    if ivshmem_functions(root / "sys"):
        return Role.GUEST
    is_qemu = _text(root / "sys/class/dmi/id/sys_vendor") == "QEMU"
    return Role.GUEST if is_qemu and not (root / "run/libvirt").exists() else Role.HOST


def _text(path: Path) -> str:
    """Return the text of a file that may be missing."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _bytes(count: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if count and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} bytes"


# ---- a guest ----


def ivshmem_functions(sys: Path) -> list[pci.Function]:
    """Return the machine's ivshmem devices."""
    found = []
    for address in _addresses(sys):
        function = _function(address, sys)
        if function is not None and (function.vendor, function.device) == IVSHMEM:
            found.append(function)
    return found


def _addresses(sys: Path) -> list[str]:
    try:
        return pci.addresses(sys)
    except pci.SysfsError:
        return []


def _function(address: str, sys: Path) -> pci.Function | None:
    try:
        return pci.function(address, sys)
    except pci.SysfsError:
        return None  # it went meanwhile, or is none that we could judge


def guest(listed: Listing | VchanError, root: Path) -> Iterator[Finding]:
    """Yield the findings about a guest."""
    sys = root / "sys"
    yield from _modules(sys)
    if not (root / "dev/vfio/vfio").exists():
        yield Finding(Grade.BAD, "VFIO", "there is no /dev/vfio/vfio: load vfio-pci, or let this container have the device")
    yield _iommu(root)
    known = {} if isinstance(listed, VchanError) else {each.address: each for each in listed.devices}
    functions = ivshmem_functions(sys)
    if not functions:
        yield Finding(
            Grade.BAD,
            "devices",
            "the host has plugged none into this guest: is kvmchand host running there? kvmchan doctor there says more",
        )
    for function in functions:
        yield from _device(function, known.get(function.address), sys)
    yield from _windows(functions, sys)


def _modules(sys: Path) -> Iterator[Finding]:
    for module in _MODULES:
        if (sys / "module" / module).exists():
            yield Finding(Grade.OK, "module", f"{module} is there")
        else:
            yield Finding(
                Grade.BAD,
                "module",
                f"{module} is not there: modprobe {module}, or a kernel that has it (not Debian's for the cloud)",
            )


def _iommu(root: Path) -> Finding:
    sys = root / "sys"
    groups = [each.name for each in (sys / "kernel/iommu_groups").glob("*")]
    if not all(pci.is_noiommu(each, sys) for each in groups):
        return Finding(Grade.OK, "vIOMMU", "there is one, and the kernel uses it")
    if groups or _text(sys / "module/vfio/parameters/enable_unsafe_noiommu_mode") == "Y":
        return Finding(
            Grade.NOTE,
            "vIOMMU",
            "there is none, and VFIO is let do without, so that nothing confines the devices: that needs noiommu = true in "
            "kvmchand guest's settings",
        )
    if not any((sys / "firmware/acpi/tables" / table).exists() for table in ("DMAR", "VIOT")):
        return Finding(
            Grade.BAD, "vIOMMU", "this machine has none: kvmchan prepare-domain on the host, then start the domain anew"
        )
    if prepare.uses_iommu(_text(root / "proc/cmdline")):
        sentence = "the kernel does not use the machine's, though it is told to: its log (dmesg | grep -i dmar) says why"
    else:
        sentence = "the kernel does not use the machine's: put intel_iommu=on on its command line, and reboot"
    return Finding(Grade.BAD, "vIOMMU", sentence)


def _device(function: pci.Function, known: DeviceInfo | None, sys: Path) -> Iterator[Finding]:
    name = f"device {function.address}"
    faults = list(_faults(function, sys))
    for each in faults:
        yield Finding(Grade.BAD, name, each)
    if known is None:
        if not faults:
            yield Finding(Grade.BAD, name, "kvmchand guest does not use it: is it running? its log says why")
        return
    what = f"{_bytes(known.size)}, {known.vectors} vectors; its memory is mapped"
    if known.speed < WRITE_BACK:
        yield Finding(
            Grade.NOTE,
            name,
            f"{what} uncached: {known.speed} MB/s read, so that vchans are slow: is the device QEMU's, and no hardware?",
        )
    else:
        yield Finding(Grade.OK, name, f"{what} write-back: {known.speed} MB/s read")


def _faults(function: pci.Function, sys: Path) -> Iterator[str]:
    if function.revision != REVISION:
        yield f"it is revision {function.revision} of ivshmem, and only {REVISION} has interrupts: a newer QEMU is needed"
    if len(function.bars) < 3 or not function.bars[2].size:
        above = pci.bridge(function.address, sys)
        yield (
            f"its memory (BAR 2) got no address, for {f'bridge {above}' if above else 'the machine'} has no window for so much: "
            "use smaller links (links.size in the host's settings), or have a large one from the start (kvmchan prepare-domain "
            "--link-size)"
        )
    elif not function.bars[0].size:
        yield "its doorbell (BAR 0) got no address: another bridge is needed (kvmchan prepare-domain on the host)"
    for member in pci.group_members(function.group, sys) if function.group else []:
        other = _function(member, sys)
        if other is not None and member != function.address and other.driver not in ("", _DRIVER, "pcieport"):
            yield (
                f"its IOMMU group {function.group} has {member} in it, which the driver {other.driver} has: plug the device "
                "elsewhere, behind a bridge of its own (kvmchan prepare-domain on the host)"
            )
    if function.driver != _DRIVER:
        yield f"it has {function.driver or 'no driver'} and not {_DRIVER}: is kvmchand guest running? its log says more"


def _windows(functions: list[pci.Function], sys: Path) -> Iterator[Finding]:
    """Yield what may still be plugged behind the bridges of our devices."""
    bars = [bar for address in _addresses(sys) if (each := _function(address, sys)) is not None for bar in each.bars]
    for above in sorted({pci.bridge(each.address, sys) for each in functions} - {""}):
        try:
            windows = pci.windows(above, sys)
        except pci.SysfsError as error:
            yield Finding(Grade.NOTE, f"bridge {above}", str(error))
            continue
        room = max((pci.largest_fit(window, bars) for window in windows), default=0)
        sizes = " and ".join(_bytes(window.size) for window in windows)
        if room >= pci.PAGE:
            yield Finding(
                Grade.OK, f"bridge {above}", f"it has windows of {sizes}, with room for a device of {_bytes(room)} more"
            )
        else:
            yield Finding(
                Grade.NOTE,
                f"bridge {above}",
                f"its windows ({sizes or 'it has none'}) have no room for another device: have a large one from the start "
                "(kvmchan prepare-domain --link-size)",
            )


# ---- a host ----


def host(listed: Listing | VchanError, uri: str) -> Iterator[Finding]:
    """Yield the findings about a host."""
    try:
        connection = prepare.connect(uri)
    except VchanError as error:
        yield Finding(Grade.BAD, "libvirt", error.sentence)
        return
    try:
        yield Finding(
            Grade.OK, "libvirt", f"version {_version(connection.getLibVersion())}, QEMU {_version(connection.getVersion())}"
        )
        guests = None if isinstance(listed, VchanError) else {int(each.domain): each for each in listed.guests}
        running = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        if not running:
            yield Finding(Grade.NOTE, "libvirt", "no domain runs there")
        for domain in running:
            yield from _domain(domain, guests)
    except libvirt.libvirtError as error:
        yield Finding(Grade.BAD, "libvirt", f"{uri} does not answer: {error}")
    finally:
        connection.close()


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _domain(domain: Any, guests: dict[int, GuestInfo] | None) -> Iterator[Finding]:
    """Yield the findings about a domain.

    `guests`: those that the daemon knows, by number; None if it does not say.
    """
    number = domain.ID()
    try:
        live = domain.XMLDesc()
        kept = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if domain.isPersistent() else ""
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
            raise
        return  # it has ended meanwhile
    subject = f"domain {number} ({domain.name()})"
    known = guests.get(number) if guests is not None else None
    try:
        yield from machine(subject, domain.name(), live, kept, is_linked=known is not None and known.ready)
    except VchanError as error:
        yield Finding(Grade.BAD, subject, error.sentence)
    if guests is not None:
        yield _link(subject, known)


def machine(subject: str, name: str, live: str, kept: str, *, is_linked: bool) -> Iterator[Finding]:
    """Yield the findings about a running domain's machine.

    `live`: its XML. `kept`: the XML of its next start, or "" if it has none. What a linked domain
    lacks is only a note, since it works without.
    """
    made = prepare.prepare(live)
    grade = Grade.NOTE if is_linked else Grade.BAD
    for obstacle in made.obstacles:
        yield Finding(grade, subject, obstacle)
    if made.changes:
        yield Finding(grade, subject, f"its machine lacks {'; '.join(made.changes)}: {_remedy(name, kept)}")
    if not is_linked:
        for hint in made.hints:
            yield Finding(Grade.NOTE, subject, hint)
    tree = ElementTree.fromstring(live)
    if tree.get("type") == "qemu":
        yield Finding(
            Grade.NOTE,
            subject,
            "it runs without KVM, so that it is slow, and keeps each device that it was given until it ends: where the host has "
            "/dev/kvm, put type='kvm' into its XML (virsh edit), shut it down and start it",
        )
    devices = [each for each in tree.iterfind("devices/shmem") if each.get("name", "").startswith(_PREFIX)]
    free = free_slots(tree)
    if free == 0:
        yield Finding(
            Grade.BAD, subject, "its bridges have no free slot: it gets no more devices until its XML has another bridge"
        )
    elif not made.obstacles and not made.changes:
        room = "" if free is None else f" and {free} free slots for more"
        yield Finding(Grade.OK, subject, f"its machine has all that vchans need, {len(devices)} devices of ours{room}")


def _remedy(name: str, kept: str) -> str:
    if not kept:
        return "put that into the XML that it is made from"
    if prepare.prepare(kept).changes:
        return f"kvmchan prepare-domain {name} --apply, then shut it down and start it"
    return "it is prepared, and has that once it is shut down and started; a reboot inside it does not do"


def free_slots(tree: ElementTree.Element) -> int | None:
    """Return how many more devices fit, or None if the domain has no bridges for them."""
    free = {each.get("index", ""): set(_SLOTS) for each in tree.iterfind("devices/controller") if each.get("model") in _BRIDGES}
    for address in tree.iterfind("devices/*/address[@type='pci']"):
        try:
            bus, slot = str(int(address.get("bus", ""), 0)), int(address.get("slot", ""), 0)
        except ValueError:
            continue
        free.get(bus, set()).discard(slot)
    return sum(map(len, free.values())) if free else None


def _link(subject: str, known: GuestInfo | None) -> Finding:
    if known is None:
        return Finding(Grade.BAD, subject, "kvmchand host does not serve it: is it one of another libvirt (--libvirt)?")
    if known.ready:
        return Finding(Grade.OK, subject, "its kvmchand is linked to this host's")
    if not known.devices:
        return Finding(Grade.BAD, subject, "it has no device of ours, and so no link: kvmchand host's log says why")
    return Finding(
        Grade.BAD,
        subject,
        "no kvmchand in it is linked to this host's: start kvmchand guest there; kvmchan doctor there says more",
    )
