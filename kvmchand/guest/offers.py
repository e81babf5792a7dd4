# SPDX-License-Identifier: LGPL-2.1-or-later
"""What programs in this guest offer: server ends that outlive the device that they are on.

An end that has had no client yet is parked when its device goes: its program has it in memory of
this guest's, where no client can come. Once the host has offered it again, it moves to a device.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from dataclasses import dataclass

from kvmchand.channels.page import CLIENT_NONE_YET, DevicePage, Page
from kvmchand.channels.region import make_memory
from kvmchand.channels.registry import Side
from kvmchand.channels.requester import Requester
from kvmchand.channels.rings import Rings
from kvmchand.errors import OutOfResources, ProtocolError
from kvmchand.ids import PAGE, ClientId, Size
from kvmchand.runtime import log
from kvmchand.services.vfio.functions import Function
from kvmchand.wire import client, move


@dataclass(slots=True)
class _Offer:
    """A server's end, and what it waits for events with."""

    requester: Requester
    request: client.Offer
    """What the host is asked for again."""
    rings: Rings
    events: select.epoll
    """Also the program's. It has the eventfd of the end's vector, `event`, while there is one."""
    event: int
    function: Function | None
    """The device that the end is on; None if it is parked."""
    offset: int
    """Where the end's page is in the device."""

    def has_client(self) -> bool:
        """Return whether the end has, or has had, a client."""
        if self.function is None:
            return False
        try:
            return DevicePage(self.function.fd, self.offset).live(Side.CLIENT) != CLIENT_NONE_YET
        except (OSError, IndexError):
            return True  # the device has gone already: nobody knows


class Offers:
    """The server ends, by client."""

    def __init__(self) -> None:
        """Have none."""
        self._offers: dict[ClientId, _Offer] = {}

    def add(
        self,
        requester: Requester,
        request: client.Offer,
        function: Function,
        event: int,
        grant: client.Grant,
        events: select.epoll,
    ) -> None:
        """Note an end that the host grants a client. Takes ownership of `events`."""
        rings = Rings(grant.left_order, grant.right_order)
        again = client.Offer(request.peer, request.path, Size(1 << rings.left), Size(1 << rings.right), request.once)
        self._offers[requester.number] = _Offer(requester, again, rings, events, event, function, grant.offset)

    def remove(self, number: ClientId) -> None:
        """Forget a client's end, if it has one."""
        offer = self._offers.pop(number, None)
        if offer is not None:
            offer.events.close()

    def is_parked(self, number: ClientId) -> bool:
        """Return whether a client's end is parked."""
        offer = self._offers.get(number)
        return offer is not None and offer.function is None

    def parked(self) -> Iterator[tuple[Requester, client.Offer]]:
        """Yield the clients whose ends are parked, and what the host is to be asked for again."""
        for offer in list(self._offers.values()):
            if offer.function is None:
                yield offer.requester, offer.request

    def park(self, number: ClientId) -> bool:
        """Move a client's end away from its device. Returns False if it has to end."""
        offer = self._offers.get(number)
        if offer is None or offer.has_client():
            return False
        if offer.function is None:
            return True
        size = offer.rings.size
        try:
            memory = make_memory(size + PAGE)  # the last page stands for the doorbell
        except OutOfResources as error:
            log.warning(f"what client {number} offers ends: {error.sentence}")
            return False
        try:
            Page(memory).initialize(offer.rings)
            offer.events.unregister(offer.event)
            offer.function = None
            return offer.requester.move(move.encode(0, size, 0), memory)
        finally:
            os.close(memory)

    def unpark(self, number: ClientId, function: Function, event: int, grant: client.Grant) -> None:
        """Move a client's end to where the host has offered it again. The client may be gone then.

        Raises ProtocolError if the host has given it other rings, OSError if events can't reach it.
        """
        offer = self._offers[number]
        if Rings(grant.left_order, grant.right_order) != offer.rings:
            raise ProtocolError("it has other rings than before")
        offer.events.register(event, select.EPOLLIN | select.EPOLLET)
        offer.event, offer.function, offer.offset = event, function, grant.offset
        offer.requester.move(move.encode(grant.offset, grant.doorbell, grant.doorbell_value), function.fd)
