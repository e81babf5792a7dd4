# SPDX-License-Identifier: LGPL-2.1-or-later
"""What follows, for channels and guests, from what happens in the store."""

from __future__ import annotations

from kvmchand.channels.channels import Channels
from kvmchand.channels.registry import Registry
from kvmchand.host.room import Room
from kvmchand.ids import ChannelId, DomainId
from kvmchand.links.guests import Guests
from kvmchand.services.store.store import StoreEvents


class StoreDesk(StoreEvents):
    """Keeps channels and guests as the store says."""

    def __init__(self, registry: Registry, channels: Channels, room: Room, guests: Guests | None) -> None:
        """Tell nobody in guests if `guests` is None."""
        self._registry = registry
        self._channels = channels
        self._room = room
        self._guests = guests

    def on_connection(self) -> None:
        """Refuse a connection that leaves too few descriptors."""
        self._room.require()

    def on_output(self, domain: DomainId, message: object) -> None:
        """Pass what the store tells a program on to its guest's daemon."""
        if self._guests is not None:
            self._guests.tell(domain, message)

    def on_nodes_removed(self, channel: ChannelId) -> None:
        """Withdraw the vchan whose nodes a program has removed."""
        offered = self._registry.channels.get(channel)
        if offered is not None:
            self._channels.withdraw(offered)
