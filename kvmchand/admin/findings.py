# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Grade(Enum):
    """How bad a finding is."""

    OK = "ok"
    """As it should be."""
    NOTE = "note"
    """Worth knowing; vchans work."""
    BAD = "bad"
    """Something does not work."""


class Kind(Enum):
    """What a finding is about. Scripts know a finding by this, so a name never changes."""

    DAEMON = "daemon"
    """kvmchand on this machine."""
    LINK = "link"
    """The link between a guest's kvmchand and the host's."""

    LIBVIRT = "libvirt"
    """On a host: libvirt itself."""
    EMULATOR = "emulator"
    """On a host: QEMU, and the devices that it has."""
    UNSERVED = "unserved"
    """On a host: a domain that is not served."""
    MACHINE = "machine"
    """On a host: what a domain's machine has of what vchans need, or why it can't have it."""
    KERNEL = "kernel"
    """On a host: what the kernel of a domain's guest needs."""
    KVM = "kvm"
    """On a host: a domain without KVM."""
    SLOTS = "slots"
    """On a host: a domain's bridges have no free slot."""

    MODULE = "module"
    """In a guest: a module of the kernel."""
    VFIO = "vfio"
    """In a guest: the device file of VFIO."""
    VIOMMU = "viommu"
    """In a guest: the vIOMMU of its machine."""
    NO_DEVICE = "no-device"
    """In a guest: there is no ivshmem device."""
    DEVICE = "device"
    """In a guest: a device that works."""
    SPEED = "speed"
    """In a guest: a device whose memory is slow."""
    REVISION = "revision"
    """In a guest: a device without interrupts, of an old QEMU."""
    ADDRESS = "address"
    """In a guest: a device that got no address, as a bridge has no window for it."""
    GROUP = "group"
    """In a guest: a device's IOMMU group."""
    DRIVER = "driver"
    """In a guest: a device that another driver has, or none."""
    UNUSED = "unused"
    """In a guest: a device that kvmchand does not use, while the link does not work."""
    LEFT = "left"
    """In a guest: a device that an earlier daemon of the host left, and that nothing uses."""
    WINDOW = "window"
    """In a guest: how large a device a bridge still has room for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `subject`: which one, as "domain 3 (web)"."""

    grade: Grade
    kind: Kind
    subject: str
    sentence: str

    @property
    def is_bad(self) -> bool:
        """Return whether something does not work."""
        return self.grade is Grade.BAD

    def as_dict(self) -> dict[str, str]:
        """Return what a script reads of it."""
        return {"grade": self.grade.value, "kind": self.kind.value, "subject": self.subject, "sentence": self.sentence}

    def __str__(self) -> str:
        return f"{self.grade.value:4}  {self.subject}: {self.sentence}"
