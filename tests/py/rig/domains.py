# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains without an OS on a libvirtd of the tests' own: real QEMUs, that run firmware only."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

from kvmchand.ids import DomainId
from rig.deadline import eventually
from rig.domain_xml import HOST_CPU
from rig.libvirtd import PrivateLibvirtd
from rig.processes import is_running

BRIDGE = """\
    <controller type='pci' index='1' model='pcie-root-port'/>
    <controller type='pci' index='2' model='pcie-to-pci-bridge'><address type='pci' bus='1' slot='0'/></controller>
"""
DOMAIN = """\
<domain type='{type}'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
  {features}<on_reboot>restart</on_reboot>
  {cpu}<devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='pci' index='0' model='{root}'/>
{devices}    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""
IOMMU = "    <iommu model='intel'><driver intremap='on' caching_mode='on'/></iommu>\n"
BRIDGE_BUS, BRIDGE_SLOTS = 2, range(1, 32)


class Host:
    """A libvirtd, and the domains on it. Theirs are the names they are made with."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.libvirtd = PrivateLibvirtd(folder)

    def create(
        self,
        name: str,
        devices: str = BRIDGE,
        *,
        paused: bool = False,
        type: str = "qemu",
        machine: str = "q35",
        features: str = "",
    ) -> DomainId:
        path = self._folder / f"{name}.xml"
        cpu = f"{HOST_CPU}\n  " if type == "kvm" else ""
        features = f"<features>{features}</features>\n  " if features else ""
        root = "pci-root" if machine == "pc" else "pcie-root"
        path.write_text(
            DOMAIN.format(name=name, devices=devices, type=type, cpu=cpu, machine=machine, features=features, root=root)
        )
        self.libvirtd.virsh("create", str(path), *(["--paused"] if paused else []))
        return DomainId(int(self.libvirtd.virsh("domid", name).stdout))

    def define(self, name: str, uuid: str) -> None:
        """Give a domain that create() has made a configuration, which outlives it."""
        path = self._folder / f"{name}-defined.xml"
        made = (self._folder / f"{name}.xml").read_text()
        path.write_text(made.replace("</name>", f"</name><uuid>{uuid}</uuid>"))
        self.libvirtd.virsh("define", str(path))

    def create_prepared(self, name: str, *, type: str = "qemu") -> DomainId:
        """One that is prepared for vchans."""
        return self.create(name, BRIDGE + IOMMU, type=type, features="<acpi/><ioapic driver='qemu'/>")

    def create_pc(self, name: str, devices: str = "", *, type: str = "qemu") -> DomainId:
        """One whose machine has a root bus alone, if `devices` have no bridge.

        It takes devices by ACPI.
        """
        return self.create(name, devices, type=type, machine="pc", features="<acpi/>")

    def has_firmware_run(self, name: str) -> bool:
        """Whether the firmware has given its machine's devices their addresses."""
        shown = self.libvirtd.virsh("qemu-monitor-command", "--hmp", name, "info pci").stdout
        placed = re.search(r"(?:IDE|SATA) controller.*?BAR\d: [^\n]* at 0x([0-9a-f]+)", shown, re.DOTALL)
        return placed is not None and int(placed[1], 16) != 2**64 - 1

    def pid(self, name: str) -> int:
        """Of its QEMU."""
        return self.libvirtd.pid(name)

    def crash(self, name: str) -> None:
        """Ends its QEMU."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not is_running(pid))

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Its QEMU does nothing meanwhile."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def shmems(self, name: str) -> list[ElementTree.Element]:
        """Its ivshmem devices."""
        return ElementTree.fromstring(self.libvirtd.virsh("dumpxml", name).stdout).findall("devices/shmem")

    def paths(self, name: str) -> list[str | None]:
        """Of the sockets of its ivshmem devices."""
        return [server.get("path") for each in self.shmems(name) if (server := each.find("server")) is not None]

    def taints(self, name: str) -> set[str]:
        """What libvirt holds against it."""
        log = (self._folder / "log" / "qemu" / f"{name}.log").read_text()
        return set(re.findall(r"is tainted: (\S+)", log))

    def clear(self) -> None:
        for name in self.names():
            self.crash(name)  # quicker than asking libvirt
        eventually(lambda: self.names() == [])

    def names(self) -> list[str]:
        return self.libvirtd.virsh("list", "--name").stdout.split()
