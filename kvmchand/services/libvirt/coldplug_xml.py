# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ivshmem device that a domain has from its start, in its libvirt XML.

It is a <shmem> on the root complex, where firmware makes room for any size. Its name contains the
size, because libvirt has no place for the size if a server provides the memory.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from kvmchand.channels.device import with_shared
from kvmchand.config import VECTORS_MAX
from kvmchand.errors import InvalidArgument
from kvmchand.ids import Size

SIZE_MIN, SIZE_MAX = 1 << 20, 1 << 34
_VECTORS = with_shared(64)
_VECTORS_MIN = 2
"""A channel within the guest takes two."""
_NAME = re.compile(r"kvmchan-start-([0-9]{4,11})")
_SOCKET = re.compile(r"start-[0-9a-f]{26}")
"""As long as the name of a socket that the daemon makes."""
_ROOT_BUS = 0
_SLOTS: tuple[int, ...] = (*range(0x10, 0x1D), *range(0x02, 0x10))
"""Slots of the root complex in the order they are tried: chipsets use those at both ends."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class StartLink:
    """A device from the start.

    `socket`: the name of the ivshmem server's socket in the daemon's folder.
    """

    socket: str
    size: Size
    vectors: int
    has_kvm: bool
    """QEMU runs the domain with KVM."""


def parse_size(text: str) -> Size:
    """Parse a size such as "64M" to bytes; 0 means no device.

    Raises InvalidArgument if no device can have that size.
    """
    matched = re.fullmatch(r"([0-9]{1,12})([KMG]?)", text.upper().removesuffix("IB").removesuffix("B"))
    size = int(matched[1]) * _UNITS[matched[2]] if matched else -1
    if size and not _is_possible(size):
        raise InvalidArgument(f"{text!r} is no size for a link: give a power of two from 1M to 16G, or 0 for none")
    return Size(size)


def has_kvm(root: ElementTree.Element) -> bool:
    """Return whether QEMU runs a domain with KVM.

    Without KVM it must never lose a device: it goes on watching the eventfds of an unplugged device
    by their numbers, and crashes when a later descriptor gets one of these (watch_vector_notifier,
    QEMU 7.2).
    """
    return root.get("type") == "kvm"


def is_start(shmem: ElementTree.Element) -> bool:
    """Return whether a <shmem> is one of these."""
    return _NAME.fullmatch(shmem.get("name", "")) is not None


def _is_possible(size: int) -> bool:
    """Return whether a device may have this size. QEMU exits if it is not a power of two."""
    return SIZE_MIN <= size <= SIZE_MAX and not size & (size - 1)


def _ours(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [each for each in root.iterfind("devices/shmem") if is_start(each)]


def find(root: ElementTree.Element, folder: Path) -> StartLink | None:
    """Return the device in a domain's XML whose socket is in `folder`, or None."""
    for each in _ours(root):
        size, server, msi = _NAME.fullmatch(each.get("name", "")), each.find("server"), each.find("msi")
        path = Path("" if server is None else server.get("path", ""))
        vectors = "" if msi is None else msi.get("vectors", "")
        if not size or path.parent != folder or not _SOCKET.fullmatch(path.name) or not re.fullmatch("[0-9]{1,4}", vectors):
            continue
        found = StartLink(path.name, Size(int(size[1])), int(vectors), has_kvm(root))
        if _VECTORS_MIN <= found.vectors <= VECTORS_MAX and _is_possible(found.size):
            return found
    return None


def new_socket() -> str:
    """Return a name that nobody else knows."""
    return f"start-{secrets.token_hex(13)}"


def put(root: ElementTree.Element, size: Size, folder: Path, socket: str) -> list[str]:
    """Give a domain's XML a device of that size, or none if it is 0.

    Returns what changed, in sentences.

    Raises InvalidArgument if it has no room for one.
    """
    known = find(root, folder)
    if (known.size if known else 0) == size and len(_ours(root)) == bool(size):
        return []
    devices = root.find("devices")
    if devices is None:
        raise InvalidArgument("its XML has no devices")
    for each in _ours(root):
        devices.remove(each)
    if not size:
        return ["no device of its link to the host from its start"]
    shmem = ElementTree.SubElement(devices, "shmem", name=f"kvmchan-start-{size}")
    ElementTree.SubElement(shmem, "model", type="ivshmem-doorbell")
    ElementTree.SubElement(shmem, "server", path=str(folder / socket))
    ElementTree.SubElement(shmem, "msi", vectors=str(_VECTORS), ioeventfd="on")
    slot = f"{_free_slot(root):#04x}"
    ElementTree.SubElement(shmem, "address", type="pci", domain="0x0000", bus="0x00", slot=slot, function="0x0")
    return [f"a device of {size} bytes of its link to the host, there from its start"]


def _free_slot(root: ElementTree.Element) -> int:
    taken = {
        int(address.get("slot", "0"), 0)
        for address in root.iterfind("devices/*/address")
        if address.get("type") == "pci" and int(address.get("bus", "0"), 0) == _ROOT_BUS
    }
    free = [slot for slot in _SLOTS if slot not in taken]
    if not free:
        raise InvalidArgument("its root complex has no slot left: remove a device")
    return free[0]
