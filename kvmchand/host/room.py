# SPDX-License-Identifier: LGPL-2.1-or-later
"""How many descriptors the daemon has left, and each domain's share of them."""

from __future__ import annotations

import resource
from collections.abc import Sized

from kvmchand.channels.channels import Channels
from kvmchand.channels.registry import Registry, Side
from kvmchand.channels.sharing import Sharing
from kvmchand.channels.waitlist import Waitlist
from kvmchand.errors import LimitReached, OutOfResources
from kvmchand.ids import HOST, DomainId
from kvmchand.links.pool import Pool

_CHANNEL_FDS = 3
"""Descriptors that main has of a channel, beside one for each connection."""
_SPARE_FDS = 64
"""Kept for the daemon itself, and for the restart of a service. Without a free one main could not
take a connection over, and so could not even tell its client."""


class Room:
    """The descriptors that are left."""

    def __init__(
        self,
        registry: Registry,
        channels: Channels,
        sharing: Sharing,
        waitlist: Waitlist,
        connections: tuple[Sized, ...],
        pool: Pool | None,
    ) -> None:
        """Count the descriptors of all these. `connections` have one for each that they contain."""
        self._registry = registry
        self._channels = channels
        self._sharing = sharing
        self._waitlist = waitlist
        self._connections = connections
        self._pool = pool

    def require(self, wanted: int = 0) -> int:
        """Return how many descriptors `wanted` leaves.

        Raises OutOfResources if they are too few.
        """
        held = _CHANNEL_FDS * len(self._channels) + len(self._sharing)
        taken = sum(map(len, self._connections)) + held + 2 * len(self._registry.domains) + _SPARE_FDS
        taken += self._pool.fds if self._pool is not None else 0
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if taken + wanted > most:
            raise OutOfResources(f"the daemon needs more than the {most} descriptors it may have: raise its limit (LimitNOFILE)")
        return most - taken - wanted

    def require_share(self, domain: DomainId) -> None:
        """Raise LimitReached if a domain has more descriptors than are left: none takes them all.

        The host may. Raises OutOfResources if too few for another channel are left.
        """
        left = self.require(_CHANNEL_FDS)
        taken = (_CHANNEL_FDS + 2) * self._registry.ends.count(domain, Side.SERVER)
        taken += 2 * self._sharing.count(domain) + self._waitlist.count(domain)
        if domain != HOST and taken > left:
            raise LimitReached(f"domain {domain} has its share of the daemon's descriptors, {taken}: raise LimitNOFILE")
