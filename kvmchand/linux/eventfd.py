# SPDX-License-Identifier: LGPL-2.1-or-later
"""Eventfds that others have too: a QEMU, or a client on this machine. Whether a call on one blocks is a flag that all share who
have it, and so is how full it is: nothing here waits, whatever they do.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE = 0.005
"""Seconds. Only one who fills an eventfd and clears its flag just as we write makes us wait at all."""


def signal_event(event: int) -> None:
    """Wakes who waits for it."""
    fcntl.fcntl(event, fcntl.F_SETFL, os.O_NONBLOCK)
    with _interrupted_soon():
        try:
            os.eventfd_write(event, 1)
        except (BlockingIOError, InterruptedError):
            pass  # full: events are pending


def drain_event(event: int) -> None:
    """Forgets what was pending."""
    try:
        os.preadv(event, [bytearray(8)], -1, os.RWF_NOWAIT)
    except BlockingIOError:
        pass


@contextmanager
def _interrupted_soon() -> Iterator[None]:
    """Ends a system call that blocks. In a process's first thread, which is the only one of each of ours."""
    try:
        handler = signal.signal(signal.SIGALRM, lambda *_: None)
    except ValueError:
        yield
        return
    before = signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)
