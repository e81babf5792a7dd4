# SPDX-License-Identifier: LGPL-2.1-or-later
"""A domain's machine, by its libvirt XML: what it has of what vchans need, and if it is served.

Pure. The daemon, `kvmchan doctor` and `kvmchan prepare-domain` all judge by this. A machine never
changes while its domain runs, so it is judged once.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from xml.etree import ElementTree

from kvmchand.config import PREPARED, Serve

SLOTS = range(1, 32)
"""Slots of a conventional PCI bridge."""
_BRIDGES = ("pcie-to-pci-bridge", "pci-bridge")
_IOMMU = "intel"
"""The model of vIOMMU that gives our devices a group of their own, without which there is no VFIO.

QEMU tells its virtio-iommu of a bridge to conventional PCI, and not of the devices behind it, so
that Linux gives them none (QEMU 7.2, Linux 6.12).
"""
IOMMU_NEEDS = ("intremap", "caching_mode")
"""What has to be on in it."""


@dataclass(frozen=True, slots=True)
class Fitness:
    """What a domain's machine lacks: sentences that say what to do, or ""."""

    obstacle: str
    """Why it can take no device."""
    lack: str
    """Why it is not prepared. A machine that can take no device never is."""


def bridges(tree: ElementTree.Element) -> list[ElementTree.Element]:
    """Return the bridges that a device may be plugged into.

    A root bus is none. What comes to a root bus of conventional PCI while the firmware starts ends
    a QEMU with KVM (KVM_SET_USER_MEMORY_REGION failed, QEMU 7.2), and a root bus of PCI Express
    takes nothing while its domain runs.
    """
    controllers = tree.iterfind("devices/controller")
    return [each for each in controllers if each.get("type") == "pci" and each.get("model") in _BRIDGES]


def obstacle(tree: ElementTree.Element) -> str:
    """Return why a domain's machine can take no device, and what to do; or ""."""
    if bridges(tree):
        return ""
    if any(each.get("model") == "pci-root" for each in tree.iterfind("devices/controller")):
        return (
            "its machine has only a root bus of conventional PCI to plug a device into, where one that comes while the firmware "
            "starts ends QEMU: install the guest anew in a domain with machine type q35, or add "
            "<controller type='pci' model='pci-bridge'/> to its XML"
        )
    return (
        "its XML has no bridge for conventional PCI devices, as ivshmem is one: add "
        "<controller type='pci' model='pcie-root-port'/> and "
        "<controller type='pci' model='pcie-to-pci-bridge'/> (kvmchan prepare-domain does)"
    )


def why_not_preparable(tree: ElementTree.Element) -> list[str]:
    """Return why a domain cannot be prepared, each a sentence."""
    found = []
    kind = tree.find("os/type")
    machine = "" if kind is None else kind.get("machine", "")
    architecture = "" if kind is None else kind.get("arch", "")
    if architecture != "x86_64":
        found.append(f"it is a {architecture or 'nameless'} machine, and kvmchan's guests are x86_64")
    elif "q35" not in machine:
        found.append(
            f"its machine type is {machine or 'not known'}, which has no vIOMMU, and can't be changed under an installed guest: "
            "install the guest anew in a domain with machine type q35"
        )
    found += [
        f"it has a vIOMMU of model {each.get('model')}, which gives devices behind a bridge to conventional PCI no IOMMU group: "
        f"make that {_IOMMU}, or remove it, and try again"
        for each in tree.iterfind("devices/iommu")
        if each.get("model") != _IOMMU
    ]
    return found


def _missing(tree: ElementTree.Element) -> list[str]:
    """Return what a machine that can be prepared lacks, as noun phrases."""
    missing = []
    iommu = tree.find("devices/iommu")
    if iommu is None:
        missing.append("a vIOMMU, without which the guest can't use devices by VFIO")
    else:
        driver = iommu.find("driver")
        missing += [f"{part} of the vIOMMU" for part in IOMMU_NEEDS if driver is None or driver.get(part) != "on"]
    if not bridges(tree):
        missing.append("a bridge to conventional PCI, behind which ivshmem devices are plugged")
    return missing


def fitness(tree: ElementTree.Element, *, is_persistent: bool) -> Fitness:
    """Judge the machine of a running domain by its live XML.

    `is_persistent`: libvirt keeps XML for its next start, which can be prepared.
    """
    lack = "; ".join(why_not_preparable(tree))
    missing = "; ".join(_missing(tree))
    if missing and not lack:
        name = shlex.quote(tree.findtext("name", ""))
        remedy = (
            f"prepare it (kvmchan prepare-domain {name} --apply)"
            if is_persistent
            else "put that into the XML that it is made from"
        )
        lack = f"its machine lacks {missing}: {remedy}, shut it down and start it"
    return Fitness(obstacle(tree), lack)


def is_wanted(name: str, serve: Serve) -> bool:
    """Return whether the settings leave a domain to be served, if it can be."""
    return not isinstance(serve, tuple) or name in serve


def refusal(name: str, fitness: Fitness, serve: Serve) -> str:
    """Return why a domain is not served, and what to do; or ""."""
    if not is_wanted(name, serve):
        return "the settings do not name it: add it to serve in [guests]"
    if serve != PREPARED:
        return fitness.obstacle
    if fitness.lack and not fitness.obstacle:
        return f"{fitness.lack}; or have it served as it is: name it in the settings (serve in [guests])"
    return fitness.lack
