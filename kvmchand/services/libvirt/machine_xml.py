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
from kvmchand.services.libvirt import architectures

GIC = "a GIC of version 3, without which VFIO lets no device of the guest's have interrupts"


@dataclass(frozen=True, slots=True)
class Fitness:
    """What a domain's machine lacks: sentences that say what to do, or ""."""

    obstacle: str
    """Why it can take no device."""
    lack: str
    """Why it is not prepared. A machine that can take no device never is."""


def obstacle(tree: ElementTree.Element) -> str:
    """Return why a domain's machine can take no device, and what to do; or ""."""
    if architectures.places(tree):
        return ""
    if any(each.get("model") == "pci-root" for each in tree.iterfind("devices/controller")):
        return (
            "its machine has only a root bus of conventional PCI to plug a device into, where one that comes while the firmware "
            "starts ends QEMU: install the guest anew in a domain with machine type q35, or add "
            "<controller type='pci' model='pci-bridge'/> to its XML"
        )
    return architectures.of(tree).no_place


def why_not_preparable(tree: ElementTree.Element) -> list[str]:
    """Return why a domain cannot be prepared, each a sentence."""
    found = []
    kind = tree.find("os/type")
    machine = "" if kind is None else kind.get("machine", "")
    name = "" if kind is None else kind.get("arch", "")
    architecture = architectures.of(tree)
    if name != architecture.name:
        found.append(f"it is a {name or 'nameless'} machine, and kvmchan's guests are {architectures.known()}")
    elif architecture.machine not in machine:
        found.append(
            f"its machine type is {machine or 'not known'}, which has no vIOMMU, and can't be changed under an installed guest: "
            f"install the guest anew in a domain with machine type {architecture.machine}"
        )
    elif architecture is architectures.ARM64 and tree.find("features/acpi") is None:
        found.append(
            "it has no ACPI, without which its kernel puts all PCI devices into one IOMMU group: add <acpi/> to its features, "
            "and UEFI, which that needs (<os firmware='efi'>)"
        )
    found += [
        f"it has a vIOMMU of model {each.get('model')}, which {architecture.not_iommu}: make that {architecture.iommu}, or "
        "remove it, and try again"
        for each in tree.iterfind("devices/iommu")
        if each.get("model") != architecture.iommu
    ]
    return found


def _missing(tree: ElementTree.Element) -> list[str]:
    """Return what a machine that can be prepared lacks, as noun phrases."""
    missing = []
    architecture = architectures.of(tree)
    iommu = tree.find("devices/iommu")
    if iommu is None:
        missing.append("a vIOMMU, without which the guest can't use devices by VFIO")
    else:
        driver = iommu.find("driver")
        needs = architecture.iommu_needs
        missing += [f"{part} of the vIOMMU" for part in needs if driver is None or driver.get(part) != "on"]
    if lacks_gic(tree):
        missing.append(GIC)
    if not architectures.places(tree):
        missing.append(f"{architecture.place}, behind which ivshmem devices are plugged")
    return missing


def lacks_gic(tree: ElementTree.Element) -> bool:
    """Return whether a machine of arm64 has an interrupt controller that confines no device."""
    gic = tree.find("features/gic")
    return architectures.of(tree) is architectures.ARM64 and (gic is None or gic.get("version") not in ("3", "host"))


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
