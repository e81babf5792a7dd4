# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much of the store a domain may use, and how much it does. Domain 0 may use all."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from kvmchand.ids import HOST, DomainId


class Refused(Exception):
    """A request that is not met, and the errno by which its client is told."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.number = number


@dataclass(frozen=True, slots=True)
class Quotas:
    """Per domain other than 0. Two hundred vchans at once, each with a watch and a transaction, are far from any."""

    nodes: int = 32768
    """Nodes that it owns."""
    bytes: int = 32 << 20
    """Paths and values of the nodes that it owns, its watches, and what its open transactions have looked at or changed."""
    watches: int = 4096
    """One for each of its connections: all may be told of one change."""
    transactions: int = 1024
    """Open at once."""
    transaction_bytes: int = 2 << 20
    """Of what one transaction has looked at or changed, so that those who watch can take the events of its commit."""
    permissions: int = 5
    """Entries of one node's permissions; xenstored's number."""


@dataclass(slots=True)
class Usage:
    nodes: int = 0
    bytes: int = 0
    watches: int = 0
    transactions: int = 0


class Ledger:
    """What each domain uses. A domain that uses nothing is not in it."""

    def __init__(self, quotas: Quotas) -> None:
        self.quotas = quotas
        self.usage: dict[DomainId, Usage] = {}

    def of(self, domain: DomainId) -> Usage:
        return self.usage.get(domain) or self.usage.setdefault(domain, Usage())

    def forget_unused(self, domain: DomainId) -> None:
        if self.usage.get(domain) == Usage():
            del self.usage[domain]

    def require(self, domain: DomainId, nodes: int = 0, size: int = 0) -> None:
        """Refused unless the domain may use so many nodes and bytes more. What it uses beyond a quota already, it keeps."""
        if domain == HOST:
            return
        usage = self.of(domain)
        if nodes > 0 and usage.nodes + nodes > self.quotas.nodes:
            raise Refused(errno.ENOSPC)
        if size > 0 and usage.bytes + size > self.quotas.bytes:
            raise Refused(errno.ENOMEM)

    def require_within(self, domain: DomainId) -> None:
        """Refused if the domain is beyond a quota already, though what it wants is free."""
        usage = self.of(domain)
        if domain != HOST and usage.nodes > self.quotas.nodes:
            raise Refused(errno.ENOSPC)
        if domain != HOST and usage.bytes > self.quotas.bytes:
            raise Refused(errno.ENOMEM)

    def add(self, domain: DomainId, nodes: int, size: int) -> None:
        usage = self.of(domain)
        usage.nodes += nodes
        usage.bytes += size

    def require_watch(self, domain: DomainId, size: int) -> None:
        """Refused unless the domain may have one watch more."""
        if domain != HOST and self.of(domain).watches >= self.quotas.watches:
            raise Refused(errno.E2BIG)
        self.require(domain, size=size)

    def add_watch(self, domain: DomainId, size: int) -> None:
        usage = self.of(domain)
        usage.watches += 1
        usage.bytes += size

    def remove_watch(self, domain: DomainId, size: int) -> None:
        usage = self.of(domain)
        usage.watches -= 1
        usage.bytes -= size

    def add_transaction(self, domain: DomainId) -> None:
        """Refused if the domain has too many."""
        usage = self.of(domain)
        if domain != HOST and usage.transactions >= self.quotas.transactions:
            raise Refused(errno.ENOSPC)
        usage.transactions += 1

    def require_held(self, domain: DomainId, held: int) -> None:
        """Refused unless one transaction of the domain may keep so many bytes."""
        if domain != HOST and held > self.quotas.transaction_bytes:
            raise Refused(errno.ENOMEM)

    def remove_transaction(self, domain: DomainId, held: int) -> None:
        usage = self.of(domain)
        usage.transactions -= 1
        usage.bytes -= held
