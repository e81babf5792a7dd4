# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a vchan is opened: offered by a server, connected to by a client."""

from __future__ import annotations

from kvmchand.errors import TimedOut
from kvmchand.wire import client
from libxenvchan_shim.api.buffers import size_of
from libxenvchan_shim.api.domains import resolved
from libxenvchan_shim.api.steps import Step, run
from libxenvchan_shim.api.timeouts import Deadline, nanoseconds
from libxenvchan_shim.api.vchan import Vchan
from libxenvchan_shim.connection import Connection, Granted
from libxenvchan_shim.protocol import carried

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from kvmchand.ids import Size

    Opening = Generator[Step, Any, tuple[Granted, int]]
    """The steps to what was granted, and the number of the peer's domain."""

_SIZE_MAX = 2**63 - 1


def offering(peer: int | str, path: str, read_min: int, write_min: int, *, once: bool) -> Opening:
    """Ask for a server's end."""
    sizes = size(read_min, "read_min"), size(write_min, "write_min")
    number = yield from resolved(peer, "peer")
    granted = yield Step(client.Offer(number, checked(path), sizes[0], sizes[1], once), Connection.take_grant)
    return granted, number


def connecting(domain: int | str, path: str, *, waits: bool) -> Opening:
    """Ask for a client's end. `waits`: until a server offers it and has no other client."""
    absolute = checked(path)
    number = yield from resolved(domain, "domain")
    if not absolute.startswith("/"):
        absolute = f"/local/domain/{number}/{absolute}"
    while True:
        granted = yield Step(client.Connect(number, absolute, waits), Connection.take_grant_or_vacancy, waits=waits)
        if granted is not None:
            return granted, number


def size(value: int, name: str) -> Size:
    """Return a ring's size, as the protocol can carry it."""
    return min(size_of(value, name), _SIZE_MAX)  # type: ignore[return-value]


def checked(path: str) -> str:
    """Return a path. Raises TypeError, TooLong, or InvalidArgument if it can't be one."""
    if not isinstance(path, str):
        raise TypeError(f"path must be a str, not {type(path).__name__}")
    return carried(path)


def offer(peer: int | str, path: str, *, read_min: int = 0, write_min: int = 0) -> Vchan:
    """Offer domain `peer` one vchan at `path`, and return the server's end at once.

    `peer` is a domain's number, libvirt's name or uuid of a guest, or "host". The end has no client
    yet: `state` says when one is there, and what is sent before is kept for it.
    When a client goes, another can take its place, and goes on where that one stopped. So this is
    libxenvchan_server_init(); listen() is for servers with a vchan for each client.

    `path` is absolute or below this domain's own node. What this domain has offered there before is
    not found any more, and goes on with the client that it has. The rings have room for `read_min`
    and `write_min` bytes or more; for 0 the daemon chooses. Blocks for the daemon's answer only.
    Raises NotFound (no such domain), Unreachable (no daemon), InvalidArgument, TooLong,
    AccessDenied (the path is not below this domain's node, or the daemon does not serve this user),
    LimitReached, OutOfResources or ProtocolError (a daemon of another release).

    >>> with offer("host", "data/example") as server:
    ...     server.state
    <State.WAITING: 2>
    """
    return opened(offering(peer, path, read_min, write_min, once=False), is_server=True)


def connect(domain: int | str, path: str, *, timeout: float | None = 0) -> Vchan:
    """Connect to the vchan that `domain` offers at `path`, absolute or below that domain's node.

    Raises NotFound if it offers none, and Busy if another client is connected. With a `timeout` in
    seconds, or None, waits for the server instead, by an event: TimedOut if none comes in time, and
    NotFound if the domain is gone. AccessDenied: it is offered to another domain. Other errors are
    as for offer(). The vchan's own timeout is None at first.

    >>> with listen("host", "data/example") as listener, connect("host", "data/example") as client:
    ...     with listener.accept() as server:
    ...         client.sendall(b"hello")
    ...         server.recv(100)
    b'hello'
    """
    deadline = Deadline(nanoseconds(timeout))
    steps = connecting(domain, path, waits=deadline.timeout != 0)
    try:
        return opened(steps, is_server=False, deadline=deadline)
    except TimedOut as error:
        if deadline.timeout <= 0 or deadline.left() > 1:
            raise
        raise TimedOut(f"no vchan that domain {domain} offers at {path} was free within {deadline}") from error


def opened(steps: Opening, *, is_server: bool, deadline: Deadline | None = None) -> Vchan:
    """Take the steps to an end on a connection of its own, which is the end's."""
    connection = Connection.from_environment()
    try:
        granted, peer = run(connection, steps, deadline.seconds if deadline else None)
        return made(connection, granted, peer, is_server=is_server)
    except BaseException:
        connection.close()
        raise


def made(connection: Connection, granted: Granted, peer: int, *, is_server: bool) -> Vchan:
    """Make a vchan of what was granted. Takes ownership of both."""
    if not is_server:
        connection.refuse_taken_back(granted)
    return Vchan(connection, granted, is_server=is_server, peer=peer)
