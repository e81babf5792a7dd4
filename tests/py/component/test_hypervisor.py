# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hypervisor as main has it: the real libvirt process, on a libvirtd of the tests' own, and
domains without an OS.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmchand.channels.device import Device
from kvmchand.errors import VchanError
from kvmchand.ids import DeviceId, DomainId, Size
from kvmchand.runtime import supervisor
from kvmchand.runtime.loop import Loop
from kvmchand.services.ivshmem.devices import Devices
from kvmchand.services.libvirt.hypervisor import Hypervisor
from kvmchand.wire.libvirt import Found, Prepared, StaleDevice, to_main
from rig import libvirtd as private
from rig.daemon import Daemon
from rig.deadline import eventually, run_until
from rig.domains import BRIDGE, BRIDGE_BUS, BRIDGE_SLOTS, Host
from rig.paths import KVMCHAND
from rig.processes import is_running, services_of


@pytest.fixture
def host(machines: Host) -> Host:
    """A libvirtd without domains, before and after."""
    return machines


class Rig:
    """Main, as far as domains and their devices go: notes what it is told, and serves what it
    attaches.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.loop = Loop()
        self.told: list[tuple[object, ...]] = []
        self.detached: list[tuple[DomainId, str]] = []
        """Devices that domains have no more, by their sockets' paths."""
        self.undefined: list[str] = []
        self.found: dict[DomainId, Found] = {}
        self.failure: VchanError | None = None
        self.sentence = ""
        """Why the last device was not attached."""
        self._log = folder / "log"
        self.folder = folder / "devices"
        self.devices = Devices(self.loop, self.folder, "nobody", self._fail)
        self.hypervisor = Hypervisor(self.loop, uri, self.folder, self._fail)
        self._last = 0

    def start(self) -> None:
        self.devices.start(self)
        self.hypervisor.start(self)

    def on_found(self, found: Found) -> None:
        assert re.fullmatch(r"[0-9a-f-]{36}", found.uuid)
        self.found[found.domain] = found
        self.told.append(("found", found.domain, found.name))

    def on_gone(self, domain: DomainId) -> None:
        self.told.append(("gone", domain))

    def on_prepared(self, prepared: Prepared) -> None:
        self.told.append(("prepared", prepared.uuid))

    def on_unprepared(self, uuid: str) -> None:
        self.told.append(("unprepared", uuid))

    def on_undefined(self, uuid: str) -> None:
        self.undefined.append(uuid)

    def on_rebooted(self, domain: DomainId) -> None:
        self.told.append(("rebooted", domain))

    def on_paused(self, domain: DomainId, paused: bool) -> None:
        self.told.append(("paused" if paused else "resumed", domain))

    def on_attached(self, domain: DomainId, device: DeviceId) -> None:
        self.told.append(("attached", domain, device))

    def on_attach_failed(self, domain: DomainId, device: DeviceId, sentence: str) -> None:
        self.sentence = sentence
        self.told.append(("failed", domain, device))

    def on_detached(self, domain: DomainId, socket: str) -> None:
        self.detached.append((domain, socket))

    def on_served(self, device: Device, domain: DomainId) -> None:
        self.told.append(("served", domain, device.number))

    def on_unplugged(self, device: Device, domain: DomainId) -> None:
        self.hypervisor.confirm_detached(domain, self.path(device))
        self.told.append(("unplugged", domain, device.number))

    def on_cut_off(self, device: Device, domain: DomainId) -> None:
        self.told.append(("cut off", domain, device.number))

    def _fail(self, error: VchanError) -> None:
        self.failure = error

    def until(self, holds: Callable[[], bool]) -> None:
        """Runs main until something has come about."""
        run_until(self.loop, holds, lambda: f"{self.told}, {self.failure}, {self.sentence}\n{self.log()}")

    def until_told(self, *expected: tuple[object, ...]) -> None:
        """Until the owner is told these, in any order, and asserts that it has been told nothing
        else since the last time.
        """
        self.until(lambda: len(self.told) >= len(expected))
        assert sorted(map(repr, self.told)) == sorted(map(repr, expected))
        self.told.clear()

    def until_logged(self, text: str, times: int = 1) -> None:
        while self.log().count(text) < times:
            self._turn()

    def _turn(self) -> None:
        """One of main's, and no long wait: the log says nothing to a loop."""
        look = self.loop.call_at(time.monotonic() + 0.02, lambda: None)
        self.loop.turn()
        look.cancel()

    def device(self, domain: DomainId) -> Device:
        self._last += 1
        made = Device(DeviceId(self._last), (DomainId(0), domain), Size(1 << 20), 2, {domain: 2})
        found = self.found.get(domain)
        self.devices.create(made, without_kvm=() if found is not None and found.kvm else (domain,))
        return made

    def path(self, device: Device) -> Path:
        (domain,) = device.peers
        return self.devices.socket_path(device, domain)

    def attach(self, device: Device) -> None:
        (domain,) = device.peers
        self.hypervisor.attach(domain, device.number, self.path(device), device.vectors, 2, "")

    def attached(self, domain: DomainId) -> Device:
        """A new device, in the domain."""
        device = self.device(domain)
        self.attach(device)
        self.until_told(("attached", domain, device.number), ("served", domain, device.number))
        return device

    def detach(self, device: Device) -> None:
        """Once its QEMU has read all of it, as main does."""
        (domain,) = device.peers
        while not self.devices.has_read(device, domain):
            self._turn()
        self.hypervisor.detach(domain, self.path(device))

    def until_unplugged(self, host: Host, name: str, device: Device) -> None:
        """A guest's OS lets go of what it is asked to; where there is none, QEMU does at a reset.

        Asserts that nothing else is told.
        """
        (domain,) = device.peers
        while ("unplugged", domain, device.number) not in self.told:
            host.libvirtd.virsh("reset", name)
            self._turn()
        told = [each for each in self.told if each[0] not in ("rebooted", "paused", "resumed")]
        assert told == [("unplugged", domain, device.number)]
        self.told.clear()

    def pid(self) -> int | None:
        """Of the libvirt process."""
        return services_of(os.getpid()).get("libvirt")

    def kill(self) -> None:
        """Ends the libvirt process; there will be another."""
        pid = self.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def log(self) -> str:
        """What the processes said."""
        return self._log.read_text()

    def close(self) -> None:
        self.hypervisor.close()
        self.devices.close()
        self.loop.close()


@pytest.fixture
def make_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Rig]]:
    """Nothing of it may be left."""
    made: list[Rig] = []
    with (tmp_path / "log").open("ab") as stderr, monkeypatch.context() as patch:
        # pytest's own capture ends with each phase of a test, and so would what a process started
        # in another was given.
        patch.setattr(subprocess, "Popen", functools.partial(subprocess.Popen, stderr=stderr))

        def make(uri: str) -> Rig:
            made.append(Rig(tmp_path, uri))
            return made[-1]

        try:
            yield make
        finally:
            for rig in made:
                rig.close()
    assert services_of(os.getpid()) == {}
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.fixture
def rig(host: Host, make_rig: Callable[[str], Rig]) -> Iterator[Rig]:
    """Not started yet."""
    made = make_rig(host.libvirtd.uri)
    yield made
    assert made.failure is None


@pytest.fixture
def domain(host: Host, rig: Rig) -> DomainId:
    """A running domain `one`, and main, which knows it."""
    made = host.create("one")
    rig.start()
    rig.until_told(("found", made, "one"))
    return made


@pytest.fixture
def with_kvm(host: Host, rig: Rig) -> DomainId:
    """A running domain `one` that devices can be unplugged from, and main, which knows it."""
    private.require_kvm()
    made = host.create("one", type="kvm")
    rig.start()
    rig.until_told(("found", made, "one"))
    return made


# ---- domains ----


def test_domains_are_found_at_the_start_and_when_they_start(host: Host, rig: Rig) -> None:
    one, two = host.create("one"), host.create("two")
    rig.start()
    rig.until_told(("found", one, "one"), ("found", two, "two"))
    three = host.create("three")
    rig.until_told(("found", three, "three"))


def test_a_domain_that_is_destroyed_is_gone_and_the_other_stays(host: Host, rig: Rig, domain: DomainId) -> None:
    two = host.create("two")
    rig.until_told(("found", two, "two"))
    host.libvirtd.virsh("destroy", "one")
    rig.until_told(("gone", domain))
    rig.attached(two)


def test_a_domain_whose_qemu_crashes_is_gone(host: Host, rig: Rig, domain: DomainId) -> None:
    host.crash("one")
    rig.until_told(("gone", domain))


def test_a_domain_that_starts_again_is_another(host: Host, rig: Rig, domain: DomainId) -> None:
    host.libvirtd.virsh("destroy", "one")
    again = host.create("one")
    assert again != domain
    rig.until_told(("gone", domain), ("found", again, "one"))


def test_a_domain_that_is_undefined_is_told_and_not_one_that_runs_or_is_renamed(host: Host, rig: Rig, domain: DomainId) -> None:
    uuid = rig.found[domain].uuid
    host.define("one", uuid)
    host.libvirtd.virsh("undefine", "one")
    host.crash("one")
    rig.until_told(("gone", domain))
    host.define("one", uuid)
    host.libvirtd.virsh("domrename", "one", "other")
    two = host.create("two")
    rig.until_told(("found", two, "two"))
    assert rig.undefined == []
    host.libvirtd.virsh("undefine", "other")
    rig.until(lambda: rig.undefined == [uuid])


def test_a_domain_that_is_paused_and_goes_on_says_so(host: Host, rig: Rig, domain: DomainId) -> None:
    host.libvirtd.virsh("suspend", "one")
    rig.until_told(("paused", domain))
    host.libvirtd.virsh("resume", "one")
    rig.until_told(("resumed", domain))


def test_a_domain_that_was_paused_before_is_known_to_be(host: Host, rig: Rig) -> None:
    one = host.create("one", paused=True)
    rig.start()
    rig.until_told(("found", one, "one"), ("paused", one))


def test_a_domain_that_is_reset_starts_anew_and_is_not_gone(host: Host, rig: Rig, domain: DomainId) -> None:
    host.libvirtd.virsh("reset", "one")
    # QEMU may say so twice.
    rig.until(lambda: ("rebooted", domain) in rig.told)
    device = rig.device(domain)
    rig.attach(device)
    rig.until(lambda: ("attached", domain, device.number) in rig.told)
    assert ("gone", domain) not in rig.told


# ---- devices ----


def test_a_device_is_attached_with_our_socket_and_does_not_taint_the_domain(host: Host, rig: Rig, domain: DomainId) -> None:
    device = rig.attached(domain)
    (shmem,) = host.shmems("one")
    model, msi, address = shmem.find("model"), shmem.find("msi"), shmem.find("address")
    assert model is not None
    assert msi is not None
    assert address is not None
    assert model.get("type") == "ivshmem-doorbell"
    assert (msi.get("vectors"), msi.get("ioeventfd")) == ("2", "on")
    assert int(address.get("bus", ""), 0) == BRIDGE_BUS
    assert host.paths("one") == [str(rig.path(device))]
    # QEMU runs as root here, which is libvirt's to complain of, and no doing of ours.
    assert host.taints("one") == {"high-privileges"}


def test_a_device_goes_into_a_paused_domain(host: Host, rig: Rig) -> None:
    one = host.create("one", paused=True)
    rig.start()
    rig.until_told(("found", one, "one"), ("paused", one))
    rig.attached(one)


def test_a_device_that_is_attached_already_is_attached_once(host: Host, rig: Rig, domain: DomainId) -> None:
    device = rig.attached(domain)
    rig.attach(device)
    rig.until_told(("attached", domain, device.number))
    assert len(host.shmems("one")) == 1


def test_a_detached_device_leaves_its_qemu(host: Host, rig: Rig, with_kvm: DomainId) -> None:
    device, staying = rig.attached(with_kvm), rig.attached(with_kvm)
    rig.detach(device)
    rig.until_unplugged(host, "one", device)
    eventually(lambda: host.paths("one") == [str(rig.path(staying))])
    assert host.taints("one") == {"high-privileges"}


def test_a_device_that_is_not_there_is_no_trouble_to_detach(rig: Rig, domain: DomainId) -> None:
    device = rig.device(domain)
    rig.hypervisor.detach(domain, rig.path(device))
    rig.hypervisor.detach(DomainId(domain + 1000), rig.path(device))
    rig.attached(domain)
    assert "can't be unplugged" not in rig.log()


def test_a_domain_without_a_bridge_is_told_what_its_xml_lacks(host: Host, rig: Rig) -> None:
    one = host.create("one", "")
    rig.start()
    rig.until_told(("found", one, "one"))
    device = rig.device(one)
    rig.attach(device)
    rig.until_told(("failed", one, device.number))
    assert "<controller type='pci' model='pcie-to-pci-bridge'/>" in rig.sentence
    assert "kvmchan prepare-domain" in rig.sentence


def test_a_domain_whose_bridge_is_full_is_told_so(host: Host, rig: Rig) -> None:
    sound = "<sound model='ac97'><address type='pci' bus='{}' slot='{}'/></sound>\n"
    one = host.create("one", BRIDGE + "".join(sound.format(BRIDGE_BUS, slot) for slot in BRIDGE_SLOTS), paused=True)
    rig.start()
    rig.until_told(("found", one, "one"), ("paused", one))
    device = rig.device(one)
    rig.attach(device)
    rig.until_told(("failed", one, device.number))
    assert "no free slot" in rig.sentence
    assert "add another pcie-to-pci-bridge" in rig.sentence


def test_what_libvirt_says_to_a_device_it_refuses_is_said_on(rig: Rig, domain: DomainId, tmp_path: Path) -> None:
    rig.hypervisor.attach(domain, DeviceId(99), tmp_path / "nobody-listens", 2, 2, "")
    rig.until_told(("failed", domain, 99))
    assert rig.sentence.startswith("libvirt refuses it: ")
    assert "No such file or directory" in rig.sentence
    rig.attached(domain)


def test_a_device_for_a_domain_that_is_not_there_fails(rig: Rig, domain: DomainId) -> None:
    device = rig.device(DomainId(domain + 1000))
    rig.attach(device)
    rig.until_told(("failed", domain + 1000, device.number))
    assert rig.sentence.startswith("libvirt refuses it: ")


def test_a_domain_whose_qemu_hangs_keeps_no_other_waiting(host: Host, rig: Rig, domain: DomainId) -> None:
    two = host.create("two")
    rig.until_told(("found", two, "two"))
    hanging = rig.device(domain)
    with host.stopped("one"):
        rig.attach(hanging)
        rig.attached(two)
        three = host.create("three")
        rig.until_told(("found", three, "three"))
        host.libvirtd.virsh("destroy", "two")
        rig.until(lambda: ("gone", two) in rig.told)
        assert ("attached", domain, hanging.number) not in rig.told
    rig.until(lambda: ("attached", domain, hanging.number) in rig.told)


# ---- libvirtd ends, and starts again ----


def test_what_happens_while_libvirtd_is_away_is_found_out(host: Host, rig: Rig, domain: DomainId) -> None:
    two = host.create("two")
    rig.until_told(("found", two, "two"))
    host.libvirtd.kill()
    rig.until_logged("is lost")
    host.crash("one")
    device = rig.device(two)
    rig.attach(device)
    host.libvirtd.start()
    three = host.create("three")
    rig.until_told(("gone", domain), ("attached", two, device.number), ("served", two, device.number), ("found", three, "three"))
    # And events come as before.
    host.libvirtd.virsh("destroy", "two")
    rig.until_told(("gone", two), ("unplugged", two, device.number))


def test_a_device_that_was_on_its_way_when_libvirtd_ended_is_attached_by_the_next(host: Host, rig: Rig, domain: DomainId) -> None:
    device = rig.device(domain)
    with host.stopped("one"):
        rig.attach(device)
        two = host.create("two")  # libvirtd has had time to hear of the device
        rig.until_told(("found", two, "two"))
        rig.attached(two)
        host.libvirtd.kill()
        rig.until_logged("is lost")
    host.libvirtd.start()
    rig.until(lambda: ("attached", domain, device.number) in rig.told)
    assert host.paths("one") == [str(rig.path(device))]
    assert "failed" not in [each[0] for each in rig.told]


def test_a_device_that_was_to_go_while_libvirtd_was_away_goes(host: Host, rig: Rig, with_kvm: DomainId) -> None:
    device = rig.attached(with_kvm)
    host.libvirtd.kill()
    rig.until_logged("is lost")
    rig.detach(device)
    host.libvirtd.start()
    rig.until_unplugged(host, "one", device)


def test_that_a_domain_is_paused_is_told_once_and_that_it_went_on_before_we_connected_again(
    host: Host, rig: Rig, domain: DomainId
) -> None:
    host.libvirtd.virsh("suspend", "one")
    rig.until_told(("paused", domain))
    for times in (1, 2):
        host.libvirtd.kill()
        rig.until_logged("is lost", times)
        host.libvirtd.start()
        if times == 2:
            host.libvirtd.virsh("resume", "one")
        rig.until_logged("connected to libvirt again", times)
    rig.until_told(("resumed", domain))


def test_a_device_that_was_to_go_when_the_process_died_goes(host: Host, rig: Rig, with_kvm: DomainId) -> None:
    device = rig.attached(with_kvm)
    pid = rig.pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    rig.detach(device)  # which it does not come to
    rig.kill()
    rig.until_unplugged(host, "one", device)


def test_libvirtd_may_come_late_and_is_complained_of_once(host: Host, rig: Rig) -> None:
    host.libvirtd.kill()
    try:
        rig.start()
        rig.until_logged("can't be reached, and is tried again")
    finally:
        host.libvirtd.start()
    one = host.create("one")
    rig.until_told(("found", one, "one"))
    assert rig.log().count("can't be reached") == 1


def test_connecting_again_leaves_no_descriptor_open(host: Host, rig: Rig, domain: DomainId) -> None:
    rig.attached(domain)

    def restart(time: int) -> int:
        host.libvirtd.kill()
        rig.until_logged("is lost", time)
        host.libvirtd.start()
        rig.until_logged("connected to libvirt again", time)
        return len(list(Path(f"/proc/{rig.pid()}/fd").iterdir()))

    assert restart(1) == restart(2)


def test_a_domain_with_the_number_of_one_that_ended_does_not_get_its_devices(host: Host, rig: Rig) -> None:
    def start_again() -> None:
        host.libvirtd.kill()
        host.libvirtd.start()  # which counts from 1 if it knew of no domain

    start_again()
    one = host.create("one")
    rig.start()
    rig.until_told(("found", one, "one"))
    process = rig.pid()
    assert process is not None
    host.libvirtd.kill()
    rig.until_logged("is lost")
    os.kill(process, signal.SIGSTOP)
    try:
        host.crash("one")
        rig.attach(rig.device(one))
        host.libvirtd.start()
        eventually(lambda: host.names() == [])
        start_again()
        assert host.create("two") == one
    finally:
        os.kill(process, signal.SIGCONT)
    rig.until_told(("gone", one), ("found", one, "two"))
    staying = rig.attached(one)  # after what came before it
    assert host.paths("two") == [str(rig.path(staying))]


def test_a_domain_that_is_another_than_was_meant_gets_no_device_and_loses_none(
    host: Host, rig: Rig, domain: DomainId, monkeypatch: pytest.MonkeyPatch
) -> None:
    staying, other = rig.attached(domain), rig.device(domain)
    monkeypatch.setitem(rig.hypervisor._domains, domain, "2e2dac4c-1bb1-4e4c-9d8c-5c6b62d4b8a7")
    rig.attach(other)
    rig.until_told(("failed", domain, other.number))
    assert rig.sentence == f"the domain that was meant has ended, and {domain} is another one's number by now"
    rig.detach(staying)
    rig.until_logged(f"no device is unplugged from domain {domain}: {rig.sentence}")
    assert host.paths("one") == [str(rig.path(staying))]


def test_what_a_domains_machine_lacks_is_told(host: Host, rig: Rig) -> None:
    rig.start()
    pc, bare, plain, ready = host.create_pc("pc"), host.create("bare", ""), host.create("plain"), host.create_prepared("ready")
    rig.until_told(
        *(("found", number, name) for number, name in ((pc, "pc"), (bare, "bare"), (plain, "plain"), (ready, "ready")))
    )
    assert "only a root bus of conventional PCI" in rig.found[pc].obstacle
    assert "install the guest anew in a domain with machine type q35" in rig.found[pc].lack
    assert "no bridge for conventional PCI devices" in rig.found[bare].obstacle
    assert "put that into the XML that it is made from" in rig.found[bare].lack, "it is transient"
    assert rig.found[plain].obstacle == ""
    assert "a vIOMMU" in rig.found[plain].lack
    assert (rig.found[ready].obstacle, rig.found[ready].lack) == ("", "")


# ---- the libvirt process ends, and another starts ----


def test_what_happens_while_there_is_no_libvirt_process_is_found_out(host: Host, rig: Rig, domain: DomainId) -> None:
    two = host.create("two")
    rig.until_told(("found", two, "two"))
    rig.kill()
    host.crash("one")
    device = rig.device(two)
    rig.attach(device)
    three = host.create("three")
    rig.until_told(("gone", domain), ("attached", two, device.number), ("served", two, device.number), ("found", three, "three"))


def test_a_device_that_an_earlier_daemon_left_is_told_and_goes_when_main_says_so(
    host: Host, rig: Rig, with_kvm: DomainId
) -> None:
    path = rig.path(left := rig.attached(with_kvm))
    while not rig.devices.has_read(left, with_kvm):
        rig._turn()
    rig.devices.remove(left)  # its QEMU keeps it
    rig.hypervisor.close()
    rig.hypervisor = Hypervisor(rig.loop, host.libvirtd.uri, rig.folder, rig._fail)
    rig.hypervisor.start(rig)
    rig.until_told(("found", with_kvm, "one"))
    assert rig.found[with_kvm].stale == (StaleDevice(str(path), 2, 2),)
    assert len(host.shmems("one")) == 1
    rig.hypervisor.detach(with_kvm, path)
    while (with_kvm, str(path)) not in rig.detached:
        host.libvirtd.virsh("reset", "one")
        rig._turn()
    assert host.shmems("one") == []


def test_what_a_domain_keeps_of_an_earlier_daemon_is_told_with_whether_it_has_kvm(
    host: Host, rig: Rig, domain: DomainId, tmp_path: Path
) -> None:
    assert (rig.found[domain].kvm, len(rig.found[domain].stale)) == (False, 0)
    rig.devices.remove(rig.attached(domain))
    rig.attached(domain)
    rig.hypervisor.close()
    rig.hypervisor = Hypervisor(rig.loop, host.libvirtd.uri, rig.folder, rig._fail)
    rig.hypervisor.start(rig)
    rig.until_told(("found", domain, "one"))
    assert (rig.found[domain].kvm, len(rig.found[domain].stale)) == (False, 1)


def test_a_domain_with_kvm_is_known_to_be_one_and_keeps_nothing(rig: Rig, with_kvm: DomainId) -> None:
    assert (rig.found[with_kvm].kvm, len(rig.found[with_kvm].stale)) == (True, 0)


def test_domains_that_come_and_go_at_once_are_told_in_their_order(host: Host, rig: Rig) -> None:
    rig.start()
    rig.until_logged("connected to libvirt")
    numbers: list[object] = []
    for _ in range(5):
        numbers.append(host.create("one", paused=True))
        host.libvirtd.virsh("destroy", "one")
    last = host.create("one", paused=True)
    rig.until(lambda: ("found", last, "one") in rig.told)
    told = [each for each in rig.told if each[0] != "paused"]
    found = [each[1] for each in told if each[0] == "found"]
    gone = [each[1] for each in told if each[0] == "gone"]
    # One that had gone before libvirt was asked of it may never have been.
    assert found == [*gone, last]
    assert gone == [each for each in numbers if each in gone]


def test_a_device_of_someone_elses_is_let_alone(host: Host, rig: Rig, domain: DomainId, tmp_path: Path) -> None:
    theirs = rig.attached(domain)
    other = tmp_path / "other"
    other.mkdir()
    with host.stopped("one"):
        pass
    rig.hypervisor.close()
    rig.devices.remove(theirs)
    elsewhere = Hypervisor(rig.loop, host.libvirtd.uri, other, rig._fail)
    rig.hypervisor = elsewhere
    elsewhere.start(rig)
    rig.until_told(("found", domain, "one"))
    rig.attached(domain)
    assert len(host.shmems("one")) == 2
    assert "it is unplugged" not in rig.log()


class GuestsDaemon(Daemon):
    """With processes beside local."""

    def _fds_at_rest(self) -> dict[str, list[str]]:
        return {}


STAND_IN = """\
import os, pathlib, runpy, socket, sys
said = pathlib.Path({said!r})
if said.exists():
    runpy.run_path({entry!r}, run_name="__main__")
else:
    said.touch()
    main = socket.socket(fileno=int(sys.argv[3]))
    main.recv(65536)
    socket.send_fds(main, [{packet!r}], [0])
    main.recv(65536)
    while main.recv(65536):
        pass
"""
FOUND = to_main.encode(Found(DomainId(7), "nobody", "2e2dac4c-1bb1-4e4c-9d8c-5c6b62d4b8a7", True, (), "", ""))


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(FOUND[:-20], id="truncated"),
        pytest.param(b'{"type":"launch"}', id="unknown"),
        pytest.param(FOUND.replace(b"7,", b'"7",'), id="ill-typed"),
        pytest.param(FOUND.replace(b"7,", b"-1,"), id="negative"),
        pytest.param(FOUND.replace(b"7,", b"0,"), id="the host"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"[" * 30000, id="deep"),
        pytest.param(FOUND + b" " * 40000, id="long"),
    ],
)
def test_a_libvirt_process_that_says_what_can_not_be_is_ended_and_another_started(
    host: Host, rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packet: bytes
) -> None:
    stand_in = tmp_path / "stand-in.py"
    stand_in.write_text(STAND_IN.format(said=str(tmp_path / "said"), entry=str(supervisor._ENTRY), packet=packet))
    one = host.create("one")
    monkeypatch.setattr(supervisor, "_ENTRY", stand_in)
    rig.hypervisor.start(rig)
    rig.until_told(("found", one, "one"))


# ---- no libvirt ----


def test_without_libvirts_module_domains_are_not_served_and_local_ones_are(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    venv.create(bare, symlinks=True)
    script = tmp_path / "kvmchand"
    script.write_text(f'#!{bare}/bin/python -I\nimport runpy\nrunpy.run_path("{KVMCHAND}", run_name="__main__")\n')
    script.chmod(0o755)
    daemon = GuestsDaemon(tmp_path, libvirt="test:///default", program=script)
    try:
        eventually(lambda: "no virtual machines are served" in daemon.log(), daemon.log)
        assert "without libvirt's Python module: install python3-libvirt" in daemon.log()
        assert daemon.listing()["channels"] == []
        assert "libvirt" not in daemon.services()
        assert daemon.log().count("the libvirt process ended") == 2  # as it ends, and as it is given up
    finally:
        daemon.process.terminate()
        assert daemon.process.wait() == 0


def test_a_domain_without_kvm_outlives_one_daemon_after_another_until_it_is_full(host: Host, tmp_path: Path) -> None:
    rounds = 4
    one = host.create_prepared("one")
    pid = host.pid("one")
    settings = tmp_path / "settings.toml"
    settings.write_text(f"[limits]\nguest_devices = {rounds}\n")

    def daemon() -> GuestsDaemon:
        return GuestsDaemon(tmp_path, "--config", str(settings), libvirt=host.libvirtd.uri, domains=())

    for number in range(rounds):
        made = daemon()
        try:
            eventually(lambda number=number: len(host.shmems("one")) == number + 1, made.log)  # type: ignore[misc]
            if number:
                assert f"domain {one}, which runs without KVM, keeps {number} devices of an earlier daemon" in made.log()
        finally:
            made.kill()
    last = daemon()
    try:
        eventually(lambda: f"domain {one} (one) gets no control device: domain {one} has {rounds} devices" in last.log())
        assert "shut it down and start it again, or run it with KVM" in last.log()
        assert len(host.shmems("one")) == rounds
        assert is_running(pid)
        host.libvirtd.virsh("destroy", "one")
        again = host.create_prepared("one")
        eventually(lambda: f"domain {again} (one) is here" in last.log(), last.log)
    finally:
        last.process.terminate()
        assert last.process.wait() == 0


def test_a_domain_whose_number_is_a_local_domains_is_not_served(host: Host, tmp_path: Path) -> None:
    one, two = host.create_prepared("one"), host.create_prepared("two")
    daemon = GuestsDaemon(tmp_path, libvirt=host.libvirtd.uri, domains=(one,))
    try:
        said = (f"domain {one} (one) is not served", f"domain {two} (two) is here")  # in any order
        eventually(lambda: all(each in daemon.log() for each in said), daemon.log)
        kinds = {each["domain"]: each["kind"] for each in daemon.listing()["domains"]}
        assert kinds == {0: "host", one: "local", two: "guest"}
        host.libvirtd.virsh("destroy", "one")
        host.libvirtd.virsh("destroy", "two")
        eventually(lambda: f"domain {two} (two) is gone" in daemon.log(), daemon.log)
        assert {each["domain"] for each in daemon.listing(one)["domains"]} == {0, one}
    finally:
        daemon.process.terminate()
        assert daemon.process.wait() == 0
