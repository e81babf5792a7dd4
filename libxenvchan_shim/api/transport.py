# SPDX-License-Identifier: LGPL-2.1-or-later
"""A vchan as a transport of asyncio: no thread, and flow control both ways."""

from __future__ import annotations

import asyncio
import ctypes
from errno import EPIPE
from typing import Any, cast

from kvmchand.errors import ChannelClosed
from kvmchand.wire import dataplane
from libxenvchan_shim.api.buffers import view_of
from libxenvchan_shim.api.receiving import SMALL
from libxenvchan_shim.connection import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from libxenvchan_shim.api.vchan import Vchan

_READ_MAX = 1 << 16
"""Bytes that a protocol is given at once."""
_HIGH_WATER = 1 << 16
"""Bytes that may wait for room before the protocol is told to pause, as for asyncio's sockets."""
_try_look, _try_read = dataplane.try_look, dataplane.try_read
_try_write, _try_await, _try_ask = dataplane.try_write, dataplane.try_await, dataplane.try_ask


class _Writing(asyncio.Transport):
    """What a transport writes: at once as long as there is room, and the rest as room comes."""

    _vchan: Vchan
    _protocol: asyncio.BaseProtocol
    _is_closing = False
    _is_protocol_paused = False
    _low, _high = _HIGH_WATER // 4, _HIGH_WATER

    def __init__(self, extra: dict[str, object]) -> None:
        super().__init__(extra)
        self._waiting = bytearray()
        """What there was no room for yet."""

    def _fail(self, error: BaseException) -> None:
        raise NotImplementedError

    def _lose(self, error: BaseException | None) -> None:
        raise NotImplementedError

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send the data, as soon as there is room. Never blocks."""
        if self._is_closing:
            return
        if self._waiting:
            self._waiting += view_of(data, "data")
            self._pause_protocol()
            return
        if type(data) is not bytes:
            data = bytes(view_of(data, "data"))
        size = len(data)
        if not size:
            return
        sent = _try_write(self._vchan._ref, data, size) if size <= dataplane.INT_MAX else 0
        if sent < 0:
            self._fail(self._vchan._error(sent))
            return
        if sent < size:
            self._waiting += memoryview(data)[sent:]
            self._pause_protocol()
            self._flush()

    def _flush(self) -> None:
        """Send what waits, and ask for the event of more room."""
        while self._waiting:
            size = min(len(self._waiting), dataplane.INT_MAX)
            sent = _try_write(self._vchan._ref, ctypes.byref(ctypes.c_char.from_buffer(self._waiting)), size)
            if sent < 0:
                self._fail(self._vchan._error(sent))
                return
            if not sent and _try_ask(self._vchan._ref, dataplane.ROOM) == 0:
                break
            del self._waiting[:sent]
        if self._is_protocol_paused and len(self._waiting) <= self._low:
            self._is_protocol_paused = False
            self._protocol.resume_writing()
        if self._is_closing and not self._waiting:
            self._lose(None)

    def _pause_protocol(self) -> None:
        if len(self._waiting) > self._high and not self._is_protocol_paused:
            self._is_protocol_paused = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """Return False: a vchan's directions end together."""
        return False

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait for room."""
        return len(self._waiting)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return at how many bytes the protocol is told to go on, and to pause."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set these: by default to 64 KiB, and a quarter of `high`."""
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not 0 <= low <= high:
            raise ValueError(f"low is {low} and high is {high}: give 0 <= low <= high")
        self._low, self._high = low, high
        self._pause_protocol()


class VchanTransport(_Writing):
    """The end of a vchan that an event loop drives.

    Unlike a socket's, it has no write_eof(): a vchan's directions end together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, vchan: Vchan, protocol: asyncio.BaseProtocol) -> None:
        """Take ownership of the vchan, and tell the protocol that the connection is made."""
        super().__init__({"vchan": vchan, "peername": (vchan.peer, vchan.path)})
        self._loop = loop
        self._vchan = vchan
        self._fd = vchan._event_fd()
        self.set_protocol(protocol)
        self._small: Any = (ctypes.c_char * SMALL)()
        self._small_ref = ctypes.byref(self._small)
        self._is_large = False
        """Whether the last that came was more than `_small` holds."""
        self._is_paused = False
        self._is_ended = False
        """Whether the protocol knows of the end of the stream."""
        self._is_lost = False
        vchan.settimeout(0)
        loop.add_reader(self._fd, self._on_event)
        try:
            protocol.connection_made(self)
        except BaseException:
            self._lose(None)
            raise
        self._loop.call_soon(self._go_on)

    # ---- what the loop says ----

    def _on_event(self) -> None:
        """Take the event, before anything is looked at."""
        if _try_await(self._vchan._ref, dataplane.EVENT, 0, 0) == -EPIPE:
            self._loop.remove_reader(self._fd)  # no event comes any more, and it stays readable
        self._go_on()

    def _go_on(self) -> None:
        """Receive and send what there is to, and ask for the event of more."""
        if self._waiting:
            self._flush()
        if self._is_lost or self._is_paused or self._is_ended or self._is_closing:
            return
        ref = self._vchan._ref
        if self._is_large:
            place = _try_look(ref)
            count = place & dataplane.PLACE_COUNT if place > 0 else 0
            if count:
                self._is_large = count > SMALL
                self._give(self._vchan._copy(place >> 32, min(count, _READ_MAX)))
        else:
            count = _try_read(ref, self._small_ref, SMALL)
            if count > 0:
                self._is_large = count == SMALL
                self._give(self._small[:count])
        if self._is_paused or self._is_closing:
            return
        # Most often nothing has come since: so ask here, instead of in another turn.
        more = _try_ask(ref, dataplane.DATA)
        if more > 0:
            self._loop.call_soon(self._go_on)
        elif more == -EPIPE:
            self._end()
        elif more < 0:
            self._fail(self._vchan._error(more))

    def _give(self, data: bytes) -> None:
        """Give the protocol what was received. As with asyncio's own, its errors are fatal."""
        try:
            self._data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fail(error)

    def _fill(self, data: bytes) -> None:
        """Give a buffered protocol what was received."""
        protocol, view = cast(asyncio.BufferedProtocol, self._protocol), memoryview(data)
        while view:
            buffer = memoryview(protocol.get_buffer(len(view)))
            count = min(len(buffer), len(view))
            if not count:
                raise RuntimeError("get_buffer() returned an empty buffer")
            buffer[:count] = view[:count]
            protocol.buffer_updated(count)
            view = view[count:]

    def _end(self) -> None:
        self._is_ended = True
        try:
            keeps_open = cast(asyncio.Protocol, self._protocol).eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fail(error)
            return
        if not keeps_open:
            self.close()

    # ---- reading ----

    def is_reading(self) -> bool:
        """Return whether the protocol is given what comes."""
        return not self._is_paused and not self._is_closing

    def pause_reading(self) -> None:
        """Leave what comes in the ring: once that is full, the peer has to wait."""
        self._is_paused = True

    def resume_reading(self) -> None:
        """Go on reading."""
        if self._is_paused and not self._is_closing:
            self._is_paused = False
            self._loop.call_soon(self._go_on)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Replace the protocol."""
        self._protocol = protocol
        is_buffered = isinstance(protocol, asyncio.BufferedProtocol)
        self._data_received: Callable[[bytes], None] = (
            self._fill if is_buffered else cast(asyncio.Protocol, protocol).data_received
        )

    # ---- the end ----

    def is_closing(self) -> bool:
        """Return whether it is closed, or will be once what waits is sent."""
        return self._is_closing

    def close(self) -> None:
        """Close the vchan once what waits is sent."""
        if not self._is_closing:
            self._is_closing = True
            if not self._waiting:
                self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        """Close the vchan, and forget what waits."""
        self._is_closing = True
        self._waiting.clear()
        self._loop.call_soon(self._lose, None)

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, ChannelClosed):
            context = {"message": "a vchan has failed", "exception": error, "transport": self, "protocol": self._protocol}
            self._loop.call_exception_handler(context)
        self._is_closing = True
        self._waiting.clear()
        self._loop.call_soon(self._lose, error)

    def _lose(self, error: BaseException | None) -> None:
        if self._is_lost:
            return
        self._is_lost = self._is_closing = True
        self._loop.remove_reader(self._fd)
        self._leaving = Leaving(self._loop, self._vchan, self._protocol.connection_lost, error)

    def __repr__(self) -> str:
        return f"<VchanTransport of {self._vchan!r}>"


class Leaving:
    """A vchan that closes, while the loop waits for the daemon to release it.

    Then `callback` is called with the arguments. If the loop ends before, so does the wait.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, vchan: Vchan, callback: Callable[..., object], *arguments: object
    ) -> None:
        self._loop = loop
        self._then = callback, arguments
        self._connection: Connection | None = None
        fd = vchan._leave()
        if fd >= 0:
            connection = Connection.adopt(fd)
            if connection.begin_close():
                self._connection = connection
                loop.add_reader(fd, self._on_packet, fd)
                return
        loop.call_soon(callback, *arguments)

    def _on_packet(self, fd: int) -> None:
        if self._connection is not None and self._connection.is_over():
            self._loop.remove_reader(fd)
            self._connection.close()
            self._connection = None
            callback, arguments = self._then
            callback(*arguments)

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close()
