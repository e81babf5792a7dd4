# SPDX-License-Identifier: LGPL-2.1-or-later
"""vchans for Python programs: the same channels as libxenvchan's, on the same ring code.

    with libxenvchan_shim.listen(peer=1, path="data/vchan/1/5") as vchan:
        request = vchan.recv(16)

Every failure is a KvmchanError: an OSError whose strerror is a sentence.
"""

from __future__ import annotations

import ctypes
import errno
import os
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kvmchand.errors import ChannelClosed, InvalidArgument
from kvmchand.wire import dataplane
from libxenvchan_shim.connection import Connection

if TYPE_CHECKING:
    from kvmchand.ids import Size
    from libxenvchan_shim.connection import Granted

    Buffer = bytes | bytearray | memoryview

_DEFAULT_RING = 65536
_NUMBER_MAX = 2**31 - 1
"""The largest C int, and so the largest number of a domain, and of bytes that a call returns."""


class State(Enum):
    """The state of a vchan's other end."""

    GONE = 0
    """It closed, or its process or domain ended. What it wrote can still be read."""
    OPEN = 1
    """It is connected; or, at a server with server_persist, one may come."""
    WAITING = 2
    """No client has come yet."""


class _Source:
    """The address of a buffer's bytes, valid until the `with` ends.

    If they are read-only and no bytes object, it is the address of a copy.
    """

    def __init__(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        self.size = len(view)
        self._keeps: object
        if view.readonly:
            held = data if isinstance(data, bytes) else view.tobytes()
            self._keeps = held
            self.address = ctypes.cast(ctypes.c_char_p(held), ctypes.c_void_p).value or 0
        else:
            self._keeps = array = (ctypes.c_char * self.size).from_buffer(view)
            self.address = ctypes.addressof(array)

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._keeps = None


def _uninterrupted(function: Any, *arguments: Any) -> int:
    """Call `function` again while signals interrupt it.

    The signal's handler has run by then, and an interrupted call has moved nothing.
    """
    while True:
        try:
            return int(function(*arguments))
        except OSError as error:
            if error.errno != errno.EINTR:
                raise


class Vchan:
    """One end of a vchan, made by listen() or connect(). Use it in one thread at a time."""

    def __init__(self, connection: Connection, granted: Granted, *, is_server: bool) -> None:
        """Take ownership of the connection, and of what it was granted."""
        self.path = granted.grant.path
        """The absolute path."""
        self.is_server = is_server
        self._process = os.getpid()
        # blocking and server_persist are plain fields of the structure, as for C programs.
        fds = (granted.region, granted.event, granted.notify)
        self._ctrl = dataplane.attach_end(granted.grant, fds, is_server=is_server, control_fd=connection.detach())
        self._read_ring = 1 << self._ctrl.contents.read.order

    def _open(self) -> Any:
        if self._ctrl is None:
            raise ChannelClosed(f"the vchan at {self.path} has been closed here")
        return self._ctrl

    @property
    def blocking(self) -> bool:
        """Whether calls wait for data or room. False at first, as in C."""
        return bool(self._open().contents.blocking)

    @blocking.setter
    def blocking(self, value: bool) -> None:
        self._open().contents.blocking = -1 if value else 0

    @property
    def server_persist(self) -> bool:
        """Whether a server's state is OPEN even while no client is there."""
        return bool(self._open().contents.server_persist)

    @server_persist.setter
    def server_persist(self, value: bool) -> None:
        self._open().contents.server_persist = -1 if value else 0

    def send(self, data: Buffer) -> int:
        """Send all of `data`, or nothing.

        Returns its length, or 0 if it does not fit and the vchan is not blocking. Raises
        ChannelClosed if the peer has gone, and OSError with EMSGSIZE if the vchan is blocking and
        `data` is larger than the ring.
        """
        return self._put(dataplane.send, data)

    def write(self, data: Buffer) -> int:
        """Write what fits, which may be nothing; or all of `data` if the vchan is blocking.

        Returns the number of bytes. Raises ChannelClosed if the peer has gone.
        """
        if not self.blocking:
            return self._put(dataplane.write, data)
        # Piece by piece, so that the count survives a signal.
        with _Source(data) as source:
            done = 0
            while done < source.size:
                self.blocking = False
                try:
                    count = _uninterrupted(dataplane.write, self._open(), source.address + done, source.size - done)
                finally:
                    self.blocking = True
                done += count
                if not count:
                    self.wait()
            return done

    def _put(self, function: Any, data: Buffer) -> int:
        with _Source(data) as source:
            return _uninterrupted(function, self._open(), source.address, source.size)

    def recv(self, size: int) -> bytes:
        """Receive exactly `size` bytes; b"" if fewer are there and the vchan is not blocking.

        Raises ChannelClosed if the peer has gone and left fewer.
        """
        return self._take(dataplane.recv, size)

    def read(self, size: int) -> bytes:
        """Read 1 to `size` bytes; b"" if none are there and the vchan is not blocking.

        Raises ChannelClosed if the peer has gone and everything is read.
        """
        return self._take(dataplane.read, size)

    def _take(self, function: Any, size: int) -> bytes:
        ctrl = self._open()
        if size < 0:
            raise InvalidArgument(f"{size} bytes can't be read")
        # No call takes more than the ring holds; and the C function refuses what is over its limit.
        buffer = ctypes.create_string_buffer(min(size, self._read_ring))
        count = _uninterrupted(function, ctrl, buffer, min(size, _NUMBER_MAX + 1))
        return ctypes.string_at(buffer, count)

    @property
    def data_ready(self) -> int:
        """Bytes that can be read at once. Also asks for an event when there are more."""
        return int(dataplane.data_ready(self._open()))

    @property
    def buffer_space(self) -> int:
        """Bytes that can be written at once. Also asks for an event when there is more room."""
        return int(dataplane.buffer_space(self._open()))

    @property
    def state(self) -> State:
        """The other end's state."""
        return State(dataplane.is_open(self._open()))

    def wait(self) -> None:
        """Block until an event is pending, and take it.

        A signal does not end the wait unless its handler raises.
        """
        _uninterrupted(dataplane.wait, self._open())

    def fileno(self) -> int:
        """Return the descriptor that is readable while an event is pending. The vchan keeps it."""
        return int(dataplane.fd_for_select(self._open()))

    def close(self) -> None:
        """Close this end, once. What was written stays readable for the peer."""
        ctrl, self._ctrl = self._ctrl, None
        if ctrl is None:
            return
        dataplane.hang_up(ctrl)
        try:
            fd = dataplane.steal_control(ctrl)
            if fd >= 0:
                Connection.adopt(fd).close_channel()
        finally:
            dataplane.detach(ctrl)

    def __enter__(self) -> Vchan:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # A forked child's copy is not the channel's end: the parent's is.
        if getattr(self, "_ctrl", None) is not None and self._process == os.getpid():
            self.close()


def listen(
    peer: int,
    path: str,
    *,
    read_min: int = _DEFAULT_RING,
    write_min: int = _DEFAULT_RING,
    blocking: bool = False,
    persist: bool = False,
) -> Vchan:
    """Offer domain `peer` a vchan at `path`, with rings of at least these sizes in bytes.

    Does not wait for a client. Raises NotFound (no such domain), Unreachable (no daemon),
    InvalidArgument, TooLong, AccessDenied (the path is not below the caller's own node, or the
    daemon does not serve this user), LimitReached, OutOfResources or ProtocolError (another
    version).
    """
    _require_domain(peer)
    for name, size in (("read_min", read_min), ("write_min", write_min)):
        if size < 0:
            raise InvalidArgument(f"{name} is {size}: give a number of bytes")
    connection = Connection.from_environment()
    try:
        vchan = Vchan(connection, connection.offer(peer, path, _size(read_min), _size(write_min)), is_server=True)
    except BaseException:
        connection.close()
        raise
    vchan.blocking, vchan.server_persist = blocking, persist
    return vchan


def connect(domain: int, path: str, *, blocking: bool = False, wait: bool = False) -> Vchan:
    """Connect to the vchan that `domain` offers the caller at `path`.

    Raises NotFound if it offers none, and Busy if another client is connected. With `wait`, blocks
    until it offers one, and raises NotFound when the domain is gone. Other errors are as for
    listen().
    """
    _require_domain(domain)
    connection = Connection.from_environment()
    try:
        vchan = Vchan(connection, connection.connect(domain, path, waits=wait), is_server=False)
    except BaseException:
        connection.close()
        raise
    vchan.blocking = blocking
    return vchan


def _require_domain(number: int) -> None:
    if not 0 <= number <= _NUMBER_MAX:
        raise InvalidArgument(f"{number} is no domain's number: give 0 for the host, or a guest's")


def _size(value: int) -> Size:
    return min(value, 2**63 - 1)  # type: ignore[return-value]
