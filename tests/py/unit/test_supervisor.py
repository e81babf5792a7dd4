# SPDX-License-Identifier: LGPL-2.1-or-later
"""A service as main hears it, without a process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence

import pytest

from kvmchand.errors import VchanError
from kvmchand.runtime import supervisor
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.marker import Marker
from kvmchand.runtime.supervisor import SupervisedService
from kvmchand.wire.packet import Fds


class FakeService:
    """What main has of a process. `theirs`: the process's end of its socket."""

    def __init__(self, name: str, *, site: bool = False) -> None:
        self.sock, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        page = os.memfd_create(name)
        os.ftruncate(page, 4096)
        self.marker = Marker(page)
        os.close(page)

        self.is_killed = False

    def kill(self) -> None:
        self.is_killed = True

    def stop(self) -> int:
        self.marker.close()
        self.sock.close()
        self.theirs.close()
        return 0


def fail(error: VchanError) -> None:
    raise error


class Owner:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def first_messages(self) -> list[tuple[bytes, Sequence[int]]]:
        return []

    def decode(self, data: bytes, _fds: Fds) -> object:
        return data

    def on_message(self, message: object) -> None:
        self.heard.append(message)

    def on_death(self, _culprit: int | None) -> None: ...


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_what_was_drained_in_the_same_turn_is_not_waited_for(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FakeService] = []

    def make(name: str, *, site: bool = False) -> FakeService:
        made.append(FakeService(name, site=site))
        return made[-1]

    monkeypatch.setattr(supervisor, "Service", make)
    owner = Owner()
    service = SupervisedService(loop, "fake", fail)
    service.start(owner)
    event = os.eventfd(1, os.EFD_CLOEXEC)
    loop.add(event, lambda _events: service.drain())
    try:
        made[0].theirs.send(b"said")
        loop.turn()
        assert owner.heard == [b"said"]
    finally:
        service.stop()
        os.close(event)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeService:
    """The next service that is started."""
    made = FakeService("fake")
    monkeypatch.setattr(supervisor, "Service", lambda _name, *, site: made)
    return made


def test_a_service_that_hangs_is_killed(loop: Loop, fake: FakeService, capfd: pytest.CaptureFixture[str]) -> None:
    service = SupervisedService(loop, "fake", fail, patience=0.001)
    service.start(Owner())
    while not fake.is_killed:
        loop.turn()
    service.stop()
    assert "the fake process is killed, for it hangs" in capfd.readouterr().err


def test_a_service_that_is_late_once_is_not_killed(loop: Loop, fake: FakeService) -> None:
    service = SupervisedService(loop, "fake", fail, patience=0.001)
    service.start(Owner())
    while not service._is_late:
        loop.turn()
    fake.marker._words[2] = 1 << 63  # it never is late again
    while service._is_late:
        loop.turn()
    service.stop()
    assert not fake.is_killed
