# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scripted guests on a real host daemon (guest.py), a real guest's daemon on a scripted host
(host.py), a libvirtd, and bare guests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from rig import libvirtd as private
from rig.daemon import serving
from rig.libvirtd import PrivateLibvirtd
from rig.machine import Machine

if TYPE_CHECKING:  # what these are made of needs the build, which not every test does
    from rig.bare_domain import BareHost
    from rig.domains import Host as Machines
    from rig.guest import Guest, ScriptedHost
    from rig.host import GuestDaemon
    from rig.kept import Kept


@pytest.fixture(scope="session")
def host_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kvmchand whose hypervisor is the test."""
    from rig.guest import stand_in

    return stand_in(tmp_path_factory.mktemp("kvmchand"), "libvirt")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a short path, as sockets need."""
    return tmp_path_factory.mktemp("h")


@pytest.fixture(scope="session")
def kept_host(tmp_path_factory: pytest.TempPathFactory, host_program: Path) -> Iterator[Kept[ScriptedHost]]:
    from rig.guest import ScriptedHost
    from rig.kept import Kept

    kept = Kept(lambda: ScriptedHost(tmp_path_factory.mktemp("h"), program=host_program))
    yield kept
    kept.end()


@pytest.fixture
def host(kept_host: Kept[ScriptedHost], request: pytest.FixtureRequest) -> Iterator[ScriptedHost]:
    yield from kept_host.lend(request)


class Run(Protocol):
    def __call__(self, settings: str, *, domains: tuple[int, ...] = ()) -> ScriptedHost: ...


@pytest.fixture
def run(folder: Path, request: pytest.FixtureRequest, host_program: Path) -> Iterator[Run]:
    """Start a host with settings, in TOML."""
    from rig.guest import ScriptedHost

    with contextlib.ExitStack() as undo:

        def start(settings: str, *, domains: tuple[int, ...] = ()) -> ScriptedHost:
            path = folder / "settings.toml"
            path.write_text(settings)
            made = ScriptedHost(folder, "--config", str(path), program=host_program, domains=domains)
            return undo.enter_context(contextlib.contextmanager(serving)(made, request))

        yield start


@pytest.fixture
def alice(host: ScriptedHost) -> Guest:
    from rig.guest import ALICE

    return host.guest(ALICE).greet()


@pytest.fixture
def bob(host: ScriptedHost) -> Guest:
    from rig.guest import BOB

    return host.guest(BOB).greet()


@pytest.fixture(scope="session")
def guest_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kvmchand whose vfio process is the test."""
    from rig.guest import stand_in

    return stand_in(tmp_path_factory.mktemp("kvmchand"), "vfio")


@pytest.fixture(scope="session")
def kept_guest(tmp_path_factory: pytest.TempPathFactory, guest_program: Path) -> Iterator[Kept[GuestDaemon]]:
    from rig.host import GuestDaemon
    from rig.kept import Kept

    kept = Kept(lambda: GuestDaemon(tmp_path_factory.mktemp("g"), guest_program))
    yield kept
    kept.end()


@pytest.fixture
def fresh(kept_guest: Kept[GuestDaemon], request: pytest.FixtureRequest) -> Iterator[GuestDaemon]:
    """A guest's daemon that is not linked to its host yet, and without a device but the control
    device.
    """
    yield from kept_guest.lend(request)


@pytest.fixture(scope="session")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirtd]:
    private.require()
    if not (Machine.FILES / "initrd").exists():
        private.lack("there is no guest's kernel: ./run test makes one as root")
    with private.running(tmp_path_factory.mktemp("lv")) as made:
        yield made


@pytest.fixture(scope="session")
def bare_libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirtd]:
    """For bare guests, which need no kernel of anybody's."""
    with private.running(tmp_path_factory.mktemp("lv")) as made:
        yield made


@pytest.fixture(scope="session")
def bare_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bare guest, compiled."""
    from rig.bare import build

    private.require()
    return build(tmp_path_factory.mktemp("bare"))


@pytest.fixture
def bare_host(bare_libvirtd: PrivateLibvirtd, bare_kernel: Path, tmp_path: Path) -> Iterator[BareHost]:
    """A host's daemon, for bare guests."""
    from rig.bare_domain import BareHost

    with BareHost(bare_libvirtd, tmp_path, bare_kernel) as host:
        yield host


@pytest.fixture(scope="session")
def lacking_kvm(bare_kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Why the bare guest does not run with KVM, or ""."""
    from rig.bare_qemu import lacking_kvm

    return lacking_kvm(tmp_path_factory.mktemp("kvm"), bare_kernel)


@pytest.fixture
def require_bare_kvm(lacking_kvm: str) -> None:
    """Skip the test where the bare guest does not run with KVM."""
    if lacking_kvm:
        private.lack_kvm(lacking_kvm)


@pytest.fixture(params=["tcg", "kvm"])
def accelerator(request: pytest.FixtureRequest) -> str:
    """What runs a bare guest: QEMU alone, and KVM where there is one."""
    name: str = request.param
    if name == "kvm":
        request.getfixturevalue("require_bare_kvm")
    return name


@pytest.fixture(scope="module")
def shared_machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    from rig.domains import Host

    private.require()
    made = Host(tmp_path_factory.mktemp("lv"))
    try:
        made.libvirtd.start()
        yield made
    finally:
        made.libvirtd.stop()


@pytest.fixture
def machines(shared_machines: Machines) -> Iterator[Machines]:
    """Domains without an OS on a libvirtd, none before and none after."""
    yield shared_machines
    shared_machines.clear()
