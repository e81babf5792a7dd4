# SPDX-License-Identifier: LGPL-2.1-or-later
"""The vfio process of a guest: finds ivshmem functions and drives them through VFIO.

It checks what can be checked of each, lets its MSI-X vectors signal eventfds, and gives everything
to main. It remains root, because it binds drivers to what appears. When main ends, every eventfd is
signalled once, so that everyone who waits looks up.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kvmchand.ids import CONTROL_PEER, Size
from kvmchand.linux import pci, vfio
from kvmchand.linux.eventfd import signal_event
from kvmchand.runtime import log
from kvmchand.runtime.loop import Timer
from kvmchand.runtime.marker import Marker
from kvmchand.runtime.worker import Worker, serve
from kvmchand.services.vfio.device import Device, time_reads, wire_vectors
from kvmchand.services.vfio.iommu_groups import DRIVER, IOMMU_MODULE, Group, Groups, Later, Unusable
from kvmchand.services.vfio.opener import Opener
from kvmchand.services.vfio.windows import Windows, is_ivshmem
from kvmchand.wire import vfio as wire
from kvmchand.wire.packet import Fds

_MODULES = (DRIVER, IOMMU_MODULE)
_MODPROBE_DEADLINE = 20
_TRY_AGAIN = 1.0
"""Seconds after which a group that is open elsewhere is tried again: no event says when it is
closed.
"""


class Driver(Worker):
    """The process's whole state."""

    def __init__(self, main: socket.socket, marker: Marker) -> None:
        super().__init__(main, marker, wire.to_vfio, wire.to_main)
        self._uevents = pci.Events()
        self._groups = Groups(lambda group: self._say(wire.Group(group.name), (group.fd, group.container)))
        self._opener = Opener(self._groups, self._close_group_if_unused)
        self._windows = Windows()
        self._devices: dict[str, Device] = {}
        self._moved: set[str] = set()
        """Functions that got another address, so that no page has two doorbells."""
        self._foreign: set[str] = set()
        """Functions that another driver has, and that were reported."""
        self._next_try: Timer | None = None
        self._room: wire.Room | None = None
        """What main was told of it last."""

    def run(self) -> None:
        """Serve until main ends."""
        try:
            if not self._wait_for_start():
                return
            self._loop.add(self._uevents.sock.fileno(), lambda _events: self._on_uevent())
            _load_modules()
            self._windows.widen()
            self._scan(anew=True)
            for name in self._groups.names():
                self._close_group_if_unused(name)  # main may have let go of all that was in it
            self._loop.run()
        finally:
            for device in self._devices.values():
                for event in device.events:
                    signal_event(event)

    # ---- main ----

    def _obey(self, message: object, fds: Fds) -> None:
        match message:
            case wire.Group():
                group, container = fds.steal()
                self._groups.restore(Group(message.name, group, container))
            case wire.Device():
                (fd,) = fds.steal()
                device = Device(message.address, message.group, fd, peer=message.peer)
                self._devices[device.address] = device
                self._watch_unplug(device)
            case wire.Events():
                self._devices[message.address].events += fds.steal()
            case wire.LetGo():
                self._devices[message.address] = Device(message.address, "", -1, is_let_go=True)
            case wire.Release():
                self._release(message.address)
            case wire.Start():
                self._opener.noiommu = message.noiommu
                self._start(wire.Started())

    # ---- functions ----

    def _on_uevent(self) -> None:
        try:
            event = self._uevents.take()
        except OSError:
            self._scan(anew=True)  # some were lost
            return
        if event is None:
            return
        if event.action == "remove":
            self._forget(event.address)
        else:
            self._scan()

    def _scan(self, *, anew: bool = False) -> None:
        """Take every ivshmem function that is there and not ours yet.

        `anew`: without the events so far, which may say that one went that has come again since.
        """
        if anew:
            self._uevents.drop()
        try:
            addresses = pci.addresses()
        except pci.SysfsError as error:
            self._say(wire.Unusable("", str(error)))
            return
        for address in self._devices.keys() - addresses:
            self._forget(address)
        found = [each for each in map(self._look_at, addresses) if each is not None]
        new = [each for each in found if each.address not in self._devices]
        if self._windows.make_room(new):
            self._scan(anew=True)
            return
        crowded = self._crowded(new)
        taken = [self._take(each) for each in new if each.address not in crowded]
        # The newest control device first: the host's daemon is at its other end.
        for device in sorted(
            [each for each in taken if each is not None], key=lambda each: (each.peer != CONTROL_PEER, -each.age)
        ):
            self._use(device)
        self._move(crowded)
        self._tell_room()

    def _look_at(self, address: str) -> pci.Function | None:
        try:
            seen = pci.function(address)
        except pci.SysfsError:
            return None  # it went again, or is none that we could judge
        if not is_ivshmem(seen):
            return None
        if seen.driver not in ("", DRIVER):
            if address not in self._foreign:
                self._foreign.add(address)
                log.warning(f"device {address} has the driver {seen.driver}, and is left to it: unbind it if it is kvmchand's")
            return None
        return seen

    def _crowded(self, new: list[pci.Function]) -> set[str]:
        """Return the functions whose doorbell is in the page of another one's.

        VFIO refuses to map a page that two functions share. So one of them keeps the page, and the
        others get new addresses once it is taken.
        """
        pages: dict[int, str] = {}
        crowded: set[str] = set()
        for each in sorted(new, key=lambda each: each.bars[0].start if each.bars else 0):
            start = each.bars[0].start if each.bars else 0
            if not start or each.address in self._moved:
                continue
            if start % pci.PAGE or start // pci.PAGE in pages:
                crowded.add(each.address)
            pages.setdefault(start // pci.PAGE, each.address)
        return crowded

    def _move(self, crowded: set[str]) -> None:
        if not crowded:
            return
        for address in crowded:
            self._moved.add(address)
            try:
                pci.remove(address)
            except pci.SysfsError as error:
                log.warning(f"device {address} can't be given another address: {error}")  # it may be gone
        try:
            pci.rescan()
        except pci.SysfsError as error:
            self._say(wire.Unusable("", str(error)))

    def _take(self, found: pci.Function) -> Device | None:
        """Return a device that has been opened, or None if it can't be used, at least not now."""
        with self._judging(found.address, found.group):
            device = self._opener.open(found)
            self._devices[device.address] = device
            self._moved.discard(found.address)  # the next there may have to be moved again
            return device
        return None

    @contextmanager
    def _judging(self, address: str, group: str) -> Iterator[None]:
        """Note what is unusable, and try again later what is only so for now."""
        try:
            yield
            return
        except Later:
            if self._next_try is not None:
                self._next_try.cancel()
            self._next_try = self._loop.call_at(time.monotonic() + _TRY_AGAIN, self._scan)
            return
        except (Unusable, pci.SysfsError) as error:
            sentence = str(error)
        except OSError as error:
            sentence = f"it can't be driven by VFIO: {error.strerror}"
        self._ignore(address, group)
        self._say(wire.Unusable(address, sentence))

    def _ignore(self, address: str, group: str) -> None:
        """Close a device that main does not know, and look at it no more."""
        opened = self._devices.get(address)
        self._devices[address] = Device(address, group, -1)
        if opened is not None:
            opened.close()
            self._close_group_if_unused(opened.group)

    def _use(self, device: Device) -> None:
        """Let a device that has been opened work, and give it to main."""
        if device.peer == CONTROL_PEER and any(each.is_newer_control(device) for each in self._devices.values()):
            log.info(f"device {device.address} is an earlier daemon's, and is not used")
            self._ignore(device.address, device.group)
            return
        with self._judging(device.address, device.group):
            self._set_up(device)

    def _set_up(self, device: Device) -> None:
        if device.peer == CONTROL_PEER:
            self._free_outdated_vectors()
        speed = time_reads(device.fd, device.memory)
        wire_vectors(device)
        self._watch_unplug(device)  # from here on nothing fails
        vectors = len(device.events)
        places = Size(device.memory.size), vectors, Size(device.memory.offset), Size(device.doorbell), Size(speed)
        self._say(wire.Device(device.address, device.group, device.peer, *places), (device.fd,))
        for first in range(0, vectors, wire.EVENTS_PER_PACKET):
            self._say(wire.Events(device.address), tuple(device.events[first : first + wire.EVENTS_PER_PACKET]))
        log.info(f"device {device.address}: {device.memory.size} bytes, {vectors} vectors, read at {speed} MB/s")

    def _tell_room(self) -> None:
        """Tell main for how large a device there is a window, if that has changed."""
        room = self._windows.room()
        if room is not None and room != self._room:
            self._room = room
            self._say(room)

    def _free_outdated_vectors(self) -> None:
        """Free the interrupts of an earlier host daemon's devices.

        Does nothing unless a new control device is here, beside an earlier one. Without KVM the
        earlier devices are never unplugged, and programs may still have them open. The new ones
        would lack their vectors.
        """
        present = [each for each in self._devices.values() if each.events]
        if any(each.peer == CONTROL_PEER for each in present):
            for each in present:
                vfio.disable_irqs(each.fd, vfio.MSIX_IRQ)
                vfio.close_device(-1, each.events)  # the kernel refuses to turn off what is off

    # ---- unplug ----

    def _watch_unplug(self, device: Device) -> None:
        event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            vfio.set_irqs(device.fd, vfio.REQ_IRQ, [event])
        except OSError:
            os.close(event)
            return  # a kernel that does not tell: the unplug waits until the daemon ends
        device.unplug = event
        self._loop.add(event, lambda _events: self._let_go(device.address))

    def _release(self, address: str) -> None:
        """Let go of a device that main wants no more, and turn its interrupts off first.

        Programs may still have it open, and with it the interrupts.
        """
        device = self._devices.get(address)
        if device is None or device.fd < 0:
            return  # it is gone, as main has been told
        try:
            vfio.disable_irqs(device.fd, vfio.MSIX_IRQ)
        except OSError as error:
            log.warning(f"the interrupts of device {address} can't be turned off: {error.strerror}")
        self._let_go(address)

    def _let_go(self, address: str) -> None:
        """Close a device: its unplug waits for that.

        The function still exists for a while, and must not be taken again.
        """
        device = self._devices[address]
        self._devices[address] = Device(address, device.group, -1)
        if device.unplug >= 0:
            self._loop.remove(device.unplug)
            os.close(device.unplug)
        was_open = device.fd >= 0
        device.close()
        if was_open:
            self._say(wire.Removed(address))
            self._close_group_if_unused(device.group)

    def _forget(self, address: str) -> None:
        """Forget a device that is gone."""
        if address in self._devices:
            if self._devices[address].is_let_go:
                self._say(wire.Removed(address))
            self._let_go(address)
            del self._devices[address]
        self._opener.forget(address)
        self._tell_room()

    def _close_group_if_unused(self, name: str) -> None:
        if not any(each.group == name and each.fd >= 0 for each in self._devices.values()):
            self._groups.close(name)
            self._say(wire.GroupClosed(name))


def _load_modules() -> None:
    """Load the kernel's modules, if need be.

    Best effort: they may be loaded, or built in. If they are missing, opening says so.
    """
    for module in _MODULES:
        try:
            subprocess.run(
                ["modprobe", module],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_MODPROBE_DEADLINE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return


def main(socket_fd: int, marker_fd: int) -> None:
    """Run the process."""
    serve("kvmchand-vfio", Driver, socket_fd, marker_fd)
