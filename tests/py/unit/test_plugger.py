# SPDX-License-Identifier: LGPL-2.1-or-later
"""When devices go into domains and out of them: turns, deadlines, and places that rest.

What libvirt does is the test's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from kvmchand.ids import DeviceId, DomainId
from kvmchand.services.libvirt import hotplug_xml
from kvmchand.services.libvirt import plugger as tested
from kvmchand.services.libvirt.plugger import Plugger
from kvmchand.wire import libvirt as wire

UUID = "uuid-3"
ALIAS, PLACE = "ua-kvmchan-5-0123456789abcdef", (2, 1)


def attach(device: int, domain: int = 3) -> wire.Attach:
    return wire.Attach(DomainId(domain), UUID, DeviceId(device), f"/socket/{device}", 2, 5, "")


def detach(device: int) -> wire.Detach:
    return wire.Detach(DomainId(3), UUID, f"/socket/{device}")


class Libvirt:
    """Its calls, which are answered when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.said: list[object] = []
        self.answers: dict[str, Callable[[], Any]] = {
            "_attach_now": lambda: None,
            "_find_now": lambda: (ALIAS, PLACE),
            "_eject_now": lambda: None,
        }
        self.gate = asyncio.Event()
        self.gate.set()
        self.plugger = Plugger(self._call, self.said.append)

    async def _call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        self.calls.append((work.__name__, arguments[-1]))
        await self.gate.wait()
        return self.answers[work.__name__]()

    async def until(self, holds: Callable[[], object]) -> None:
        while not holds():
            await asyncio.sleep(0)


def run(scenario: Callable[[Libvirt], Any]) -> None:
    async def start() -> None:
        await scenario(Libvirt())

    asyncio.run(start())


def test_a_device_that_gets_in_is_reported() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        await libvirt.plugger.attach(attach(1))
        assert libvirt.said == [wire.Attached(DomainId(3), DeviceId(1))]

    run(scenario)


@pytest.mark.parametrize("succeeds", [True, False])
def test_a_plug_that_takes_long_fails_and_is_reported_again_if_it_succeeds(
    monkeypatch: pytest.MonkeyPatch, succeeds: bool
) -> None:
    monkeypatch.setattr(tested, "_DEADLINE", 0.0)

    def refuse() -> None:
        raise hotplug_xml.Refused("there is no place")

    async def scenario(libvirt: Libvirt) -> None:
        if not succeeds:
            libvirt.answers["_attach_now"] = refuse
        libvirt.gate.clear()
        plugging = asyncio.ensure_future(libvirt.plugger.attach(attach(1)))
        await libvirt.until(lambda: libvirt.said)
        (failed,) = libvirt.said
        assert isinstance(failed, wire.AttachFailed)
        assert "its QEMU has not taken the device" in failed.sentence
        libvirt.gate.set()
        await plugging
        assert libvirt.said[1:] == [wire.Attached(DomainId(3), DeviceId(1))] * succeeds

    run(scenario)


def test_a_domain_that_hangs_keeps_its_own_devices_waiting_and_no_others() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        libvirt.gate.clear()
        hanging = [asyncio.ensure_future(libvirt.plugger.attach(attach(number))) for number in (1, 2)]
        await libvirt.until(lambda: libvirt.calls)
        libvirt.gate, gate = asyncio.Event(), libvirt.gate
        libvirt.gate.set()
        await libvirt.plugger.attach(attach(3, domain=4))
        assert libvirt.said == [wire.Attached(DomainId(4), DeviceId(3))]
        gate.set()
        await asyncio.gather(*hanging)
        assert libvirt.said[1:] == [wire.Attached(DomainId(3), DeviceId(number)) for number in (1, 2)]

    run(scenario)


def test_a_device_is_reported_gone_when_its_guest_has_ejected_it() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        await libvirt.plugger.detach(detach(1))
        assert [name for name, _ in libvirt.calls] == ["_find_now", "_eject_now"]
        assert libvirt.said == []
        libvirt.plugger.note_removed(UUID, "somebody-else's")
        libvirt.plugger.note_removed(UUID, ALIAS)
        libvirt.plugger.note_removed(UUID, ALIAS)
        assert libvirt.said == [wire.Detached(DomainId(3), "/socket/1")]

    run(scenario)


def test_a_device_that_is_not_there_is_reported_gone_at_once() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        libvirt.answers["_find_now"] = lambda: None
        await libvirt.plugger.detach(detach(1))
        assert libvirt.said == [wire.Detached(DomainId(3), "/socket/1")]

    run(scenario)


def test_a_guest_is_not_asked_twice_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(libvirt: Libvirt) -> None:
        await libvirt.plugger.detach(detach(5))
        await libvirt.plugger.detach(detach(5))
        assert [name for name, _ in libvirt.calls].count("_eject_now") == 1
        monkeypatch.setattr(tested, "_ASK_INTERVAL", 0.0)
        await libvirt.plugger.detach(detach(5))
        assert [name for name, _ in libvirt.calls].count("_eject_now") == 2

    run(scenario)


def test_what_libvirt_was_asked_for_when_it_ended_can_be_asked_again() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        await libvirt.plugger.detach(detach(1))
        assert libvirt.plugger.asked() == [detach(1)]
        libvirt.plugger.forget(UUID, DomainId(3))
        assert libvirt.plugger.asked() == []

    run(scenario)


def test_a_place_that_a_device_has_left_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(libvirt: Libvirt) -> None:
        await libvirt.plugger.detach(detach(1))
        libvirt.plugger.note_removed(UUID, ALIAS)
        await libvirt.plugger.attach(attach(2))
        assert libvirt.calls[-1] == ("_attach_now", {PLACE})
        monkeypatch.setattr(tested, "_REST", 0.0)
        await libvirt.plugger.attach(attach(3))
        assert libvirt.calls[-1] == ("_attach_now", set())

    run(scenario)


def test_a_domain_whose_places_all_rest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tested, "_REST_INTERVAL", 0.0)
    left = 3

    def answer() -> None:
        nonlocal left
        left -= 1
        if left:
            raise hotplug_xml.Resting

    async def scenario(libvirt: Libvirt) -> None:
        libvirt.answers["_attach_now"] = answer
        await libvirt.plugger.attach(attach(1))
        assert len(libvirt.calls) == 3
        assert libvirt.said == [wire.Attached(DomainId(3), DeviceId(1))]

    run(scenario)
