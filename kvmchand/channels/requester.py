# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where requests come from: the clients of this machine's local sockets, or a guest's daemon on behalf of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kvmchand.channels.grants import Share
from kvmchand.channels.region import Region, SharedMemory
from kvmchand.channels.registry import Channel, Side
from kvmchand.errors import KvmchanError
from kvmchand.ids import ClientId, DomainId
from kvmchand.wire import client


@dataclass(slots=True, eq=False)
class Requester:
    """One client, as main has it. `pid`: in its own machine."""

    source: Source
    number: ClientId
    domain: DomainId
    pid: int


class Source(Protocol):
    def answer(self, requester: Requester, reply: client.Reply) -> bool:
        """Whether it took the answer: one that does not read, or is gone, is dropped, and with it what it asked for."""

    def grant(self, requester: Requester, channel: Channel, region: Region, side: Side) -> bool:
        """Answers with an end of a channel; as answer(). KvmchanError: the end can't be given."""

    def give(self, requester: Requester, share: Share, memory: SharedMemory, *, writable: bool) -> bool:
        """Answers with shared pages; as grant()."""

    def mark_busy(self, busy: Requester) -> None:
        """It holds something now, or waits for it: it is not idle."""

    def mark_idle(self, idle: Requester) -> None:
        """It waits no more, and holds nothing yet."""

    def forget(self, gone: Requester) -> None:
        """Its end, if any, is released: it may go."""

    def drop(self, dropped: Requester) -> None:
        """Ends a client from our side, and with it what it holds."""


class RequesterEvents(Protocol):
    """What main does for the sources."""

    def on_request(self, requester: Requester, request: client.Request) -> None: ...

    def on_close(self, closing: Requester) -> None:
        """It waits for its end to be released, and then for forget()."""

    def on_loss(self, number: ClientId) -> None:
        """Its connection is gone without a close; the client is forgotten."""

    def on_drop(self, number: ClientId) -> None:
        """It is forgotten, for good."""

    def on_failure(self, error: KvmchanError) -> None:
        """The daemon can't go on."""
