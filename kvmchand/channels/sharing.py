# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pages that domains share beside vchans, as the host's main process has them.

It has the memory of each share, and does what a holder has asked for when the holder goes, as a
program with its own vchan implementation asks Xen's kernel to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from kvmchand.channels.grants import Grants, Share
from kvmchand.channels.memory import Allocator
from kvmchand.channels.region import SharedMemory
from kvmchand.channels.registry import Channel, Registry, Side
from kvmchand.channels.requester import Requester
from kvmchand.errors import InvalidArgument, NotFound, ProtocolError
from kvmchand.ids import PAGE, ChannelId, ClientId, DomainId, Size
from kvmchand.wire import client


@dataclass(frozen=True, slots=True)
class Notice:
    """What happens when a holder goes.

    `offset`: the byte to clear, or None. `event`: the end of an event channel in whose name the
    other is notified, or None.
    """

    offset: int | None
    event: tuple[Channel, Side] | None


class Sharing:
    """The memory of shares, and what is done when a holder lets go."""

    def __init__(
        self,
        registry: Registry,
        grants: Grants,
        allocator: Allocator,
        wake: Callable[[Channel, Side], None],
    ) -> None:
        """Share nothing yet. `wake` sends an event in the name of an end."""
        self._registry = registry
        self._grants = grants
        self._allocator = allocator
        self._wake = wake
        self._memory: dict[Share, SharedMemory] = {}
        self._notices: dict[ClientId, Notice] = {}
        self._events: Counter[tuple[ChannelId, Side]] = Counter()
        """How many notices send an event in the name of an end."""

    def __len__(self) -> int:
        return len(self._memory)

    def held(self, holder: ClientId) -> SharedMemory | None:
        """Return the memory that a connection shares or maps."""
        share = self._grants.held(holder)
        return self._memory[share] if share is not None else None

    def count(self, domain: DomainId) -> int:
        """Return how many shares and mappings a domain has."""
        return self._grants.count(domain)

    def holders(self, domain: DomainId) -> list[ClientId]:
        """Return which of a domain's clients share or map anything."""
        return self._grants.holders(domain)

    def share(self, requester: Requester, request: client.Share) -> None:
        """Make pages that a client shares, and answer with them. Raises VchanError, or NotYet."""
        peer = self._registry.require_domain(request.peer, requester.domain)
        permit = self._grants.permit_share(requester.domain, peer, request.pages, requester.number, writable=request.writable)
        memory = self._allocator.make_pages(Size(request.pages * PAGE), requester.domain, peer)
        try:
            share = self._grants.share(permit)
        except BaseException:
            memory.close()
            raise
        self._memory[share] = memory
        self._give(requester, share, writable=True)

    def map(self, requester: Requester, request: client.Map) -> None:
        """Answer with pages that another domain shares. Raises as share()."""
        ref, writable = request.ref, request.writable
        share = self._grants.require_map(requester.domain, request.domain, ref, requester.number, writable=writable)
        self._allocator.require_ready(self._memory[share], requester.domain)
        self._grants.map(share, requester.number)
        self._give(requester, share, writable=writable)

    def _give(self, requester: Requester, share: Share, *, writable: bool) -> None:
        try:
            requester.give(share, self._memory[share], writable=writable)
        except BaseException:
            self.end(requester.number)
            raise

    def notify(self, requester: Requester, request: client.Notify) -> None:
        """Note what is to be done when the client lets go of its pages. Raises VchanError."""
        share = self._grants.held(requester.number)
        if share is None:
            raise ProtocolError("this connection neither shares nor maps pages")
        if request.clears and request.offset >= share.pages * PAGE:
            raise InvalidArgument(f"byte {request.offset} is not in {share.pages} pages")
        if request.clears and requester.number != share.holder and not share.writable:
            raise InvalidArgument("a byte of pages that may only be read can't be cleared")
        event = self._registry.port(requester.domain, requester.domain, request.port) if request.port else None
        if request.port and event is None:
            raise NotFound(f"domain {requester.domain} has no event channel {request.port}")
        self._forget_notice(requester.number)
        self._notices[requester.number] = Notice(request.offset if request.clears else None, event)
        if event is not None:
            self._events[event[0].number, event[1]] += 1
        requester.answer(client.Done())

    def _forget_notice(self, holder: ClientId) -> Notice | None:
        notice = self._notices.pop(holder, None)
        if notice is not None and notice.event is not None:
            end = notice.event[0].number, notice.event[1]
            self._events[end] -= 1
            if not self._events[end]:
                del self._events[end]
        return notice

    def will_wake(self, channel: Channel, side: Side) -> bool:
        """Return whether held pages send an event in an end's name when they are let go."""
        return (channel.number, side) in self._events

    def end(self, holder: ClientId) -> None:
        """Let go of what a client shares or maps, if anything."""
        share = self._grants.release(holder)
        if share is None:
            return
        memory, notice = self._memory[share], self._forget_notice(holder)
        if notice is not None:
            if notice.offset is not None:
                memory.clear(notice.offset)
            if notice.event is not None:
                self._wake(*notice.event)
        if share.is_over:
            del self._memory[share]
            memory.close()

    def close(self) -> None:
        """Close all memory."""
        for memory in self._memory.values():
            memory.close()
        self._memory.clear()
