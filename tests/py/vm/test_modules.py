# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests whose kernel lacks a module of VFIO's: who is told, and that nobody waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from libxenvchan_shim import connect, offer
from rig.daemon import acting_as
from rig.deadline import eventually
from rig.libvirtd import PrivateLibvirtd, running
from rig.machine import Machine
from rig.network import GUEST_ENVIRONMENT, Host
from rig.paths import KVMCHAN, KVMCHAND, PYTHON


@pytest.mark.parametrize("module", ["vfio-pci", "vfio_iommu_type1"])
def test_a_guest_whose_kernel_lacks_a_module(tmp_path_factory: pytest.TempPathFactory, module: str) -> None:
    with running(tmp_path_factory.mktemp("lv")) as libvirtd:
        assert_told(libvirtd, tmp_path_factory.mktemp("m"), module)


def assert_told(libvirtd: PrivateLibvirtd, folder: Path, module: str) -> None:
    """Assert that daemon and doctor of the guest say so, and that no program on the host waits."""
    name = module.replace("-", "_")
    machine = Machine(libvirtd.uri, "lacking", folder)
    machine.xml = machine.xml.replace("<cmdline>", f"<cmdline>module_blacklist={name} ")
    daemon = Host(folder, domains=(), libvirt=libvirtd.uri)
    try:
        machine.create()
        machine.wait_ready()
        serving = machine.start(PYTHON, str(KVMCHAND), "guest", env=GUEST_ENVIRONMENT)
        assert f": this guest's kernel has no {module}: modprobe {module} says why" in serving.wait_line(
            "this guest's kernel has no "
        )
        doctor = machine.start(PYTHON, str(KVMCHAN), "doctor", env=GUEST_ENVIRONMENT)
        assert doctor.wait() == 1
        assert f"bad   module: {name} is not there: modprobe {name}, " in "\n".join(doctor.lines)
        with acting_as(daemon):
            eventually(lambda: any(each["devices"] for each in daemon.listing()["guests"]), daemon.log)
            with offer(machine.domain, "data/x"), pytest.raises(FileNotFoundError):
                connect(machine.domain, "data/x")
        machine.destroy()
        eventually(lambda: daemon.listing()["guests"] == [], daemon.log)
        daemon.stop()
    finally:
        machine.destroy()
        daemon.kill()
