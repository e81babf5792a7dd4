# SPDX-License-Identifier: LGPL-2.1-or-later
"""A vchan's calls that receive."""

from __future__ import annotations

import ctypes
from errno import EPIPE

from kvmchand.errors import Busy, EndOfStream, TooBig, VchanError
from kvmchand.wire import dataplane
from libxenvchan_shim.api.buffers import size_of, target
from libxenvchan_shim.api.timeouts import OWN, Deadline, Timeout
from libxenvchan_shim.api.waiting import Waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from typing_extensions import Buffer

SMALL = 4096
"""Bytes up to which a second copy is quicker than a look before the only one."""
_CHUNK = 65536
"""Bytes that an iteration receives at most."""

_byref, _byte_in = ctypes.byref, ctypes.c_char.from_buffer
_try_recv, _try_read = dataplane.try_recv, dataplane.try_read
_try_look, _try_consume = dataplane.try_look, dataplane.try_consume


class Receiving(Waiting):
    """The end of a vchan that receives. One thread at a time does."""

    _receives = False
    """Whether a call is between taking bytes and returning them."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._small: Any = (ctypes.c_char * SMALL)()
        self._small_ref = ctypes.byref(self._small)

    @property
    def readable(self) -> int:
        """Bytes that can be received at once. Also asks for an event when there are more.

        Raises AlreadyClosed.
        """
        return int(dataplane.glance(self._opened(), dataplane.DATA))

    def recv(self, size: int, timeout: Timeout = OWN) -> bytes:
        """Receive 1 to `size` bytes: what is there.

        Waits only while nothing is there, at most `timeout` seconds: None for any time, 0 not at
        all, by default what settimeout() has set. `size` may be larger than the ring.

        Returns b"" at the end of the stream: the other end has gone, and everything was received.
        Raises WouldBlock or TimedOut if nothing comes in time, Busy if another thread receives,
        ProtocolError if the peer broke the ring's rules, and AlreadyClosed.

        >>> client.sendall(b"some bytes")
        >>> server.recv(4), server.recv(4096)
        (b'some', b' bytes')
        """
        if self._receives:
            raise self._busy()
        self._receives = True
        try:
            if type(size) is int and 0 < size <= SMALL:
                while (count := _try_read(self._ref, self._small_ref, size)) == 0:
                    deadline = self._deadline(timeout)
                    self._wait_data(1, deadline)
                    timeout = deadline
                if count > 0:
                    return self._small[:count]  # type: ignore[no-any-return]
            return self._recv(size_of(size, "size"), self._deadline(timeout))
        finally:
            self._receives = False

    def take(self, size: int, timeout: Timeout = OWN) -> bytes:
        """Receive exactly `size` bytes, or none. Waits for them, at most `timeout` seconds.

        Raises EndOfStream if the other end has gone and left fewer, TooBig if the ring can't hold
        so many, and otherwise what recv() does. Whatever it raises, nothing was received.

        >>> client.sendall(b"head body")
        >>> server.take(4)
        b'head'
        >>> server.take(100, timeout=0)
        Traceback (most recent call last):
            ...
        kvmchand.errors.WouldBlock: [Errno 11] the vchan at ...: no data, and the call may not wait
        >>> server.readable
        5
        """
        if self._receives:
            raise self._busy()
        self._receives = True
        try:
            if type(size) is int and 0 < size <= SMALL:
                count = _try_recv(self._ref, self._small_ref, size)
                if count > 0:
                    return self._small[:count]  # type: ignore[no-any-return]
            return self._take(size_of(size, "size"), self._deadline(timeout))
        finally:
            self._receives = False

    def recv_into(self, buffer: Buffer, nbytes: int = 0, timeout: Timeout = OWN) -> int:
        """Receive into a writable buffer, at most `nbytes` bytes if that is not 0.

        Returns their number, and 0 at the end of the stream. Raises TypeError if the buffer is
        read-only or not contiguous in memory. Otherwise as recv().

        >>> buffer = bytearray(100)
        >>> client.sendall(b"into it")
        >>> count = server.recv_into(buffer)
        >>> bytes(buffer[:count])
        b'into it'
        """
        if self._receives:
            raise self._busy()
        if nbytes == 0 and type(buffer) is bytearray and 0 < len(buffer) <= dataplane.INT_MAX:
            pointer: Any = _byref(_byte_in(buffer))
            size = len(buffer)
        else:
            pointer, size = target(buffer, size_of(nbytes, "nbytes") or self._end.read_ring)
        deadline = None
        try:
            while True:
                count: int = _try_read(self._ref, pointer, size)
                if count > 0 or (count == 0 and not size):
                    return count
                if count == -EPIPE:
                    return 0
                if count < 0:
                    raise self._error(count)
                deadline = deadline or self._deadline(timeout)
                self._wait_data(1, deadline)
        finally:
            pointer = None  # a traceback shall not keep the buffer

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        """Receive what is there, until the end of the stream."""
        data = self.recv(_CHUNK)
        if not data:
            raise StopIteration
        return data

    def _recv(self, size: int, deadline: Deadline) -> bytes:
        self._opened()
        while size:
            place = _try_look(self._ref)
            if place == -EPIPE:
                break
            if place < 0:
                raise self._error(place)
            if count := min(size, place & dataplane.PLACE_COUNT):
                return self._copy(place >> 32, count)
            self._wait_data(1, deadline)
        return b""

    def _take(self, size: int, deadline: Deadline) -> bytes:
        self._opened()
        if size > self._end.read_ring:
            raise TooBig(f"{size} bytes never are at once in a ring of {self._end.read_ring}: receive them in pieces")
        is_ended = False
        while size:
            place = _try_look(self._ref)
            if place < 0 and place != -EPIPE:
                raise self._error(place)
            first, there = divmod(max(place, 0), 1 << 32)
            if there >= size:
                return self._copy(first, size)
            if is_ended:
                raise EndOfStream(f"the vchan at {self._path}: its other end has gone, and left {there} bytes of {size}")
            is_ended = not self._wait_data(size, deadline)
        return b""

    def _copy(self, first: int, count: int) -> bytes:
        """Receive bytes that are there, from `first` in the ring on."""
        chars = self._end.chars
        over = first + count - len(chars)
        data: bytes = chars[first:] + chars[:over] if over > 0 else chars[first : first + count]
        if (result := _try_consume(self._ref, count)) < 0:
            raise self._error(result)
        return data

    def _wait_data(self, size: int, deadline: Deadline) -> bool:
        """Wait until so many bytes are there. Returns False at the end of the stream."""
        result = self._wait(dataplane.DATA, size, deadline)
        if result < 0 and result != -EPIPE:
            raise self._error(result)
        return result >= 0

    def _busy(self) -> VchanError:
        if self._ref is None:  # and in a forked child
            return self._already_closed()
        return Busy(f"another thread receives from the vchan at {self._path}: one at a time may")
