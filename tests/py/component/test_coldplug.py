# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that domains have from their start: served before a domain has a number, and to each
start anew.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from kvmchand.channels.device import Device
from kvmchand.ids import HOST_PEER, START_PEER, DomainId, Size
from kvmchand.links.coldplug import ColdPlug
from kvmchand.links.links import LinkLimits, Links
from kvmchand.services.libvirt.coldplug_xml import StartLink
from rig.ivshmem import MIB, Rig, identity

UUID, OTHER = "6d1a5a4e-6b3c-4a1c-9d53-0f8b7a4c1e11", "0e0e0e0e-6b3c-4a1c-9d53-0f8b7a4c1e11"
PLAN = StartLink("start-" + "0" * 26, Size(MIB), 2, True)
DOMAIN = DomainId(7)


class Start:
    """A QEMU that starts: it hears all that it is told."""

    def __init__(self, rig: Rig, path: Path) -> None:
        self._rig = rig
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = path
        self.memory = ""
        self._fds: list[int] = []

    def connect(self) -> Start:
        self.sock.connect(str(self._path))
        return self

    def hear(self) -> None:
        """Asserts that a whole handshake comes."""
        numbers: list[int] = []
        for _ in range(3 + 2 * 2):
            self._rig.until_readable(self.sock.fileno())
            data, fds, _, _ = socket.recv_fds(self.sock, 8, 2)
            numbers += struct.unpack("<q", data)
            if numbers[-1] == -1:
                self.memory = identity(fds[0])
                assert os.pread(fds[0], MIB, 0) == bytes(MIB)
                os.pwrite(fds[0], b"secret", 4096)
            self._fds += fds
        assert numbers == [0, START_PEER, HOST_PEER, HOST_PEER, START_PEER, START_PEER, -1]

    def close(self) -> None:
        self.sock.close()
        while self._fds:
            os.close(self._fds.pop())


class Cold:
    """The owner's part: tells ColdPlug whose QEMU has gone."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rig = rig
        rig._last = 1000  # its devices have other numbers than those here
        self.links = Links(LinkLimits(16, 1 << 30))
        self.plug = ColdPlug(self.links, rig.devices)
        for name in ("on_unplugged", "on_cut_off"):
            monkeypatch.setattr(rig, name, self._on_lost)
        self._starts: list[Start] = []
        self.lost: list[Device] = []

    def _on_lost(self, device: Device, _domain: DomainId) -> None:
        self.lost.append(device)
        self.plug.replace(device)

    def path(self, plan: StartLink = PLAN) -> Path:
        return self.rig.folder / plan.socket

    def start(self) -> Start:
        made = Start(self.rig, self.path())
        self._starts.append(made)
        return made.connect()

    def until_served(self) -> None:
        self.rig.until(lambda: len(self.rig.told) >= 1)
        self.rig.told.clear()

    def until_lost(self, count: int) -> None:
        self.rig.until(lambda: len(self.lost) >= count)

    def close(self) -> None:
        for each in self._starts:
            each.close()
        self.plug.close()
        for device in list(self.links.devices.values()):
            self.links.remove(device)
            self.rig.devices.remove(device)


@pytest.fixture
def cold(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Cold:
    made = Cold(rig, monkeypatch)

    def close() -> None:
        made.close()
        Rig.close(rig)

    monkeypatch.setattr(rig, "close", close)
    return made


def test_a_qemu_gets_the_device_while_its_domain_has_no_number_and_the_domain_takes_it_over(cold: Cold) -> None:
    cold.plug.prepare(UUID, PLAN)
    cold.start().hear()
    taken = cold.plug.take(UUID, DOMAIN)  # with no word of libvirt's in between
    assert taken is not None
    assert (taken.pair, taken.size, taken.vectors) == ((DomainId(0), DOMAIN), MIB, 2)
    assert (taken.peers, taken.attached) == ({DOMAIN: START_PEER}, {DOMAIN})
    assert cold.links.devices_for((DomainId(0), DOMAIN)) == [taken]
    assert cold.plug.take(UUID, DOMAIN) is None


def test_a_domain_that_was_running_before_has_none(cold: Cold) -> None:
    cold.plug.prepare(UUID, PLAN)
    assert cold.plug.take(UUID, DOMAIN) is None
    assert cold.plug.take(OTHER, DOMAIN) is None
    cold.start().hear()
    assert cold.plug.take(UUID, DomainId(8)) is not None


def test_the_next_start_gets_memory_that_nobody_has_had(cold: Cold) -> None:
    cold.plug.prepare(UUID, PLAN)
    first = cold.start()
    first.hear()
    taken = cold.plug.take(UUID, DOMAIN)
    second = cold.start()  # as soon as that: it waits
    first.close()
    cold.until_lost(1)
    second.hear()
    assert second.memory != first.memory
    again = cold.plug.take(UUID, DomainId(8))
    assert again is not None
    assert again is not taken
    assert taken in cold.links.devices.values(), "programs may still have channels on it"


def test_a_start_that_came_to_nothing_is_followed_by_another(cold: Cold) -> None:
    cold.plug.prepare(UUID, PLAN)
    for count in range(1, 4):
        failed = cold.start()
        if count > 1:
            failed.hear()
        failed.close()
        cold.until_lost(count)
    last = cold.start()
    last.hear()
    assert cold.plug.take(UUID, DOMAIN) is not None
    assert len(cold.links.devices) == 1


def test_a_changed_plan_is_served_in_place_of_the_one_before(cold: Cold) -> None:
    cold.plug.prepare(UUID, PLAN)
    cold.start().hear()
    taken = cold.plug.take(UUID, DOMAIN)
    plan = StartLink("start-" + "1" * 26, Size(2 * MIB), 2, True)
    cold.plug.prepare(UUID, plan)
    assert not cold.path().exists()
    assert cold.path(plan).exists()
    assert taken in cold.links.devices.values(), "the domain that runs keeps what it has"
    cold.plug.withdraw(UUID)
    cold.plug.withdraw(UUID)
    assert list(cold.rig.folder.iterdir()) == []


def test_a_plan_said_again_changes_nothing(cold: Cold) -> None:
    cold.plug.prepare(UUID, PLAN)
    before = cold.path().stat().st_ino
    cold.plug.prepare(UUID, StartLink(PLAN.socket, PLAN.size, PLAN.vectors, True))
    assert cold.path().stat().st_ino == before


@pytest.mark.parametrize("size", [3 << 20, 1 << 35])
def test_what_can_not_be_served_is_said(cold: Cold, size: int, capfd: pytest.CaptureFixture[str]) -> None:
    cold.plug.prepare(UUID, StartLink(PLAN.socket, Size(size), 2, True))
    assert f"domain {UUID} can't be served" in capfd.readouterr().err


def test_a_socket_serves_one_domain(cold: Cold, capfd: pytest.CaptureFixture[str]) -> None:
    cold.plug.prepare(UUID, PLAN)
    cold.plug.prepare(OTHER, PLAN)
    assert f"domain {OTHER} can't be served" in capfd.readouterr().err
    cold.plug.withdraw(OTHER)
    cold.start().hear()
    assert cold.plug.take(OTHER, DOMAIN) is None
    assert cold.plug.take(UUID, DOMAIN) is not None


def test_it_outlives_the_ivshmem_process(cold: Cold) -> None:
    cold.plug.prepare(UUID, PLAN)
    first = cold.start()
    first.hear()
    cold.until_served()
    cold.rig.kill()
    taken = cold.plug.take(UUID, DOMAIN)
    assert taken is not None
    second = cold.start()
    assert cold.lost == []
    first.close()
    cold.until_lost(1)
    second.hear()
    cold.until_served()
    cold.rig.kill()
    assert cold.plug.take(UUID, DomainId(8)) is not None
