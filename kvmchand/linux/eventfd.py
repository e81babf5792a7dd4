# SPDX-License-Identifier: LGPL-2.1-or-later
"""Eventfds that others hold too: a QEMU, or a client on this machine.

All holders share the flag by which calls on it block, and its counter. Nothing here waits, whatever
they do with either.
"""

from __future__ import annotations

import fcntl
import os
import select

from kvmchand.linux.interrupt import interrupted_soon


def signal_event(event: int) -> None:
    """Wake whoever waits for the event."""
    fcntl.fcntl(event, fcntl.F_SETFL, os.O_NONBLOCK)
    with interrupted_soon():  # if another holder fills it and clears the flag just now
        try:
            os.eventfd_write(event, 1)
        except (BlockingIOError, InterruptedError):
            pass  # full: events are pending


def share_event(event: int) -> select.epoll:
    """Return an epoll by which one of several holders waits for an eventfd that nobody reads.

    It is ready once for what came before, if anything did, and once after each event.
    """
    shared = select.epoll()
    shared.register(event, select.EPOLLIN | select.EPOLLET)
    return shared


def drain_event(event: int) -> None:
    """Forget what is pending."""
    try:
        os.preadv(event, [bytearray(8)], -1, os.RWF_NOWAIT)
    except BlockingIOError:
        pass
