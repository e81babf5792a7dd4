# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest for tests: a libvirt domain by TCG, with the agent in it.

Lives until destroy(). Programs that a test starts in it are Programs: their lines come as they are
written.
"""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from rig.deadline import Hangs
from rig.paths import BUILD, ROOT

AGENT = ROOT / "tests" / "py" / "vm" / "guest" / "agent.py"

DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>2</vcpu>
  <os>
    {platform.type}
{firmware}    <kernel>{files}/{kernel}</kernel>
    <initrd>{files}/initrd</initrd>
    <cmdline>{platform.words} quiet panic=-1 {words}</cmdline>
  </os>
  <features><acpi/>{platform.features}</features>
  <cpu match='exact' check='none'><model>{cpu}</model>{platform.cpu}</cpu>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/{platform.emulator}</emulator>
    <controller type='pci' index='0' model='pcie-root'/>
{disks}{bridges}    <controller type='usb' model='none'/>
    <channel type='unix'><source mode='bind' path='{folder}/{name}.agent'/><target type='virtio' name='kvmchan.agent'/></channel>
    <channel type='unix'><source mode='bind' path='{folder}/{name}.port'/><target type='virtio' name='kvmchan.bench'/></channel>
    <serial type='file'><source path='{folder}/{name}.console'/></serial>
    <memballoon model='none'/>
    {platform.iommu}
  </devices>
</domain>
"""
_UEFI = """\
    <loader readonly='yes' type='pflash'>{code}</loader>
    <nvram template='{variables}'/>
"""
_SHARED = """\
    <filesystem type='mount' accessmode='passthrough' multidevs='remap'>
      <source dir='{folder}'/><target dir='{tag}'/><readonly/>
    </filesystem>
"""


class Platform(NamedTuple):
    """What machines of an architecture are.

    `code`, `variables`: UEFI's firmware. `words`: on the kernel's command line.
    """

    emulator: str
    type: str
    features: str
    cpu: str
    iommu: str
    words: str
    code: Path
    variables: Path


OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
"""UEFI's firmware."""
_X86 = Platform(
    emulator="qemu-system-x86_64",
    type="<type arch='x86_64' machine='q35'>hvm</type>",
    features="<ioapic driver='qemu'/>",
    cpu="<feature policy='require' name='rdrand'/>",
    iommu="<iommu model='intel'><driver intremap='on' caching_mode='on'/></iommu>",
    words="console=ttyS0 no_timer_check intel_iommu=on",
    code=OVMF,
    variables=OVMF.with_name("OVMF_VARS_4M.fd"),
)
BRIDGES = 6
"""For conventional PCI devices.

Firmware gives each a window that holds the control device and two of a link's.
"""
_BRIDGE = """\
    <controller type='pci' index='{port}' model='pcie-root-port'/>
    <controller type='pci' index='{bridge}' model='pcie-to-pci-bridge'>
      <address type='pci' bus='{port}' slot='0'/>
    </controller>
"""


def in_xml(path: Path) -> str:
    return escape(str(path), {"'": "&apos;"})


def shared(folder: Path, tag: str) -> str:
    """Return the XML of a folder of this machine that a guest can mount by its tag, to read."""
    return _SHARED.format(folder=in_xml(folder), tag=tag)


class GuestError(Exception):
    """The guest did not do what the test needs; with what its console last said."""


class Program:
    """A program in the guest.

    `lines`: what it has written so far that wait_line() passed over, or took.
    """

    def __init__(self, machine: Machine, number: int, argv: list[str]) -> None:
        self._machine = machine
        self._number = number
        self._queue: queue.Queue[dict[str, object]] = queue.Queue()
        self.argv = argv
        self.lines: list[str] = []
        self.status: int | None = None
        self.is_lost = False
        """The guest ended before it did."""

    def _take(self) -> None:
        try:
            message = self._queue.get()
        except Hangs as hangs:
            raise Hangs(f"{hangs}: {self.argv} in {self._machine.name} wrote only {self.lines}") from None
        match message:
            case {"line": str(line)}:
                self.lines.append(line)
            case {"status": int(status)}:
                self.status = status
            case _:
                self.is_lost = True
                raise GuestError(f"{self._machine.name} is gone: {self._machine.console()}")

    def wait_line(self, part: str) -> str:
        """Return the first line with `part` in it, from those not waited for yet."""
        seen = 0
        while True:
            for line in self.lines[seen:]:
                if part in line:
                    return line
            seen = len(self.lines)
            if self.status is not None:
                raise GuestError(f"{self.argv} in {self._machine.name} ended ({self.status}) without {part!r}: {self.lines}")
            self._take()

    def wait(self) -> int:
        while self.status is None:
            self._take()
        return self.status

    def kill(self, signal: int = 9) -> None:
        self._machine.say(kill=self._number, signal=signal)

    def end(self) -> None:
        """End it if it still runs."""
        if self.status is None and not self.is_lost:
            self.kill()
            self.wait()

    def write(self, text: str) -> None:
        self._machine.say(input=self._number, text=text)

    def end_input(self) -> None:
        self._machine.say(eof=self._number)

    def heard(self, message: dict[str, object]) -> None:
        self._queue.put(message)


class Machine:
    """A guest over this machine's own root, from create() to destroy().

    `cpu`: a model of QEMU's. Of an Intel processor UEFI does not trust the width of addresses, and
    so leaves smaller windows. `words`: more for its kernel's command line.
    """

    FILES = BUILD / "guest"
    """Its kernel and its initramfs."""
    PLATFORM = _X86

    def __init__(
        self,
        uri: str,
        name: str,
        folder: Path,
        *,
        memory: int = 384,
        bridges: int = BRIDGES,
        uefi: bool = False,
        cpu: str = "qemu64",
        words: str = "",
    ) -> None:
        self.uri = uri
        self.name = name
        self._folder = folder
        self._programs: dict[int, Program] = {}
        self._last = 0
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._sock: socket.socket | None = None
        self._listener = threading.Thread()
        self.xml = DOMAIN.format(
            name=name,
            memory=memory,
            files=in_xml(self.FILES),
            platform=self.PLATFORM,
            firmware=_UEFI.format(code=self.PLATFORM.code, variables=self.PLATFORM.variables) if uefi else "",
            kernel="vmlinuz" if uefi else "vmlinux",
            cpu=cpu,
            words=f"{self._words()} {words}".strip(),
            disks=self._disks(),
            folder=in_xml(folder),
            bridges="".join(_BRIDGE.format(port=each, bridge=bridges + each) for each in range(1, bridges + 1)),
        )

    def _words(self) -> str:
        """Return what its init is to know, for its kernel's command line."""
        return f"kvmchan.tree={quote(str(ROOT))} kvmchan.agent={quote(str(AGENT))}"

    def _disks(self) -> str:
        """Return the XML of where its files are."""
        return shared(Path("/"), "root")

    def virsh(self, *arguments: str) -> str:
        done = subprocess.run(["virsh", "-q", "-c", self.uri, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise GuestError(f"virsh {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def create(self) -> None:
        self._start("create", str(self._write()))

    def define(self) -> None:
        """Let libvirt keep it."""
        self.virsh("define", str(self._write()))

    def _write(self) -> Path:
        path = self._folder / f"{self.name}.xml"
        path.write_text(self.xml)
        return path

    def start_defined(self) -> None:
        """Start it after define()."""
        self._start("start", self.name)

    def _start(self, *how: str) -> None:
        self._ready.clear()
        self.virsh(*how)
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(self._folder / f"{self.name}.agent"))
        self._listener = threading.Thread(target=self._listen, args=(self._sock,), daemon=True)
        self._listener.start()

    def is_running(self) -> bool:
        return self._sock is not None and self.name in self.virsh("list", "--name").split()

    @property
    def domain(self) -> int:
        return int(self.virsh("domid", self.name))

    def devices(self) -> set[str]:
        """Return the paths of the sockets of its ivshmem devices."""
        servers = ElementTree.fromstring(self.virsh("dumpxml", self.name)).findall("devices/shmem/server")
        return {server.get("path", "") for server in servers}

    def console(self) -> str:
        try:
            return (self._folder / f"{self.name}.console").read_text(errors="replace")[-2000:]
        except OSError:
            return "(no console)"

    def _listen(self, sock: socket.socket) -> None:
        with sock.makefile("rb") as stream, (self._folder / f"{self.name}.lines").open("ab", buffering=0) as log:
            for line in stream:
                log.write(line)  # for whom a test fails
                try:
                    message = json.loads(line)
                except ValueError:
                    continue  # a guest that was reset in the midst of a line
                if "ready" in message:
                    self._lose_programs()
                    self._ready.set()
                elif message["id"] in self._programs:
                    self._programs[message["id"]].heard(message)
        self._lose_programs()

    def _lose_programs(self) -> None:
        with self._lock:
            programs, self._programs = self._programs, {}
        for program in programs.values():
            program.is_lost = True
            program.heard({"gone": True})

    def wait_ready(self) -> None:
        try:
            self._ready.wait()
        except Hangs as hangs:
            raise Hangs(f"{hangs}: {self.name} did not start: {self.console()}") from None

    def say(self, **order: object) -> None:
        if self._sock is None:
            raise GuestError(f"{self.name} is not running")
        self._sock.sendall(json.dumps(order).encode() + b"\n")

    def start(self, *argv: str, env: dict[str, str] | None = None) -> Program:
        with self._lock:
            self._last += 1
            program = self._programs[self._last] = Program(self, self._last, list(argv))
        self.say(start=self._last, argv=list(argv), env=env or {})
        return program

    def run(self, *argv: str, env: dict[str, str] | None = None) -> str:
        """Return what a program that succeeds writes."""
        program = self.start(*argv, env=env)
        status = program.wait()
        if status:
            raise GuestError(f"{argv} in {self.name} ended with {status}: {program.lines}")
        return "\n".join(program.lines)

    def reboot(self, how: str = "reset") -> None:
        """End it from inside: "reset", "off" or "crash".

        wait_ready() then waits for the next start.
        """
        self._ready.clear()
        self.say(reboot=how)

    def destroy(self) -> None:
        if self._sock is None:
            return
        try:
            self.virsh("destroy", self.name)
        except GuestError:
            pass  # it ended by itself
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # QEMU has ended it
        self._listener.join()
        self._sock.close()
        self._sock = None
