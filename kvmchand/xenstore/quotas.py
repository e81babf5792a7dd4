# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much of the store each domain may use, and how much it does. Domain 0 may use all."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from kvmchand.ids import HOST, DomainId


class Refused(Exception):
    """A request that failed, and the errno that its client gets."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.number = number


@dataclass(frozen=True, slots=True)
class Quotas:
    """Limits for each domain other than 0.

    Two hundred vchans at once, each with a watch and a transaction, stay far below all of them.
    """

    nodes: int = 32768
    """Nodes that the domain owns."""
    bytes: int = 32 << 20
    """Bytes of the paths and values of its nodes, of its watches, and of what its open transactions
    have looked at or changed.
    """
    watches: int = 4096
    """One for each of its connections: one change may notify all of them."""
    transactions: int = 1024
    """Transactions open at once."""
    transaction_bytes: int = 2 << 20
    """Bytes that one transaction has looked at or changed. The limit keeps the events of its commit
    small enough for those who watch.
    """
    permissions: int = 5
    """Entries in one node's permissions; xenstored has the same limit."""


@dataclass(slots=True)
class Usage:
    """What one domain uses."""

    nodes: int = 0
    bytes: int = 0
    watches: int = 0
    transactions: int = 0


class Ledger:
    """What each domain uses. A domain that uses nothing has no entry."""

    def __init__(self, quotas: Quotas) -> None:
        self.quotas = quotas
        self.usage: dict[DomainId, Usage] = {}

    def of(self, domain: DomainId) -> Usage:
        """Return what a domain uses, to be read or changed."""
        return self.usage.get(domain) or self.usage.setdefault(domain, Usage())

    def forget_unused(self, domain: DomainId) -> None:
        """Drop the entry of a domain that uses nothing."""
        if self.usage.get(domain) == Usage():
            del self.usage[domain]

    def require(self, domain: DomainId, nodes: int = 0, size: int = 0) -> None:
        """Raise Refused unless the domain may use this many more nodes and bytes.

        A domain that is over a quota already keeps what it has.
        """
        if domain == HOST:
            return
        usage = self.of(domain)
        if nodes > 0 and usage.nodes + nodes > self.quotas.nodes:
            raise Refused(errno.ENOSPC)
        if size > 0 and usage.bytes + size > self.quotas.bytes:
            raise Refused(errno.ENOMEM)

    def require_within(self, domain: DomainId) -> None:
        """Raise Refused if the domain is over a quota already."""
        usage = self.of(domain)
        if domain != HOST and usage.nodes > self.quotas.nodes:
            raise Refused(errno.ENOSPC)
        if domain != HOST and usage.bytes > self.quotas.bytes:
            raise Refused(errno.ENOMEM)

    def add(self, domain: DomainId, nodes: int, size: int) -> None:
        """Count nodes and bytes, which may be negative."""
        usage = self.of(domain)
        usage.nodes += nodes
        usage.bytes += size

    def require_watch(self, domain: DomainId, size: int) -> None:
        """Raise Refused unless the domain may have one more watch."""
        if domain != HOST and self.of(domain).watches >= self.quotas.watches:
            raise Refused(errno.E2BIG)
        self.require(domain, size=size)

    def add_watch(self, domain: DomainId, size: int) -> None:
        """Count a watch of `size` bytes."""
        usage = self.of(domain)
        usage.watches += 1
        usage.bytes += size

    def remove_watch(self, domain: DomainId, size: int) -> None:
        """Count a watch no more."""
        usage = self.of(domain)
        usage.watches -= 1
        usage.bytes -= size

    def add_transaction(self, domain: DomainId) -> None:
        """Count a transaction. Raises Refused if the domain has too many."""
        usage = self.of(domain)
        if domain != HOST and usage.transactions >= self.quotas.transactions:
            raise Refused(errno.ENOSPC)
        usage.transactions += 1

    def require_held(self, domain: DomainId, held: int) -> None:
        """Raise Refused unless one transaction of the domain may keep this many bytes."""
        if domain != HOST and held > self.quotas.transaction_bytes:
            raise Refused(errno.ENOMEM)

    def remove_transaction(self, domain: DomainId, held: int) -> None:
        """Count a transaction, and the bytes that it held, no more."""
        usage = self.of(domain)
        usage.transactions -= 1
        usage.bytes -= held
