# SPDX-License-Identifier: LGPL-2.1-or-later
"""The messages between a guest's daemon and the host's, over the control vchan; and those between a control process, which
reads them, and its main.

On the ring each packet is 4 bytes of length, little-endian, and so many of JSON. The host is the vchan's server. A guest that
starts says hello, is welcomed, and asks on behalf of its clients. The control vchan's end is the end of the session: all channels
of the guest end with it.

Changes by version:
    1: the first.
    2: shared pages; the store's connections, for programs in a guest that speak xenstore's protocol.
"""

from __future__ import annotations

import struct

from kvmchand.wire import store
from kvmchand.wire.codec import SERVICE_PACKET_MAX, Codec
from kvmchand.wire.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmchand.ids import ChannelId, ClientId, DomainId, Size
    from kvmchand.wire.codec import Packet

VERSION = 2

LEFT_ORDER, RIGHT_ORDER = 15, 16
"""Of the control vchan's rings. Left is the guest's to write."""
DEVICE_BYTES = 128 * 1024
"""Of the control device, which has the vchan at its start."""
PACKET_MAX = 24 * 1024
"""Bytes of one packet on the ring, less than the smaller ring holds."""
LENGTH = struct.Struct("<I")


# ---- from the guest ----


class Hello(Record):
    """First. The host answers Welcome, or Refused and ends the session."""

    version: int


class Ask(Record):
    """A client of the guest's asks the host. `request` is a packet of kvmchand.wire.client, `serial` counts this client's from 1.
    Reply: Reply, Grant or Pages."""

    client: ClientId
    serial: int
    pid: int
    request: Packet


class Close(Record):
    """A client of the guest's is gone. What its end did not do itself, as saying so to its peer, the host does. Reply: Closed."""

    client: ClientId


class Ready(Record):
    """The guest can use the device whose ivshmem id there is `peer`, and `vectors` of its interrupt vectors."""

    peer: int
    vectors: int


class Unusable(Record):
    """A device can't be used; `peer` 0: the guest does not know which. `sentence`: why."""

    peer: int
    sentence: str


# ---- from the host ----


class Welcome(Record):
    """The session stands. `domain`: the guest's number."""

    domain: DomainId


class Refused(Record):
    """There will be no session. `sentence`: why."""

    sentence: str


class Reply(Record):
    """The answer to the client's request of that serial: a packet of kvmchand.wire.client."""

    client: ClientId
    serial: int
    reply: Packet


class Grant(Record):
    """The answer to the client's request of that serial, which opened a channel: a slice at `offset` of the device that is `peer`
    in the guest, woken by `vector`; its peer is woken by writing `doorbell_value` to the doorbell."""

    client: ClientId
    serial: int
    channel: ChannelId
    path: str
    left_order: int
    right_order: int
    peer: int
    offset: Size
    vector: int
    doorbell_value: Size


class Pages(Record):
    """The answer to the client's request of that serial, which shared or mapped pages: a slice, as Grant's. The rest is as of
    kvmchand.wire.client.Pages."""

    client: ClientId
    serial: int
    ref: Size
    pages: int
    peer: int
    offset: Size


class Closed(Record):
    """A client's end is released."""

    client: ClientId


class Again(Record):
    """Messages may be lost, either way, for a control process has died: everything that is not answered is to be said again. What
    had come the first time gets the same answer. Connections to the store are over."""


# ---- between main and its control process ----


class Attach(Record):
    """main → control: serve an end of a control vchan. `is_server`: the host's. The rest and the descriptors are as of
    kvmchand.wire.client.Granted. `rate`: requests a second that are passed on, of the guest `domain`, in whichever session."""

    session: Size
    domain: DomainId
    is_server: bool
    events: str
    offset: Size
    doorbell: Size
    doorbell_value: Size
    rate: int


class Send(Record):
    """main → control: put a packet into the session's ring."""

    session: Size
    packet: Packet


class Detach(Record):
    """main → control: the session is over. `hangs_up`: say so to the other end; not where the page may be another session's by
    then. No answer."""

    session: Size
    hangs_up: bool


class Start(Record):
    """main → control: all that was there before is sent; drop privileges and serve."""

    user: str


class Started(Record):
    """control → main: serving."""


class Received(Record):
    """control → main: what came, encoded anew from what was decoded."""

    session: Size
    packet: Packet


class Lost(Record):
    """control → main: the other end is gone, or broke the rules as `sentence` says. Nothing more of this session comes."""

    session: Size
    sentence: str


TO_HOST: dict[str, type] = {
    "hello": Hello,
    "ask": Ask,
    "close": Close,
    "ready": Ready,
    "unusable": Unusable,
    "store-request": store.Request,
    "store-taken": store.Taken,
    "store-ended": store.Ended,
}
TO_GUEST: dict[str, type] = {
    "welcome": Welcome,
    "refused": Refused,
    "reply": Reply,
    "grant": Grant,
    "pages": Pages,
    "closed": Closed,
    "again": Again,
    "store-output": store.Output,
    "store-ended": store.Ended,
}
TO_CONTROL: dict[str, type] = {"attach": Attach, "send": Send, "detach": Detach, "start": Start}
TO_MAIN: dict[str, type] = {"started": Started, "received": Received, "lost": Lost}

to_host = Codec(TO_HOST)
to_guest = Codec(TO_GUEST)
to_control = Codec(TO_CONTROL, most=SERVICE_PACKET_MAX)
to_main = Codec(TO_MAIN, most=SERVICE_PACKET_MAX)
