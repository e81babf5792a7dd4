# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a domain's XML gets for vchans, what it keeps, and which domains can't be prepared."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from kvmchand.admin import prepare
from kvmchand.admin.prepare import Prepared
from kvmchand.errors import InvalidArgument
from rig.domain_xml import Q35, READY, VIRT, direct


def after(made: Prepared) -> ElementTree.Element:
    return ElementTree.fromstring(made.after)


def bridges(root: ElementTree.Element) -> int:
    return len(root.findall("devices/controller[@model='pcie-to-pci-bridge']"))


def command_line(made: Prepared) -> str | None:
    return after(made).findtext("os/cmdline")


# ---- what is added ----


def test_a_plain_domain_gets_all_that_is_needed() -> None:
    made = prepare.prepare(Q35)
    root = after(made)
    ioapic = root.find("features/ioapic")
    assert ioapic is not None and ioapic.get("driver") == "qemu"
    iommu = root.find("devices/iommu")
    assert iommu is not None and iommu.get("model") == "intel"
    driver = iommu.find("driver")
    assert driver is not None and driver.attrib == {"intremap": "on", "caching_mode": "on"}
    assert bridges(root) == 4
    assert len(root.findall("devices/controller[@model='pcie-root-port']")) == 5
    assert made.obstacles == []
    assert len(made.changes) == 8


def test_the_diff_is_of_what_is_added_only() -> None:
    lines = prepare.prepare(Q35).diff().splitlines()
    assert lines[:2] == ["--- as it is", "+++ prepared"]
    assert [line for line in lines[2:] if line.startswith("-")] == []
    assert [line[1:].strip() for line in lines[2:] if line.startswith("+")] == [
        '<ioapic driver="qemu" />',
        '<iommu model="intel">',
        '<driver intremap="on" caching_mode="on" />',
        "</iommu>",
        *['<controller type="pci" model="pcie-root-port" />', '<controller type="pci" model="pcie-to-pci-bridge" />'] * 4,
    ]


def test_a_domain_without_features_gets_some() -> None:
    made = prepare.prepare(READY.replace("<features><acpi/><ioapic driver='qemu'/></features>", ""))
    assert after(made).find("features/ioapic[@driver='qemu']") is not None
    assert len(made.changes) == 1


def test_an_io_apic_of_the_kernel_is_changed() -> None:
    made = prepare.prepare(READY.replace("driver='qemu'", "driver='kvm'"))
    assert [each.attrib for each in after(made).findall("features/ioapic")] == [{"driver": "qemu"}]
    assert len(made.changes) == 1


@pytest.mark.parametrize(
    ("driver", "changed"),
    [
        ("", ["intremap", "caching_mode"]),
        ("<driver intremap='on'/>", ["caching_mode"]),
        ("<driver intremap='off' caching_mode='on'/>", ["intremap"]),
    ],
)
def test_a_viommu_is_made_complete_and_keeps_what_else_it_has(driver: str, changed: list[str]) -> None:
    made = prepare.prepare(READY.replace("<driver intremap='on' caching_mode='on'/>", driver + "<address type='none'/>"))
    assert [each.split()[0] for each in made.changes] == changed
    (iommu,) = after(made).findall("devices/iommu")
    (full,) = iommu.findall("driver")
    assert full.attrib == {"intremap": "on", "caching_mode": "on"}
    assert iommu.find("address") is not None


@pytest.mark.parametrize(("have", "added"), [(0, 4), (1, 3), (2, 0), (3, 0)])
def test_a_domain_with_fewer_than_two_bridges_gets_four(have: int, added: int) -> None:
    bridge = "<controller type='pci' model='pcie-to-pci-bridge'/>"
    bare = re.sub(r"<controller type='pci' index='[24]' model='pcie-to-pci-bridge'/>", "", READY)
    made = prepare.prepare(bare.replace("<devices>", "<devices>" + bridge * have))
    assert bridges(after(made)) == have + added
    assert len(made.changes) == added


def test_a_plain_domain_of_arm64_gets_all_that_is_needed() -> None:
    made = prepare.prepare(VIRT)
    root = after(made)
    assert [each.attrib for each in root.findall("devices/iommu")] == [{"model": "smmuv3"}]
    assert [each.attrib for each in root.findall("features/gic")] == [{"version": "3"}]
    assert len(root.findall("devices/controller[@model='pcie-root-port']")) == 13
    assert (bridges(root), root.find("features/ioapic"), root.find("devices/iommu/driver")) == (0, None, None)
    assert (len(made.changes), made.hints, made.obstacles) == (14, [], [])
    assert prepare.prepare(made.after).changes == []


def test_ports_of_arm64_that_are_taken_do_not_count() -> None:
    once = ElementTree.fromstring(prepare.prepare(VIRT).after)
    devices = once.find("devices")
    assert devices is not None
    for index, each in enumerate(devices.findall("controller[@model='pcie-root-port']")):
        each.set("index", str(index + 1))
    for bus in range(2, 13):
        disk = ElementTree.SubElement(devices, "disk")
        ElementTree.SubElement(disk, "address", type="pci", bus=f"{bus:#x}", slot="0")
    assert len(prepare.prepare(ElementTree.tostring(once, encoding="unicode")).changes) == 11


# ---- the guest's kernel ----


def test_the_guest_is_to_see_to_its_own_command_line() -> None:
    made = prepare.prepare(READY)
    assert made.changes == []
    (hint,) = made.hints
    assert "intel_iommu=on" in hint
    assert "update-grub" in hint


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        (None, "intel_iommu=on"),
        ("", "intel_iommu=on"),
        ("root=/dev/vda1 ro", "root=/dev/vda1 ro intel_iommu=on"),
        ("intel_iommu=off", "intel_iommu=off intel_iommu=on"),
        ("xintel_iommu=on", "xintel_iommu=on intel_iommu=on"),
        ("intel_iommu=sm_on", "intel_iommu=sm_on intel_iommu=on"),
    ],
)
def test_a_command_line_given_by_the_host_is_changed(before: str | None, wanted: str) -> None:
    made = prepare.prepare(direct(before))
    assert command_line(made) == wanted
    assert (len(made.changes), made.hints) == (1, [])
    assert prepare.prepare(made.after).changes == []


@pytest.mark.parametrize("kept", ["intel_iommu=on", "quiet intel_iommu=on,sm_on", "intel_iommu=off intel_iommu=on"])
def test_a_command_line_that_says_it_is_kept(kept: str) -> None:
    made = prepare.prepare(direct(kept))
    assert (command_line(made), made.changes, made.hints) == (kept, [], [])


# ---- what is kept ----


@pytest.mark.parametrize(
    "xml", [Q35, READY, direct(None), direct("quiet", Q35)], ids=["plain", "ready", "direct", "plain direct"]
)
def test_a_prepared_domain_gets_nothing_more(xml: str) -> None:
    once = prepare.prepare(xml)
    again = prepare.prepare(once.after)
    assert (again.changes, again.diff()) == ([], "")
    assert again.after == once.after


def test_everything_else_is_kept() -> None:
    def without_new(root: ElementTree.Element) -> list[tuple[str, dict[str, str], str]]:
        return [
            (each.tag, dict(each.attrib), (each.text or "").strip())
            for each in root.iter()
            if each.tag not in ("ioapic", "iommu", "driver") and (each.tag != "controller" or "index" in each.attrib)
        ]

    assert without_new(after(prepare.prepare(Q35))) == without_new(ElementTree.fromstring(Q35))


def test_options_passed_to_qemu_are_kept_under_their_prefix() -> None:
    xml = Q35.replace(
        "<domain type='kvm'>", "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
    ).replace("</domain>", "<qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline></domain>")
    made = prepare.prepare(xml)
    assert made.changes
    assert '<qemu:arg value="-snapshot" />' in made.after
    assert 'xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0"' in made.after
    assert "<libosinfo:libosinfo" in made.after


def test_a_namespace_without_a_prefix_stays_where_it_is() -> None:
    """At the root it would be that of all the domain."""
    xml = Q35.replace("<metadata>", "<metadata><app xmlns='urn:app'><part>one</part></app>")
    root = after(prepare.prepare(xml))
    assert root.tag == "domain"
    assert root.findtext("metadata/{urn:app}app/{urn:app}part") == "one"


def test_a_prefix_of_the_serializer_s_own_kind_is_taken() -> None:
    xml = Q35.replace("<metadata>", "<metadata><ns0:app xmlns:ns0='urn:app'>one</ns0:app>")
    assert after(prepare.prepare(xml)).findtext("metadata/{urn:app}app") == "one"


def test_comments_and_text_are_kept() -> None:
    xml = Q35.replace("<metadata>", "<metadata><!-- of the owner's --><?owner says?>").replace(
        "<memory", "<description>two\n   lines &amp; a &lt;</description><memory"
    )
    made = prepare.prepare(xml)
    assert "<!-- of the owner's -->" in made.after
    assert "<?owner says?>" in made.after
    assert after(made).findtext("description") == "two\n   lines & a <"


# ---- what can't be ----


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("arch='x86_64' machine='pc-i440fx-7.2'", "pc-i440fx-7.2"),
        ("arch='x86_64' machine='microvm'", "microvm"),
        ("arch='x86_64'", "not known"),
        ("arch='aarch64' machine='versatilepb'", "versatilepb"),
        ("arch='riscv64' machine='virt'", "riscv64"),
        ("arch='i686' machine='pc-q35-7.2'", "i686"),
        ("", "nameless"),
    ],
)
def test_a_machine_that_can_not_have_it_is_not_changed(kind: str, said: str) -> None:
    made = prepare.prepare(Q35.replace("arch='x86_64' machine='pc-q35-7.2'", kind))
    (obstacle,) = made.obstacles
    assert said in obstacle
    assert (made.changes, made.diff()) == ([], "")


def test_a_domain_without_a_machine_is_not_changed() -> None:
    assert len(prepare.prepare("<domain type='kvm'><name>x</name></domain>").obstacles) == 1


def test_another_machine_s_viommu_is_an_obstacle() -> None:
    made = prepare.prepare(READY.replace("<iommu model='intel'", "<iommu model='smmuv3'"))
    (obstacle,) = made.obstacles
    assert "smmuv3" in obstacle
    assert made.changes == []


@pytest.mark.parametrize("xml", ["", "<domain>", "<domain/><domain/>", "domain"])
def test_what_is_no_xml_is_refused(xml: str) -> None:
    with pytest.raises(InvalidArgument, match="no XML"):
        prepare.prepare(xml)
