# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pages of memory that a domain shares with another, beside vchans: Xen's grants."""

from __future__ import annotations

import mmap
import os
import warnings

from kvmchand.errors import AlreadyClosed, InvalidArgument, OutOfResources
from kvmchand.wire import client
from libxenvchan_shim.api.buffers import size_of
from libxenvchan_shim.api.domains import resolved
from libxenvchan_shim.api.steps import Step, run
from libxenvchan_shim.connection import Connection
from libxenvchan_shim.forks import disown, own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType
    from typing import Any, Self

    from kvmchand.ids import Size

_REF_MAX = 2**32 - 1


class _Pages:
    """Memory that two domains share, for as long as this is open."""

    def __init__(self, connection: Connection, pages: client.Pages, fd: int, peer: int, *, writable: bool) -> None:
        """Take ownership of the connection and of the descriptor of the memory."""
        self._memory: mmap.mmap | None = None
        self._connection = connection
        self._process = os.getpid()
        self._ref = int(pages.ref)
        self._peer = peer
        self._size = pages.pages * mmap.PAGESIZE
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            self._memory = mmap.mmap(fd, self._size, mmap.MAP_SHARED, access, offset=pages.offset)
        except OSError as error:
            connection.close()
            raise OutOfResources(f"the pages of reference {self._ref} could not be mapped: {error.strerror}") from error
        finally:
            os.close(fd)
        self._buffer = memoryview(self._memory)
        own(self)

    @property
    def ref(self) -> int:
        """The grant reference of the first page. Those of the others count up from it."""
        return self._ref

    @property
    def peer(self) -> int:
        """The number of the other domain."""
        return self._peer

    @property
    def size(self) -> int:
        """Bytes: whole pages."""
        return self._size

    @property
    def buffer(self) -> memoryview:
        """The memory, in place. The other domain may change it at any time.

        Raises AlreadyClosed.
        """
        if self._process != os.getpid():
            raise AlreadyClosed(f"the pages of reference {self._ref} are of process {self._process}, which forked this one")
        if self._memory is None:
            raise AlreadyClosed(f"the pages of reference {self._ref} have been let go here")
        return self._buffer

    @property
    def closed(self) -> bool:
        """Whether it was let go."""
        return self._memory is None

    def _let_go(self) -> None:
        """Unmap the pages, once. Raises BufferError while something is made of `buffer`."""
        if self._memory is None:
            return
        self._unmap(self._memory)
        disown(self)
        self._connection.close_channel()

    def _unmap(self, memory: mmap.mmap) -> None:
        self._buffer.release()
        try:
            memory.close()
        except BufferError:
            self._buffer = memoryview(memory)  # as before
            raise
        self._memory = None

    def _forget(self) -> None:
        """In a forked child: let go of what is the parent's, and tell nobody."""
        self._connection.close()
        if self._memory is not None:
            try:
                self._unmap(self._memory)
            except BufferError:
                self._memory = None  # what is made of it keeps it mapped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._let_go()

    def __repr__(self) -> str:
        state = ", let go" if self.closed else ""
        return f"<{type(self).__name__} ref {self._ref}, {self._size} bytes, peer domain {self._peer}{state}>"

    def __del__(self) -> None:
        if getattr(self, "_memory", None) is None:
            return
        try:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            try:
                self._let_go()
            except BufferError:
                self._connection.close()  # the memory is unmapped with the last thing made of it


class SharedPages(_Pages):
    """Pages that this domain shares, made by share()."""

    def revoke(self) -> None:
        """Share the pages no more, once. The other domain keeps what it has mapped.

        Raises BufferError while something, such as a numpy array, is still made of `buffer`.
        """
        self._let_go()


class MappedPages(_Pages):
    """Pages that another domain shares, made by map()."""

    def close(self) -> None:
        """Unmap the pages, once. Raises BufferError while something is still made of `buffer`."""
        self._let_go()


def share(peer: int | str, size: int, *, writable: bool = True) -> SharedPages:
    """Share zeroed memory of at least `size` bytes, in whole pages, with domain `peer`.

    The peer maps it by its number, `ref`, which you have to tell it: by a vchan, for example.
    `writable`: whether the peer may write to it. Blocks for the daemon's answer only. Raises
    NotFound (no such domain), InvalidArgument, LimitReached, OutOfResources, Unreachable,
    AccessDenied or ProtocolError.

    >>> with share("host", 100) as shared, map("host", shared.ref) as mapped:
    ...     shared.buffer[:5] = b"hello"
    ...     shared.size, bytes(mapped.buffer[:5])
    (4096, b'hello')
    """
    count = -(-size_of(size, "size") // mmap.PAGESIZE)
    if not 0 < count < 2**31:
        raise InvalidArgument(f"size is {size}: give a number of bytes, 1 or more")
    connection, pages, fd, number = _asked(peer, "peer", lambda number: client.Share(number, count, writable))
    return SharedPages(connection, pages, fd, number, writable=True)


def map(domain: int | str, ref: int, *, writable: bool = True) -> MappedPages:
    """Map the pages that `domain` shares with this one, of which `ref` is one.

    Maps all of that share. Raises NotFound if it shares no such pages, AccessDenied if they are
    another domain's, or for reading only and `writable` is set, and otherwise what share() does.
    `writable`: whether you may write to `buffer`. Blocks for the daemon's answer only.

    >>> with share("host", 100, writable=False) as shared:
    ...     with map("host", shared.ref, writable=False) as mapped:
    ...         mapped.size, mapped.buffer.readonly
    (4096, True)
    """
    if size_of(ref, "ref") > _REF_MAX:
        raise InvalidArgument(f"ref is {ref}: give the reference that share() returned")
    wanted: Size = ref  # type: ignore[assignment]
    connection, pages, fd, number = _asked(domain, "domain", lambda number: client.Map(number, wanted, writable))
    return MappedPages(connection, pages, fd, number, writable=writable)


def _asked(domain: int | str, name: str, request: Any) -> tuple[Connection, client.Pages, int, int]:
    def steps() -> Generator[Step, Any, tuple[client.Pages, int, int]]:
        number = yield from resolved(domain, name)
        pages, fd = yield Step(request(number), Connection.take_pages)
        return pages, fd, number

    connection = Connection.from_environment()
    try:
        return (connection, *run(connection, steps()))
    except BaseException:
        connection.close()
        raise
