# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libxenvchan.so's embedded interpreter runs: the bodies of its Python functions.

Errors go back as an errno and a sentence; nothing raises into C, nothing is printed.
"""

from __future__ import annotations

import errno
from os import dup

from kvmchand.errors import KvmchanError
from kvmchand.wire.client import DOMAINS_MAX, EVENTS, PORT_STATES, port_of
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
    """Gives the bodies to one library; a process may have several of ours, and one interpreter."""

    def failed(error: Exception, sentence: Any, room: int) -> int:
        text = error.sentence if isinstance(error, KvmchanError) else f"unexpected {type(error).__name__}: {error}"
        data = text.encode(errors="replace")[: room - 1] + b"\0"
        ffi.memmove(sentence, data, len(data))
        number = getattr(error, "errno", None)
        return number if isinstance(number, int) and number > 0 else errno.EIO

    def function(body: Callable[..., None]) -> None:
        """Makes `body` the function of its name in C, without the last two arguments, which get its error."""

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

    def fill(opened: Any, connection: Connection, granted: Granted, *, is_server: bool) -> None:
        grant = granted.grant
        path = grant.path.encode()
        ffi.memmove(opened.path, path + b"\0", len(path) + 1)
        opened.left_order, opened.right_order = grant.left_order, grant.right_order
        opened.port = port_of(grant.channel, is_server=is_server)
        opened.events, opened.doorbell_value = EVENTS.index(grant.events), grant.doorbell_value
        opened.region_offset, opened.doorbell_offset = grant.offset, grant.doorbell
        opened.notify_fd, opened.control_fd = granted.notify, connection.detach()
        opened.region_fd, opened.event_fd = granted.region, granted.event

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
    def open(request: Any, opened: Any) -> None:
        with connection_to(request.where) as connection:
            granted = open_end(connection, request)
            fill(opened, connection, granted, is_server=request.what in (OFFER, BIND))

    @function
    def ask(request: Any, control_fd: Any) -> None:
        with connection_to(request.where) as connection:
            connection.ask_to_connect(request.peer, text(request.path), waits=bool(request.waits))
            control_fd[0] = connection.detach()

    @function
    def answer(control_fd: int, opened: Any) -> None:
        with Connection.adopt(control_fd) as connection:
            fill(opened, connection, connection.answer(waits=True), is_server=False)

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
            pass  # nothing that a close could tell
