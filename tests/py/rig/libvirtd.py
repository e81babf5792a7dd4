# SPDX-License-Identifier: LGPL-2.1-or-later
"""A libvirtd for tests, apart from the machine's own: its files are in a folder of the test's.

It runs in a mount namespace where that folder's parts lie over /etc/libvirt and the like. Only root
can do that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest

from rig.deadline import count_too, eventually
from rig.paths import BUILD

_PARTS = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "run": "/run/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
CACHE = BUILD / "tests" / "libvirt-cache"
"""What every libvirtd of ours knows of QEMU.

To ask QEMU takes one 8 seconds, and it asks again only where QEMU, libvirt or KVM have changed.
"""
_QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
stdio_handler = "file"
"""
_ENTER = """\
set -e
folder=$1
host=$2
shift 2
mount --make-rprivate /
[ -z "$host" ] || hostname "$host"
for each; do
    mkdir -p "${each#*:}"
    mount --bind "$folder/${each%%:*}" "${each#*:}"
done
exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$folder/pid"
"""


def lacking() -> str:
    """Return why virtual machines cannot be tested here, or ""."""
    if os.geteuid() != 0:
        return "a libvirtd of one's own needs root"
    for program in ("libvirtd", "virsh", "qemu-system-x86_64", "unshare"):
        if shutil.which(program) is None:
            return f"there is no {program}: ./run test installs it as root, where this machine's packages have it"
    probe = subprocess.run(["unshare", "-mu", "mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False)
    if probe.returncode:
        return f"this machine lets nobody have namespaces of mounts and host names: {probe.stderr.strip()}"
    return ""


def require() -> None:
    """Skip, with a sentence, where virtual machines can't run.

    KVMCHAN_TEST_VM=1 makes that a failure, =0 skips always.
    """
    if os.environ.get("KVMCHAN_TEST_VM", "") == "0":
        pytest.skip("KVMCHAN_TEST_VM is 0")
    reason = lacking()
    if reason:
        lack(reason)


def lack(reason: str) -> None:
    """Skip or fail, as require() does where something is missing."""
    if os.environ.get("KVMCHAN_TEST_VM", "") == "1":
        pytest.fail(f"KVMCHAN_TEST_VM=1, but {reason}")
    pytest.skip(f"{reason} (KVMCHAN_TEST_VM=1 makes this a failure)")


def require_kvm() -> None:
    """Skip the test, with a sentence, where QEMU can't use KVM."""
    quit = ["-machine", "none,accel=kvm", "-nodefaults", "-display", "none", "-monitor", "stdio"]
    try:
        probe = subprocess.run(["qemu-system-x86_64", *quit], input="quit\n", capture_output=True, text=True, check=False)
    except FileNotFoundError:
        reason = "there is no qemu-system-x86_64"
    else:
        if not probe.returncode:
            return
        reason = f"QEMU has no KVM here: {probe.stderr.strip()}"
    lack_kvm(reason)


def lack_kvm(reason: str) -> None:
    """Skip a test that needs KVM. KVMCHAN_TEST_KVM=1 makes that a failure."""
    if os.environ.get("KVMCHAN_TEST_KVM", "") == "1":
        pytest.fail(f"KVMCHAN_TEST_KVM=1, but {reason}")
    pytest.skip(f"{reason} (KVMCHAN_TEST_KVM=1 makes this a failure)")


class PrivateLibvirtd:
    """Running from start() to stop().

    Its domains outlive kill(), and a start() after that finds them. `host`: the name of another
    machine that it takes this one for, so that domains can be migrated to it.
    """

    def __init__(self, folder: Path, host: str = "") -> None:
        self._folder = folder
        self._host = host
        self._process: subprocess.Popen[bytes] | None = None
        CACHE.mkdir(parents=True, exist_ok=True)
        for part in (*_PARTS, "sock"):
            if part != "cache":
                (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "cache").symlink_to(CACHE)
        (folder / "etc" / "qemu.conf").write_text(_QEMU_CONF)
        self._socket = folder / "sock" / "libvirt-sock"
        self.log_folder = folder / "log"
        (folder / "etc" / "libvirtd.conf").write_text(
            f'unix_sock_dir = "{folder}/sock"\nauth_unix_rw = "none"\nhost_uuid = "{uuid4()}"\n'
        )
        self.uri = f"qemu+unix:///system?socket={quote(str(self._socket))}"

    def start(self) -> None:
        mounts = [f"{part}:{path}" for part, path in _PARTS.items()]
        with (self._folder / "libvirtd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "-mu", "sh", "-c", _ENTER, "sh", self._folder, self._host, *mounts],
                stdout=log,
                stderr=log,
            )
        count_too(self._folder / "run" / "qemu")
        eventually(self._answers, self.log)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"libvirtd did not start: {self.log()}"
        return self.virsh("version", check=False).returncode == 0

    def log(self) -> str:
        return (self._folder / "libvirtd.log").read_text(errors="replace")[-4000:]

    def virsh(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(["virsh", "-q", "-c", self.uri, *arguments], capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"virsh {arguments}: {done.stderr}"
        return done

    def pid(self, domain: str) -> int:
        """Return the process that is a domain's QEMU."""
        return int((self._folder / "run" / "qemu" / f"{domain}.pid").read_text())

    def kill(self) -> None:
        """End it as a crash or an upgrade does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it, and the domains that a failed test left."""
        if self._process is None:
            return
        for name in self.virsh("list", "--name", check=False).stdout.split():
            self.virsh("destroy", name, check=False)
        self._process.terminate()
        self._process.wait()
        self._process = None


@contextmanager
def running(folder: Path, host: str = "") -> Iterator[PrivateLibvirtd]:
    """Run one within the context, or skip.

    `folder`: with a short path, as QEMU's own sockets are in there. `host`: as PrivateLibvirtd's.
    """
    require()
    made = PrivateLibvirtd(folder, host)
    try:
        made.start()
        yield made
    finally:
        made.stop()
