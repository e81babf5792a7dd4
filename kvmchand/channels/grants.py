# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which pages domains share, and who has them mapped. Pure state: the owner has the memory.

A share is a run of pages that one domain shares with another; their references count up from its
first. It lasts until its holder and all who map it have let it go, so no page becomes another's
while somebody has it mapped. It can be mapped only while its holder exists.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvmchand.errors import AccessDenied, InvalidArgument, LimitReached, NotFound, ProtocolError
from kvmchand.ids import ClientId, DomainId

_REF_FIRST, _REF_END = 1 << 30, 1 << 31
"""Apart from the numbers of channels, which stand as ring-ref where Xen's own libxenvchan would
look for pages; and still an int.
"""


@dataclass(slots=True, eq=False)
class Share:
    """A run of pages. `holder` shares them, and is None once it has let go; `mappings` map them."""

    ref: int
    pages: int
    owner: DomainId
    peer: DomainId
    writable: bool
    holder: ClientId | None
    mappings: set[ClientId] = field(default_factory=set)

    @property
    def end(self) -> int:
        """The reference after the last."""
        return self.ref + self.pages

    @property
    def is_over(self) -> bool:
        """Whether nobody has the pages any more."""
        return self.holder is None and not self.mappings


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to share pages. It counts only until anything else is shared."""

    owner: DomainId
    peer: DomainId
    pages: int
    holder: ClientId
    writable: bool


@dataclass(slots=True)
class Grants:
    """The shares of all domains, and the rules for them."""

    max_pages: int
    """That a domain may share."""
    max_mappings: int
    """That a domain may have."""
    shares: dict[int, Share] = field(default_factory=dict)
    """By first reference."""
    _refs: list[int] = field(default_factory=list)
    """The same, in order."""
    _next: int = _REF_FIRST
    _held: dict[ClientId, Share] = field(default_factory=dict)
    _pages: Counter[DomainId] = field(default_factory=Counter)
    _mappings: Counter[DomainId] = field(default_factory=Counter)
    _counts: Counter[DomainId] = field(default_factory=Counter)
    """Of shares that last, and mappings."""

    def held(self, holder: ClientId) -> Share | None:
        """Return what a connection shares or maps."""
        return self._held.get(holder)

    def count(self, domain: DomainId) -> int:
        """Return how many shares and mappings a domain has."""
        return self._counts[domain]

    def holders(self, domain: DomainId) -> list[ClientId]:
        """Return which of a domain's clients share or map anything."""
        return [
            holder for holder, share in self._held.items() if domain == (share.owner if holder == share.holder else share.peer)
        ]

    def _require_free(self, holder: ClientId) -> None:
        if holder in self._held:
            raise ProtocolError("this connection has pages already: open one connection for each share and mapping")

    def permit_share(self, owner: DomainId, peer: DomainId, pages: int, holder: ClientId, *, writable: bool) -> Permit:
        """Permit a share of `owner`'s with `peer`. Raises an error that says why it is refused."""
        self._require_free(holder)
        if pages < 1:
            raise InvalidArgument(f"{pages} pages can't be shared")
        if self._pages[owner] + pages > self.max_pages:
            raise LimitReached(f"domain {owner} would share over {self.max_pages} pages: max_shared in the daemon's settings")
        return Permit(owner, peer, pages, holder, writable)

    def share(self, permit: Permit) -> Share:
        """Add a permitted share. Raises LimitReached if no references are left."""
        owner, pages = permit.owner, permit.pages
        made = Share(self._place(pages), pages, owner, permit.peer, permit.writable, permit.holder)
        self._next = made.end
        self.shares[made.ref] = self._held[permit.holder] = made
        insort(self._refs, made.ref)
        self._pages[owner] += pages
        self._counts[owner] += 1
        return made

    def _place(self, pages: int) -> int:
        """Return the first of so many free references in a row, behind the last one given.

        So one that is over is not given again soon.
        """
        for start in (self._next, _REF_FIRST):
            ref = start
            for each in self._refs[max(0, bisect_right(self._refs, start) - 1) :]:
                if each >= ref + pages:
                    break
                ref = max(ref, self.shares[each].end)
            if ref + pages <= _REF_END:
                return ref
        raise LimitReached(f"there are no {pages} references in a row left: share fewer pages at once")

    def require_map(self, caller: DomainId, domain: int, ref: int, holder: ClientId, *, writable: bool) -> Share:
        """Return the share that `ref` belongs to, for map().

        Raises an error that says why the caller may not map it.
        """
        self._require_free(holder)
        at = bisect_right(self._refs, ref) - 1
        share = self.shares[self._refs[at]] if at >= 0 else None
        if share is None or ref >= share.end or share.owner != domain or share.holder is None:
            raise NotFound(f"domain {domain} shares no page {ref}")
        if share.peer != caller:
            raise AccessDenied(f"page {ref} of domain {domain} is for domain {share.peer}, and this is domain {caller}")
        if writable and not share.writable:
            raise AccessDenied(f"page {ref} of domain {domain} may only be read")
        if self._mappings[caller] >= self.max_mappings:
            raise LimitReached(f"domain {caller} has {self.max_mappings} mappings: max_channels in the daemon's settings")
        return share

    def map(self, share: Share, holder: ClientId) -> None:
        """Add a mapping of a share that require_map() returned."""
        share.mappings.add(holder)
        self._held[holder] = share
        self._mappings[share.peer] += 1
        self._counts[share.peer] += 1

    def release(self, holder: ClientId) -> Share | None:
        """End what a connection shares or maps, and return it.

        A share that is over is forgotten.
        """
        share = self._held.pop(holder, None)
        if share is None:
            return None
        if holder == share.holder:
            share.holder = None
        else:
            share.mappings.discard(holder)
            self._mappings[share.peer] -= 1
            self._counts[share.peer] -= 1
        if share.is_over:
            del self.shares[share.ref]
            self._refs.remove(share.ref)
            self._pages[share.owner] -= share.pages
            self._counts[share.owner] -= 1
        return share

    def __iter__(self) -> Iterator[Share]:
        return iter(self.shares.values())
