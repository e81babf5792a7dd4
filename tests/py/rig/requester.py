# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client of the rules, without a daemon."""

from __future__ import annotations

from collections.abc import Sequence

from kvmchand.channels.grants import Share
from kvmchand.channels.region import Region, SharedMemory
from kvmchand.channels.registry import Channel, Side
from kvmchand.channels.requester import Requester
from kvmchand.wire import client


class Silent(Requester):
    """A requester that takes what it is given, and keeps nothing."""

    def answer(self, reply: client.Reply, fds: Sequence[int] = ()) -> bool:
        return True

    def grant(self, channel: Channel, region: Region, side: Side) -> bool:
        return True

    def give(self, share: Share, memory: SharedMemory, *, writable: bool) -> bool:
        return True

    def forget(self) -> None:
        pass

    drop = pause = mark_busy = mark_idle = forget
