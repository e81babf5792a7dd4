# SPDX-License-Identifier: LGPL-2.1-or-later
"""A vchan's calls that leave the bytes where they lie in its rings."""

from __future__ import annotations

from errno import EPIPE

from kvmchand.errors import EndOfStream, TooBig
from kvmchand.wire import dataplane
from libxenvchan_shim.api.buffers import size_of
from libxenvchan_shim.api.spans import Span
from libxenvchan_shim.api.timeouts import OWN, Timeout
from libxenvchan_shim.api.waiting import Waiting

_COUNT, _INT_MAX = dataplane.PLACE_COUNT, dataplane.INT_MAX
_try_look, _try_consume = dataplane.try_look, dataplane.try_consume
_try_reserve, _try_commit = dataplane.try_reserve, dataplane.try_commit


def _count(size: int) -> int:
    """Return a number of bytes as a C int, which can't be more than a ring holds."""
    return size if type(size) is int and 0 <= size <= _INT_MAX else min(size_of(size, "size"), _INT_MAX)


class InPlace(Waiting):
    """The end of a vchan whose rings are looked at, and written to."""

    _looked: Span | None = None
    _reserved: Span | None = None
    _views: tuple[memoryview, memoryview] | None = None

    def look(self, least: int = 1, *, copy: bool = False, timeout: Timeout = OWN) -> Span:
        """Look at the bytes that are there, at least `least`, where they lie in the ring.

        Waits for `least` bytes, at most `timeout` seconds.

        They stay until consume() passes them. Without `copy`, the peer can change them meanwhile:
        read nothing twice that you check. With `copy=True` the span is a copy of them, for those
        who parse.

        Returns an empty span at the end of the stream. Raises EndOfStream if fewer than `least`
        are left there, TooBig if the ring can't hold so many, and otherwise what recv() does.

        >>> client.sendall(b"head body")
        >>> span = server.look(4)
        >>> len(span), bytes(span)
        (9, b'head body')
        >>> server.consume(4)
        >>> server.recv(100)
        b' body'
        """
        self._looked = self._released(self._looked)
        place = _try_look(self._ref)
        count = place & _COUNT
        if place < 0 or type(least) is not int or not 0 <= least <= count:
            place = self._data(size_of(least, "least"), timeout)
            count = place & _COUNT
        span = self._span(0, place >> 32, count)
        if copy:
            data = bytes(span)
            span.release()
            span = Span((memoryview(data),))
        self._looked = span
        return span

    def consume(self, size: int) -> None:
        """Pass the next `size` bytes, and so give the peer their room. Releases the span.

        Raises InvalidArgument if there are not so many, Busy if another thread receives, and
        BufferError if a C function still holds a view; then nothing was passed.
        """
        self._looked = self._released(self._looked)
        if (result := _try_consume(self._ref, _count(size))) < 0:
            raise self._error(result)

    def reserve(self, least: int = 1, *, timeout: Timeout = OWN) -> Span:
        """Return the room that there is in the ring, at least `least` bytes, to write to in place.

        Waits for `least` bytes of room, at most `timeout` seconds. The peer sees nothing of it
        until commit(). Raises TooBig if the ring never has so much room, and otherwise what send()
        does.

        >>> span = client.reserve(5)
        >>> span.pieces[0][:5] = b"in it"
        >>> client.commit(5)
        >>> server.recv(100)
        b'in it'
        """
        self._reserved = self._released(self._reserved)
        place = _try_reserve(self._ref)
        if place < 0 or type(least) is not int or not 0 <= least <= place & _COUNT:
            place = self._room(size_of(least, "least"), timeout)
        self._reserved = span = self._span(1, place >> 32, place & _COUNT)
        return span

    def commit(self, size: int) -> None:
        """Send the first `size` bytes of the room that reserve() returned. Releases the span.

        Raises InvalidArgument if there is not so much, ChannelClosed, Busy if another thread sends,
        and BufferError if a C function still holds a view; then nothing was sent.
        """
        self._reserved = self._released(self._reserved)
        if (result := _try_commit(self._ref, _count(size))) < 0:
            raise self._error(result)

    def _data(self, least: int, timeout: Timeout) -> int:
        """Wait until so many bytes are there. Returns their place, and 0 at the stream's end."""
        self._opened()
        if least > self._end.read_ring:
            raise TooBig(f"{least} bytes never are at once in a ring of {self._end.read_ring}: look at fewer")
        deadline, is_ended = self._deadline(timeout), False
        while True:
            place: int = _try_look(self._ref)
            if place < 0 and place != -EPIPE:
                raise self._error(place)
            there = max(place, 0) & _COUNT
            if there >= least and place >= 0:
                return place
            if not there and (is_ended or place == -EPIPE):
                return 0
            if is_ended:
                raise EndOfStream(f"the vchan at {self._path}: its other end has gone, and left {there} bytes of {least}")
            result = self._wait(dataplane.DATA, least, deadline)
            is_ended = result == -EPIPE
            if result < 0 and not is_ended:
                raise self._error(result)

    def _room(self, least: int, timeout: Timeout) -> int:
        """Wait until there is so much room, and return its place."""
        self._opened()
        if least > self._end.write_ring:
            raise TooBig(f"{least} bytes never fit at once in a ring of {self._end.write_ring}: reserve fewer")
        result = self._wait(dataplane.ROOM, least, self._deadline(timeout))
        place = _try_reserve(self._ref) if result >= 0 else result
        if place < 0:
            raise self._error(place)
        return place

    def _span(self, ring: int, first: int, count: int) -> Span:
        if self._views is None:
            self._views = self._end.views()
        view = self._views[ring]
        over = first + count - len(view)
        return Span((view[first:], view[:over]) if over > 0 else (view[first : first + count],))

    @staticmethod
    def _released(span: Span | None) -> None:
        """Release a span. Raises BufferError while a C function holds a view of it."""
        if span is not None:
            span.release()

    def _let_go(self) -> None:
        super()._let_go()
        self._views = None
        self._looked = self._released(self._looked)
        self._reserved = self._released(self._reserved)
