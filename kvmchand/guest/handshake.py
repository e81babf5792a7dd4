# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a guest's daemon and the host's meet on the control device.

The guest sets its live byte to 0, and the host makes the page anew; then a session can begin.

From the device's coming, or a session's end, until the next session.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

from kvmchand.channels.page import CLIENT_NONE_YET, DevicePage
from kvmchand.channels.registry import Side
from kvmchand.ids import HOST_PEER
from kvmchand.linux.eventfd import drain_event
from kvmchand.runtime.loop import Loop, Timer
from kvmchand.services.control.sessions import ControlEnd
from kvmchand.services.vfio.functions import Function
from kvmchand.wire.control import grant

_LOOK_AGAIN = 1.0
"""Seconds after which we look again whether the host has made the control page anew, though no
event said so."""
_DOORBELL = 12
"""Offset in BAR 0 (QEMU's ivshmem-spec)."""


class Handshake:
    """The wait for the host."""

    def __init__(self, loop: Loop, on_met: Callable[[ControlEnd], None]) -> None:
        """Call `on_met` with what a session is made of, whose descriptors stay the device's."""
        self._loop = loop
        self._on_met = on_met
        self._control: Function | None = None
        self._next_look: Timer | None = None

    def start(self, control: Function) -> None:
        """Tell the host that all before is over, and wait for it. May call `on_met` at once."""
        self._begin(control)
        self._look()

    def start_anew(self, control: Function) -> None:
        """Wait for another session after one that did not last, but do not look at once.

        A page that could not be attached to is still there, and would be tried for ever.
        """
        self._begin(control)

    def _begin(self, control: Function) -> None:
        self.stop()
        self._control = control
        self._loop.add(control.events[0], lambda _events: self._look())
        page = DevicePage(control.fd, control.memory)
        if page.live(Side.CLIENT) != CLIENT_NONE_YET:
            page.set_live(Side.CLIENT, 0)
            os.pwrite(control.fd, struct.pack("<I", HOST_PEER << 16), control.doorbell + _DOORBELL)
        self._look_later()

    def _look_later(self) -> None:
        self._next_look = self._loop.call_at(time.monotonic() + _LOOK_AGAIN, self._look_again)

    def _look_again(self) -> None:
        self._look_later()
        self._look()

    def stop(self) -> None:
        """Stop waiting; the device may go."""
        if self._control is not None:
            self._loop.remove(self._control.events[0])
            self._control = None
        if self._next_look is not None:
            self._next_look.cancel()

    def _look(self) -> None:
        control = self._control
        if control is None:
            return
        drain_event(control.events[0])
        if DevicePage(control.fd, control.memory).live(Side.CLIENT) != CLIENT_NONE_YET:
            return
        self.stop()
        fds = (control.fd, control.events[0])
        self._on_met(ControlEnd(grant("doorbell", control.memory, control.doorbell, HOST_PEER << 16), fds))
