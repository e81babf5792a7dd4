# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a runtime's interpreter runs: the bodies of its Python functions (csrc/runtime/call.h).

Errors go back as an errno and a sentence; nothing raises into C, nothing is printed.
"""

from __future__ import annotations

import errno
from os import strerror

from kvmchand.errors import KvmchanError, from_errno
from kvmchand.wire import client
from libxenvchan_shim.connection import Connection, carried, connect_failure, socket_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from libxenvchan_shim.connection import Granted

OFFER, CONNECT, BIND, JOIN, SHARE, MAP, NOTIFY, PORT, DOMAINS = range(9)
"""enum kvmchan_what."""
_DONE = -1
"""What the functions return. cffi returns 0 if it can't run one."""


def bind(ffi: Any) -> None:
    """Give C the bodies."""

    def failed(error: Exception, sentence: Any, room: int) -> int:
        if isinstance(error, MemoryError):
            error = from_errno(errno.ENOMEM, "no memory to talk to the daemon")
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
                return _DONE
            except Exception as error:
                return failed(error, sentence, room)

        ffi.def_extern(name=f"kvmchan_python_{body.__name__}", error=errno.EIO)(call)

    def text(pointer: Any) -> str:
        return str(ffi.string(pointer).decode(errors="surrogateescape"))

    @ffi.def_extern()  # type: ignore[untyped-decorator, unused-ignore]
    def kvmchan_python_start() -> None:
        pass

    @function
    def ask(request: Any) -> None:
        if request.control_fd < 0:
            path = socket_path(text(request.runtime_dir), text(request.domain))
            raise connect_failure(path, OSError(request.connect_errno, strerror(request.connect_errno)))
        message = message_of(request)
        connection = Connection.adopt(request.control_fd, is_new=bool(request.is_new))
        try:
            connection.send(message)
        finally:
            connection.detach()

    def message_of(request: Any) -> object:
        what, peer = request.what, request.peer
        if what == OFFER:
            path = carried(text(request.path))
            return client.Offer(peer, path, request.read_min, request.write_min, bool(request.once))
        if what == CONNECT:
            return client.Connect(peer, carried(text(request.path)), bool(request.waits))
        if what == BIND:
            return client.Bind(peer)
        if what == JOIN:
            return client.Join(peer, request.port)
        if what == SHARE:
            return client.Share(peer, request.pages, bool(request.writable))
        if what == MAP:
            return client.Map(peer, request.ref, bool(request.writable))
        if what == NOTIFY:
            return client.Notify(bool(request.clears), request.offset, request.port)
        if what == PORT:
            return client.GetPort(peer, request.port)
        return client.GetDomains(request.first)

    @function
    def answer(what: int, control_fd: int, answer: Any) -> None:
        connection = Connection.adopt(control_fd)
        try:
            if what == CONNECT:
                granted = connection.take_grant_or_vacancy()
                if granted is None:
                    answer.again = 1
                else:
                    _fill(answer.grant, granted)
            elif what in (OFFER, BIND, JOIN):
                _fill(answer.grant, connection.take_grant())
            elif what in (SHARE, MAP):
                pages, answer.memory_fd = connection.take_pages()
                answer.ref, answer.pages, answer.offset = pages.ref, pages.pages, pages.offset
            elif what == NOTIFY:
                connection.take_done()
            elif what == PORT:
                found = connection.take_port()
                answer.state, answer.peer, answer.peer_port = client.PORT_STATES.index(found.state), found.domain, found.port
            else:
                _fill_domains(answer, connection.take_domains())
        finally:
            connection.detach()


def _fill(into: Any, granted: Granted) -> None:
    """Fill in struct kvmchan_grant, whose fields have the message's names."""
    grant = granted.grant
    into.path = grant.path.encode()  # cffi refuses one that is too long
    into.channel, into.left_order, into.right_order = grant.channel, grant.left_order, grant.right_order
    into.events, into.offset = client.EVENTS.index(grant.events), grant.offset
    into.doorbell, into.doorbell_value = grant.doorbell, grant.doorbell_value
    into.region_fd, into.event_fd, into.notify_fd = granted.region, granted.event, granted.notify


def _fill_domains(into: Any, found: client.Domains) -> None:
    numbers = [each.domain for each in found.domains]
    into.count, into.own = len(numbers), found.own
    into.numbers[0 : len(numbers)] = numbers
