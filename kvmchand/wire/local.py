# SPDX-License-Identifier: LGPL-2.1-or-later
"""The messages between main and the local process, over a socket pair of their own."""

from __future__ import annotations

from kvmchand.wire import client
from kvmchand.wire.codec import Codec
from kvmchand.wire.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmchand.ids import ClientId, DomainId, Size
    from kvmchand.wire.client import Request


class Listen(Record):
    """main → local: accept on the listening socket beside this.

    `whose`: what sentences call the domain, "domain 0" or "this guest". `public`: any user may
    connect, else root, the daemon's own user, and members of `group` (-1: none).
    """

    domain: DomainId
    whose: str
    public: bool
    owner: Size
    group: int
    max_clients: int


class Restore(Record):
    """main → local, after a restart: the connection beside this is `client`'s, after its hello."""

    client: ClientId
    domain: DomainId


class Start(Record):
    """main → local: all sockets are sent; drop privileges and serve.

    New clients are numbered from `first_client` on.
    """

    first_client: ClientId
    user: str


class Started(Record):
    """local → main: serving."""


class Ask(Record):
    """local → main: `client` asks `request`.

    The client's connection is beside its first; main answers on it.
    """

    client: ClientId
    request: Request


TO_LOCAL: dict[str, type] = {"listen": Listen, "restore": Restore, "start": Start}
TO_MAIN: dict[str, type] = {"started": Started, "ask": Ask}

to_local = Codec(TO_LOCAL)
to_main = Codec(TO_MAIN, {"Request": client.requests})
