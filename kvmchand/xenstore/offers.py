# SPDX-License-Identifier: LGPL-2.1-or-later
"""The vchans that are offered, as the store shows them: <path>/ring-ref and <path>/event-channel, as libxenvchan makes them."""

from __future__ import annotations

from dataclasses import dataclass

from kvmchand.ids import ChannelId, DomainId


@dataclass(frozen=True, slots=True)
class Offer:
    channel: ChannelId
    path: str
    server: DomainId
    client: DomainId
    ref: int
    port: int

    @property
    def nodes(self) -> dict[str, bytes]:
        return {f"{self.path}/ring-ref": b"%d" % self.ref, f"{self.path}/event-channel": b"%d" % self.port}


class Offers:
    def __init__(self) -> None:
        self.by_channel: dict[ChannelId, Offer] = {}
        self._by_node: dict[str, Offer] = {}

    def add(self, offer: Offer) -> None:
        self.by_channel[offer.channel] = offer
        self._by_node.update(dict.fromkeys(offer.nodes, offer))

    def remove(self, offer: Offer) -> None:
        del self.by_channel[offer.channel]
        for path in offer.nodes:
            if self._by_node.get(path) is offer:
                del self._by_node[path]

    def of_node(self, path: str) -> Offer | None:
        return self._by_node.get(path)
