# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where in a domain the libvirt process puts one more device, by the domain's XML alone."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kvmchand.ids import DeviceId, DomainId
from kvmchand.services.libvirt import hotplug_xml
from kvmchand.services.libvirt.hotplug_xml import Refused, device_xml, stale_devices
from kvmchand.wire.libvirt import Attach, StaleDevice

SOCKET = "/run/kvmchand/ivshmem/5f3a"

ROOT = "<controller type='pci' index='0' model='pcie-root'/>"
PCI_ROOT = "<controller type='pci' index='0' model='pci-root'/>"
SLOTS = range(1, 32)


def attach(bridge: str = "") -> Attach:
    return Attach(DomainId(3), "uuid-3", DeviceId(14), SOCKET, 64, 5, bridge)


def bridge(index: int, model: str = "pcie-to-pci-bridge") -> str:
    return f"<controller type='pci' index='{index}' model='{model}'><address type='pci' bus='0x01' slot='0x00'/></controller>"


def at(tag: str, bus: int, slot: int, function: int = 0) -> str:
    return f"<{tag}><address type='pci' domain='0x0' bus='{bus:#x}' slot='{slot:#x}' function='{function:#x}'/></{tag}>"


def shmem(*devices: str, wanted: str = "") -> ElementTree.Element:
    """What is attached to a domain that has these."""
    tree = ElementTree.fromstring(f"<domain><devices>{''.join(devices)}</devices></domain>")
    return ElementTree.fromstring(device_xml(tree, attach(wanted)))


def place(*devices: str, wanted: str = "") -> tuple[int, int]:
    """Bus and slot of that. `wanted`: the place of the bridge that it should be behind."""
    address = shmem(*devices, wanted=wanted).find("address")
    assert address is not None
    assert (address.get("type"), address.get("domain"), address.get("function")) == ("pci", "0", "0")
    return int(address.get("bus", "")), int(address.get("slot", ""))


def refusal(*devices: str) -> str:
    with pytest.raises(Refused) as caught:
        shmem(*devices)
    return str(caught.value)


def test_the_device_has_our_socket_and_as_many_vectors_as_asked_for() -> None:
    made = shmem(ROOT, bridge(2))
    assert (made.tag, made.get("name")) == ("shmem", "kvmchan-14")
    parts = {each.tag: each.attrib for each in made if each.tag not in ("address", "alias")}
    assert parts == {
        "model": {"type": "ivshmem-doorbell"},
        "server": {"path": SOCKET},
        "msi": {"vectors": "64", "ioeventfd": "on"},
    }


def test_a_socket_may_be_called_anything() -> None:
    tree = ElementTree.fromstring(f"<domain><devices>{bridge(2)}</devices></domain>")
    path = "/run/<a>&'\"/ä"
    server = ElementTree.fromstring(device_xml(tree, Attach(DomainId(3), "uuid-3", DeviceId(1), path, 1, 2, ""))).find("server")
    assert server is not None
    assert server.get("path") == path


def test_each_attach_has_an_id_of_its_own() -> None:
    """QEMU may have the device of an earlier one, or half of it, and nobody know."""
    aliases = [each.get("name", "") for _ in range(2) for each in shmem(ROOT, bridge(2)).findall("alias")]
    assert len(set(aliases)) == 2
    assert all(re.fullmatch("ua-[a-z0-9-]+", each) for each in aliases), "libvirt takes it only so"


@pytest.mark.parametrize("model", ["pcie-to-pci-bridge", "pci-bridge"])
def test_it_goes_to_a_conventional_bridges_first_slot(model: str) -> None:
    assert place(ROOT, bridge(5, model)) == (5, 1)


def test_it_does_not_go_to_a_slot_that_anything_has() -> None:
    assert place(ROOT, bridge(2), at("interface", 2, 1), at("shmem", 2, 2), at("sound", 2, 4)) == (2, 3)


def test_a_slot_is_taken_though_only_a_later_function_of_it_is() -> None:
    assert place(ROOT, bridge(2), at("interface", 2, 1, 3)) == (2, 2)


def test_addresses_on_other_buses_do_not_matter() -> None:
    assert place(ROOT, bridge(2), at("interface", 0, 1), at("shmem", 3, 1), "<disk><address type='drive' bus='2'/></disk>") == (
        2,
        1,
    )


def test_devices_without_an_address_do_not_matter() -> None:
    assert place(ROOT, bridge(2), "<shmem/>", "<console/>") == (2, 1)


def test_it_goes_where_the_fewest_of_ours_are() -> None:
    ours = [at("shmem", 2, 1), at("shmem", 2, 2), at("shmem", 3, 1)]
    assert place(ROOT, bridge(2), bridge(3), *ours) == (3, 2)


def test_others_devices_do_not_keep_it_from_a_bridge() -> None:
    theirs = [at("interface", 3, slot) for slot in SLOTS[:10]]
    assert place(ROOT, bridge(2), bridge(3), at("shmem", 2, 1), *theirs) == (3, 11)


def test_of_bridges_alike_the_first_is_taken() -> None:
    assert place(ROOT, bridge(7), bridge(3)) == (3, 1)


def in_port(port: int, bridge: int, function: int) -> str:
    """A bridge in a root port, as libvirt places them."""
    of_port = f"<address type='pci' bus='0x00' slot='0x1a' function='{function:#x}'/>"
    of_bridge = f"<address type='pci' bus='{port:#04x}' slot='0x00' function='0x0'/>"
    return (
        f"<controller type='pci' index='{port}' model='pcie-root-port'>{of_port}</controller>"
        f"<controller type='pci' index='{bridge}' model='pcie-to-pci-bridge'>{of_bridge}</controller>"
    )


PAIRS = ROOT + in_port(1, 20, 0) + in_port(2, 21, 1)


@pytest.mark.parametrize(
    ("wanted", "bus"),
    [("1a.0/00.0", 20), ("1a.1/00.0", 21), ("", 20), ("1a.2/00.0", 20), ("00.0", 20), ("x" * 100, 20)],
)
def test_it_goes_behind_the_bridge_that_the_guest_names_or_as_if_it_had_named_none(wanted: str, bus: int) -> None:
    assert place(PAIRS, at("shmem", 21, 1), wanted=wanted) == (bus, 1 if bus == 20 else 2)


def test_it_goes_behind_the_bridge_that_is_named_though_others_have_fewer() -> None:
    assert place(PAIRS, at("shmem", 20, 1), at("shmem", 20, 2), wanted="1a.0/00.0") == (20, 3)


def test_it_does_not_go_behind_the_named_bridge_if_that_is_full() -> None:
    theirs = [at("interface", 20, slot) for slot in SLOTS]
    assert place(PAIRS, *theirs, wanted="1a.0/00.0") == (21, 1)


def test_bridges_that_are_in_each_other_are_named_by_nobody() -> None:
    assert place(ROOT, in_port(2, 1, 0).replace("bus='0x00'", "bus='0x01'"), wanted="1a.0/00.0") == (1, 1)


def test_a_full_bridge_is_passed_over() -> None:
    theirs = [at("interface", 2, slot) for slot in SLOTS]
    assert place(ROOT, bridge(2), bridge(3), at("shmem", 3, 1), *theirs) == (3, 2)


def test_the_last_slot_is_one() -> None:
    assert place(ROOT, bridge(2), *[at("interface", 2, slot) for slot in SLOTS[:-1]]) == (2, 31)


def test_without_a_free_slot_it_is_refused() -> None:
    sentence = refusal(ROOT, bridge(2), *[at("interface", 2, slot) for slot in SLOTS])
    assert sentence == "its bridges for conventional PCI devices have no free slot: add another pcie-to-pci-bridge to its XML"


@pytest.mark.parametrize("devices", [[], [ROOT], [ROOT, "<controller type='pci' index='1' model='pcie-root-port'/>"]])
def test_without_a_bridge_it_is_refused(devices: list[str]) -> None:
    sentence = refusal(*devices)
    assert "<controller type='pci' model='pcie-to-pci-bridge'/>" in sentence
    assert "kvmchan prepare-domain" in sentence


def test_a_controller_that_is_not_pcis_is_no_bridge() -> None:
    refusal(ROOT, "<controller type='scsi' index='2' model='pci-bridge'/>")


def test_a_root_bus_of_conventional_pci_is_no_place() -> None:
    sentence = refusal(PCI_ROOT)
    assert "root bus" in sentence
    assert "machine type q35" in sentence
    assert "<controller type='pci' model='pci-bridge'/>" in sentence
    assert "prepare-domain" not in sentence, "it can do nothing for this machine"


def test_a_bridge_below_a_root_bus_of_conventional_pci_is_a_place() -> None:
    assert place(PCI_ROOT, bridge(1, "pci-bridge"), at("sound", 0, 4)) == (1, 1)


def arm(*devices: str) -> ElementTree.Element:
    return ElementTree.fromstring(
        f"<domain><os><type arch='aarch64' machine='virt'>hvm</type></os><devices>{''.join(devices)}</devices></domain>"
    )


def root_port(index: int) -> str:
    address = f"<address type='pci' bus='0x00' slot='0x01' function='{index:#x}'/>"
    return f"<controller type='pci' index='{index}' model='pcie-root-port'>{address}</controller>"


@pytest.mark.parametrize(("wanted", "bus"), [("", 3), ("01.4", 4), ("01.2", 3)])
def test_on_arm64_it_goes_into_a_free_port(wanted: str, bus: int) -> None:
    tree = arm(ROOT, *map(root_port, (1, 2, 3, 4)), at("disk", 1, 0), at("shmem", 2, 0))
    address = ElementTree.fromstring(device_xml(tree, attach(wanted))).find("address")
    assert address is not None
    assert (address.get("bus"), address.get("slot")) == (str(bus), "0")


@pytest.mark.parametrize("devices", [[at("shmem", 1, 0)], [at("disk", 1, 0)]])
def test_on_arm64_without_a_free_port_it_is_refused(devices: list[str]) -> None:
    with pytest.raises(Refused, match="pcie-root-port"):
        device_xml(arm(ROOT, root_port(1), *devices), attach())


@pytest.mark.parametrize(
    "device",
    [
        "<shmem><address type='pci' bus='two' slot='1'/></shmem>",
        "<shmem><address type='pci' bus='2' slot=''/></shmem>",
        "<controller type='pci' index='' model='pci-bridge'/>",
    ],
)
def test_an_address_that_can_not_be_is_refused(device: str) -> None:
    assert refusal(ROOT, bridge(2), device).startswith("its XML has an address that can't be")


def test_devices_whose_sockets_are_no_more_are_an_earlier_daemons(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    names = {"kvmchan-1": "here", "kvmchan-2": "gone", "kvmchan-start-1048576": "start-gone", "mine": "gone-too"}
    shmems = [f"<shmem name='{name}'><server path='{tmp_path}/{path}'/></shmem>" for name, path in names.items()]
    shmems += ["<shmem name='elsewhere'><server path='/elsewhere/gone'/></shmem>", "<shmem name='plain'/>"]
    tree = ElementTree.fromstring(f"<domain><devices>{''.join(shmems)}</devices></domain>")
    assert [each.socket for each in stale_devices(tree, tmp_path)] == [f"{tmp_path}/gone", f"{tmp_path}/gone-too"]


def test_a_stale_device_is_told_with_its_id_and_its_vectors(tmp_path: Path) -> None:
    tree = ElementTree.fromstring(f"<domain><devices>{bridge(2)}</devices></domain>")
    ours = device_xml(tree, Attach(DomainId(3), "uuid-3", DeviceId(1), f"{tmp_path}/gone", 64, 5, ""))
    foreign = f"<shmem name='x'><server path='{tmp_path}/other'/></shmem>"
    tree = ElementTree.fromstring(f"<domain><devices>{ours}{foreign}</devices></domain>")
    assert stale_devices(tree, tmp_path) == [
        StaleDevice(f"{tmp_path}/gone", 5, 64),
        StaleDevice(f"{tmp_path}/other", 0, 1),
    ]


def test_a_place_that_rests_is_passed_over_and_waited_for_if_there_is_no_other() -> None:
    tree = ElementTree.fromstring(f"<domain><devices>{bridge(2)}</devices></domain>")
    made = ElementTree.fromstring(device_xml(tree, attach(), {(2, 1), (2, 2)}))
    assert hotplug_xml.place(made) == (2, 3)
    with pytest.raises(hotplug_xml.Resting):
        device_xml(tree, attach(), {(2, slot) for slot in SLOTS})
