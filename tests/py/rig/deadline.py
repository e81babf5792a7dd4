# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one deadline of a test, whatever it waits for. It ends what hangs, and measures no machine.

Its clock stands still while processes of the test wait for a processor, so a busy machine only
makes a test take longer. A process beside pytest has this clock: it uses no thread, timer or
descriptor of the process that is tested.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmchand.runtime.loop import Loop

PERIOD = 0.2
"""Seconds between two looks at the processes."""
PAUSE = 0.002
"""Seconds between two looks at what another process is doing."""
SLOWEST = 0.1
"""How fast the clock goes at least, so that it ends what hangs on the busiest machine."""
GRACE = 30.0
"""Seconds after which a process that did not react to its signal is killed, with a traceback."""


class Hangs(BaseException):
    """What a test waits for does not come about. Not an Exception, which a test might expect."""


# ---- in the process that is watched ----

_orders = -1
_watched: list[str] = []


def _start() -> int:
    """Start the watching process, and return what it reads its orders from."""
    reading, writing = os.pipe()
    # It is nobody's child: tests look at the children of their process.
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(reading), str(GRACE)]
    subprocess.run(command, pass_fds=[reading], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    os.close(reading)
    signal.signal(signal.SIGUSR2, _on_late)
    return writing


def _on_late(_number: int, _frame: object) -> None:
    if _watched:  # or it has just ended
        raise Hangs(f"{_watched[-1]} hangs")


def _order(*words: object) -> None:
    global _orders
    if _orders < 0:
        _orders = _start()
    os.write(_orders, " ".join(map(str, words)).encode() + b"\n")


@contextmanager
def in_time(seconds: float, what: str) -> Iterator[None]:
    """Raise Hangs if this is not done in so many seconds in which no process of ours waits for a
    processor.
    """
    _order("begin", seconds)
    _watched.append(what)
    try:
        yield
    finally:
        _watched.pop()
        _order("end")


def count_too(folder: Path) -> None:
    """Let the clock heed processes that are no descendants: those that have a file NAME.pid in this
    folder.
    """
    _order("heed", folder)


def eventually(holds: Callable[[], object], state: Callable[[], str] = str) -> None:
    """Wait for something that another process is doing.

    `state`: what to say if it does not come about.

    Who looks without a pause takes the processor from that other process, and looks as if it waited
    for one.
    """
    try:
        while not holds():
            time.sleep(PAUSE)
    except Hangs as hangs:
        raise Hangs(f"{hangs}: {state()}") from None


def run_until(loop: Loop, holds: Callable[[], bool], state: Callable[[], str]) -> None:
    """Run main's loop until something has come about."""
    try:
        while not holds():
            loop.turn()
    except Hangs as hangs:
        raise Hangs(f"{hangs}: {state()}") from None


# ---- in the process that watches ----


def _threads(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def _descendants(pids: list[int]) -> Iterator[Path]:
    """The threads of processes, and of all that they started and that lives."""
    while pids:
        try:
            for thread in _threads(pids.pop()):
                yield thread
                pids += map(int, (thread / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended


def _waited(pids: list[int]) -> dict[str, int]:
    """How long each thread has waited for a processor, in nanoseconds.

    Where the kernel does not say so, 0.
    """
    found = {}
    for thread in _descendants(pids):
        try:
            found[thread.name] = int((thread / "schedstat").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class _Watch:
    """The clock, and whom it is for."""

    def __init__(self, pid: int, grace: float) -> None:
        self._pid = pid
        self._grace = grace
        self._folders: list[Path] = []
        self._left: list[float] = []
        """Seconds for each thing that is watched, the innermost last."""
        self._is_late = False
        """It was told."""
        self._looked = 0.0
        self._waited: dict[str, int] = {}

    def obey(self, order: str) -> None:
        verb, _, rest = order.partition(" ")
        match verb:
            case "begin":
                if not self._left:
                    self._looked = 0.0
                self._left.append(float(rest))
                self._is_late = False
            case "end":
                self._left.pop()
                self._is_late = False
            case "heed":
                self._folders.append(Path(rest))

    def _pids(self) -> list[int]:
        found = [self._pid]
        for folder in self._folders:
            for path in folder.glob("*.pid"):
                try:
                    found.append(int(path.read_text()))
                except (FileNotFoundError, ValueError):
                    continue  # it is just starting, or has ended
        return found

    def look(self) -> None:
        if not self._left:
            return
        now, waited = time.monotonic(), _waited(self._pids())
        passed, self._looked = now - (self._looked or now), now
        delayed = sum(each - self._waited.get(thread, 0) for thread, each in waited.items()) / 1e9
        self._waited = waited
        passed = max(passed - delayed, passed * SLOWEST)
        self._left = [each - passed for each in self._left]
        if min(self._left) <= 0:
            # The second time it does not react at all; pytest's handler for SIGABRT shows where it
            # is.
            os.kill(self._pid, signal.SIGABRT if self._is_late else signal.SIGUSR2)
            self._left = [max(each, self._grace) for each in self._left]
            self._is_late = True


def _watch(pid: int, orders: int, grace: float) -> None:
    if os.fork():
        return
    os.setsid()
    os.set_blocking(orders, False)
    watch = _Watch(pid, grace)
    heard = b""
    while True:
        time.sleep(PERIOD)
        try:
            more = os.read(orders, 1 << 20)
            if not more:
                return
        except BlockingIOError:
            more = b""
        *lines, heard = (heard + more).split(b"\n")
        for line in lines:
            watch.obey(line.decode())
        watch.look()


if __name__ == "__main__":
    _watch(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
