# SPDX-License-Identifier: LGPL-2.1-or-later
"""What follows when a device comes into this guest, or goes."""

from __future__ import annotations

from kvmchand.guest.devices import Devices
from kvmchand.guest.session import Session
from kvmchand.ids import CONTROL_PEER
from kvmchand.runtime import log
from kvmchand.services.vfio.functions import Function, FunctionEvents
from kvmchand.wire import control, vfio

_SENTENCE_MAX = 1000
"""Characters of a sentence that the host is told."""


class Plugging(FunctionEvents):
    """Keeps the devices and the session in step with what the vfio process finds."""

    def __init__(self, devices: Devices, session: Session) -> None:
        """Have no device yet."""
        self._devices = devices
        self._session = session

    def on_device(self, function: Function) -> None:
        """Take a device that works, and begin on it or tell the host."""
        if function.peer == CONTROL_PEER:
            self._session.leave()  # before the devices of that session go, so that what is offered on them stays
        for address in self._devices.outdated_by(function):
            self._forget(address)
        self._devices.add(function)
        if function.peer == CONTROL_PEER:
            self._session.meet(function)
        else:
            self._session.tell_if_linked(control.Ready(function.peer, len(function.events)))

    def on_removed(self, address: str) -> None:
        """Let go of a device that is being unplugged or is gone, and tell the host."""
        log.info(f"device {address} is unplugged")
        gone = self._forget(address)
        if gone is not None:
            self._session.tell_if_linked(control.Released(gone.peer))

    def on_unusable(self, address: str, sentence: str) -> None:
        """Log and tell the host that a device, or all if `address` is empty, is unusable."""
        log.warning(f"device {address}: {sentence}" if address else sentence)
        self._session.requests.refusal = sentence
        self._session.tell_if_linked(control.Unusable(0, sentence[:_SENTENCE_MAX]))

    def on_room(self, room: vfio.Room) -> None:
        """Tell the host."""
        self._session.note_room(control.Room(room.size, room.bridge))

    def _forget(self, address: str) -> Function | None:
        """Let go of the device at an address, if there is one, and end the channels on it.

        An unplug waits for all of them.
        """
        gone = self._devices.remove(address)
        if gone is not None:
            if gone.peer == CONTROL_PEER:
                self._session.leave()
            self._session.requests.cut_on(gone)
            gone.close()
        return gone
