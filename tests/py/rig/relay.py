# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stands in for a service process of kvmchand's: the test that it gives its socket to main to is
the service.
"""

from __future__ import annotations

import os
import select
import socket

from kvmchand.runtime.marker import BEAT, Marker


def main(socket_fd: int, marker_fd: int) -> None:
    marker = Marker(marker_fd)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as test:
        test.connect(os.environ["KVMCHAN_TEST_SERVICE"])
        socket.send_fds(test, [b"\0"], [socket_fd])
    poll = select.poll()
    poll.register(socket_fd, 0)
    while not poll.poll(BEAT * 1000):  # until main's end of it is closed
        marker.beat()
