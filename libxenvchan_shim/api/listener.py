# SPDX-License-Identifier: LGPL-2.1-or-later
"""A server for clients one after another, and at once: a vchan for each."""

from __future__ import annotations

import os
import warnings
from errno import EPIPE

from kvmchand.errors import AlreadyClosed, Busy, TimedOut, Unreachable, VchanError, WouldBlock
from kvmchand.wire import dataplane
from libxenvchan_shim.api.opening import offering, opened
from libxenvchan_shim.api.poller import Poller
from libxenvchan_shim.api.timeouts import OWN, Deadline, Patient, Timeout
from libxenvchan_shim.api.vchan import State, Vchan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class Listener(Patient):
    """Offers a vchan at a path, and another one as soon as a client has come.

    Made by listen(). As a listening socket it is a context manager, and iterating accepts clients
    until it is closed. Only the domain that it is for can connect.
    """

    def __init__(self, peer: int | str, path: str, read_min: int, write_min: int) -> None:
        self._asked = (peer, path, read_min, write_min)
        self._poller: Poller | None = None
        """It shows an event while nothing is offered, for which accept() says why."""
        self._offered: Vchan | None = None
        self._accepts = False
        self._closed = False
        first = self._offer()
        self._path, self._peer = first.path, first.peer
        self._process = os.getpid()

    @property
    def path(self) -> str:
        """The absolute path at which clients find it."""
        return self._path

    @property
    def peer(self) -> int:
        """The number of the domain whose clients may connect."""
        return self._peer

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def __repr__(self) -> str:
        return f"<Listener for domain {self._peer}, {self._path}{', closed' if self._closed else ''}>"

    def accept(self, timeout: Timeout = OWN) -> Vchan:
        """Wait for the next client, at most `timeout` seconds. Returns the end for it.

        Further clients can connect meanwhile and afterwards. Raises WouldBlock or TimedOut if none
        comes in time, AlreadyClosed, Busy if another thread accepts, Unreachable if the daemon has
        ended, and what offer() does if no other vchan can be offered: the client before that was
        returned all the same, and the next call tries again.

        >>> with listen("host", "data/example") as listener:
        ...     with connect("host", "data/example"), listener.accept(timeout=10) as vchan:
        ...         vchan.is_server, vchan.state
        (True, <State.OPEN: 1>)
        """
        deadline = self._deadline(timeout)
        if self._accepts:
            raise Busy(f"another thread accepts clients at {self._path}: one at a time may")
        self._accepts = True  # no lock: a signal's handler may raise right after a call
        try:
            offered = self._offer()
            self._wait_for_client(offered, deadline)
            if (poller := self._poller) is not None:
                poller.unwatch(offered._event_fd())
            self._offered = None
            try:
                self._offer()
            except VchanError:
                # The next accept() tries again, and says why that fails.
                if (poller := self._poller) is not None:
                    poller.show()
            return offered
        finally:
            self._accepts = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Vchan:
        """Accept the next client, until the listener is closed."""
        try:
            return self.accept()
        except AlreadyClosed:
            raise StopIteration from None

    def fileno(self) -> int:
        """Return a descriptor for select() and its kind, to be watched for reading only.

        It is readable when a client may have come: call accept() with a timeout of 0, which raises
        WouldBlock if none has. The listener keeps the descriptor. Raises AlreadyClosed.
        """
        self._require_open()
        if self._poller is None:
            self._poller = Poller(f"the clients at {self._path}", shows=self._offered is None)
            self._watch()
        return self._poller.fileno()

    def close(self) -> None:
        """Stop listening, once. Vchans that were accepted stay open; a call of accept() ends."""
        self._closed = True
        offered, self._offered = self._offered, None
        if offered is not None:
            offered.close()
        poller, self._poller = self._poller, None
        if poller is not None:
            poller.close()

    def _offer(self) -> Vchan:
        """Return the vchan that waits for a client."""
        self._require_open()
        if self._offered is None:
            peer, path, read_min, write_min = self._asked
            self._offered = opened(offering(peer, path, read_min, write_min, once=True), is_server=True)
            self._watch()
            if self._closed:  # meanwhile, by another thread
                self.close()
                self._require_open()
        return self._offered

    def _watch(self) -> None:
        if self._poller is not None and self._offered is not None:
            self._poller.take()
            self._poller.watch(self._offered._event_fd())

    def _wait_for_client(self, offered: Vchan, deadline: Deadline) -> None:
        while offered.state is State.WAITING:
            try:
                result = offered._wait(dataplane.EVENT, 0, deadline)
            except (TimedOut, WouldBlock) as error:
                if offered.state is not State.WAITING:
                    return
                within = f" within {deadline}" if deadline.timeout else ""
                raise type(error)(f"no client has come to {self._path}{within}") from None
            self._require_open()
            if result == -EPIPE:
                self._offered = None
                offered.close()
                raise Unreachable(f"kvmchand has ended, and with it what was offered at {self._path}: listen again")
            if result < 0:
                raise offered._error(result)
        self._require_open()
        offered._opened()  # not so in a forked child

    def _require_open(self) -> None:
        if self._closed:
            raise AlreadyClosed(f"the listener at {self._path} has been closed here")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_offered", None) is not None and not self._closed and self._process == os.getpid():
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            finally:
                self.close()


def listen(peer: int | str, path: str, *, read_min: int = 0, write_min: int = 0) -> Listener:
    """Listen for clients of domain `peer` at `path`. Arguments and errors are as for offer().

    A listener that this domain had there before finds no new client any more.

    >>> with listen("host", "data/example") as listener:
    ...     listener.accept(timeout=0)
    Traceback (most recent call last):
        ...
    kvmchand.errors.WouldBlock: [Errno 11] no client has come to /local/domain/0/data/example
    """
    return Listener(peer, path, read_min, write_min)
