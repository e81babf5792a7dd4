# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store's part of the benchmark: Debian's libxenstore in this process, by ctypes, against the daemon's store."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from report import Report, spread
from support import REFERENCE_LIBDIR, Daemon

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

    def __init__(self, library: Any, daemon: Daemon, domain: int = 0) -> None:
        os.environ["XENSTORED_PATH"] = str(daemon.store_path(domain))
        self._library = library
        self._handle = ctypes.c_void_p(library.xs_open(0))
        if not self._handle:
            raise OSError(f"xs_open failed with {daemon.store_path(domain)}")
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


def _median_event_ms(writer: Xenstore, watcher: Xenstore) -> float:
    taken = []
    for number in range(EVENTS):
        started = time.perf_counter()
        writer.write(b"%d" % number)
        watcher.event()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e3


def measure(daemon: Daemon, pairs: int, report: Report) -> None:
    library = _library()
    writer, watcher, other = Xenstore(library, daemon), Xenstore(library, daemon), Xenstore(library, daemon, 1)
    writer.write(b"x")
    watcher.watch()
    watcher.event()

    def runs(what: Callable[[], float]) -> list[float]:
        return [what() for _ in range(pairs)]

    for beside in ("", f", beside {OTHERS_WATCHES} watches of another domain"):
        if beside:
            for number in range(OTHERS_WATCHES):
                other.watch(b"data/%d" % number)
        reads = runs(lambda: _reads_per_second(writer))
        got = statistics.median(reads)
        report.add(f"store reads by one client{beside}", "≥ 5,000/s", f"{got:,.0f}/s", got >= 5000, f"/s: {spread(reads)}")
        events = runs(lambda: _median_event_ms(writer, watcher))
        got = statistics.median(events)
        report.add(f"from a write to the watch's event{beside}", "≤ 2 ms", f"{got:.3f} ms", got <= 2, f"ms: {spread(events)}")
    writer.remove()
    for each in (writer, watcher, other):
        each.close()
