# SPDX-License-Identifier: LGPL-2.1-or-later
"""The device that a domain has from its start, in the domain's XML."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from kvmchand.errors import InvalidArgument
from kvmchand.ids import Size
from kvmchand.services.libvirt import coldplug_xml

FOLDER = Path("/run/kvmchand/ivshmem")
MIB = 1 << 20


def domain(*devices: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<domain><devices>{''.join(devices)}</devices></domain>")


def at(slot: int, bus: int = 0) -> str:
    return f"<interface><address type='pci' domain='0x0000' bus='{bus:#04x}' slot='{slot:#04x}' function='0x0'/></interface>"


def slot(root: ElementTree.Element) -> int:
    address = root.find("devices/shmem/address")
    assert address is not None
    assert (address.get("type"), address.get("bus")) == ("pci", "0x00")
    return int(address.get("slot", ""), 0)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64M", 64 * MIB), ("1G", 1 << 30), ("1048576", MIB), ("2048k", 2 * MIB), ("64MiB", 64 * MIB), ("16G", 1 << 34), ("0", 0)],
)
def test_sizes_are_said_as_one_says_them(text: str, size: int) -> None:
    assert coldplug_xml.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "3M", "512K", "32G", "1.5G", "64 M", "64T", "0x100000", "9" * 30])
def test_a_size_that_no_device_has_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="power of two"):
        coldplug_xml.parse_size(text)


def test_what_was_put_is_found() -> None:
    root = domain()
    (change,) = coldplug_xml.put(root, Size(64 * MIB), FOLDER, coldplug_xml.new_socket())
    assert str(64 * MIB) in change
    found = coldplug_xml.find(root, FOLDER)
    assert found is not None
    assert (found.size, found.vectors) == (64 * MIB, 80)
    assert ElementTree.tostring(root).count(found.socket.encode()) == 1


def test_each_has_a_socket_of_its_own() -> None:
    found = set()
    for _ in range(3):
        root = domain()
        coldplug_xml.put(root, Size(MIB), FOLDER, coldplug_xml.new_socket())
        made = coldplug_xml.find(root, FOLDER)
        assert made is not None
        found.add(made.socket)
    assert len(found) == 3


def test_what_is_there_already_is_no_change() -> None:
    root = domain()
    coldplug_xml.put(root, Size(MIB), FOLDER, coldplug_xml.new_socket())
    before = ElementTree.tostring(root)
    assert coldplug_xml.put(root, Size(MIB), FOLDER, coldplug_xml.new_socket()) == []
    assert ElementTree.tostring(root) == before
    assert coldplug_xml.put(domain(), Size(0), FOLDER, coldplug_xml.new_socket()) == []


@pytest.mark.parametrize(("size", "folder"), [(2 * MIB, FOLDER), (MIB, Path("/elsewhere"))])
def test_another_size_or_place_takes_the_place_of_the_one_before(size: int, folder: Path) -> None:
    root = domain()
    coldplug_xml.put(root, Size(MIB), FOLDER, coldplug_xml.new_socket())
    before = slot(root)
    assert len(coldplug_xml.put(root, Size(size), folder, coldplug_xml.new_socket())) == 1
    found = coldplug_xml.find(root, folder)
    assert found is not None
    assert found.size == size
    assert len(root.findall("devices/shmem")) == 1
    assert slot(root) == before


def test_it_goes_when_none_is_wanted() -> None:
    root = domain(at(5))
    coldplug_xml.put(root, Size(MIB), FOLDER, coldplug_xml.new_socket())
    assert len(coldplug_xml.put(root, Size(0), FOLDER, coldplug_xml.new_socket())) == 1
    assert coldplug_xml.find(root, FOLDER) is None
    assert root.find("devices/shmem") is None
    assert root.find("devices/interface") is not None


def test_it_takes_a_slot_of_the_root_complex_that_is_free() -> None:
    root = domain(at(0x10), at(0x11), at(0x12, bus=1), "<disk><address type='drive' bus='0' slot='0x12'/></disk>")
    coldplug_xml.put(root, Size(MIB), FOLDER, coldplug_xml.new_socket())
    assert slot(root) == 0x12


def test_a_full_root_complex_is_said() -> None:
    root = domain(*(at(slot) for slot in range(32)))
    with pytest.raises(InvalidArgument, match="no slot left"):
        coldplug_xml.put(root, Size(MIB), FOLDER, coldplug_xml.new_socket())


SERVER = "<server path='/run/kvmchand/ivshmem/start-0123456789abcdef0123456789'/>"


@pytest.mark.parametrize(
    "shmem",
    [
        "<shmem/>",
        f"<shmem name='other'>{SERVER}<msi vectors='4'/></shmem>",
        f"<shmem name='kvmchan-start-1'>{SERVER}<msi vectors='4'/></shmem>",
        f"<shmem name='kvmchan-start-{'9' * 40}'>{SERVER}<msi vectors='4'/></shmem>",
        f"<shmem name='kvmchan-start-1048576'>{SERVER}</shmem>",
        f"<shmem name='kvmchan-start-1048576'>{SERVER}<msi vectors='-4'/></shmem>",
        "<shmem name='kvmchan-start-1048576'><msi vectors='4'/></shmem>",
        *(f"<shmem name='kvmchan-start-1048576'>{SERVER}<msi vectors='{each}'/></shmem>" for each in (1, 2049, 3000000000, "²")),
        *(f"<shmem name='kvmchan-start-{each}'>{SERVER}<msi vectors='4'/></shmem>" for each in (3 << 20, 1 << 19, 1 << 35)),
        "<shmem name='kvmchan-start-1048576'><server path='/run/kvmchand/ivshmem/../start'/><msi vectors='4'/></shmem>",
        "<shmem name='kvmchan-start-1048576'><server path='/tmp/start-0123456789abcdef0123456789'/><msi vectors='4'/></shmem>",
    ],
)
def test_what_is_not_ours_is_not_found(shmem: str) -> None:
    assert coldplug_xml.find(domain(shmem), FOLDER) is None


@pytest.mark.parametrize(("kind", "expected"), [("type='kvm'", True), ("type='qemu'", False), ("", False)])
def test_only_a_domain_of_type_kvm_has_kvm(kind: str, expected: bool) -> None:
    assert coldplug_xml.has_kvm(ElementTree.fromstring(f"<domain {kind}/>")) is expected
