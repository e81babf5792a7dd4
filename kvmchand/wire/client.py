# SPDX-License-Identifier: LGPL-2.1-or-later
"""The messages between a client (libxenvchan, the Python API, the tool) and the daemon's local socket.

A connection opens with Hello. After that each request gets one reply: its own, or Error. A connection that has
opened a channel is that channel's end: it lives until Close or until the connection goes.

Changes by version:
    1: the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmchand.wire.codec import Codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmchand.ids import ChannelId, DomainId, Size

VERSION = 1

SOCKET_NAME = "kvmchand.sock"
"""The default socket in the runtime directory: the host's, or in a guest the guest's."""


def socket_name(domain: int) -> str:
    """The socket of a local domain; processes that connect to it act as that domain."""
    return f"domain-{domain}.sock"


@dataclass(frozen=True, slots=True)
class Hello:
    """Client → daemon, first."""

    version: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """The reply to Hello: the daemon's version, and the domain that this socket stands for."""

    version: int
    domain: DomainId


@dataclass(frozen=True, slots=True)
class Offer:
    """libxenvchan_server_init: offers `peer` a vchan at `path`. Reply: Granted."""

    peer: int
    path: str
    read_min: Size
    write_min: Size


@dataclass(frozen=True, slots=True)
class Connect:
    """libxenvchan_client_init: connects to what `domain` offers at `path`. Reply: Granted."""

    domain: int
    path: str


@dataclass(frozen=True, slots=True)
class Granted:
    """An end of a channel. Two descriptors come beside it: the region, and this end of the event channel."""

    channel: ChannelId
    path: str
    left_order: int
    right_order: int


@dataclass(frozen=True, slots=True)
class Close:
    """Ends this connection's end of its channel. Reply: Closed."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The channel's end is released."""


@dataclass(frozen=True, slots=True)
class List:
    """Asks for domains, and for channels numbered above `after`. Reply: Listing."""

    after: ChannelId


@dataclass(frozen=True, slots=True)
class DomainInfo:
    """A domain the daemon knows. `kind`: host, local."""

    domain: DomainId
    kind: str


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """A channel. A pid of 0: nobody is at that end. Ready: bytes waiting to be read by that end."""

    channel: ChannelId
    path: str
    state: str
    server: DomainId
    client: DomainId
    server_pid: int
    client_pid: int
    server_ring: Size
    client_ring: Size
    server_ready: Size
    client_ready: Size


@dataclass(frozen=True, slots=True)
class Listing:
    """`more`: ask again, with `after` the last channel here."""

    domains: tuple[DomainInfo, ...]
    channels: tuple[ChannelInfo, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Error:
    """The request failed. `code` is of kvmchand.errors; after a protocol error the daemon closes the connection."""

    code: str
    sentence: str


REQUESTS: dict[str, type] = {
    "hello": Hello,
    "offer": Offer,
    "connect": Connect,
    "close": Close,
    "list": List,
}

REPLIES: dict[str, type] = {
    "welcome": Welcome,
    "granted": Granted,
    "closed": Closed,
    "listing": Listing,
    "error": Error,
}

requests = Codec(REQUESTS)
replies = Codec(REPLIES, (DomainInfo, ChannelInfo))
