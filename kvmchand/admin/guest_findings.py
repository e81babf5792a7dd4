# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the doctor finds in a guest: at VFIO, at the vIOMMU, and at the ivshmem devices.

What sysfs does not show, or shows wrongly, becomes a finding or is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from kvmchand.admin import prepare
from kvmchand.admin.findings import Finding, Grade, Kind
from kvmchand.admin.shown import PATIENCE, Shown
from kvmchand.config import LINK_BYTES
from kvmchand.errors import TimedOut, VchanError
from kvmchand.linux import bridges, pci
from kvmchand.services.vfio.iommu_groups import DRIVER
from kvmchand.services.vfio.opener import REVISION, UNCOVERED
from kvmchand.services.vfio.windows import is_ivshmem
from kvmchand.wire import control
from kvmchand.wire.client import DeviceInfo

WRITE_BACK = 500
"""MB/s above which memory counts as cached: uncached reads cost a bus cycle each, and are far
slower.
"""
_CONTROL = (control.DEVICE_BYTES, 1)
"""The bytes and vectors of the control device, which no other has."""
_MODULES = ("vfio_pci", "vfio_iommu_type1")


def ivshmem_functions(sys: Path) -> list[pci.Function]:
    """Return the machine's ivshmem devices that have interrupts; others are somebody else's."""
    found = []
    for address in _addresses(sys):
        function = _function(address, sys)
        if function is not None and is_ivshmem(function):
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


def guest(shown: Shown, root: Path, *, dedicated: bool) -> Iterator[Finding]:
    """Yield the findings about a guest.

    `dedicated`: each channel gets a device of its own, so that there may be none before the first.
    """
    sys = root / "sys"
    yield from _modules(sys)
    if not (root / "dev/vfio/vfio").exists():
        yield Finding(
            Grade.BAD, Kind.VFIO, "VFIO", "there is no /dev/vfio/vfio: load vfio-pci, or let this container have the device"
        )
    yield _iommu(root)
    known = {} if isinstance(shown.first, VchanError) else {each.address: each for each in shown.first.devices}
    functions = ivshmem_functions(sys)
    if not functions and not known:
        yield Finding(
            Grade.BAD,
            Kind.NO_DEVICE,
            "devices",
            "the host has plugged none into this guest: is kvmchand host running there? kvmchan doctor there says more",
        )
    is_linked = False
    if not isinstance(shown.first, VchanError) and (functions or known):
        link = _link(known.values(), shown, sys, dedicated=dedicated)
        is_linked = not link.is_bad
        yield link
    for function in functions:
        yield from _device(function, known.get(function.address), sys, is_linked=is_linked)
    yield from _windows(functions, sys)


def _link(known: Collection[DeviceInfo], shown: Shown, sys: Path, *, dedicated: bool) -> Finding:
    """Return the finding about the link to the host, which is asked.

    `known`: the devices that kvmchand uses.
    """
    for_channels = [each for each in known if (each.size, each.vectors) != _CONTROL]
    if len(for_channels) == len(known):
        return _unlinked(
            "kvmchand guest has no control device, over which the host would answer: the findings about devices say why, or its "
            "log, or that of kvmchand host"
        )
    listed = shown.whole()
    if isinstance(listed, VchanError):
        timed_out = f"the host's kvmchand has not answered in {PATIENCE:.0f} s"
        sentence = timed_out if isinstance(listed, TimedOut) else listed.sentence
        return _unlinked(
            f"{sentence}: is kvmchand host running there, and does it serve this guest? kvmchan doctor there says more"
        )
    if not for_channels and not dedicated:
        return _unlinked(
            f"the host's kvmchand answers, but the control device is all that this guest has of it, and no channel fits on "
            f"that: {_why_no_device(sys)}"
        )
    return Finding(
        Grade.OK, Kind.LINK, "link", f"the host's kvmchand answers, and {len(for_channels)} devices are here for channels"
    )


def _unlinked(sentence: str) -> Finding:
    return Finding(Grade.BAD, Kind.LINK, "link", sentence)


def _why_no_device(sys: Path) -> str:
    """Return why there is no device for channels, as far as this machine shows, and what to do."""
    room = _largest_room(sys)
    if room is None or room >= LINK_BYTES:
        return "one may be on its way; if it does not come, kvmchand host's log says why"
    windows = f"no window for more than {_bytes(room)}" if room >= pci.PAGE else "no window for one"
    return (
        f"the bridges have {windows}: prepare the domain on the host (kvmchan prepare-domain NAME --apply; with --link-size 64M, "
        "it has a device from its start), shut it down and start it"
    )


def _largest_room(sys: Path) -> int | None:
    """Return the bytes that a device may have at the most, or None if that can't be told."""
    try:
        return max((each.room for each in bridges.bridges(is_ivshmem, sys)), default=None)
    except pci.SysfsError:
        return None


def _modules(sys: Path) -> Iterator[Finding]:
    for module in _MODULES:
        if (sys / "module" / module).exists():
            yield Finding(Grade.OK, Kind.MODULE, "module", f"{module} is there")
        else:
            yield Finding(
                Grade.BAD,
                Kind.MODULE,
                "module",
                f"{module} is not there: modprobe {module}, or a kernel that has it (not Debian's for the cloud)",
            )


def _iommu(root: Path) -> Finding:
    sys = root / "sys"
    if pci.has_iommu(sys):
        return Finding(Grade.OK, Kind.VIOMMU, "vIOMMU", "there is one, and the kernel uses it")
    has_groups = any((sys / "kernel/iommu_groups").glob("*"))
    if has_groups or text(sys / "module/vfio/parameters/enable_unsafe_noiommu_mode") == "Y":
        return Finding(
            Grade.NOTE,
            Kind.VIOMMU,
            "vIOMMU",
            "there is none, and VFIO is let do without, so that nothing confines the devices: that needs noiommu = true in "
            "kvmchand guest's settings",
        )
    if not any((sys / "firmware/acpi/tables" / table).exists() for table in ("DMAR", "VIOT")):
        return Finding(
            Grade.BAD,
            Kind.VIOMMU,
            "vIOMMU",
            "this machine has none: kvmchan prepare-domain on the host, then start the domain anew",
        )
    if prepare.uses_iommu(text(root / "proc/cmdline")):
        sentence = "the kernel does not use the machine's, though it is told to: its log (dmesg | grep -i dmar) says why"
    else:
        sentence = "the kernel does not use the machine's: put intel_iommu=on on its command line, and reboot"
    return Finding(Grade.BAD, Kind.VIOMMU, "vIOMMU", sentence)


def _device(function: pci.Function, known: DeviceInfo | None, sys: Path, *, is_linked: bool) -> Iterator[Finding]:
    name = f"device {function.address}"
    faults = list(_faults(function, sys, is_used=known is not None))
    if not faults and function.driver != DRIVER:
        faults = [
            (
                Kind.DRIVER,
                f"it has {function.driver or 'no driver'} and not {DRIVER}: is kvmchand guest running? its log says more",
            )
        ]
    for kind, sentence in faults:
        yield Finding(Grade.BAD, kind, name, sentence)
    if known is None:
        if not faults and is_linked:
            yield Finding(
                Grade.NOTE,
                Kind.LEFT,
                name,
                "nothing uses it, and the link works without it: an earlier kvmchand host left it, or kvmchand guest's log says "
                "why it is not used. Without KVM, a device that was left stays until the domain is shut down",
            )
        elif not faults:
            yield Finding(Grade.BAD, Kind.UNUSED, name, "kvmchand guest does not use it: is it running? its log says why")
        return
    what = f"{_bytes(known.size)}, {known.vectors} vectors; its memory is mapped"
    if known.speed < WRITE_BACK:
        yield Finding(
            Grade.NOTE,
            Kind.SPEED,
            name,
            f"{what} uncached: {known.speed} MB/s read, so that vchans are slow: is the device QEMU's, and no hardware?",
        )
    else:
        yield Finding(Grade.OK, Kind.DEVICE, name, f"{what} write-back: {known.speed} MB/s read")


def _faults(function: pci.Function, sys: Path, *, is_used: bool) -> Iterator[tuple[Kind, str]]:
    """Yield why a device can't be used."""
    if function.revision != REVISION:
        yield (
            Kind.REVISION,
            f"it is revision {function.revision} of ivshmem, and only {REVISION} has interrupts: a newer QEMU is needed",
        )
    if len(function.bars) < 3 or not function.bars[2].size:
        above = pci.bridge(function.address, sys)
        yield (
            Kind.ADDRESS,
            f"its memory (BAR 2) got no address, for {f'bridge {above}' if above else 'the machine'} has no window for so much: "
            "use smaller links (links.size in the host's settings), or have a large one from the start (kvmchan prepare-domain "
            "--link-size)",
        )
    elif not function.bars[0].size:
        yield Kind.ADDRESS, "its doorbell (BAR 0) got no address: another bridge is needed (kvmchan prepare-domain on the host)"
    is_covered = function.group and not pci.is_noiommu(function.group, sys)
    if not is_covered and not is_used and pci.has_iommu(sys):
        yield Kind.GROUP, UNCOVERED
    for member in pci.group_members(function.group, sys) if function.group else []:
        other = _function(member, sys)
        if other is not None and member != function.address and other.driver not in ("", DRIVER, "pcieport"):
            yield (
                Kind.GROUP,
                f"its IOMMU group {function.group} has {member} in it, which the driver {other.driver} has: plug the device "
                "elsewhere, behind a bridge of its own (kvmchan prepare-domain on the host)",
            )


def _windows(functions: list[pci.Function], sys: Path) -> Iterator[Finding]:
    """Yield what may still be plugged behind the bridges of our devices."""
    if bridges.ON_PORTS:
        return  # these are full
    bars = [bar for address in _addresses(sys) if (each := _function(address, sys)) is not None for bar in each.bars]
    for above in sorted({pci.bridge(each.address, sys) for each in functions} - {""}):
        try:
            windows = pci.windows(above, sys)
        except pci.SysfsError as error:
            yield Finding(Grade.NOTE, Kind.WINDOW, f"bridge {above}", str(error))
            continue
        room = max((pci.largest_fit(window, bars) for window in windows), default=0)
        sizes = " and ".join(_bytes(window.size) for window in windows)
        if room >= pci.PAGE:
            yield Finding(
                Grade.OK,
                Kind.WINDOW,
                f"bridge {above}",
                f"it has windows of {sizes}, with room for a device of {_bytes(room)} more",
            )
        else:
            yield Finding(
                Grade.NOTE,
                Kind.WINDOW,
                f"bridge {above}",
                f"its windows ({sizes or 'it has none'}) have no room for another device: have a large one from the start "
                "(kvmchan prepare-domain --link-size)",
            )


def text(path: Path) -> str:
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
