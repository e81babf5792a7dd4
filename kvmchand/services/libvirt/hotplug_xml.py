# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our devices in a domain's libvirt XML.

Which devices it has, where the next one goes, and why it can have none. The only I/O is to ask
whether a socket exists.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from xml.etree import ElementTree

from kvmchand.services.libvirt import coldplug_xml, machine_xml
from kvmchand.services.libvirt.machine_xml import SLOTS
from kvmchand.wire.libvirt import Attach


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


def stale_devices(tree: ElementTree.Element, folder: Path) -> list[str]:
    """Return the server paths in `folder` that the domain's devices name and that do not exist.

    They belong to an earlier daemon. A device that a domain has from its start cannot be unplugged,
    and is left out.
    """
    paths = [
        Path(server.get("path", ""))
        for each in tree.findall("devices/shmem")
        if not coldplug_xml.is_start(each) and (server := each.find("server")) is not None
    ]
    return [str(each) for each in paths if each.parent == folder and not _is_there(each)]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False  # no path that can be


def _bus(address: ElementTree.Element) -> int:
    return int(address.get("bus", "0"), 0)


def _place(tree: ElementTree.Element) -> tuple[int, int]:
    """Return bus and slot for one more device: on the bridge that has the fewest of ours.

    Each bridge has a window of its own. Raises Refused if there is no place.
    """
    obstacle = machine_xml.obstacle(tree)
    if obstacle:
        raise Refused(obstacle)
    buses = [int(each.get("index", "0")) for each in machine_xml.bridges(tree)]
    taken: dict[int, set[int]] = {bus: set() for bus in buses}
    ours: dict[int, int] = dict.fromkeys(buses, 0)
    for device in tree.findall("devices/*"):
        address = device.find("address")
        if address is not None and address.get("type") == "pci" and _bus(address) in taken:
            taken[_bus(address)].add(int(address.get("slot", "0"), 0))
            ours[_bus(address)] += device.tag == "shmem"
    free = [(ours[bus], bus, min(set(SLOTS) - taken[bus])) for bus in buses if set(SLOTS) - taken[bus]]
    if not free:
        raise Refused("its bridges for conventional PCI devices have no free slot: add another pcie-to-pci-bridge to its XML")
    _, bus, slot = min(free)
    return bus, slot


def device_xml(tree: ElementTree.Element, attach: Attach) -> str:
    """Return the <shmem> to attach to a domain. Raises Refused if it has no place for one."""
    try:
        bus, slot = _place(tree)
    except ValueError as error:
        raise Refused(f"its XML has an address that can't be: {error}") from error
    shmem = ElementTree.Element("shmem", name=f"kvmchan-{attach.device}")
    # Libvirt would give an id of its own again after an attach of which it does not know that QEMU
    # has the device, or half of it.
    ElementTree.SubElement(shmem, "alias", name=f"ua-kvmchan-{secrets.token_hex(8)}")
    ElementTree.SubElement(shmem, "model", type="ivshmem-doorbell")
    ElementTree.SubElement(shmem, "server", path=attach.socket)
    ElementTree.SubElement(shmem, "msi", vectors=str(attach.vectors), ioeventfd="on")
    ElementTree.SubElement(shmem, "address", type="pci", domain="0", bus=str(bus), slot=str(slot), function="0")
    return ElementTree.tostring(shmem, encoding="unicode")
