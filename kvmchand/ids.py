# SPDX-License-Identifier: LGPL-2.1-or-later
"""The numbers that things go by, as distinct types: mixing them up is the natural mistake here."""

from __future__ import annotations

from typing import NewType

DomainId = NewType("DomainId", int)
"""0 is the host.

A guest has its libvirt id, a local domain the number given to `kvmchand host --local-domain`.
"""

ChannelId = NewType("ChannelId", int)
"""Counts up from 1 for as long as the daemon runs."""

ClientId = NewType("ClientId", int)
"""One connection to a local socket.

Counts up from 1 in the local process, across its restarts, too.
"""

Size = NewType("Size", int)
"""Bytes."""

DeviceId = NewType("DeviceId", int)
"""One ivshmem device of a link, in one or two guests.

Counts up from 1 for as long as the daemon runs.
"""

HOST = DomainId(0)
"""The host's domain number."""

HOST_PEER = 0
"""The host's ivshmem id on every device."""

CONTROL_PEER = 1
"""A guest's ivshmem id on its control device, which it recognizes by that."""

START_PEER = 2
"""A guest's ivshmem id on the device that it has from its start."""

PAGE = Size(4096)
"""Bytes of a page: the unit of memory that domains share."""

GENERATION = 1 << 36
"""Numbers of clients in one generation of a source: enough for a year at two thousand a second.

There may be 2**27 generations: most of a year's, of one guest that starts a session as often as it
may.
"""
