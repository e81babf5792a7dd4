# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps vchans from working on this machine: findings, each with a remedy.

On a host it looks at libvirt and at the machine of each running domain; in a guest at VFIO, the
vIOMMU and the ivshmem devices. What cannot be read becomes a finding, or is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from kvmchand.admin.findings import Finding, Grade, Kind
from kvmchand.admin.guest_findings import guest, ivshmem_functions, text
from kvmchand.admin.host_findings import host
from kvmchand.admin.shown import Shown
from kvmchand.config import Settings
from kvmchand.errors import VchanError
from kvmchand.wire.client import Listing

ROOT = Path("/")


class Role(Enum):
    """The side that a machine is examined as."""

    HOST = "host"
    GUEST = "guest"


def examine(shown: Shown, settings: Settings, uri: str, role: Role, root: Path = ROOT) -> Iterator[Finding]:
    """Yield the findings about this machine, each as soon as it is known.

    `settings`: the daemon's. `root`: the directory with /sys and the like.
    """
    if role is Role.GUEST:
        yield _daemon(shown.first, role)
        yield from guest(shown, root, dedicated=settings.links.dedicated)
    else:
        listed = shown.whole()
        yield _daemon(listed, role)
        yield from host(listed, uri, settings.guests.serve)


def _daemon(listed: Listing | VchanError, role: Role) -> Finding:
    """Return the finding about the daemon itself."""
    subject = f"kvmchand {role.value}"
    if isinstance(listed, VchanError):
        return Finding(Grade.BAD, Kind.DAEMON, subject, listed.sentence)
    known = f", and knows {len(listed.domains)} domains and {len(listed.channels)} channels" if role is Role.HOST else ""
    return Finding(Grade.OK, Kind.DAEMON, subject, f"it answers{known}")


def role_of(first: Listing | VchanError, root: Path = ROOT) -> Role:
    """Return the role of this machine.

    A daemon that runs here knows. Otherwise, a machine with ivshmem devices is a guest, and so is
    one of QEMU's, unless domains of libvirt's run in it. `first`: the first page that the daemon
    shows, which names a domain on a host only, or why it shows none.
    """
    if not isinstance(first, VchanError):
        return Role.HOST if first.domains else Role.GUEST
    if ivshmem_functions(root / "sys"):
        return Role.GUEST
    if any((root / "run/libvirt/qemu").glob("*.pid")):
        return Role.HOST
    return Role.GUEST if _is_of_qemu(root) else Role.HOST


def _is_of_qemu(root: Path) -> bool:
    """Return whether this machine is one of QEMU's, which distributions may give another name."""
    has_configuration = (root / "sys/bus/acpi/devices/QEMU0002:00").exists()
    return has_configuration or text(root / "sys/class/dmi/id/sys_vendor") == "QEMU"
