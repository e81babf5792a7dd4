# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmchan prepare-domain and doctor on a libvirtd of the tests' own: domains without an OS, that a
real QEMU starts.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kvmchand.admin import prepare
from kvmchand.errors import AccessDenied
from rig import libvirtd as private
from rig.deadline import eventually
from rig.libvirtd import PrivateLibvirtd
from rig.network import Host
from rig.paths import KVMCHAN, PYTHON, SITE

NOBODY = 65534
SECRET = "aSecret7"
DOMAIN = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>plain</name>
  <metadata>
    <app xmlns="urn:app"><owner>somebody</owner></app>
    <other:note xmlns:other="urn:other">a &amp; b</other:note>
  </metadata>
  <memory unit='MiB'>64</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <graphics type='vnc' passwd='aSecret7'><listen type='socket'/></graphics>
    <serial type='null'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""
TAINT_OF_THE_TESTS = {"high-privileges"}
"""For their libvirtd runs QEMU as root."""


@pytest.fixture(scope="module")
def shared_libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirtd]:
    with private.running(tmp_path_factory.mktemp("lv")) as made:
        yield made


class Domain:
    """One that libvirt keeps."""

    def __init__(self, libvirtd: PrivateLibvirtd, folder: Path, xml: str) -> None:
        self.libvirtd = libvirtd
        self.runtime_dir = folder / "run"
        self.name = re.findall("<name>(.*)</name>", xml)[0]
        self._file = folder / "domain.xml"
        self._file.write_text(xml)
        libvirtd.virsh("define", str(self._file))

    def virsh(self, command: str, *arguments: str) -> str:
        return self.libvirtd.virsh(command, self.name, *arguments).stdout

    def xml(self) -> str:
        """With its secrets, as it is kept."""
        return self.virsh("dumpxml", "--inactive", "--security-info")

    def start(self) -> None:
        self.virsh("start", "--paused")

    def number(self) -> int:
        return int(self.virsh("domid"))

    def kvmchan(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "KVMCHAN_RUNTIME_DIR": str(self.runtime_dir)}
        return subprocess.run([KVMCHAN, *arguments], env=environment, capture_output=True, text=True)

    def prepare(self, *arguments: str) -> str:
        """What it prints, and that it is a success."""
        done = self.kvmchan("prepare-domain", self.name, "--uri", self.libvirtd.uri, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def refusal(self, *arguments: str, uri: str = "") -> str:
        """It fails: its status is 1, and what it says is one line."""
        done = self.kvmchan("prepare-domain", *arguments, "--uri", uri or self.libvirtd.uri)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.startswith("kvmchan: ")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def diagnosis(self, *arguments: str) -> dict[str, list[str]]:
        """What the doctor says, by subject; its status says whether anything is bad."""
        done = self.kvmchan("doctor", "--as", "host", "--uri", self.libvirtd.uri, *arguments)
        assert done.stderr == ""
        found: dict[str, list[str]] = {}
        for line in done.stdout.splitlines():
            grade, subject, sentence = re.fullmatch(r"(ok|note|bad) +([^:]+): (.*)", line).groups()  # type: ignore[union-attr]
            found.setdefault(subject, []).append(f"{grade} {sentence}")
        assert done.returncode == any(each.startswith("bad ") for each in done.stdout.splitlines())
        return found

    def diagnosis_of_itself(self, *arguments: str) -> list[str]:
        return self.diagnosis(*arguments)[f"domain {self.number()} ({self.name})"]

    def remove(self) -> None:
        self.libvirtd.virsh("destroy", self.name, check=False)
        self.libvirtd.virsh("undefine", self.name, "--managed-save", check=False)


@pytest.fixture
def domain(shared_libvirtd: PrivateLibvirtd, tmp_path: Path) -> Iterator[Domain]:
    made = Domain(shared_libvirtd, tmp_path, DOMAIN)
    try:
        yield made
    finally:
        made.remove()
    assert shared_libvirtd.virsh("list", "--all", "--name").stdout.split() == []


def without(xml: str, *paths: str) -> str:
    """The same without those elements."""
    root = ElementTree.fromstring(xml)
    for parent in list(root.iter()):
        for path in paths:
            for each in parent.findall(path):
                parent.remove(each)
    return ElementTree.canonicalize(ElementTree.tostring(root), strip_text=True)


# ---- prepare-domain ----


def test_it_shows_what_it_would_change_and_changes_nothing(domain: Domain) -> None:
    before = domain.xml()
    said = domain.prepare()
    assert domain.xml() == before
    assert '+    <iommu model="intel">' in said.splitlines()
    assert not any(re.match(r"-[^-]", line) for line in said.splitlines()), "it takes something away"
    assert "kvmchan prepare-domain plain --apply" in said
    assert "intel_iommu=on" in said


def test_it_changes_what_it_showed_and_only_once(domain: Domain) -> None:
    before, shown = domain.xml(), domain.prepare().splitlines()
    assert domain.prepare("--apply").splitlines()[:-1] == shown[:-1]
    after = domain.xml()
    root = ElementTree.fromstring(after)
    assert root.find("devices/iommu[@model='intel']/driver[@intremap='on'][@caching_mode='on']") is not None
    assert root.find("features/ioapic[@driver='qemu']") is not None
    assert len(root.findall("devices/controller[@model='pcie-to-pci-bridge']")) == 4
    new = ("iommu", "ioapic", "controller[@type='pci']")
    assert without(after, *new) == without(before, *new)
    for arguments in ((), ("--apply",)):
        first, *hints = domain.prepare(*arguments).splitlines()
        assert first == "domain plain is prepared: nothing to do"
        assert all(each.startswith("in the guest: ") for each in hints)
        assert domain.xml() == after


def test_a_password_is_kept_and_not_shown(domain: Domain) -> None:
    assert f"passwd='{SECRET}'" in domain.xml()
    said = domain.prepare() + domain.prepare("--apply")
    assert f"passwd='{SECRET}'" in domain.xml()
    assert SECRET not in said


def test_metadata_is_kept(domain: Domain) -> None:
    before = [domain.virsh("metadata", uri) for uri in ("urn:app", "urn:other")]
    assert "somebody" in before[0]
    domain.prepare("--apply")
    assert [domain.virsh("metadata", uri) for uri in ("urn:app", "urn:other")] == before


def test_options_passed_to_qemu_are_kept(shared_libvirtd: PrivateLibvirtd, tmp_path: Path) -> None:
    options = "<qemu:commandline><qemu:arg value='-no-hpet'/></qemu:commandline></domain>"
    made = Domain(shared_libvirtd, tmp_path, DOMAIN.replace("</domain>", options))
    try:
        made.prepare("--apply")
        assert "<qemu:arg value='-no-hpet'/>" in made.xml()
    finally:
        made.remove()


def test_a_prepared_domain_starts_and_is_not_tainted(domain: Domain) -> None:
    domain.prepare("--apply")
    domain.start()
    assert domain.virsh("domstate").strip() == "paused"
    assert domain.diagnosis_of_itself() == [
        "note the guest's kernel needs intel_iommu=on on its command line: in Debian, put it into GRUB_CMDLINE_LINUX in "
        "/etc/default/grub and run update-grub",
        "note it runs without KVM, so that it is slow, and keeps each device that it was given until it ends: where the host has "
        "/dev/kvm, put type='kvm' into its XML (virsh edit), shut it down and start it",
        "ok its machine has all that vchans need, 0 devices of ours and 124 free slots for more",
    ]
    assert taints(domain) == TAINT_OF_THE_TESTS


def taints(domain: Domain) -> set[str]:
    """What libvirt holds against it."""
    log = (domain.libvirtd.log_folder / "qemu" / f"{domain.name}.log").read_text()
    return set(re.findall(r"is tainted: (\S+)", log))


def test_a_domain_that_runs_is_prepared_for_its_next_start(domain: Domain) -> None:
    domain.start()
    (lacks,) = domain.diagnosis_of_itself()[:1]
    assert lacks.startswith("bad its machine lacks ")
    assert "kvmchan prepare-domain plain --apply" in lacks
    number = domain.number()
    assert "when the domain is started next" in domain.prepare("--apply")
    assert domain.number() == number
    assert "once it is shut down and started" in domain.diagnosis_of_itself()[0]
    domain.virsh("destroy")
    domain.start()
    assert not any(each.startswith("bad") for each in domain.diagnosis_of_itself())


def test_a_saved_state_is_named(domain: Domain) -> None:
    domain.start()
    domain.virsh("managedsave")
    assert "virsh managedsave-remove plain" in domain.prepare()


# ---- what can't be ----


def test_a_transient_domain(domain: Domain, tmp_path: Path) -> None:
    (tmp_path / "transient.xml").write_text(DOMAIN.replace("plain", "passing"))
    domain.libvirtd.virsh("create", str(tmp_path / "transient.xml"), "--paused")
    try:
        assert "domain passing is transient" in domain.refusal("passing", "--apply")
        found = domain.diagnosis()
        said = [each for subject in found if "(passing)" in subject for each in found[subject] if "lacks" in each]
        assert said
        assert all("the XML that it is made from" in each for each in said)
    finally:
        domain.libvirtd.virsh("destroy", "passing")


@pytest.mark.parametrize("arguments", [(), ("--apply",)])
def test_a_domain_that_is_not_there(domain: Domain, arguments: tuple[str, ...]) -> None:
    assert "libvirt has no domain other: virsh list --all" in domain.refusal("other", *arguments)


@pytest.mark.parametrize("arguments", [(), ("--apply",)])
def test_a_libvirtd_that_is_not_there(domain: Domain, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path}/none"
    said = domain.refusal("plain", *arguments, uri=uri)
    assert f"libvirt: {uri} can't be reached" in said
    assert "start libvirtd" in said


def test_a_uri_that_can_not_be(domain: Domain) -> None:
    assert "nonsense can't be reached" in domain.refusal("plain", uri="nonsense")


def test_a_machine_that_can_not_be_prepared(shared_libvirtd: PrivateLibvirtd, tmp_path: Path) -> None:
    made = Domain(shared_libvirtd, tmp_path, DOMAIN.replace("'q35'", "'pc'"))
    try:
        before = made.xml()
        said = made.refusal("plain", "--apply")
        assert "i440fx" in said
        assert "q35" in said
        assert made.xml() == before
    finally:
        made.remove()


def test_a_user_who_may_not_use_libvirt(domain: Domain) -> None:
    for to_write in (False, True):
        os.seteuid(NOBODY)
        try:
            with pytest.raises(AccessDenied, match="as root, or as a member of the group libvirt"):
                prepare.connect(domain.libvirtd.uri, to_write=to_write)
        finally:
            os.seteuid(0)


def test_no_module_of_libvirt(domain: Domain) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(SITE)!r}); sys.argv = {['kvmchan', 'prepare-domain', 'plain']}\n"
        "from libxenvchan_shim.tool import main; main()"
    )
    # Without site, there is the standard library only.
    done = subprocess.run([PYTHON, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "kvmchan: libvirt: its Python module is not there: install python3-libvirt, or libvirt-python from PyPI\n"
    )


# ---- the doctor, of a host ----


def test_the_doctor_without_a_daemon_or_a_libvirtd(domain: Domain, tmp_path: Path) -> None:
    done = domain.kvmchan("doctor", "--as", "host", "--uri", f"qemu+unix:///system?socket={tmp_path}/none")
    assert (done.returncode, done.stderr) == (1, "")
    first, second = done.stdout.splitlines()
    assert first.startswith("bad   kvmchand host: no kvmchand answers at ")
    assert second.startswith("bad   libvirt: qemu+unix")
    assert "start libvirtd" in second


def test_the_doctor_where_no_domain_runs(domain: Domain) -> None:
    found = domain.diagnosis()
    version, none = found["libvirt"]
    assert re.fullmatch(r"ok version \d+\.\d+\.\d+, QEMU \d+\.\d+\.\d+", version)
    assert none == "note no domain runs there"
    assert found["emulator /usr/bin/qemu-system-x86_64"] == ["ok it has ivshmem-doorbell"]


def test_the_doctor_asks_libvirt_s_emulator_where_no_domain_names_one(shared_libvirtd: PrivateLibvirtd, tmp_path: Path) -> None:
    command = [str(KVMCHAN), "doctor", "--as", "host", "--uri", shared_libvirtd.uri]
    environment = {**os.environ, "KVMCHAN_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "ok    emulator /usr/bin/qemu-system-x86_64: it has ivshmem-doorbell" in done.stdout.splitlines()


def test_the_doctor_to_a_pipe_that_nobody_reads_says_nothing(domain: Domain) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "KVMCHAN_RUNTIME_DIR": str(domain.runtime_dir)}
    command = [str(KVMCHAN), "doctor", "--uri", domain.libvirtd.uri]
    done = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.fixture
def prepared(domain: Domain) -> Domain:
    """And running, without an OS and so without a kvmchand."""
    domain.prepare("--apply")
    domain.start()
    return domain


def test_the_doctor_of_a_domain_without_kvmchand(prepared: Domain, tmp_path: Path) -> None:
    daemon = Host(tmp_path, domains=(), libvirt=prepared.libvirtd.uri)
    try:
        eventually(lambda: any(each["devices"] for each in daemon.listing()["guests"]), daemon.log)
        found = prepared.diagnosis()
        assert found["kvmchand host"] == ["ok it answers, and knows 2 domains and 0 channels"]
        *_, machine, link = found[f"domain {prepared.number()} (plain)"]
        assert machine == "ok its machine has all that vchans need, 1 devices of ours and 123 free slots for more"
        assert link.startswith("bad no kvmchand in it is linked to this host's: start kvmchand guest there")
        assert taints(prepared) == TAINT_OF_THE_TESTS
        prepared.virsh("destroy")
        eventually(lambda: daemon.listing()["guests"] == [])
        daemon.stop()
    finally:
        daemon.kill()


def test_the_doctor_of_a_domain_that_the_daemon_does_not_serve(prepared: Domain, tmp_path: Path) -> None:
    daemon = Host(tmp_path, domains=())
    try:
        *_, link = prepared.diagnosis_of_itself()
        assert link == (
            "bad kvmchand host does not serve it: is it one of another libvirt (--libvirt), or has kvmchand host other settings "
            "than kvmchan doctor was given (--config)?"
        )
        daemon.stop()
    finally:
        daemon.kill()


SERVED = "no kvmchand in it is linked to this host's"


@pytest.mark.parametrize(
    ("is_prepared", "serve", "expected"),
    [
        (False, None, "bad it is not served: its machine lacks a vIOMMU"),
        (False, '"all"', "bad it is not served: its XML has no bridge"),
        (False, '["plain"]', "bad it is not served: its XML has no bridge"),
        (False, '["other"]', "note it is not served: the settings do not name it"),
        (True, None, f"bad {SERVED}"),
        (True, '["plain"]', f"bad {SERVED}"),
        (True, '["other"]', "note it is not served: the settings do not name it"),
    ],
)
def test_the_doctor_judges_as_the_daemon_does(
    domain: Domain, tmp_path: Path, is_prepared: bool, serve: str | None, expected: str
) -> None:
    options: tuple[str, ...] = ()
    if serve is not None:
        settings = tmp_path / "settings.toml"
        settings.write_text(f'runtime_dir = "{tmp_path}/elsewhere"\n[guests]\nserve = {serve}\n')
        options = ("--config", str(settings))
    if is_prepared:
        domain.prepare("--apply")
    domain.start()
    if SERVED not in expected:
        assert domain.diagnosis_of_itself(*options)[-1].startswith(expected), "without a daemon"
    daemon = Host(tmp_path, *options, domains=(), libvirt=domain.libvirtd.uri)
    try:
        subject = f"domain {domain.number()} (plain)"
        eventually(lambda: f"{subject} is " in daemon.log(), daemon.log)
        *_, said = domain.diagnosis_of_itself(*options)
        assert said.startswith(expected)
        if SERVED not in expected:
            assert f"{subject} is {said.partition(' it is ')[2]}\n" in daemon.log(), "the daemon gives another reason"
        domain.virsh("destroy")
        eventually(lambda: daemon.listing()["guests"] == [])
        daemon.stop()
    finally:
        daemon.kill()


def test_a_domain_that_is_not_served_starts_all_the_same_with_the_device_it_has_from_its_start(
    domain: Domain, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("[guests]\nserve = []\n")
    domain.prepare("--link-size", "1M", "--apply")
    daemon = Host(tmp_path, "--config", str(settings), domains=(), libvirt=domain.libvirtd.uri)
    try:
        for _ in range(2):
            eventually(lambda: list((domain.runtime_dir / "ivshmem").glob("start-*")) != [], daemon.log)
            domain.start()
            number = domain.number()
            eventually(lambda number=number: f"domain {number} (plain) is not served" in daemon.log(), daemon.log)  # type: ignore[misc]
            domain.virsh("destroy")
        assert daemon.listing()["links"] == []
        daemon.stop()
    finally:
        daemon.kill()


def test_the_doctor_finds_the_daemon_and_libvirt_where_the_settings_say(domain: Domain, tmp_path: Path) -> None:
    domain.start()
    settings = tmp_path / "settings.toml"
    settings.write_text(f'runtime_dir = "{tmp_path}/elsewhere"\nlibvirt = "{domain.libvirtd.uri}"\n')
    environment = {name: value for name, value in os.environ.items() if name != "KVMCHAN_RUNTIME_DIR"}
    command = [str(KVMCHAN), "doctor", "--as", "host", "--config", str(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    assert f"no kvmchand answers at {tmp_path}/elsewhere" in done.stdout
    assert f"domain {domain.number()} (plain): it is not served" in done.stdout


def test_the_doctor_is_given_settings_that_can_not_be(domain: Domain, tmp_path: Path) -> None:
    done = domain.kvmchan("doctor", "--config", str(tmp_path / "none.toml"))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"kvmchan: the settings file .*/none.toml can not be read: .*\n", done.stderr)
