# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a guest is asked to eject a device: until it does, ever more rarely, and nobody waits."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvmchand.ids import DomainId
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop

EJECT_DEADLINE, _EJECT_DEADLINE_MAX = 10.0, 320.0
"""Seconds in which a guest has to eject a device before it is asked again; doubles each time."""


class Ejection:
    """A device that a guest was asked to eject, until cancel()."""

    def __init__(self, loop: Loop, domain: DomainId, device: str, ask: Callable[[], None]) -> None:
        """Ask for the first time. `device`: what the log calls it."""
        self._loop = loop
        self._domain = domain
        self._device = device
        self._ask = ask
        self._patience = EJECT_DEADLINE
        self._wait()

    def _wait(self) -> None:
        self._ask()
        self._timer = self._loop.call_at(time.monotonic() + self._patience, self._ask_again)

    def _ask_again(self) -> None:
        if self._patience == EJECT_DEADLINE:
            log.warning(
                f"domain {self._domain} has not let go of {self._device} in {EJECT_DEADLINE:.0f} s: it counts for guest_devices "
                "until the guest lets it go, is reset or ends"
            )
        self._patience = min(2 * self._patience, _EJECT_DEADLINE_MAX)
        self._wait()

    def cancel(self) -> None:
        """Ask no more."""
        self._timer.cancel()
