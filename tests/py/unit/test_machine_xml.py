# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which domains are served, by their machines' XML and the settings."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from kvmchand.admin import prepare
from kvmchand.config import Serve
from kvmchand.services.libvirt.architectures import places
from kvmchand.services.libvirt.machine_xml import Fitness, fitness, is_wanted, refusal
from rig.domain_xml import Q35, READY, VIRT, direct

PC = """\
<domain type='kvm'>
  <name>old</name>
  <os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
  <devices><controller type='pci' index='0' model='pci-root'/></devices>
</domain>
"""
PC_WITH_BRIDGE = PC.replace("</devices>", "<controller type='pci' index='1' model='pci-bridge'/></devices>")
ONE_BRIDGE = re.sub(r"<controller type='pci' index='4' model='pcie-to-pci-bridge'/>", "", READY)
NO_BRIDGE = re.sub(r"<controller type='pci' index='\d' model='pcie-to-pci-bridge'/>", "", READY)
DRIVER = "<driver intremap='on' caching_mode='on'/>"
VIRTIO = READY.replace(DRIVER, "").replace("model='intel'", "model='virtio'")


def judged(xml: str, *, is_persistent: bool = True) -> Fitness:
    return fitness(ElementTree.fromstring(xml), is_persistent=is_persistent)


# ---- machines ----


@pytest.mark.parametrize(
    "xml",
    [READY, ONE_BRIDGE, READY.replace("pcie-to-pci-bridge", "pci-bridge"), direct("intel_iommu=on")],
    ids=["as prepared", "one bridge", "pci-bridge", "direct"],
)
def test_a_prepared_machine(xml: str) -> None:
    assert judged(xml) == Fitness("", "")


@pytest.mark.parametrize("xml", [Q35, NO_BRIDGE, ONE_BRIDGE, READY.replace(DRIVER, "")])
def test_what_prepare_domain_makes_is_prepared(xml: str) -> None:
    assert judged(prepare.prepare(xml).after) == Fitness("", "")


@pytest.mark.parametrize(
    ("xml", "lacks"),
    [
        (Q35, ["a vIOMMU", "a bridge to conventional PCI"]),
        (NO_BRIDGE, ["a bridge to conventional PCI"]),
        (re.sub("<iommu.*</iommu>", "", READY), ["a vIOMMU"]),
        (READY.replace(DRIVER, ""), ["intremap", "caching_mode"]),
        (READY.replace("caching_mode='on'", "caching_mode='off'"), ["caching_mode"]),
        (READY.replace("intremap='on'", ""), ["intremap"]),
    ],
)
def test_what_a_machine_lacks_is_named_with_what_gives_it(xml: str, lacks: list[str]) -> None:
    lack = judged(xml).lack
    said, remedy = re.fullmatch(r"its machine lacks (.*): (prepare it .*)", lack).groups()  # type: ignore[union-attr]
    assert len(said.split("; ")) == len(lacks)
    assert all(part.startswith(each) for part, each in zip(said.split("; "), lacks, strict=True))
    name = ElementTree.fromstring(xml).findtext("name")
    assert remedy == f"prepare it (kvmchan prepare-domain {name} --apply), shut it down and start it"


def test_what_can_be_prepared_and_what_not_is_as_prepare_domain_says() -> None:
    for xml in (PC, PC_WITH_BRIDGE, VIRT.replace("aarch64", "riscv64"), VIRTIO, READY.replace("model='intel'", "model='smmuv3'")):
        assert judged(xml).lack == "; ".join(prepare.prepare(xml).obstacles) != ""


def test_a_viommu_of_virtio_is_refused_with_the_reason() -> None:
    lack = judged(VIRTIO).lack
    assert "model virtio, which gives devices behind a bridge to conventional PCI no IOMMU group: make that intel" in lack


def test_a_transient_domain_can_not_be_prepared() -> None:
    lack = judged(Q35, is_persistent=False).lack
    assert lack.endswith(": put that into the XML that it is made from, shut it down and start it")


def test_a_name_is_quoted_for_the_shell() -> None:
    assert "prepare-domain 'a b'" in judged(Q35.replace("plain", "a b")).lack


@pytest.mark.parametrize("xml", [READY, ONE_BRIDGE, PC_WITH_BRIDGE, re.sub("<iommu.*</iommu>", "", READY)])
def test_a_machine_with_a_bridge_can_take_a_device(xml: str) -> None:
    assert judged(xml).obstacle == ""


@pytest.mark.parametrize(
    ("xml", "why", "remedy"),
    [
        (PC, "only a root bus of conventional PCI", "machine type q35, or add <controller type='pci' model='pci-bridge'/>"),
        (Q35, "no bridge", "<controller type='pci' model='pcie-to-pci-bridge'/> (kvmchan prepare-domain does)"),
        ("<domain/>", "no bridge", "<controller type='pci' model='pcie-to-pci-bridge'/>"),
        (PC.replace("</devices>", "<controller type='usb' index='1' model='pci-bridge'/></devices>"), "only a root bus", "q35"),
    ],
)
def test_a_machine_with_a_root_bus_alone_can_take_none(xml: str, why: str, remedy: str) -> None:
    found = judged(xml)
    assert why in found.obstacle
    assert remedy in found.obstacle
    assert found.lack


def test_the_bridges_of_a_machine() -> None:
    assert [each.get("index") for each in places(ElementTree.fromstring(READY))] == ["2", "4"]


# ---- arm64's ----

VIRT_READY = prepare.prepare(VIRT).after
PORT = "<controller type='pci' index='{}' model='pcie-root-port'/>"


def with_ports(*indexes: int, more: str = "") -> str:
    ports = "".join(PORT.format(each) for each in indexes)
    return VIRT.replace("</devices>", f"{ports}{more}<iommu model='smmuv3'/></devices>").replace("version='2'", "version='3'")


@pytest.mark.parametrize("xml", [VIRT_READY, with_ports(2), with_ports(2).replace("version='3'", "version='host'")])
def test_a_prepared_machine_of_arm64(xml: str) -> None:
    assert judged(xml) == Fitness("", "")


def test_what_a_machine_of_arm64_lacks_is_named() -> None:
    found = judged(VIRT)
    assert "its XML has no pcie-root-port with nothing behind it" in found.obstacle
    for each in ("a vIOMMU", "a GIC of version 3", "a pcie-root-port with nothing behind it"):
        assert each in found.lack
    assert "kvmchan prepare-domain arm --apply" in found.lack


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        (VIRT.replace("<acpi/>", ""), "it has no ACPI, without which its kernel puts all PCI devices into one IOMMU group"),
        (VIRT.replace("virt-7.2", "versatilepb"), "its machine type is versatilepb"),
        (
            with_ports(2).replace("smmuv3", "virtio"),
            "a vIOMMU of model virtio, which Debian 12's kernel for arm64 has no driver for: make that smmuv3",
        ),
    ],
)
def test_what_can_not_be_prepared_on_arm64(xml: str, why: str) -> None:
    assert why in judged(xml).lack
    assert judged(xml).lack == "; ".join(prepare.prepare(xml).obstacles)


def test_devices_go_into_ports_of_arm64_with_nothing_of_others_behind_them() -> None:
    theirs = "<disk><address type='pci' bus='0x03' slot='0x00'/></disk><disk><address type='pci' bus='x' slot='0x00'/></disk>"
    ours = "<shmem name='kvmchan-1'><address type='pci' bus='0x02' slot='0x00'/></shmem>"
    bridge = "<controller type='pci' index='9' model='pcie-to-pci-bridge'><address type='pci' bus='5' slot='0'/></controller>"
    tree = ElementTree.fromstring(with_ports(2, 3, 4, 5, more=theirs + ours + bridge))
    assert [each.get("index") for each in places(tree)] == ["2", "4"]


# ---- the settings ----

WELL, PLAIN, NEITHER = Fitness("", ""), Fitness("", "it lacks x: add x"), Fitness("it has no place: make one", "it lacks y")


@pytest.mark.parametrize(
    ("serve", "fitness", "said"),
    [
        ("prepared", WELL, ""),
        ("prepared", PLAIN, "it lacks x: add x; or have it served as it is: name it in the settings (serve in [guests])"),
        ("prepared", NEITHER, "it lacks y"),
        ("all", WELL, ""),
        ("all", PLAIN, ""),
        ("all", NEITHER, "it has no place: make one"),
        (("web",), WELL, ""),
        (("db", "web"), PLAIN, ""),
        (("web",), NEITHER, "it has no place: make one"),
        (("db",), WELL, "the settings do not name it: add it to serve in [guests]"),
        (("db",), NEITHER, "the settings do not name it: add it to serve in [guests]"),
        (("we", "webs", "all", "prepared"), WELL, "the settings do not name it: add it to serve in [guests]"),
        ((), WELL, "the settings do not name it: add it to serve in [guests]"),
    ],
)
def test_which_domain_the_settings_have_served(serve: Serve, fitness: Fitness, said: str) -> None:
    assert refusal("web", fitness, serve) == said
    assert is_wanted("web", serve) == (not said.startswith("the settings"))


def test_a_domain_may_be_called_as_a_setting_is() -> None:
    assert refusal("all", PLAIN, ("all",)) == ""
    assert refusal("all", PLAIN, "prepared") != ""
