# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the store is to show of channels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmchand.channels.channels import Channels
from kvmchand.channels.memory import Allocator
from kvmchand.channels.registry import Channel, DomainKind, Registry
from kvmchand.channels.rings import Sizes
from kvmchand.channels.waitlist import Waitlist
from kvmchand.config import RingSettings
from kvmchand.ids import HOST, ChannelId, ClientId, Size
from kvmchand.wire import client
from rig.requester import Silent


class Shown:
    """A directory that notes what changes in it."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, ChannelId]] = []
        self._shown: set[ChannelId] = set()

    def publish(self, channel: Channel) -> None:
        self._shown.add(channel.number)
        self.changes.append(("shown", channel.number))

    def unpublish(self, channel: Channel) -> None:
        if channel.number in self._shown:
            self._shown.discard(channel.number)
            self.changes.append(("hidden", channel.number))


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
def channels(shown: Shown) -> Iterator[Channels]:
    registry = Registry()
    registry.add_domain(HOST, DomainKind.HOST)
    waitlist = Waitlist(registry, lambda _callback: None)
    made = Channels(registry, Allocator(None), Sizes(RingSettings()), shown, waitlist)
    yield made
    made.close()


def requester(number: int) -> Silent:
    return Silent(ClientId(number), HOST, 1)


def offer(*, once: bool = False) -> client.Offer:
    return client.Offer(HOST, "/vchan", Size(1024), Size(1024), once)


def test_vchans_are_shown_at_their_path_and_event_channels_are_not(channels: Channels, shown: Shown) -> None:
    channels.bind(requester(10), client.Bind(HOST))
    channels.release(ClientId(10))
    channels.offer(requester(11), offer())
    channels.offer(requester(12), offer())
    assert shown.changes == [("shown", 2), ("shown", 3), ("hidden", 2)]
    channels.release(ClientId(11))
    channels.end(ClientId(12))
    assert shown.changes[3:] == [("hidden", 3)]


def test_a_vchan_for_one_client_is_not_shown_to_another(channels: Channels, shown: Shown) -> None:
    channels.offer(requester(11), offer(once=True))
    channels.connect(requester(12), client.Connect(HOST, "/vchan", False))
    assert shown.changes == [("shown", 1), ("hidden", 1)]
    channels.release(ClientId(11))
    assert len(shown.changes) == 2
