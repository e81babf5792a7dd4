# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a main process meets the machine it runs on: its stdio, its signals, its service manager."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop

_STOP = (signal.SIGTERM, signal.SIGINT)
_NOT_OURS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that end a process which does not expect them, and mean nothing to us."""


def open_stdio() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed.

    Otherwise the next file that we open would take its number, and get what is written there.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


@contextmanager
def stopped_by_signals(loop: Loop) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the loop, for as long as the `with` lasts.

    They do, even if our parent had them blocked or ignored. SIGHUP, SIGUSR1 and SIGUSR2 are ignored
    meanwhile, also by the processes that we start.
    """
    with ExitStack() as undo:
        reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        undo.callback(reading.close)
        undo.callback(writing.close)
        writing.setblocking(False)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        undo.callback(signal.set_wakeup_fd, before)
        for number in _STOP:
            undo.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        for number in _NOT_OURS:
            undo.callback(signal.signal, number, signal.signal(number, signal.SIG_IGN))
        undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP))

        def on_signal(_events: int) -> None:
            # Other signals are none of ours: kvmchand.event has the alarm.
            if set(_STOP) & set(reading.recv(64)):
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
            sock.setblocking(False)
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.send(state.encode())
    except OSError as error:
        log.warning(f"the service manager at {address} can't be told {state}: {error.strerror}")


def keep_watchdog(loop: Loop) -> None:
    """Tell the service manager that we live, as often as it wants (sd_watchdog_enabled(3))."""
    pid, period = os.environ.get("WATCHDOG_PID", ""), os.environ.get("WATCHDOG_USEC", "")
    if not period.isdecimal() or pid not in ("", str(os.getpid())):
        return
    interval = int(period) / 2e6

    def tell() -> None:
        notify("WATCHDOG=1")
        loop.call_at(time.monotonic() + interval, tell)

    tell()
