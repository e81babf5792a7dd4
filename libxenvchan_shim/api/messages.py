# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages in a vchan's stream, framed as multiprocessing.connection frames them.

A message is its length as a 4-byte big-endian int, then its bytes. For 2**31 bytes and more the 4
bytes are those of -1, and the length follows as an unsigned 8-byte int.
"""

from __future__ import annotations

import struct

from kvmchand.errors import EndOfStream, InvalidArgument, ProtocolError, TooBig
from libxenvchan_shim.api.buffers import size_of, view_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Buffer

    from libxenvchan_shim.api.spans import Span
    from libxenvchan_shim.api.timeouts import Deadline, Timeout
    from libxenvchan_shim.api.vchan import Vchan

_SHORT = struct.Struct("!i")
_LONG = struct.Struct("!iQ")
_SHORT_MAX = 2**31 - 1


def send(vchan: Vchan, message: Buffer, timeout: Timeout) -> None:
    """Send a message: at once if the ring can hold it."""
    view = view_of(message, "message")
    size = view.nbytes
    head = _SHORT.pack(size) if size <= _SHORT_MAX else _LONG.pack(-1, size)
    if len(head) + size <= vchan.write_ring:
        vchan.put(head + view, timeout)
        return
    deadline = vchan._deadline(timeout)
    vchan.sendall(head, deadline)
    vchan.sendall(view, deadline)


class Incoming:
    """The message that comes. What came of one is kept while the rest is not there."""

    def __init__(self) -> None:
        self._size: int | None = None
        self._part = bytearray()

    def receive(self, vchan: Vchan, maxlength: int | None, timeout: Timeout) -> bytes:
        """Receive a message."""
        most = None if maxlength is None else size_of(maxlength, "maxlength")
        deadline = vchan._deadline(timeout)
        if self._size is None:
            head, size = self._read_head(vchan, deadline)
        else:
            head, size = 0, self._size
        if most is not None and size > most:
            raise TooBig(f"the message from the vchan at {vchan.path} has {size} bytes, more than maxlength, which is {most}")
        if head and head + size <= vchan.read_ring:
            return vchan.take(head + size, deadline)[head:]
        if head:
            vchan.consume(head)
            self._size = size
        while left := size - len(self._part):
            data = vchan.recv(left, deadline)
            if not data:
                raise EndOfStream(f"the vchan at {vchan.path}: its other end has gone in the middle of a message")
            self._part += data
        self._size, whole = None, bytes(self._part)
        self._part.clear()
        return whole

    @staticmethod
    def _read_head(vchan: Vchan, deadline: Deadline) -> tuple[int, int]:
        """Return the bytes of the next message's head, and its size. They stay in the ring."""
        head = _first(vchan.look(_SHORT.size, timeout=deadline), _SHORT.size)
        if not head:
            raise EndOfStream(f"the vchan at {vchan.path}: its other end has gone")
        (size,) = _SHORT.unpack(head)
        if size >= 0:
            return _SHORT.size, size
        if size != -1:
            raise ProtocolError(f"what comes from the vchan at {vchan.path} is no message: its length would be {size}")
        _, size = _LONG.unpack(_first(vchan.look(_LONG.size, timeout=deadline), _LONG.size))
        return _LONG.size, size


def _first(span: Span, size: int) -> bytes:
    """Return a copy of a span's first bytes, of which the peer may change the rest meanwhile."""
    return b"".join([bytes(each[:size]) for each in span])[:size]


def pickled(value: object) -> bytes:
    """Return an object as bytes."""
    import pickle

    return pickle.dumps(value)


def unpickled(data: bytes) -> Any:
    """Return the object that the bytes make. Raises ProtocolError if they are no pickle."""
    import pickle

    try:
        return pickle.loads(data)
    except (pickle.UnpicklingError, EOFError) as error:  # callers take EOFError for the stream's end
        raise ProtocolError(f"the message is no pickled object: {error}") from error


def require_trust(trust_peer: object) -> None:
    """Raise InvalidArgument unless the caller has said that the peer may do anything."""
    if trust_peer is not True:
        raise InvalidArgument("trust_peer must be True: unpickling lets the peer run any code in this process")
