# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices on their way into domains and out of them, by libvirt's calls.

One call at a time for a domain, and no domain waits for another one. A call that hangs, because its
QEMU does, is reported after a while and goes on: what it does in the end is reported, too.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from xml.etree import ElementTree

from kvmchand.ids import DomainId
from kvmchand.runtime import log
from kvmchand.services.libvirt import hotplug_xml
from kvmchand.services.libvirt.hotplug_xml import Place
from kvmchand.services.libvirt.inspection import SENTENCE_MAX
from kvmchand.wire import libvirt as wire

try:
    import libvirt
except ImportError:
    libvirt = None  # the process then says so, and plugs nothing

_DEADLINE = 20.0
"""Seconds in which a device has to get into a domain."""
_REST = 5.0
"""Seconds for which a place is not used again: QEMU has not finalized the device yet when it says
that it has deleted it.
"""
_REST_INTERVAL = 0.5
_ASK_INTERVAL = 5.0
"""Seconds between two times that a guest is asked for the same device.

libvirtd has not heard yet, for a moment, that QEMU has deleted a device. If it is asked for that
device just then, it uses what it has freed (9.0 and 11.3: qemuDomainDetachDeviceLive, where
device_del finds no device), and may end.
"""


class _Ejecting(NamedTuple):
    """A device that a domain was asked for, and when."""

    detach: wire.Detach
    place: Place | None
    asked: float


class Plugger:
    """The devices on their way."""

    def __init__(self, call: Callable[..., Awaitable[Any]], say: Callable[[object], None]) -> None:
        """Have none yet.

        `call` calls a function with the connection to libvirt and further arguments, in a thread.
        `say` sends a message to main.
        """
        self._call = call
        self._say = say
        self._locks: defaultdict[DomainId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._ejecting: dict[tuple[str, str], _Ejecting] = {}
        """By the domain's uuid and the device's alias."""
        self._freed: defaultdict[str, dict[Place, float]] = defaultdict(dict)
        """When places became free, by the domain's uuid."""

    async def attach(self, attach: wire.Attach) -> None:
        """Plug a device, and report what has become of it."""
        async with self._locks[attach.domain]:
            plugging = asyncio.ensure_future(self._plug(attach))
            done, _ = await asyncio.wait([plugging], timeout=_DEADLINE)
            if not done:
                self._fail(attach, f"its QEMU has not taken the device in {_DEADLINE:.0f} s: is it stopped, or libvirtd?")
                await asyncio.wait([plugging])  # the domain can't do anything else meanwhile
        try:
            plugging.result()
        except libvirt.libvirtError as error:
            sentence = f"libvirt refuses it: {error.get_error_message()}"
        except hotplug_xml.Refused as error:
            sentence = str(error)
        else:
            self._say(wire.Attached(attach.domain, attach.device))
            return
        if done:
            self._fail(attach, sentence)

    async def _plug(self, attach: wire.Attach) -> None:
        while True:
            now = time.monotonic()
            resting = {place for place, freed in self._freed[attach.uuid].items() if now - freed < _REST}
            try:
                await self._call(_attach_now, attach, resting)
                return
            except hotplug_xml.Resting:
                await asyncio.sleep(_REST_INTERVAL)

    def _fail(self, attach: wire.Attach, sentence: str) -> None:
        self._say(wire.AttachFailed(attach.domain, attach.device, sentence[:SENTENCE_MAX]))

    async def detach(self, detach: wire.Detach) -> None:
        """Ask a domain's guest to eject a device. It may take its time, and nobody waits for it."""
        try:
            async with self._locks[detach.domain]:
                found = await self._call(_find_now, detach)
                if found is None:
                    self._say(wire.Detached(detach.domain, detach.socket))
                    return
                alias, place = found
                before = self._ejecting.get((detach.uuid, alias))
                if before is not None and time.monotonic() - before.asked < _ASK_INTERVAL:
                    return
                self._ejecting[detach.uuid, alias] = _Ejecting(detach, place, time.monotonic())
                await self._call(_eject_now, detach, alias)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                log.warning(f"a device can't be unplugged from domain {detach.domain}: {error.get_error_message()}")
        except hotplug_xml.Refused as error:
            log.info(f"no device is unplugged from domain {detach.domain}: {error}")

    def note_removed(self, uuid: str, alias: str) -> None:
        """Note that a domain's guest has ejected a device."""
        ejected = self._ejecting.pop((uuid, alias), None)
        if ejected is None:
            return
        if ejected.place is not None:
            self._freed[uuid][ejected.place] = time.monotonic()
        self._say(wire.Detached(ejected.detach.domain, ejected.detach.socket))

    def asked(self) -> list[wire.Detach]:
        """Return what may have been ejected while libvirtd could not say so."""
        return [each.detach for each in self._ejecting.values()]

    def forget(self, uuid: str, domain: DomainId) -> None:
        """Forget a domain that has ended."""
        self._freed.pop(uuid, None)
        self._ejecting = {key: each for key, each in self._ejecting.items() if key[0] != uuid}
        if domain in self._locks and not self._locks[domain].locked():
            del self._locks[domain]


def _look_up(connection: Any, meant: wire.Attach | wire.Detach) -> tuple[Any, ElementTree.Element]:
    """Return a running domain, and its XML. Raises Refused if its number is another domain's now.

    A libvirtd that starts again gives the numbers of domains that have ended meanwhile.
    """
    domain = connection.lookupByID(meant.domain)
    tree = ElementTree.fromstring(domain.XMLDesc())
    if (tree.get("id"), tree.findtext("uuid")) != (str(meant.domain), meant.uuid):
        raise hotplug_xml.Refused(f"the domain that was meant has ended, and {meant.domain} is another one's number by now")
    return domain, tree


def _attach_now(connection: Any, attach: wire.Attach, resting: set[Place]) -> None:
    domain, tree = _look_up(connection, attach)
    if hotplug_xml.shmem(tree, attach.socket) is None:
        domain.attachDeviceFlags(hotplug_xml.device_xml(tree, attach, resting), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _find_now(connection: Any, detach: wire.Detach) -> tuple[str, Place | None] | None:
    """Return a device's alias and place, or None if the domain does not have it."""
    _, tree = _look_up(connection, detach)
    found = hotplug_xml.shmem(tree, detach.socket)
    return None if found is None else (hotplug_xml.alias(found), hotplug_xml.place(found))


def _eject_now(connection: Any, detach: wire.Detach, alias: str) -> None:
    domain, _ = _look_up(connection, detach)
    domain.detachDeviceAlias(alias, libvirt.VIR_DOMAIN_AFFECT_LIVE)  # unlike others, does not wait for the guest
