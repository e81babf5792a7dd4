# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests as administrators make them: each has a disk with a Debian 13 of its own, where systemd
starts kvmchand.

./run makes the disk (tests/py/vm/guest/installed.sh), with kvmchan installed as docs/guests.md
says.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, ClassVar

from kvmchand.admin.prepare import prepare
from rig.libvirtd import PrivateLibvirtd
from rig.machine import Machine, Program, in_xml, shared
from rig.network import HostProgram, Network
from rig.paths import BUILD

INSTALLED = BUILD / "installed"
PROGRAMS = BUILD / "tests" / "vm"
"""Compiled programs, which the guests see below /programs."""
KVMCHAN = "/opt/kvmchan/bin/kvmchan"
PYTHON = "/opt/kvmchan/bin/python"
_DISK = """\
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='{path}'/><target dev='vda' bus='virtio'/>
    </disk>
"""


class InstalledMachine(Machine):
    """A guest with a copy of that disk, prepared by prepare-domain."""

    FILES = INSTALLED

    def __init__(self, uri: str, name: str, folder: Path, **machine_is: Any) -> None:
        self._disk = folder / f"{name}.qcow2"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(INSTALLED / "disk"), str(self._disk)]
        subprocess.run(create, check=True)
        super().__init__(uri, name, folder, memory=768, bridges=0, **machine_is)
        self.xml = prepare(self.xml).after

    def _words(self) -> str:
        return "root=/dev/vda rw"

    def _disks(self) -> str:
        return _DISK.format(path=in_xml(self._disk)) + shared(PROGRAMS, "programs")


class InstalledNetwork(Network):
    """A host's daemon, and two of these guests: one with SeaBIOS, one with UEFI.

    Their daemons are systemd's.
    """

    ENVIRONMENT: ClassVar[dict[str, str]] = {}

    def __init__(self, libvirtd: PrivateLibvirtd, folder: Path) -> None:
        super().__init__(libvirtd, folder)
        self.machines = [
            InstalledMachine(libvirtd.uri, "seabios", folder),
            InstalledMachine(libvirtd.uri, "uefi", folder, uefi=True),
        ]

    def start_daemon(self, machine: Machine) -> None:
        pass

    def _said_by_daemon(self, machine: Machine) -> str:
        return machine.run("journalctl", "--no-pager", "-u", "kvmchand")

    def restore(self) -> None:
        for machine in self.machines:
            self.wait_linked(machine)

    def run_on(self, machine: Machine | None, *argv: str | Path) -> HostProgram | Program:
        """Start a program, in a guest by `kvmchan exec`: it is linked to no library there."""
        if machine is None:
            return super().run_on(machine, *argv)
        program, *arguments = argv
        return super().run_on(machine, KVMCHAN, "exec", "--", f"/programs/{Path(program).name}", *arguments)
