# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stands in for a service process of kvmchand's: the test that it gives its socket to main to is
the service.
"""

from __future__ import annotations

import os
import select
import socket


def main(socket_fd: int, _marker_fd: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as test:
        test.connect(os.environ["KVMCHAN_TEST_SERVICE"])
        socket.send_fds(test, [b"\0"], [socket_fd])
    poll = select.poll()
    poll.register(socket_fd, 0)
    poll.poll()  # until main's end of it is closed
