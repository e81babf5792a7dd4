# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store's part of the benchmark: Debian's libxenstore in this process, by ctypes, against the
daemon's store.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from report import Report, ratio, spread
from rig.daemon import Daemon
from rig.paths import REFERENCE_LIBDIR

READS = 10_000
EVENTS = 2_000
OTHERS_WATCHES = 500
_PATH = b"/bench/node"


def _library() -> Any:
    ctypes.CDLL(str(REFERENCE_LIBDIR / "libxentoolcore.so.1"), mode=ctypes.RTLD_GLOBAL)
    found = ctypes.CDLL(str(REFERENCE_LIBDIR / "libxenstore.so.4"))
    found.xs_open.restype = ctypes.c_void_p
    for name in ("xs_read", "xs_read_watch"):
        getattr(found, name).restype = ctypes.c_void_p
    return found


class Xenstore:
    """A handle of libxenstore's, to the store of a domain."""

    _free = ctypes.CDLL(None).free

    def __init__(self, library: Any, path: Path) -> None:
        """`path`: the socket of that domain's store."""
        os.environ["XENSTORED_PATH"] = str(path)
        self._library = library
        self._handle = ctypes.c_void_p(library.xs_open(0))
        if not self._handle:
            raise OSError(f"xs_open failed with {path}")
        self._size = ctypes.c_uint()

    def read(self) -> None:
        found = self._library.xs_read(self._handle, 0, _PATH, ctypes.byref(self._size))
        if not found:
            raise OSError("xs_read failed")
        self._free(ctypes.c_void_p(found))

    def write(self, value: bytes) -> None:
        if not self._library.xs_write(self._handle, 0, _PATH, value, len(value)):
            raise OSError("xs_write failed")

    def watch(self, path: bytes = _PATH) -> None:
        if not self._library.xs_watch(self._handle, path, b"token"):
            raise OSError("xs_watch failed")

    def event(self) -> None:
        self._free(ctypes.c_void_p(self._library.xs_read_watch(self._handle, ctypes.byref(self._size))))

    def remove(self) -> None:
        self._library.xs_rm(self._handle, 0, b"/bench")

    def close(self) -> None:
        self._library.xs_close(self._handle)


def _reads_per_second(client: Xenstore) -> float:
    started = time.perf_counter()
    for _ in range(READS):
        client.read()
    return READS / (time.perf_counter() - started)


def reads_per_second(path: Path) -> float:
    """Return how often a second one client can read a node of the store at this socket."""
    client = Xenstore(_library(), path)
    try:
        client.write(b"x")
        return _reads_per_second(client)
    finally:
        client.remove()
        client.close()


def _events_ms(writer: Xenstore, watcher: Xenstore) -> list[float]:
    """From each write until its event is there."""
    taken = []
    for number in range(EVENTS):
        started = time.perf_counter()
        writer.write(b"%d" % number)
        watcher.event()
        taken.append((time.perf_counter() - started) * 1e3)
    return taken


def _late(taken: list[float]) -> float:
    """What 99 of 100 take at the most."""
    return statistics.quantiles(taken, n=100)[-1]


@contextmanager
def _watches(library: Any, daemon: Daemon) -> Iterator[None]:
    """Another domain has so many."""
    other = Xenstore(library, daemon.store_path(1))
    try:
        for number in range(OTHERS_WATCHES):
            other.watch(b"data/%d" % number)
        yield
    finally:
        other.close()


def measure(daemon: Daemon, pairs: int, report: Report) -> None:
    library = _library()
    writer, watcher = Xenstore(library, daemon.store_path()), Xenstore(library, daemon.store_path())
    writer.write(b"x")
    watcher.watch()
    watcher.event()
    reads: dict[bool, list[float]] = {False: [], True: []}
    events: dict[bool, list[list[float]]] = {False: [], True: []}
    for turn in range(pairs):
        for beside in (False, True) if turn % 2 == 0 else (True, False):
            with _watches(library, daemon) if beside else nullcontext():
                reads[beside].append(_reads_per_second(writer))
                events[beside].append(_events_ms(writer, watcher))
    writer.remove()
    for each in (writer, watcher):
        each.close()

    got = statistics.median(reads[False])
    report.add("store reads by one client", "≥ 5,000/s", f"{got:,.0f}/s", got >= 5000, f"/s: {spread(reads[False])}")
    late = {beside: [_late(each) for each in runs] for beside, runs in events.items()}
    got = statistics.median(late[False])
    medians = [statistics.median(each) for each in events[False]]
    report.add(
        "from a write to the watch's event",
        "≤ 2 ms",
        f"99 of 100 in {got:.2f} ms",
        got <= 2,
        f"ms: 99 of 100 {spread(late[False])}, half {spread(medians)}",
    )
    rate, got = ratio(reads[True], reads[False]), statistics.median(late[True])
    report.add(
        f"the same beside {OTHERS_WATCHES} watches of another domain",
        "≥ 0.9 × the reads, ≤ 2 ms",
        f"{rate:.2f} ×, 99 of 100 in {got:.2f} ms",
        rate >= 0.9 and got <= 2,
        f"/s: {spread(reads[True])}; ms: {spread(late[True])}",
    )
