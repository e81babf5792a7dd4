# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bare guests in libvirt domains, under a real host's daemon.

The test is the daemon in each of them: it speaks the control protocol in the memory that it takes
from QEMU, and every event goes through the guest, by MSI-X one way and the doorbell the other.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xml.sax.saxutils import quoteattr

from kvmchand.admin.prepare import prepare
from rig.bare import BareEnd, BareMachine
from rig.deadline import eventually
from rig.domain_xml import HOST_CPU
from rig.guest import Guest, Machine
from rig.libvirtd import PrivateLibvirtd
from rig.network import Host, devices_left
from rig.processes import is_running

TYPES = {"tcg": "qemu", "kvm": "kvm"}
"""A domain's type, by QEMU's accelerator."""
CPUS = {"qemu": "", "kvm": HOST_CPU}
ROOTS = {"q35": "<controller type='pci' index='0' model='pcie-root'/>", "pc": ""}
"""What libvirt adds to a domain that it keeps, and prepare-domain finds there."""
BRIDGES = "<controller type='pci' model='pcie-root-port'/><controller type='pci' model='pcie-to-pci-bridge'/>" * 2
"""With more, the guest takes one device's ejection for another's."""
DOMAIN = """\
<domain type='{type}'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='{machine}'>hvm</type><kernel>{kernel}</kernel></os>
  <features><acpi/></features>
  {cpu}
  <on_reboot>restart</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {root}
    <controller type='usb' model='none'/>
    <serial type='unix'><source mode='connect' path={console}/></serial>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>
"""


class BareDomain(BareMachine):
    """A domain from its creation to destroy().

    `machine`: q35, or pc. `prepared`: as `kvmchan prepare-domain` leaves a domain, which a pc can
    not be. `devices`: more XML. `bring`: has libvirt start it in another way, with its guest as it
    was when it was saved, say.
    """

    def __init__(
        self,
        libvirtd: PrivateLibvirtd,
        folder: Path,
        kernel: Path,
        name: str,
        accelerator: str,
        *,
        machine: str = "q35",
        prepared: bool = True,
        devices: str = "",
        bring: Callable[[], object] | None = None,
    ) -> None:
        self._libvirtd = libvirtd
        self._is_over = False
        console, kind = folder / f"{name}.console", TYPES[accelerator]
        self.xml = DOMAIN.format(
            type=kind,
            name=name,
            machine=machine,
            kernel=kernel,
            cpu=CPUS[kind],
            console=quoteattr(str(console)),
            root=ROOTS[machine] + (BRIDGES if prepared else ""),
            devices=devices,
        )
        if prepared:
            made = prepare(self.xml)
            assert not made.obstacles, made.obstacles
            self.xml = made.after
        path = folder / f"{name}.xml"
        path.write_text(self.xml)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(console))
            listener.listen()
            if bring is None:
                libvirtd.virsh("create", str(path))
            else:
                bring()
            sock, _ = listener.accept()
        console.unlink()
        path.unlink()
        self.pid = libvirtd.pid(name)
        super().__init__(int(libvirtd.virsh("domid", name).stdout), name, sock, kvm=accelerator == "kvm")
        if bring is not None:
            self.is_ready = True  # else it says so itself, perhaps already

    def log(self) -> str:
        lines = (self._libvirtd.log_folder / "qemu" / f"{self.name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-5:])

    def reset(self) -> None:
        """Reset it, and wait until the guest is ready again."""
        self.is_ready = False
        self._libvirtd.virsh("reset", self.name)
        self.wait_ready()

    def crash(self) -> None:
        """Kill its QEMU, unless it has ended."""
        if is_running(self.pid):
            os.kill(self.pid, signal.SIGKILL)

    def destroy(self) -> None:
        """End it, unless it has ended, and wait until nothing is left of it."""
        if self._is_over:
            return
        self._is_over = True
        self.crash()  # libvirt's own way is slower
        eventually(lambda: self.name not in self._libvirtd.virsh("list", "--name").stdout.split(), self.state)
        eventually(lambda: not is_running(self.pid), self.state)
        self.wait_end()


class _Hypervisor:
    """A guest's machine, as the guest's daemon looks at it."""

    def __init__(self, machine: BareDomain) -> None:
        self._machine = machine
        self.changed = machine.changed
        self.wait = machine.wait

    def stop(self, machine: Machine) -> None:
        assert machine is self._machine
        self._machine.destroy()


class _Around:
    def __init__(self, machine: BareDomain, log: Callable[[], str]) -> None:
        self.hypervisor = _Hypervisor(machine)
        self.log = log


class BareGuest(Guest):
    """A bare guest's daemon, and its clients, whose ends are the guest's."""

    machine: BareDomain

    def __init__(self, machine: BareDomain, log: Callable[[], str]) -> None:
        super().__init__(_Around(machine.wait_ready(), log), machine)

    def open_end(self, number: int, request: Any, *, send: int, is_server: bool, grows: bool = False) -> BareEnd:
        """Ask for a vchan's end, and have the guest be it."""
        self.request(number, request)
        if grows:
            self.take_device()
        granted = self.answer(number)
        return self.machine.attach(granted, is_server=is_server, send=send)


class BareHost(Host):
    """A host's daemon with bare guests, on a libvirtd.

    stop() asserts that nothing of them is left, once all domains are destroyed. `consoles`: the
    folder that a domain brings from another host.
    """

    def __init__(
        self, libvirtd: PrivateLibvirtd, folder: Path, kernel: Path, *options: str, consoles: Path | None = None
    ) -> None:
        self.libvirtd = libvirtd
        self._folder = consoles or folder
        self._kernel = kernel
        self._domains: list[BareDomain] = []
        self._guests: list[BareGuest] = []
        super().__init__(folder, *options, domains=(), libvirt=libvirtd.uri)

    def create(self, name: str, accelerator: str, **how: Any) -> BareDomain:
        """Create a domain, whose guest's daemon does not run. `how`: as of BareDomain."""
        self._domains.append(BareDomain(self.libvirtd, self._folder, self._kernel, name, accelerator, **how))
        return self._domains[-1]

    def guest(self, name: str, accelerator: str, **how: Any) -> BareGuest:
        """Start a prepared domain, and greet the host as its daemon. `how`: as of BareDomain."""
        self._guests.append(BareGuest(self.create(name, accelerator, **how), self.log))
        return self._guests[-1].greet()

    def stop(self) -> None:
        self._end_guests()
        eventually(lambda: devices_left(self) == [], lambda: str(devices_left(self)))
        super().stop()

    def kill(self) -> None:
        super().kill()
        self._end_guests()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End its guests, of which nothing may be left unless the test has failed."""
        try:
            if kind is None:
                self.stop()
        finally:
            self.kill()

    def _end_guests(self) -> None:
        for domain in self._domains:
            domain.crash()
        for guest in self._guests:
            guest.part()
        for domain in self._domains:
            domain.destroy()
