# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a runtime's interpreter runs: the bodies of its Python functions (csrc/runtime/call.h).

Errors go back as an errno and a sentence; nothing raises into C, nothing is printed.
"""

from __future__ import annotations

import errno
from posix import strerror

from kvmchand.errors import TooLong, VchanError, from_errno
from kvmchand.wire import client
from libxenvchan_shim.protocol import (
    answer_of,
    carried,
    check_grant,
    check_pages,
    check_port,
    connect_failure,
    receive_failure,
    socket_path,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OFFER, CONNECT, BIND, JOIN, SHARE, MAP, NOTIFY, PORT, DOMAINS = range(9)
"""enum kvmchan_what."""
_DONE = -1
"""What the functions return. cffi returns 0 if it can't run one."""
_DAEMON = "the daemon's socket"


def bind(ffi: Any) -> None:
    """Give C the bodies."""

    def failed(error: Exception, sentence: Any, room: int) -> int:
        if isinstance(error, MemoryError):
            error = from_errno(errno.ENOMEM, "no memory to talk to the daemon")
        text = error.sentence if isinstance(error, VchanError) else f"unexpected {type(error).__name__}: {error}"
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
    def encode(request: Any, packet: Any) -> None:
        if request.connect_errno:
            path = socket_path(text(request.runtime_dir), text(request.domain))
            raise connect_failure(path, OSError(request.connect_errno, strerror(request.connect_errno)))
        data = client.requests.encode(message_of(request))
        if len(data) > packet.room:
            raise TooLong("the request is too long for a packet")
        packet.size = len(data)
        ffi.memmove(packet.data, data, len(data))

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
    def decode(what: int, received: Any, answer: Any) -> None:
        if received.error:
            raise receive_failure(_DAEMON, OSError(received.error, strerror(received.error)))
        data, fds = bytes(ffi.buffer(received.data, received.size)), received.fd_count
        if what in (OFFER, CONNECT, BIND, JOIN):
            _fill_grant(answer, answer_of(data, _DAEMON, client.Grant, *((client.Vacant,) if what == CONNECT else ())), fds)
        elif what in (SHARE, MAP):
            pages = answer_of(data, _DAEMON, client.Pages)
            check_pages(pages, fds, _DAEMON)
            answer.ref, answer.pages, answer.offset = pages.ref, pages.pages, pages.offset
        elif what == NOTIFY:
            answer_of(data, _DAEMON, client.Done)
        elif what == PORT:
            port = answer_of(data, _DAEMON, client.Port)
            check_port(port, _DAEMON)
            answer.state, answer.peer, answer.peer_port = client.PORT_STATES.index(port.state), port.domain, port.port
        else:
            found = answer_of(data, _DAEMON, client.Domains)
            numbers = [each.domain for each in found.domains]
            answer.count, answer.own, answer.more = len(numbers), found.own, found.more
            answer.numbers[0 : len(numbers)] = numbers


def _fill_grant(answer: Any, reply: client.Grant | client.Vacant, fds: int) -> None:
    """Fill in struct kvmchan_grant, whose fields have the message's names."""
    if not isinstance(reply, client.Grant):
        answer.again = 1
        return
    check_grant(reply, fds, _DAEMON)
    into = answer.grant
    into.path = reply.path.encode()  # cffi refuses one that is too long
    into.channel, into.left_order, into.right_order = reply.channel, reply.left_order, reply.right_order
    into.events, into.offset = client.EVENTS.index(reply.events), reply.offset
    into.doorbell, into.doorbell_value = reply.doorbell, reply.doorbell_value
