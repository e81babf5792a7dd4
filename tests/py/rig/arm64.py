# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests of arm64, which QEMU emulates.

./run arm64 makes their root, in which the tree lies as it does here.
"""

from __future__ import annotations

from pathlib import Path

from kvmchand.admin.prepare import prepare
from rig.libvirtd import PrivateLibvirtd
from rig.machine import Machine, Platform, shared
from rig.network import Network
from rig.paths import BUILD

ROOT = BUILD / "arm64" / "root"
_AAVMF = Path("/usr/share/AAVMF/AAVMF_CODE.fd")


class Arm64Machine(Machine):
    """A guest over that root, prepared by prepare-domain."""

    FILES = BUILD / "arm64" / "guest"
    PLATFORM = Platform(
        emulator="qemu-system-aarch64",
        type="<type arch='aarch64' machine='virt'>hvm</type>",
        features="",
        cpu="",
        iommu="",
        words="console=ttyAMA0",
        code=_AAVMF,
        variables=_AAVMF.with_name("AAVMF_VARS.fd"),
    )

    def __init__(self, uri: str, name: str, folder: Path) -> None:
        super().__init__(uri, name, folder, bridges=0, uefi=True, cpu="cortex-a57")
        self.xml = prepare(self.xml).after

    def _disks(self) -> str:
        return shared(ROOT, "root")


class Arm64Network(Network):
    """A host's daemon, and two of these guests."""

    def __init__(self, libvirtd: PrivateLibvirtd, folder: Path) -> None:
        super().__init__(libvirtd, folder)
        self.machines = [Arm64Machine(libvirtd.uri, name, folder) for name in ("one", "two")]
