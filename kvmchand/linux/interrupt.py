# SPDX-License-Identifier: LGPL-2.1-or-later
"""System calls that must not wait, though someone else decides whether they do."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE = 0.005
"""Seconds before a blocked call is interrupted."""


@contextmanager
def interrupted_soon() -> Iterator[None]:
    """Interrupt a system call that blocks.

    For a process's first thread, which is the only thread of each of our processes but libvirt's.
    """
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
