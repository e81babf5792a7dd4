# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libxenvchan.so's embedded interpreter runs: the bodies of its Python functions.

Errors go back as an errno and a sentence; nothing raises into C, nothing is printed.
"""

from __future__ import annotations

import errno
from os import dup

from kvmchand.errors import KvmchanError
from kvmchand.wire.client import DOMAINS_MAX, EVENTS, PORT_STATES
from libxenvchan_shim.connection import Connection, socket_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmchand.ids import Size
    from kvmchand.wire.client import Pages
    from libxenvchan_shim.connection import Granted

OFFER, CONNECT, BIND, JOIN = range(4)
"""enum kvmchan_what."""


def bind(ffi: Any) -> None:
    """Give one library the bodies. A process has one interpreter for all of our libraries."""

    def failed(error: Exception, sentence: Any, room: int) -> int:
        text = error.sentence if isinstance(error, KvmchanError) else f"unexpected {type(error).__name__}: {error}"
        data = text.encode(errors="replace")[: room - 1] + b"\0"
        ffi.memmove(sentence, data, len(data))
        number = getattr(error, "errno", None)
        return number if isinstance(number, int) and number > 0 else errno.EIO

    def function(body: Callable[..., None]) -> None:
        """Make `body` the C function of its name. The last two arguments get its error."""

        def call(*arguments: Any) -> int:
            *given, sentence, room = arguments
            try:
                body(*given)
                return 0
            except Exception as error:
                return failed(error, sentence, room)

        ffi.def_extern(name=f"kvmchan_python_{body.__name__}", error=errno.EIO)(call)

    def text(pointer: Any) -> str:
        return str(ffi.string(pointer).decode(errors="surrogateescape"))

    def connection_to(where: Any) -> Connection:
        return Connection(socket_path(text(where.runtime_dir), text(where.domain)))

    def fill(into: Any, connection: Connection, granted: Granted) -> None:
        """Fill in struct kvmchan_grant, whose fields have the message's names."""
        grant = granted.grant
        into.path = grant.path.encode()  # cffi refuses one that is too long
        into.channel, into.left_order, into.right_order = grant.channel, grant.left_order, grant.right_order
        into.events, into.offset = EVENTS.index(grant.events), grant.offset
        into.doorbell, into.doorbell_value = grant.doorbell, grant.doorbell_value
        into.control_fd = connection.detach()
        into.region_fd, into.event_fd, into.notify_fd = granted.region, granted.event, granted.notify

    def open_end(connection: Connection, request: Any) -> Granted:
        what = request.what
        if what == OFFER:
            path, once = text(request.path), bool(request.once)
            return connection.offer(request.peer, path, request.read_min, request.write_min, once=once)
        if what == CONNECT:
            return connection.connect(request.peer, text(request.path), waits=bool(request.waits))
        if what == BIND:
            return connection.bind(request.peer)
        return connection.join(request.peer, request.port)

    @function
    def open(request: Any, grant: Any) -> None:
        with connection_to(request.where) as connection:
            fill(grant, connection, open_end(connection, request))

    @function
    def ask(request: Any, control_fd: Any) -> None:
        with connection_to(request.where) as connection:
            connection.ask_to_connect(request.peer, text(request.path), waits=bool(request.waits))
            control_fd[0] = connection.detach()

    @function
    def answer(control_fd: int, grant: Any) -> None:
        with Connection.adopt(control_fd) as connection:
            fill(grant, connection, connection.answer(waits=True))

    def give(pages: Any, connection: Connection, given: tuple[Pages, int]) -> None:
        described, pages.memory_fd = given
        pages.ref, pages.pages, pages.offset = described.ref, described.pages, described.offset
        pages.control_fd = connection.detach()

    @function
    def share(pages: Any) -> None:
        with connection_to(pages.where) as connection:
            give(pages, connection, connection.share(pages.peer, pages.pages, writable=bool(pages.writable)))

    @function
    def map(pages: Any) -> None:
        with connection_to(pages.where) as connection:
            give(pages, connection, connection.map(pages.peer, pages.ref, writable=bool(pages.writable)))

    @function
    def notify(control_fd: int, offset: Size, clears: int, port: Size) -> None:
        with Connection.adopt(dup(control_fd)) as connection:
            connection.notify(offset, port, clears=bool(clears))

    @function
    def port(port: Any) -> None:
        with connection_to(port.where) as connection:
            found = connection.port(port.of, port.port)
        port.state, port.peer, port.peer_port = PORT_STATES.index(found.state), found.domain, found.port

    @function
    def domains(domains: Any) -> None:
        with connection_to(domains.where) as connection:
            found = connection.domains(domains.first)
            numbers = [each.domain for each in found.domains]
            while len(numbers) < domains.most and len(found.domains) == DOMAINS_MAX:
                found = connection.domains(numbers[-1] + 1)
                numbers += [each.domain for each in found.domains]
        domains.count, domains.own = min(len(numbers), domains.most), found.own
        domains.numbers[0 : domains.count] = numbers[: domains.count]

    @ffi.def_extern()  # type: ignore[untyped-decorator, unused-ignore]
    def kvmchan_python_close(control_fd: int) -> None:
        try:
            Connection.adopt(control_fd).close_channel()
        except Exception:
            pass  # a close has nobody to tell
