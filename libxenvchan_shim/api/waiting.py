# SPDX-License-Identifier: LGPL-2.1-or-later
"""A vchan's waits: for how long, for what, and the descriptor that tells of events."""

from __future__ import annotations

from _thread import _count as _count_threads
from errno import EAGAIN, EINTR, ETIMEDOUT

from kvmchand.errors import Busy, TimedOut, WouldBlock
from kvmchand.wire import dataplane
from libxenvchan_shim.api.handle import Handle
from libxenvchan_shim.api.poller import Poller
from libxenvchan_shim.api.timeouts import OWN, Deadline, Patient, Timeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_AWAITED = {dataplane.DATA: "data", dataplane.ROOM: "room", dataplane.EVENT: "event"}


class Waiting(Patient, Handle):
    """A vchan that one can wait for."""

    _poller: Poller | None = None
    """It shows an event that a call which waited has taken, as that may have been select()'s."""
    _lacked: frozenset[int] = frozenset()
    """What calls raised WouldBlock for."""
    _is_wakeable = False

    def wait(self, timeout: Timeout = OWN) -> None:
        """Wait until an event is pending, and take it. Then look again at what you wait for.

        An event comes after a call fell short of data or room, or `readable` or `writable` was
        looked at, once that changes; and when the other end comes or goes. Raises WouldBlock or
        TimedOut if none comes in time, ChannelClosed if none can come any more, and AlreadyClosed.

        >>> server.readable
        0
        >>> client.sendall(b"data")
        >>> while not server.readable:
        ...     server.wait(timeout=10)
        >>> server.readable
        4
        """
        deadline = self._deadline(timeout)
        if self._take_again():
            dataplane.try_await(self._opened(), dataplane.EVENT, 0, 0)  # and what else is pending
            return
        result = self._wait(dataplane.EVENT, 0, deadline)
        if result < 0:
            raise self._error(result)

    def fileno(self) -> int:
        """Return a descriptor for select() and its kind, to be watched for reading only.

        It is readable when it may be worth trying again: something came, there is room, or the
        other end went. A call that raises WouldBlock makes it unreadable until then, and wait()
        does. An event does not tell its direction: if you wait for data and for room, try both. The
        vchan keeps the descriptor, and closes it. Raises AlreadyClosed.

        >>> import select
        >>> server.settimeout(0)
        >>> client.sendall(b"data")
        >>> select.select([server], [], [], 10) == ([server], [], [])
        True
        >>> server.recv(100)
        b'data'
        """
        with self._lock:
            self._opened()
            if self._poller is None:
                # Something may have come before anyone watched.
                poller = Poller(f"the events of the vchan at {self._path}", shows=True)
                poller.watch(self._event_fd())
                self._poller = poller
            return self._poller.fileno()

    def _event_fd(self) -> int:
        return int(dataplane.fd_for_select(self._opened()))

    def _let_go(self) -> None:
        super()._let_go()
        poller, self._poller = self._poller, None
        if poller is not None:
            poller.close()

    def _take_again(self) -> bool:
        """Take the event that is shown again. Returns whether there was one."""
        if self._poller is None:
            return False
        with self._lock:  # in which it is closed
            return self._poller is not None and self._poller.take()

    def _may_wait(self, ref: Any) -> bool:
        """Let close() end the wait that is to begin. Returns False if this is closed already.

        If there are other threads, that takes a descriptor: raises OutOfResources.
        """
        with self._lock:
            if self._ref is None:
                return False
            if not self._is_wakeable and _count_threads():
                result = dataplane.make_wakeable(ref)
                if result < 0:
                    raise self._error(result)
                self._is_wakeable = True
            return True

    def _show_again(self, ref: Any, awaited: int) -> None:
        """Show the event again that this call has taken, once, if it may have been the other's.

        An event does not tell its direction.
        """
        with self._lock:
            for each in (dataplane.DATA, dataplane.ROOM):
                # Another thread may be in a call in that direction: look, and change nothing of it.
                if each != awaited and each in self._lacked and self._poller is not None and dataplane.glance(ref, each):
                    self._lacked -= {each}
                    self._poller.show()
            self._lacked |= {awaited}

    def _wait(self, awaited: int, least: int, deadline: Deadline) -> int:
        """Wait for data, room or an event.

        Returns a negative errno where that can't come any more. Raises WouldBlock, TimedOut, and
        what a signal's handler raises.
        """
        ref, is_counted = self._opened(), False
        if awaited in self._awaited:
            raise Busy(f"another thread waits for {_AWAITED[awaited]} of the vchan at {self._path}: one at a time may")
        try:
            # A signal's handler may raise after any call: so none ends between these.
            self._awaited, is_counted = self._awaited | {awaited}, True
            if not deadline.timeout:
                self._take_again()
            result = -EINTR
            while (result == -EINTR or (result == -ETIMEDOUT and deadline.left() > 1)) and self._may_wait(ref):
                result = dataplane.wait_for(ref, awaited, least, deadline.microseconds())
            if deadline.timeout and awaited != dataplane.EVENT and self._poller is not None:
                self._poller.show()
        finally:
            if is_counted:
                self._awaited = self._awaited - {awaited}
            if self._ref is None:
                self._release_if_unused()
        if self._ref is None:
            raise self._already_closed()
        if result == -ETIMEDOUT:
            raise TimedOut(f"the vchan at {self._path}: no {_AWAITED[awaited]} within {deadline}")
        if result == -EAGAIN:
            self._show_again(ref, awaited)
            raise WouldBlock(f"the vchan at {self._path}: no {_AWAITED[awaited]}, and the call may not wait")
        return result
