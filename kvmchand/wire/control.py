# SPDX-License-Identifier: LGPL-2.1-or-later
"""The messages between a guest's daemon and the host's, over the control vchan.

The control process at each end reads them for its main; what these two say is here too.

Each packet on the ring follows its length, of 4 bytes, little-endian. The host is the vchan's
server. A guest that starts says hello, is welcomed, and asks on behalf of its clients. The control
vchan's end is the end of the session: all channels of the guest end with it.

Changes by version:
    1: the first.
    2: shared pages; the store's connections, for programs in a guest that speak xenstore's
        protocol.
    3: messages as fields of others, and not packets within packets; bytes as they are, and not in
        base64.
    4: the replies of version 5 of the clients' protocol.
    5: those of version 6.
    6: devices are let go before they are unplugged; the guest says for how large a device it has
        room; control devices have an age.
    7: those of version 7 of the clients' protocol; a session that stood may end with Refused; the
         guest says behind which bridge it has room, and is told that it is detached.
"""

from __future__ import annotations

import struct

from kvmchand.ids import ChannelId, Size
from kvmchand.wire import client, store
from kvmchand.wire.codec import Codec
from kvmchand.wire.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmchand.ids import ClientId, DomainId
    from kvmchand.wire.client import Grant, Pages, Request
    from kvmchand.wire.client import Reply as ClientReply

VERSION = 7

LEFT_ORDER, RIGHT_ORDER = 15, 16
"""Of the control vchan's rings. Left is the guest's to write."""
DEVICE_BYTES = 128 * 1024
"""Of the control device, which has the vchan at its start."""
AGE_OFFSET = DEVICE_BYTES - 8
"""Where a control device has its number in little-endian order, 8 bytes: a later one's is higher.

An earlier daemon's control device may still be in the guest.
"""
LENGTH = struct.Struct("<I")


# ---- from the guest ----


class Hello(Record):
    """First. The host answers Welcome, or Refused and ends the session."""

    version: int


class Ask(Record):
    """A client of the guest's asks the host.

    `serial` counts this client's requests from 1. Reply: Reply, Granted or Shared.
    """

    client: ClientId
    serial: int
    pid: int
    request: Request


class Close(Record):
    """A client of the guest's is gone.

    What its end did not do itself, as saying so to its peer, the host does. Reply: Closed.
    """

    client: ClientId


class Ready(Record):
    """The guest can use the device whose ivshmem id there is `peer`, and `vectors` of it."""

    peer: int
    vectors: int


class Unusable(Record):
    """A device can't be used; `peer` 0: the guest does not know which. `sentence`: why."""

    peer: int
    sentence: str


class Released(Record):
    """The guest has let go of the device `peer`: it has no interrupts any more, and no channel."""

    peer: int


class Room(Record):
    """The guest has a window for one more device whose memory is this large, and for no larger one.

    Comes after Welcome, and whenever that has changed. `bridge`: the bridge with that window, by
    the slots and functions on the way to it from the root complex, such as "02.1/00.0".
    """

    size: Size
    bridge: str


# ---- from the host ----


class Welcome(Record):
    """The session stands. `domain`: the guest's number."""

    domain: DomainId


class Refused(Record):
    """There will be no session, or none any more. `sentence`: why."""

    sentence: str


class Reply(Record):
    """The answer to the client's request of that serial, where that is no Granted and no Shared."""

    client: ClientId
    serial: int
    reply: ClientReply


class Granted(Record):
    """The answer to the client's request of that serial, which opened a channel.

    The channel is on a slice of the device whose ivshmem id in the guest is `peer`, and `vector`
    wakes the client. The grant's `offset` is that in the device, and its `doorbell` is the guest's
    to know.
    """

    client: ClientId
    serial: int
    peer: int
    vector: int
    grant: Grant


class Shared(Record):
    """The answer to the client's request of that serial, which shared or mapped pages.

    They are on a slice, as Granted's.
    """

    client: ClientId
    serial: int
    peer: int
    pages: Pages


class Closed(Record):
    """A client's end is released."""

    client: ClientId


class Detached(Record):
    """The guest is detached: all its channels end now, and its devices are asked back.

    What it offers is asked for again in the next session.
    """


class Release(Record):
    """The device `peer` is to be unplugged, or is an earlier daemon's. Reply: Released."""

    peer: int


class Again(Record):
    """A control process has died, so messages may be lost, either way.

    Everything that has no answer is to be said again. What had come the first time gets the same
    answer. Connections to the store are over.
    """


# ---- between main and its control process ----


class Attach(Record):
    """main → control: serve an end of a control vchan.

    `is_server`: the host's. The descriptors are as of `grant`, whose channel and path say nothing.
    `rate`: requests a second that are passed on, of the guest `domain`, in whichever session.
    """

    session: Size
    domain: DomainId
    is_server: bool
    rate: int
    grant: Grant


class Send(Record):
    """main → control: put a packet into the session's ring, as it is."""

    session: Size
    packet: bytes


class Detach(Record):
    """main → control: the session is over.

    `hangs_up`: say so to the other end; not where the page may be another session's by then. No
    answer.
    """

    session: Size
    hangs_up: bool


class Start(Record):
    """main → control: all that was there before is sent; drop privileges and serve."""

    user: str


class Started(Record):
    """control → main: serving."""


class Received(Record):
    """control → main: a packet came, here encoded anew from what was decoded."""

    session: Size
    packet: bytes


class Lost(Record):
    """control → main: the other end is gone, or broke the rules as `sentence` says.

    Nothing more of this session comes.
    """

    session: Size
    sentence: str


TO_HOST: dict[str, type] = {
    "hello": Hello,
    "ask": Ask,
    "close": Close,
    "ready": Ready,
    "unusable": Unusable,
    "released": Released,
    "room": Room,
    "store-request": store.Request,
    "store-taken": store.Taken,
    "store-ended": store.Ended,
}
TO_GUEST: dict[str, type] = {
    "welcome": Welcome,
    "refused": Refused,
    "reply": Reply,
    "granted": Granted,
    "shared": Shared,
    "closed": Closed,
    "detached": Detached,
    "release": Release,
    "again": Again,
    "store-output": store.Output,
    "store-ended": store.Ended,
}
TO_CONTROL: dict[str, type] = {"attach": Attach, "send": Send, "detach": Detach, "start": Start}
TO_MAIN: dict[str, type] = {"started": Started, "received": Received, "lost": Lost}

_INNER: dict[str, type | Codec] = {
    "Request": client.requests,
    "ClientReply": client.replies,
    "Grant": client.Grant,
    "Pages": client.Pages,
}

to_host = Codec(TO_HOST, _INNER)
to_guest = Codec(TO_GUEST, _INNER)
to_control = Codec(TO_CONTROL, _INNER)
to_main = Codec(TO_MAIN)


def grant(events: str, offset: int = 0, doorbell: int = 0, doorbell_value: int = 0) -> client.Grant:
    """Return the grant of a control vchan's end."""
    numbers = Size(offset), Size(doorbell), Size(doorbell_value)
    return client.Grant(ChannelId(0), "", LEFT_ORDER, RIGHT_ORDER, events, *numbers)
