# SPDX-License-Identifier: LGPL-2.1-or-later
"""Channels on what would be an ivshmem device's memory, if there was a guest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kvmchand.channels.page import Page
from kvmchand.channels.rings import Rings
from kvmchand.wire import dataplane


@contextmanager
def slice_of_device() -> Iterator[tuple[int, int, int, int]]:
    """Make what ends are granted, with rings of orders 10 and 11.

    That is a memory, which has the channel's page at the offset given last, and the eventfds that
    server and client wait on.
    """
    offset = 4096
    fds = [os.memfd_create("device"), *(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))]
    try:
        os.ftruncate(fds[0], offset + 2 * 4096)
        Page(fds[0], offset).initialize(Rings(10, 11))
        yield fds[0], fds[1], fds[2], offset
    finally:
        for fd in fds:
            os.close(fd)


def end_on_device(memory: int, event: int, notify: int, offset: int, *, is_server: bool) -> Any:
    """Attach an end of the test's own, without a daemon. kvmchand.wire.dataplane detaches it."""
    return dataplane.attach(
        dataplane.Grant(
            region_fd=os.dup(memory),
            event_fd=os.dup(event),
            notify_fd=os.dup(notify),
            control_fd=-1,
            is_server=int(is_server),
            left_order=10,
            right_order=11,
            events=dataplane.EVENTFD,
            offset=offset,
        )
    )
