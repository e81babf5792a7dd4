# SPDX-License-Identifier: LGPL-2.1-or-later
"""How control sessions with guests begin and end, in the host's main process.

A guest has a session from when it is found, whether a daemon of its own answers or not. One that
ends is followed by another when a daemon there asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from kvmchand.channels.page import Page
from kvmchand.channels.registry import Side
from kvmchand.channels.rings import Rings
from kvmchand.errors import OutOfResources
from kvmchand.ids import CONTROL_PEER, GENERATION, HOST_PEER, PAGE, Size
from kvmchand.links.guest import Guest, GuestEvents
from kvmchand.links.links import Links
from kvmchand.linux import mapping
from kvmchand.linux.eventfd import drain_event, signal_event
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.services.control.sessions import ControlEnd, SessionId, Sessions
from kvmchand.services.ivshmem.devices import Devices
from kvmchand.wire import control

_RINGS = Rings(control.LEFT_ORDER, control.RIGHT_ORDER)
_VECTOR = 0
_INTERVAL = 0.2
"""Seconds between two sessions of a guest at the least: each costs the host more than the guest."""
_REFUSED_INTERVAL = 5.0
"""The same after one that was refused, for a reason that will be the same again."""
_TRY_AGAIN = 1.0


class Handshakes:
    """The sessions of all guests, from their beginning to their end."""

    def __init__(
        self,
        loop: Loop,
        links: Links,
        devices: Devices,
        sessions: Sessions,
        events: GuestEvents,
        next_generation: Callable[[], int],
    ) -> None:
        """Have no session yet. `next_generation` returns numbers for the clients of one session."""
        self._loop = loop
        self._links = links
        self._devices = devices
        self._sessions = sessions
        self._events = events
        self._next_generation = next_generation
        self._guests: dict[SessionId, Guest] = {}

    def __iter__(self) -> Iterator[SessionId]:
        return iter(self._guests)

    def get(self, session: SessionId) -> Guest | None:
        """Return the guest whose session this is, if it is one that lasts."""
        return self._guests.get(session)

    # ---- the control device ----

    def _page(self, guest: Guest) -> Page:
        return Page(self._devices.memory(guest.control))

    def _event(self, guest: Guest) -> int:
        return self._devices.event(guest.control, HOST_PEER, _VECTOR)

    def _bell(self, guest: Guest) -> int:
        return self._devices.event(guest.control, CONTROL_PEER, _VECTOR)

    # ---- sessions ----

    def add(self, guest: Guest) -> None:
        """Open the first session on a guest's control device."""
        age = time.clock_gettime_ns(time.CLOCK_BOOTTIME).to_bytes(8, "little")
        mapping.write(self._devices.memory(guest.control), control.AGE_OFFSET, age)
        self._watch(guest)
        self.renew(guest)

    def remove(self, guest: Guest) -> None:
        """Open no more sessions on a guest's control device. To be called after end()."""
        self._forget_renewal(guest)
        self._loop.remove(self._event(guest))

    def end(self, guest: Guest, *, hangs_up: bool = True) -> None:
        """End a guest's session, and with it its clients and every end they have.

        `hangs_up` tells the guest's daemon, which may not know. It must be False if the page is
        written again at once.
        """
        if guest.session is not None:
            self._sessions.close_session(guest.session, hangs_up=hangs_up)
            del self._guests[guest.session]
            guest.session = None
            self._watch(guest)
            for device in self._links.of(guest.domain):
                device.ready.discard(guest.domain)
            guest.remotes.clear()
            self._events.on_guest_reset(guest.domain)

    def refuse(self, guest: Guest, sentence: str) -> None:
        """End a guest's session, and tell its daemon why."""
        if guest.session is not None:
            self._sessions.send(guest.session, control.Refused(sentence))
            self.end(guest)
        guest.is_greeted = False

    def is_there(self, guest: Guest) -> bool:
        """Return whether the guest's end has not said that it is gone."""
        return self._page(guest).live(Side.CLIENT) != 0

    def hang_up(self, guest: Guest) -> None:
        """Tell a guest's daemon that its session is over, since the control process could not."""
        self._page(guest).set_live(Side.SERVER, 0)
        signal_event(self._bell(guest))

    def delay(self, guest: Guest) -> None:
        """Delay a guest's next session, which would be refused as this one was."""
        guest.opened += _REFUSED_INTERVAL

    def renew(self, guest: Guest) -> None:
        """Open a session for a new daemon in the guest."""
        self._forget_renewal(guest)
        guest.opened = time.monotonic()
        try:
            self._open(guest)
        except OutOfResources as error:
            log.warning(error.sentence)
            self._renew_at(guest, guest.opened + _TRY_AGAIN)
            return
        self._loop.remove(self._event(guest))

    def renew_if_asked(self, guest: Guest) -> None:
        """Open a session if a daemon in the guest asks for it.

        It has set its live byte to 0, and waits until the page is written again.
        """
        if guest.is_detached or guest.session is not None or self.is_there(guest):
            return
        due = guest.opened + _INTERVAL
        if time.monotonic() < due:
            self._renew_at(guest, due)
        else:
            self.renew(guest)

    def _renew_at(self, guest: Guest, due: float) -> None:
        self._forget_renewal(guest)
        guest.renewal = self._loop.call_at(due, lambda: self.renew_if_asked(guest))

    def _forget_renewal(self, guest: Guest) -> None:
        if guest.renewal is not None:
            guest.renewal.cancel()

    def _open(self, guest: Guest) -> None:
        """Open a session on a page that no guest's daemon has come to yet."""
        self._devices.zero(guest.control, Size(0), Size(PAGE))
        self._page(guest).initialize(_RINGS)
        event = self._event(guest)
        fds = (self._devices.memory(guest.control), event, self._bell(guest))
        drain_event(event)
        guest.session = self._sessions.open(ControlEnd(control.grant("eventfd"), fds), guest.domain)
        guest.numbers = self._next_generation() * GENERATION
        guest.is_greeted = False
        self._guests[guest.session] = guest
        signal_event(self._bell(guest))

    def _watch(self, guest: Guest) -> None:
        """Hear the guest ring, while the control process does not."""
        self._loop.add(self._event(guest), lambda _events: self._on_event(guest))

    def _on_event(self, guest: Guest) -> None:
        drain_event(self._event(guest))
        self.renew_if_asked(guest)
