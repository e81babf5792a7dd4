# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of the guests that run."""

from __future__ import annotations

from collections.abc import Iterator

from kvmchand.ids import DomainId, Size
from kvmchand.links.guest import Guest
from kvmchand.links.links import Links
from kvmchand.services.control.sessions import Sessions
from kvmchand.wire import client


class Guests:
    """The guests by their numbers, and the way to their daemons."""

    def __init__(self, links: Links, sessions: Sessions) -> None:
        """Have no guest yet."""
        self._links = links
        self._sessions = sessions
        self._guests: dict[DomainId, Guest] = {}

    def __iter__(self) -> Iterator[Guest]:
        return iter(self._guests.values())

    def __contains__(self, domain: DomainId) -> bool:
        return domain in self._guests

    def get(self, domain: DomainId) -> Guest | None:
        """Return the guest with this number, if there is one."""
        return self._guests.get(domain)

    def add(self, guest: Guest) -> None:
        """Add a guest that runs."""
        self._guests[guest.domain] = guest

    def remove(self, guest: Guest) -> None:
        """Remove a guest that runs no more."""
        del self._guests[guest.domain]

    def tell(self, domain: DomainId, message: object) -> None:
        """Send a message to a guest's daemon, if the guest has one."""
        guest = self._guests.get(domain)
        if guest is not None and guest.session is not None:
            self._sessions.send(guest.session, message)

    def tell_daemon(self, domain: DomainId, message: object) -> bool:
        """Send a message to a guest's daemon, and return whether it is there to hear it."""
        guest = self._guests.get(domain)
        if guest is None or guest.session is None or not guest.is_greeted:
            return False
        self._sessions.send(guest.session, message)
        return True

    def _devices(self, guest: Guest) -> int:
        return len(guest.leaving) if guest.is_detached else len(self._links.of(guest.domain))

    def listing(self) -> tuple[tuple[client.GuestInfo, ...], tuple[client.LinkInfo, ...]]:
        """Return what `kvmchan ls` shows of guests and links."""
        guests = tuple(
            client.GuestInfo(guest.domain, guest.name, guest.is_greeted, self._devices(guest), guest.is_detached)
            for guest in self._guests.values()
        )
        links = tuple(
            client.LinkInfo(pair[0], pair[1], devices, Size(size), channels)
            for pair, devices, size, channels in self._links.summary()
        )
        return guests, links
