# SPDX-License-Identifier: LGPL-2.1-or-later
"""The messages between main and its store process, over a socket pair of their own.

The host's store process has the tree; a guest's forwards to it.

Some pass the control vchan too (kvmchand.wire.control), between a guest's main and the host's.
`client` is then the guest's number of a connection; each side knows it by one of its own as well.
"""

from __future__ import annotations

from kvmchand.wire import local
from kvmchand.wire.codec import Codec
from kvmchand.wire.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmchand.ids import ChannelId, ClientId, DomainId

REQUEST_BYTES = 4112
"""The most bytes of a request: xenstore's header and its longest payload."""
OUTPUT_BYTES = 8192
"""The most bytes that one Output carries. Any reply or event is smaller."""


# ---- what is, to the one with the tree ----


class Journal(Record):
    """main → store, first: the memory file beside this is where it notes what must outlive it.

    Empty for the first process.
    """


class Domain(Record):
    """main → store: a domain is there. `uuid`: its hypervisor's, or empty."""

    domain: DomainId
    name: str
    uuid: str


class Gone(Record):
    """main → store: a domain is there no more."""

    domain: DomainId


class Offered(Record):
    """main → store: a vchan stands at `path`. Said before its server is answered."""

    channel: ChannelId
    path: str
    server: DomainId
    client: DomainId
    ref: int
    port: int


class Withdrawn(Record):
    """main → store: it stands there no more; also the answer to Withdraw."""

    channel: ChannelId


class Withdraw(Record):
    """store → main: a program has removed the channel's nodes.

    The program is answered when Withdrawn has come.
    """

    channel: ChannelId


# ---- connections to sockets of this machine ----


class Connected(Record):
    """store → main: a new connection. Main keeps the duplicate beside this for a local.Restore."""

    client: ClientId


class Ended(Record):
    """Both ways, in the guest and between the machines too: that connection is over, or must end.

    No answer.
    """

    client: ClientId


# ---- connections in guests ----


class Remote(Record):
    """main → store: a guest has a new connection."""

    client: ClientId
    domain: DomainId


class Request(Record):
    """From the guest's store process to the host's: one whole request.

    The next comes after an Output that answers it.
    """

    client: ClientId
    data: bytes


class Output(Record):
    """From the host's store process to the guest's: replies and events, each whole.

    `answers`: the reply is among them. The next comes after Taken.
    """

    client: ClientId
    data: bytes
    answers: bool


class Taken(Record):
    """From the guest's store process to the host's: the program's socket has taken the Output."""

    client: ClientId


_SOCKETS: dict[str, type] = {"listen": local.Listen, "restore": local.Restore, "start": local.Start, "ended": Ended}
_FROM_SOCKETS: dict[str, type] = {"started": local.Started, "connected": Connected, "ended": Ended}
FROM_GUEST: dict[str, type] = {"request": Request, "taken": Taken}
TO_STORE: dict[str, type] = {
    **_SOCKETS,
    **FROM_GUEST,
    "journal": Journal,
    "domain": Domain,
    "gone": Gone,
    "offered": Offered,
    "withdrawn": Withdrawn,
    "remote": Remote,
}
FROM_STORE: dict[str, type] = {**_FROM_SOCKETS, "withdraw": Withdraw, "output": Output}
TO_FORWARDER: dict[str, type] = {**_SOCKETS, "output": Output}
FROM_FORWARDER: dict[str, type] = {**_FROM_SOCKETS, **FROM_GUEST}

to_store = Codec(TO_STORE)
from_store = Codec(FROM_STORE)
to_forwarder = Codec(TO_FORWARDER)
from_forwarder = Codec(FROM_FORWARDER)
