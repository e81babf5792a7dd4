# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our devices in a domain's libvirt XML.

Which devices it has, where the next one goes, and why it can have none. The only I/O is to ask
whether a socket exists.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from pathlib import Path
from xml.etree import ElementTree

from kvmchand.services.libvirt import architectures, coldplug_xml, machine_xml
from kvmchand.wire.libvirt import Attach, StaleDevice

Place = tuple[int, int]
"""A bus and a slot there."""

_ALIAS = re.compile("ua-kvmchan-([0-9]{1,5})-[0-9a-f]{16}")
"""With the device's ivshmem id in the domain."""


class Refused(Exception):
    """A sentence that says why a domain cannot have a device."""


def shmem(tree: ElementTree.Element, path: str) -> ElementTree.Element | None:
    """Return the device whose ivshmem server is at `path`, or None."""
    return next(
        (
            each
            for each in tree.findall("devices/shmem")
            if (server := each.find("server")) is not None and server.get("path") == path
        ),
        None,
    )


def stale_devices(tree: ElementTree.Element, folder: Path) -> list[StaleDevice]:
    """Return the domain's devices whose server paths are in `folder` and do not exist.

    They belong to an earlier daemon. A device that a domain has from its start cannot be unplugged,
    and is left out.
    """
    found = []
    for each in tree.findall("devices/shmem"):
        server, msi = each.find("server"), each.find("msi")
        path = Path("" if server is None else server.get("path", ""))
        if path.parent != folder or coldplug_xml.is_start(each) or _is_there(path):
            continue
        peer = _ALIAS.fullmatch(alias(each))
        vectors = "" if msi is None else msi.get("vectors", "")
        found.append(StaleDevice(str(path), int(peer[1]) if peer else 0, int(vectors) if vectors.isdecimal() else 1))
    return found


def alias(shmem: ElementTree.Element) -> str:
    """Return the name by which libvirt and QEMU know a device, or "" if it has none."""
    found = shmem.find("alias")
    return "" if found is None else found.get("name", "")


def place(device: ElementTree.Element) -> Place | None:
    """Return where a device is plugged, or None if that is no place on a PCI bus."""
    address = device.find("address")
    if address is None or address.get("type") != "pci":
        return None
    return int(address.get("bus", "0"), 0), int(address.get("slot", "0"), 0)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False  # no path that can be


class Resting(Exception):
    """All places that are free were another device's only a moment ago."""


def _way(tree: ElementTree.Element, bridge: ElementTree.Element) -> str:
    """Return the slots and functions on the way to a bridge from the root bus, as guests do."""
    controllers = {each.get("index"): each for each in tree.iterfind("devices/controller[@type='pci']")}
    way = list[str]()
    address = bridge.find("address")
    while address is not None and len(way) < len(controllers):
        bus, slot, function = (int(address.get(name, "0"), 0) for name in ("bus", "slot", "function"))
        way.insert(0, f"{slot:02x}.{function}")
        above = controllers.get(str(bus))
        address = None if above is None else above.find("address")
    return "/".join(way)


def _free_place(tree: ElementTree.Element, wanted: str, resting: Collection[Place]) -> Place:
    """Return a place for one more device: on the wanted bridge, or that with the fewest of ours.

    Each bridge has a window of its own. Raises Refused if there is none, and Resting if all that
    there are rest.
    """
    obstacle = machine_xml.obstacle(tree)
    if obstacle:
        raise Refused(obstacle)
    architecture = architectures.of(tree)
    ways = {int(each.get("index", "0")): _way(tree, each) for each in architectures.places(tree)}
    buses = list(ways)
    taken: dict[int, set[int]] = {bus: set() for bus in buses}
    ours: dict[int, int] = dict.fromkeys(buses, 0)
    for device in tree.findall("devices/*"):
        bus, slot = place(device) or (-1, -1)
        if bus in taken:
            taken[bus].add(slot)
            ours[bus] += device.tag == "shmem"
    free = [(ways[bus] != wanted, ours[bus], bus, slot) for bus in buses for slot in architecture.slots if slot not in taken[bus]]
    if not free:
        raise Refused(architecture.no_slot)
    rested = [each for each in free if each[2:] not in resting]
    if not rested:
        raise Resting
    _, _, bus, slot = min(rested)
    return bus, slot


def device_xml(tree: ElementTree.Element, attach: Attach, resting: Collection[Place] = ()) -> str:
    """Return the <shmem> to attach to a domain, at a place that does not rest.

    Raises Refused if the domain has no place for one, and Resting if it has none yet.
    """
    try:
        bus, slot = _free_place(tree, attach.bridge, resting)
    except ValueError as error:
        raise Refused(f"its XML has an address that can't be: {error}") from error
    shmem = ElementTree.Element("shmem", name=f"kvmchan-{attach.device}")
    # Libvirt would give an id of its own again after an attach of which it does not know that QEMU
    # has the device, or half of it.
    ElementTree.SubElement(shmem, "alias", name=f"ua-kvmchan-{attach.peer}-{secrets.token_hex(8)}")
    ElementTree.SubElement(shmem, "model", type="ivshmem-doorbell")
    ElementTree.SubElement(shmem, "server", path=attach.socket)
    ElementTree.SubElement(shmem, "msi", vectors=str(attach.vectors), ioeventfd="on")
    ElementTree.SubElement(shmem, "address", type="pci", domain="0", bus=str(bus), slot=str(slot), function="0")
    return ElementTree.tostring(shmem, encoding="unicode")
