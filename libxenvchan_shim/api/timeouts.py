# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long a call may wait.

A timeout is a number of seconds, None for any time, or 0 for none at all: then a call that would
have to wait raises WouldBlock.
"""

from __future__ import annotations

import math
import time
from enum import Enum

from kvmchand.errors import InvalidArgument

FOREVER = -1
"""A timeout of None in ns, as the data plane takes it."""
_LONGEST = 2**62
"""Nanoseconds, 146 years: what is longer is for ever."""


class Own(Enum):
    """The type of OWN."""

    OWN = "the timeout of the vchan or listener"

    def __repr__(self) -> str:
        return "OWN"


OWN = Own.OWN
"""The default of a call's timeout: what settimeout() has set."""


def nanoseconds(timeout: float | None) -> int:
    """Return a timeout in ns; FOREVER for None.

    Raises TypeError if it is no number, and InvalidArgument if it is negative or NaN.
    """
    if timeout is None:
        return FOREVER
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds or None, not {type(timeout).__name__}")
    if not timeout >= 0:
        raise InvalidArgument(f"timeout is {timeout}: give a number of seconds, 0 or more, or None")
    length = timeout * 10**9
    return math.ceil(length) if length < _LONGEST else FOREVER


class Deadline:
    """The time until which a call may wait, from now on."""

    __slots__ = ("_end", "timeout")

    def __init__(self, timeout: int) -> None:
        """Begin a wait of at most `timeout` ns, or FOREVER."""
        self.timeout = timeout
        self._end = time.monotonic_ns() + timeout if timeout > 0 else 0

    def left(self) -> int:
        """Return what is left, in ns: at least 1, unless the timeout is 0."""
        return max(1, self._end - time.monotonic_ns()) if self.timeout > 0 else self.timeout

    def microseconds(self) -> int:
        """Return what is left in µs, as a C int: a part of it, if that is longer."""
        if self.timeout <= 0:
            return self.timeout
        return min(-(-self.left() // 1000), 2**31 - 1)

    def seconds(self) -> float | None:
        """Return what is left in seconds, None if that is for ever."""
        return None if self.timeout < 0 else self.left() / 10**9

    def __str__(self) -> str:
        return f"{self.timeout / 10**9:g} s"


NO_DEADLINE = Deadline(FOREVER)
AT_ONCE = Deadline(0)
"""The deadline of a call that may not wait."""

Timeout = float | None | Own | Deadline
"""What calls take: seconds, None, OWN, or a deadline that several calls share."""


class Patient:
    """Something whose calls wait as long as it is told."""

    _timeout = FOREVER

    def settimeout(self, timeout: float | None) -> None:
        """Set how long calls wait: seconds, None for any time (the default), 0 for not at all.

        Raises InvalidArgument if it is negative. Calls that already wait go on as they began.

        >>> server.settimeout(0.01)
        >>> server.recv(100)
        Traceback (most recent call last):
            ...
        kvmchand.errors.TimedOut: [Errno 110] the vchan at ...: no data within 0.01 s
        """
        self._timeout = nanoseconds(timeout)

    def gettimeout(self) -> float | None:
        """Return how long calls wait, in seconds; None for any time."""
        return None if self._timeout < 0 else self._timeout / 10**9

    def setblocking(self, flag: bool) -> None:
        """Have calls wait, or never wait: settimeout(None) or settimeout(0)."""
        self._timeout = FOREVER if flag else 0

    def getblocking(self) -> bool:
        """Return whether calls wait: the timeout is not 0."""
        return self._timeout != 0

    def _deadline(self, timeout: Timeout) -> Deadline:
        if isinstance(timeout, Deadline):
            return timeout
        length = self._timeout if timeout is OWN else nanoseconds(timeout)
        return Deadline(length) if length > 0 else NO_DEADLINE if length else AT_ONCE
