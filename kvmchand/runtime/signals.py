# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a main process is stopped by signals, and reports that it is ready."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop


@contextmanager
def stopped_by_signals(loop: Loop) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the loop, for as long as the `with` lasts."""
    with ExitStack() as undo:
        reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        undo.callback(reading.close)
        undo.callback(writing.close)
        writing.setblocking(False)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        undo.callback(signal.set_wakeup_fd, before)
        for number in (signal.SIGTERM, signal.SIGINT):
            undo.callback(signal.signal, number, signal.signal(number, lambda *_: None))

        def on_signal(_events: int) -> None:
            # Other signals are none of ours: kvmchand.event has the alarm.
            if {signal.SIGTERM, signal.SIGINT} & set(reading.recv(64)):
                loop.stop()

        loop.add(reading.fileno(), on_signal)
        yield


def notify(state: str) -> None:
    """Notify the service manager, if there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.send(state.encode())
    except OSError as error:
        log.warning(f"the service manager at {address} can't be told {state}: {error.strerror}")
