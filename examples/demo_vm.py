# SPDX-License-Identifier: LGPL-2.1-or-later
"""The main job with a virtual machine: a program written for Xen, one end on this host and one in a
guest of it, and a file through a vchan between them, each way.

The guest runs by QEMU without KVM, so anywhere, over this machine's own root, read-only; libvirtd
is one of the demo's own.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "py"))

from rig.compiler import compile_c, xen_flags
from rig.deadline import in_time
from rig.libvirtd import PrivateLibvirtd, lacking
from rig.machine import Machine, Program
from rig.network import GUEST_ENVIRONMENT, HostProgram, Network
from rig.paths import BUILD, KVMCHAN, PYTHON, ROOT

FILE_BYTES = 64 << 20
DEADLINE = 600.0
"""Seconds that all of it may take, not counting those in which it waits for a processor."""
PATH = "data/demo"


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


class Demo:
    def __init__(self, network: Network, folder: Path) -> None:
        """`folder`: in the tree, which the guest sees too."""
        self._network = network
        self._guest = network.machines[0]
        self._sent = folder / "sent"
        self._received = folder / "received"
        say("compiling vchan-pipe.c with Debian's Xen headers, linked against Debian's libxenvchan")
        self._program = compile_c(folder, ROOT / "examples" / "vchan-pipe.c", "-O2", *xen_flags())

    def start(self) -> None:
        guest = self._guest
        say("kvmchand host, and a guest, prepared for a link with room for rings of 1 MiB")
        self._network.start_host()
        guest.define()
        subprocess.run(
            [KVMCHAN, "prepare-domain", guest.name, "--link-size", "16M", "--apply", "--uri", guest.uri],
            env=self._network.daemon.environment(),
            check=True,
        )
        guest.start_defined()
        guest.wait_ready()
        self._network.start_daemon(guest)
        self._network.wait_linked(guest)
        print(self._network.daemon.log(), end="")
        for line in self._network.daemons[self._guest.name].lines:
            print(f"in the guest: {line}")

    def show(self, command: str) -> None:
        """A kvmchan command on either side."""
        options = ["--uri", self._guest.uri] if command == "doctor" else []
        say(f"kvmchan {command}, on the host")
        subprocess.run([KVMCHAN, command, *options], env=self._network.daemon.environment(), check=True)
        say(f"kvmchan {command}, in the guest")
        print(self._guest.run(PYTHON, str(KVMCHAN), command, env=GUEST_ENVIRONMENT), flush=True)

    def pipe(self, server: Machine | None, client: Machine | None) -> None:
        """A file from the client to the server."""
        names = {None: "the host", self._guest: "the guest"}
        say(f"{names[client]} sends {FILE_BYTES >> 20} MiB, {names[server]} listens")
        here, there = self._network.domain_of(server), self._network.domain_of(client)
        self._sent.write_bytes(os.urandom(FILE_BYTES))
        # What a guest receives it can keep in its /tmp only: it sees this machine's files
        # read-only.
        received = self._received if server is None else Path("/tmp/received")
        receiving = self._run(server, f"{self._command('listen', there, PATH)} >{shlex.quote(str(received))}")
        receiving.wait_line("listening")
        if server is not None:
            self.show("ls")
        source = shlex.quote(str(self._sent))
        sending = self._run(client, f"{self._command('send', here, f'/local/domain/{here}/{PATH}')} <{source}")
        for each in (sending, receiving):
            status = each.wait()
            print("\n".join(each.lines), flush=True)
            if status:
                sys.exit(f"it ended with {status}")
        if server is None:
            digest = hashlib.sha256(received.read_bytes()).hexdigest()
        else:
            digest = server.run("sha256sum", str(received)).split()[0]
        if digest != hashlib.sha256(self._sent.read_bytes()).hexdigest():
            sys.exit("the file has changed on its way")
        print(f"sha256 of both ends: {digest}")

    def end(self) -> None:
        self._guest.destroy()
        self._guest.virsh("undefine", self._guest.name)
        self._network.stop()

    def _command(self, *arguments: object) -> str:
        return "exec " + shlex.join(map(str, (PYTHON, KVMCHAN, "exec", "--", self._program, *arguments)))

    def _run(self, where: Machine | None, command: str) -> HostProgram | Program:
        return self._network.run_on(where, "/bin/sh", "-c", command)


def main() -> None:
    if lacking():
        sys.exit(f"no guest can run here: {lacking()}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of what ends the guest
    with (
        tempfile.TemporaryDirectory(prefix="kvmchan-demo-") as name,
        tempfile.TemporaryDirectory(prefix="demo-", dir=BUILD) as shared,
    ):
        libvirtd = PrivateLibvirtd(Path(name) / "lv")
        network = Network(libvirtd, Path(name))
        try:
            with in_time(DEADLINE, "the demo"):
                libvirtd.start()
                demo = Demo(network, Path(shared))
                demo.start()
                demo.pipe(network.machines[0], None)
                demo.pipe(None, network.machines[0])
                demo.show("doctor")
                demo.end()
        finally:
            network.kill()
            libvirtd.stop()
    say("done: nothing of it is left")


if __name__ == "__main__":
    main()
