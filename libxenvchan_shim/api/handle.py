# SPDX-License-Identifier: LGPL-2.1-or-later
"""A vchan's end as a handle: open, closed, or a forked child's copy."""

from __future__ import annotations

import os
import threading
import warnings

from kvmchand.errors import AlreadyClosed, Busy, VchanError, from_errno
from kvmchand.wire import dataplane
from libxenvchan_shim.api.end import End
from libxenvchan_shim.connection import Connection
from libxenvchan_shim.forks import disown, own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, NoReturn, Self

    from libxenvchan_shim.connection import Granted


class Handle:
    """What every part of a vchan has in common: the end, until it is closed."""

    def __init__(self, connection: Connection, granted: Granted, *, is_server: bool, peer: int) -> None:
        """Take ownership of the connection, and of what it was granted."""
        self._ref: Any = None
        """What C's functions take; None once this is closed."""
        self._path = granted.grant.path
        self._peer = peer
        self._is_server = is_server
        self._end = End(granted, is_server=is_server, control_fd=connection.detach())
        self._process = os.getpid()
        self._lock = threading.RLock()  # a signal handler may come in between
        self._awaited: frozenset[int] = frozenset()
        """What calls wait for: the last of them releases an end that was closed meanwhile."""
        self._files = 0
        """Files made of this, which keep it open."""
        self._is_closing = False
        self._is_released = False
        self._ref = self._end.ref
        own(self)

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return self._is_closing

    # ---- errors ----

    def _opened(self) -> Any:
        """Return what C's functions take. Raises AlreadyClosed if this is closed."""
        ref = self._ref
        if ref is None:
            raise self._already_closed()
        return ref

    def _already_closed(self) -> AlreadyClosed:
        if self._process != os.getpid():
            return AlreadyClosed(
                f"the vchan at {self._path} is of process {self._process}, which forked this one: open one in this process"
            )
        return AlreadyClosed(f"the vchan at {self._path} has been closed here")

    def _error(self, result: int) -> VchanError:
        """Return the exception for the negative errno that C has returned."""
        if self._ref is None:
            return self._already_closed()
        return from_errno(-result, f"the vchan at {self._path}: {dataplane.sentence()}")

    # ---- the end ----

    def close(self) -> None:
        """Close this end, once. What was sent stays there for the peer to receive.

        Calls of other threads end with AlreadyClosed, if the program had more than one thread when
        they began to wait. Returns when the daemon has released the end, unless such a call is just
        ending, or a file made of it is open: these release it then.
        """
        with self._lock:
            if not self._is_closing:
                self._is_closing = True
                if not self._files:
                    self._hang_up()

    def detach(self) -> int:
        """Return the address of the struct libxenvchan, and close the vchan without that.

        It belongs to the C code that you give it to, which closes it with libxenvchan_close().
        Raises Busy if another thread waits in a call, or a file made of the vchan is open, and
        BufferError while something, such as a numpy array, is made of a span.
        """
        with self._lock:
            self._opened()
            if self._awaited or self._files:
                raise Busy(f"the vchan at {self._path} is in use by another thread, or by a file made of it")
            self._let_go()
            address = self._end.address()
            self._is_closing = self._is_released = True
            self._ref = None
            disown(self)
            return address

    def _let_go(self) -> None:
        """Release what was made of the end, and closes with it."""

    def _go(self) -> None:
        """Go, for the peer and for all threads here."""
        self._ref = None
        disown(self)
        self._end.hang_up()

    def _hang_up(self) -> None:
        """Go, and release the end, once no call waits."""
        self._go()
        self._release_if_unused()

    def _close_descriptors(self, *, forgets: bool = False) -> int:
        """Close what there is, once. Returns the connection to the daemon; -1: it is gone.

        `forgets`: in a forked child, where all of it is the parent's, the memory, too.
        """
        if self._is_released:
            return -1
        self._is_released = True
        try:
            self._let_go()
        except BufferError:
            pass  # what is made of the memory keeps it
        if forgets:
            self._end.forget()
            return -1
        return self._end.close_descriptors()

    def _leave(self) -> int:
        """Go. Returns the connection to the daemon, as the caller waits for it; -1: it is gone.

        For ends that no thread waits for.
        """
        self._is_closing = True
        if self._ref is None:
            return -1
        self._go()
        return self._close_descriptors()

    def _release_if_unused(self) -> None:
        """Have the daemon release a closed end, once no call waits any more."""
        with self._lock:
            if self._ref is None and not self._awaited:
                fd = self._close_descriptors()
                if fd >= 0:
                    Connection.adopt(fd).close_channel()

    def _add_file(self) -> None:
        with self._lock:
            self._opened()
            self._files += 1

    def _drop_file(self) -> None:
        with self._lock:
            self._files -= 1
            if self._is_closing and not self._files and self._ref is not None:
                self._hang_up()

    def _forget(self) -> None:
        """In a forked child: let go of what is the parent's, and tell nobody."""
        self._lock = threading.RLock()
        self._ref = None
        self._is_closing = True
        self._close_descriptors(forgets=True)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} can't be copied or pickled: open one in the other process")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_ref", None) is None:
            return
        try:
            if not self._is_closing:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            self._is_closing = True
            self._hang_up()
