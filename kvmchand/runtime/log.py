# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's log: lines on stderr, which the service manager keeps. Each line is one write.

Logging never waits. A line that nobody makes room for is lost, and counted. So are the lines about
one client, guest or domain beyond `_LINES_MAX` in a second.
"""

from __future__ import annotations

import os
import select
import sys
import time

from kvmchand.linux.interrupt import interrupted_soon

_STDERR = 2
_LINES_MAX = 20
"""Lines in a second about what one client, guest or domain does."""
_CUT = b"...\n"


class _Count:
    """How many lines there were about each in this second, and how many of all were lost."""

    def __init__(self) -> None:
        self._second = 0
        self._lines: dict[str, int] = {}
        self.lost = 0

    def may(self, whose: str) -> bool:
        """Return whether another line about this one may be written."""
        second = int(time.monotonic())
        if second != self._second:
            over = {each: lines - _LINES_MAX for each, lines in self._lines.items() if lines > _LINES_MAX}
            self._second, self._lines = second, {}
            for each, lines in over.items():
                _write(f"warning: {each}: {lines} more lines in a second were left out")
        self._lines[whose] = self._lines.get(whose, 0) + 1
        return self._lines[whose] <= _LINES_MAX


_count = _Count()


def printable(text: str) -> str:
    """Return outside text without its control characters.

    They could make lines of their own in the log, or act on a terminal.
    """
    return "".join(each if each.isprintable() else "?" for each in text)


def _put(text: str) -> bool:
    """Write a line if that needs no wait. Returns whether it was written."""
    line = f"kvmchand: {printable(text)}\n".encode(errors="replace")
    if len(line) > select.PIPE_BUF:  # a pipe with room takes as much, and no more
        line = line[: select.PIPE_BUF - len(_CUT)] + _CUT
    poll = select.poll()
    poll.register(_STDERR, select.POLLOUT)
    try:
        if not poll.poll(0):
            return False
        with interrupted_soon():  # if another process takes the room that there was
            return os.write(_STDERR, line) == len(line)
    except OSError:
        return False


def _write(text: str) -> None:
    if sys.stderr is None:
        return  # it was closed when we started
    if _count.lost and _put(f"warning: {_count.lost} lines before this one were lost, for nobody read them"):
        _count.lost = 0
    if _count.lost or not _put(text):
        _count.lost += 1


def info(text: str, *, whose: str = "") -> None:
    """Log what happened. `whose`: who brings it about, if that is somebody outside."""
    if not whose or _count.may(whose):
        _write(text)


def warning(text: str, *, whose: str = "") -> None:
    """Log what went wrong. `whose`: as for info()."""
    info(f"warning: {text}", whose=whose)
