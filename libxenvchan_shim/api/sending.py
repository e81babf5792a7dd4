# SPDX-License-Identifier: LGPL-2.1-or-later
"""A vchan's calls that send."""

from __future__ import annotations

from kvmchand.errors import TooBig
from kvmchand.wire import dataplane
from libxenvchan_shim.api.buffers import Source
from libxenvchan_shim.api.timeouts import OWN, Deadline, Timeout
from libxenvchan_shim.api.waiting import Waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

_try_send, _try_write, _try_reserve = dataplane.try_send, dataplane.try_write, dataplane.try_reserve
_INT_MAX = dataplane.INT_MAX


class Sending(Waiting):
    """The end of a vchan that sends. One thread at a time does."""

    @property
    def writable(self) -> int:
        """Bytes that can be sent at once. Also asks for an event when there is more room.

        Raises AlreadyClosed.
        """
        return int(dataplane.glance(self._opened(), dataplane.ROOM))

    def send(self, data: Buffer, timeout: Timeout = OWN) -> int:
        """Send as much of `data` as there is room for.

        Waits for room for at least 1 byte, at most `timeout` seconds: None for any time, 0 not at
        all, by default what settimeout() has set.

        Returns the number of bytes. Raises ChannelClosed if the other end has gone, WouldBlock or
        TimedOut if there is no room in time, Busy if another thread sends, ProtocolError if the
        peer broke the ring's rules, and AlreadyClosed.

        >>> client.send(b"12345")
        5
        """
        if type(data) is bytes and (size := len(data)) <= _INT_MAX:
            count: int = _try_write(self._ref, data, size)
            if count > 0:
                return count
        source = Source(data, self._end.write_ring)
        try:
            return self._send(source, self._deadline(timeout))
        finally:
            source.release()

    def sendall(self, data: Buffer, timeout: Timeout = OWN) -> None:
        """Send all of `data`, in pieces as there is room. The timeout is for all of it, in seconds.

        Raises what send() does. How much was sent then is not known.

        >>> client.sendall(b"hello")
        >>> server.recv(100)
        b'hello'
        """
        count = 0
        if type(data) is bytes and (size := len(data)) <= _INT_MAX:
            count = _try_write(self._ref, data, size)
            if count == size > 0:
                return
        source, deadline = Source(data, self._end.write_ring), self._deadline(timeout)
        try:
            if count > 0:
                source.pass_by(count)
            while True:
                source.pass_by(self._send(source, deadline))
                if not source.size:
                    return
        finally:
            source.release()

    def put(self, data: Buffer, timeout: Timeout = OWN) -> None:
        """Send all of `data` at once, or nothing. Waits for the room, at most `timeout` seconds.

        Raises TooBig if the ring can't hold so much, and otherwise what send() does. Whatever it
        raises, nothing was sent.

        >>> client.put(b"header")
        >>> client.put(bytes(client.write_ring), timeout=0)
        Traceback (most recent call last):
            ...
        kvmchand.errors.WouldBlock: [Errno 11] the vchan at ...: no room, and the call may not wait
        >>> server.readable
        6
        """
        if type(data) is bytes and len(data) <= _INT_MAX and _try_send(self._ref, data, len(data)) > 0:
            return
        source = Source(data, self._end.write_ring)
        try:
            self._put(source, self._deadline(timeout))
        finally:
            source.release()

    def _send(self, source: Source, deadline: Deadline) -> int:
        self._require_peer()
        while source.size:
            pointer, size = source.piece()
            count: int = _try_write(self._ref, pointer, size)
            pointer = None  # a traceback shall not keep the buffer
            if count < 0:
                raise self._error(count)
            if count:
                return count
            self._wait_room(1, deadline)
        return 0

    def _put(self, source: Source, deadline: Deadline) -> None:
        self._require_peer()
        if source.size > self._end.write_ring:
            raise TooBig(f"{source.size} bytes never fit at once in a ring of {self._end.write_ring}: send them in pieces")
        while source.size:
            pointer, size = source.piece()
            count = _try_send(self._ref, pointer, size)
            pointer = None
            if count < 0:
                raise self._error(count)
            if count:
                return
            self._wait_room(source.size, deadline)

    def _require_peer(self) -> None:
        place = _try_reserve(self._ref)
        if place < 0:
            raise self._error(place)

    def _wait_room(self, size: int, deadline: Deadline) -> None:
        result = self._wait(dataplane.ROOM, size, deadline)
        if result < 0:
            raise self._error(result)
