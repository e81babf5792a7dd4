# SPDX-License-Identifier: LGPL-2.1-or-later
"""What differs between machines of two architectures, where vchans are concerned. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture.

    `machine`: the type of machines that can be prepared. `iommu`: the model of vIOMMU that gives
    our devices a group of their own, without which there is no VFIO. `iommu_needs`: what has to be
    on in it. `not_iommu`: why no other model does. `behind`: the models of controllers that devices
    are plugged behind. `slots`: slots there. `is_for_one`: such a controller takes one device, and
    no other's. `made_of`: the models of the controllers that one more place consists of. `needed`,
    `made`: how many places a domain should have, and how many it gets if it has less. `place`: a
    place, as a noun phrase.
    """

    name: str
    machine: str
    iommu: str
    iommu_needs: tuple[str, ...]
    not_iommu: str
    behind: tuple[str, ...]
    slots: range
    is_for_one: bool
    made_of: tuple[str, ...]
    needed: int
    made: int
    place: str
    no_place: str
    """Why a machine without a place can take no device, and what to do."""
    no_slot: str
    """The same of one whose places are taken."""


X86 = Architecture(
    name="x86_64",
    machine="q35",
    # QEMU tells its virtio-iommu of a bridge to conventional PCI, and not of the devices behind it,
    # so that Linux gives them no group (QEMU 7.2, Linux 6.12).
    iommu="intel",
    iommu_needs=("intremap", "caching_mode"),
    not_iommu="gives devices behind a bridge to conventional PCI no IOMMU group",
    behind=("pcie-to-pci-bridge", "pci-bridge"),
    slots=range(1, 32),
    is_for_one=False,
    made_of=("pcie-root-port", "pcie-to-pci-bridge"),
    # Where a guest's kernel does not let bridges be widened ahead, each large device takes one.
    # SeaBIOS has I/O addresses for about nine, and other devices need some.
    needed=2,
    made=4,
    place="a bridge to conventional PCI",
    no_place=(
        "its XML has no bridge for conventional PCI devices, as ivshmem is one: add "
        "<controller type='pci' model='pcie-root-port'/> and "
        "<controller type='pci' model='pcie-to-pci-bridge'/> (kvmchan prepare-domain does)"
    ),
    no_slot="its bridges for conventional PCI devices have no free slot: add another pcie-to-pci-bridge to its XML",
)
# Behind a pcie-to-pci-bridge, devices are plugged there by a driver of Linux's (shpchp) that owns
# the bridge, so that the group of both is not viable for VFIO (Linux 6.1).
ARM64 = Architecture(
    name="aarch64",
    machine="virt",
    iommu="smmuv3",
    iommu_needs=(),
    not_iommu="Debian 12's kernel for arm64 has no driver for",
    behind=("pcie-root-port",),
    slots=range(1),
    is_for_one=True,
    made_of=("pcie-root-port",),
    needed=2,
    made=12,
    place="a pcie-root-port with nothing behind it",
    no_place=(
        "its XML has no pcie-root-port with nothing behind it: add <controller type='pci' model='pcie-root-port'/>, one for "
        "each device (kvmchan prepare-domain does)"
    ),
    no_slot="its pcie-root-ports are taken: add another to its XML",
)
_ALL = {each.name: each for each in (X86, ARM64)}


def of(tree: ElementTree.Element) -> Architecture:
    """Return a domain's architecture; one that is not known is judged as x86_64 is."""
    kind = tree.find("os/type")
    return X86 if kind is None else _ALL.get(kind.get("arch", ""), X86)


def known() -> str:
    """Return the names of those that guests may have."""
    return " or ".join(_ALL)


def places(tree: ElementTree.Element) -> list[ElementTree.Element]:
    """Return the controllers that a device may be plugged behind.

    A root bus is none. What comes to a root bus of conventional PCI while the firmware starts ends
    a QEMU with KVM (KVM_SET_USER_MEMORY_REGION failed, QEMU 7.2), and a root bus of PCI Express
    takes nothing while its domain runs.
    """
    architecture = of(tree)
    taken = set(_others_buses(tree)) if architecture.is_for_one else set()
    controllers = tree.iterfind("devices/controller[@type='pci']")
    return [each for each in controllers if each.get("model") in architecture.behind and each.get("index") not in taken]


def _others_buses(tree: ElementTree.Element) -> Iterator[str]:
    """Yield the buses that have a device on them that is no ivshmem device."""
    for device in tree.iterfind("devices/*"):
        address = device.find("address[@type='pci']")
        if device.tag != "shmem" and address is not None:
            try:
                yield str(int(address.get("bus", ""), 0))
            except ValueError:
                continue
