# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measures the Python API side by side with what Python programs would use instead.

The others: a UNIX socket pair, multiprocessing.Pipe, pyzmq, iceoryx2, asyncio's own streams, and
our C API. tests/bench/requirements.txt names what is no part of Python; what is not installed is
left out. Runs alternate, and each figure is the median of ratios of runs beside each other. It
writes docs/benchmarks-python.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "py"))

from report import Report, ratio, spread
from report import size as _size
from rig.daemon import Daemon
from rig.paths import C_BUILD, LIBDIR, PYTHON, ROOT, SITE, XEN_LIBDIR
from rivals import CARRIERS, LARGE, MODULES, RING

Add = Callable[[str, str, str, bool, str], None]
"""Report.add()."""
Figures = dict[str, list[float]]

EXPLANATION = [
    "Both ends are Python programs, but for the C API's. Runs of each alternate, and a ratio is the median of the ratios of "
    "runs beside each other. tests/bench/requirements.txt names what is no part of Python.",
]
_MESSAGES = (
    "a call through ctypes takes about 0.2 µs and the method around it 0.1 µs, which is most of put() and of take(); pyzmq's "
    "sender hands its messages to a thread, which sends many at once, on a processor of its own."
)
_STREAM = (
    "what bounds it is the copy from one core to the other, as for C. A reader that is quicker than the writer waits for each "
    "piece, and to begin a wait in Python takes about 1 µs of the 6 µs that a piece takes."
)
_IN_PLACE = (
    "one byte in 64 is in every cache line, so all of them move to the reader's core either way, and the copy that is saved "
    "takes less time than the look. It pays where less is looked at, as the row below shows."
)
WHY = {
    "64 B messages one way, two processes": _MESSAGES,
    "64 KiB stream, two processes, recv_into": _STREAM,
    "64 KiB stream, two processes, recv": _STREAM,
    "64 KiB read in place, one byte in 64 B looked at: the reader's CPU": _IN_PLACE,
}
_RIVALS = Path(__file__).with_name("rivals.py")
_LONGEST = 30.0
"""Seconds that a run may take."""
_OURS = "kvmchan"


def _is_there(carrier: str) -> bool:
    return carrier not in MODULES or importlib.util.find_spec(MODULES[carrier]) is not None


THERE = [name for name in CARRIERS if _is_there(name)]
MISSING = [name for name in CARRIERS if not _is_there(name)]


class Child:
    """A process that is one end of a run."""

    def __init__(
        self, job: str, carrier: str, role: str, arguments: list[Any], environment: dict[str, str], fds: list[int]
    ) -> None:
        """Start it. It inherits the descriptors."""
        self._name = f"{job}, {carrier}, {role}"
        self._process = subprocess.Popen(
            [PYTHON, str(_RIVALS), job, carrier, role, json.dumps(arguments)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=fds,
        )

    def line(self, deadline: float) -> str:
        """Return the next line that it prints."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"{self._name}: nothing within {_LONGEST:.0f} s")
        line = self._process.stdout.readline()  # it prints whole lines, and one at a time
        if not line:
            raise RuntimeError(f"{self._name}: it ended with {self._process.wait()}")
        return line.decode()

    def go(self) -> None:
        """Tell it to go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """End it, by force if it does not by itself."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(_LONGEST)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Bench:
    """The daemon, and the runs on it."""

    def __init__(self, daemon: Daemon, folder: Path, pairs: int, share: float, add: Add) -> None:
        """Measure `pairs` runs of each, of `share` of the usual length."""
        self._daemon = daemon
        self._folder = folder
        self._pairs = pairs
        self._share = share
        self._add = add
        self._numbers = itertools.count()
        self._prefix = f"kvmchan-bench-{os.getpid()}-"

    # ---- runs ----

    def _environment(self) -> dict[str, str]:
        paths = [str(SITE), *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
        return self._daemon.environment(KVMCHAN_LIBDIR=str(LIBDIR), PYTHONPATH=":".join(paths))

    @contextmanager
    def _place(self) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """Make what both ends of a run are told, and the descriptors that they inherit."""
        with ExitStack() as stack:
            sockets, pipes = socket.socketpair(), Pipe()
            for each in (*sockets, *pipes):
                stack.enter_context(each)
            place: dict[str, Any] = {
                "folder": str(self._folder),
                "prefix": self._prefix,
                "path": f"data/bench-{next(self._numbers)}",
                "socket": [end.fileno() for end in sockets],
                "pipe": [end.fileno() for end in pipes],
            }
            yield place, [*place["socket"], *place["pipe"]]

    def _alone(self, job: str, carrier: str, count: int, *more: int) -> dict[str, float]:
        """Return what one process measures."""
        with self._place() as (place, fds):
            child = Child(job, carrier, "both", [place, self._count(count), *more], self._environment(), fds)
            try:
                figures: dict[str, float] = json.loads(child.line(time.monotonic() + _LONGEST))
            finally:
                child.end()
        return figures

    def _two(self, job: str, carrier: str, count: int, *more: str, measures: str = "reader") -> float:
        """Return what one of two processes measures."""
        deadline = time.monotonic() + _LONGEST
        children: dict[str, Child] = {}
        with self._place() as (place, fds):
            arguments = [place, self._count(count), *more]
            try:
                for role in ("reader", "writer"):
                    children[role] = Child(job, carrier, role, arguments, self._environment(), fds)
                for child in children.values():
                    child.line(deadline)
                children["writer"].go()
                return float(children[measures].line(deadline))
            finally:
                # The reader first: so nothing waits for a writer that has gone too early.
                for child in children.values():
                    child.end()

    def _count(self, count: int) -> int:
        return max(100, int(count * self._share))

    def _c_stream(self, total: int) -> float:
        done = subprocess.run(
            [
                str(C_BUILD / "benchpeer"),
                "--path",
                "data/bench-c",
                "vchan-stream",
                str(LARGE),
                str(self._count(total)),
                str(RING),
            ],
            env=self._daemon.environment(LD_LIBRARY_PATH=str(XEN_LIBDIR)),
            capture_output=True,
            text=True,
            timeout=_LONGEST,
            check=True,
        )
        return float(json.loads(done.stdout)["bytes_per_second"])

    def _compare(self, runs: dict[str, Callable[[], float]]) -> Figures:
        """Run all in turn, `pairs` times."""
        taken: Figures = {name: [] for name in runs}
        for turn in range(self._pairs):
            for name in list(runs)[:: 1 if turn % 2 == 0 else -1]:
                taken[name].append(runs[name]())
        return taken

    def _rivals(self, run: Callable[[str], float]) -> dict[str, Callable[[], float]]:
        """Return a run for each carrier that is there, ours first."""
        return {name: lambda name=name: run(name) for name in THERE}  # type: ignore[misc]

    # ---- figures ----

    def put_and_take(self) -> None:
        """CPU of a message in one process."""
        taken = self._compare(self._rivals(lambda name: self._alone("both_ends", name, 50_000)["ns"] / 1e3))
        ours = statistics.median(taken[_OURS])
        # The limit is 1.6 µs where a socket takes 1.1 to 2.4: so it goes with the machine.
        limit = 1.6 * max(1.0, statistics.median(taken["socket"]) / 2.4)
        reached = ours <= limit and all(ratio(taken[_OURS], each) < 1 for name, each in taken.items() if name != _OURS)
        wanted = f"≤ {limit:.1f} µs, < 1.0 × each other"
        self._row("CPU of a put and a take, 64 B, one process", wanted, taken, "µs", reached, ours=f"{ours:.2f} µs")

    def one_way(self) -> None:
        """Messages of 64 B between two processes."""
        runs = self._rivals(lambda name: self._two("messages", name, 200_000))
        runs["kvmchan batched"] = lambda: self._two("batched", _OURS, 200_000)
        taken = {name: [each / 1e6 for each in figures] for name, figures in self._compare(runs).items()}
        batch = taken.pop("kvmchan batched")
        best = self._best(taken, max)
        got = ratio(taken[_OURS], taken[best])
        self._row("64 B messages one way, two processes", f"≥ 3 × {best}", taken, "million/s", got >= 3)
        taken[_OURS] = batch
        got = ratio(batch, taken[best])
        self._row("64 B messages one way, received many at once", f"≥ 3 × {best}", taken, "million/s", got >= 3)

    def stream(self, how: str, what: str) -> None:
        """Measure a stream in calls of 64 KiB. `how`: it is received."""
        # Longer where the bytes pass quicker, so that runs take about as long.
        totals = {_OURS: 3_000_000_000, "iceoryx2": 2_000_000_000}
        runs = self._rivals(lambda name: self._two("stream", name, totals.get(name, 800_000_000), how))
        runs["C"] = lambda: self._c_stream(4_000_000_000)
        taken = {name: [each / 1e6 for each in figures] for name, figures in self._compare(runs).items()}
        best = self._best({name: each for name, each in taken.items() if name != "C"}, max)
        reached = ratio(taken[_OURS], taken["C"]) >= 0.9 and ratio(taken[_OURS], taken[best]) >= 2
        self._row(f"64 KiB stream, two processes, {what}", f"≥ 0.9 × C, ≥ 2 × {best}", taken, "MB/s", reached)

    def in_place(self) -> None:
        """Measure looks at bytes where they lie, and at a copy."""
        for size, stride, wanted in ((LARGE, 64, "≥ 3 × as quick as a copy"), (1 << 20, 4096, "—")):
            runs = [self._alone("looks", _OURS, 4_000 * LARGE // size, size, stride) for _ in range(self._pairs)]
            names = {"in place": "in_place", "a copy": "copied", "the look alone, of bytes at hand": "alone"}
            taken = {name: [run[figure] / 1e3 for run in runs] for name, figure in names.items()}
            got = ratio(taken["a copy"], taken["in place"])
            what = f"{_size(size)} read in place, one byte in {_size(stride)} looked at: the reader's CPU"
            self._add(what, wanted, f"{got:.2f} ×", got >= 3 or wanted == "—", _details(taken, "µs"))
        taken = self._compare(
            {
                "in place": lambda: self._two("stream", _OURS, 4_000_000_000, "in place") / 1e6,
                "a copy": lambda: self._two("stream", _OURS, 3_000_000_000, "copied") / 1e6,
            }
        )
        got = ratio(taken["in place"], taken["a copy"])
        what = "64 KiB read in place, one byte in 64 B looked at, two processes"
        self._add(what, "≥ 3 × as quick as a copy", f"{got:.2f} ×", got >= 3, _details(taken, "MB/s"))

    def asyncio(self) -> None:
        """Measure asyncio's streams, and ours."""
        taken = self._compare(
            {
                _OURS: lambda: self._two("async_stream", _OURS, 1_500_000_000) / 1e6,
                "UNIX socket": lambda: self._two("async_stream", "socket", 800_000_000) / 1e6,
            }
        )
        got = ratio(taken[_OURS], taken["UNIX socket"])
        self._row("asyncio streams, 64 KiB", "≥ 1.5 × UNIX socket", taken, "MB/s", got >= 1.5)
        taken = self._compare(
            {
                _OURS: lambda: self._two("async_round_trips", _OURS, 8_000, measures="writer") / 1e3,
                "UNIX socket": lambda: self._two("async_round_trips", "socket", 8_000, measures="writer") / 1e3,
            }
        )
        got = ratio(taken[_OURS], taken["UNIX socket"])
        self._row("asyncio streams, 64 B round trip", "≤ 1.0 × UNIX socket", taken, "µs", got <= 1)

    def round_trip(self) -> None:
        """Round trips of 64 B."""
        counts = {_OURS: 100_000, "iceoryx2": 20_000}
        taken = self._compare(
            self._rivals(lambda name: self._two("round_trips", name, counts.get(name, 8_000), measures="writer") / 1e3)
        )
        got = ratio(taken[_OURS], taken["Pipe"])
        self._row("64 B round trip, two processes, both ends awake", "≤ 0.2 × Pipe", taken, "µs", got <= 0.2)

    def start(self) -> None:
        """Measure what a fresh process needs until it can use the API."""
        programs = {
            "empty": "",
            "import": "import libxenvchan_shim",
            "first use": "import libxenvchan_shim; libxenvchan_shim.connect",
            "with a vchan offered": "import libxenvchan_shim; libxenvchan_shim.offer('host', 'data/first').close()",
            "import socket": "import socket",
            "import multiprocessing.connection": "import multiprocessing.connection",
            **{f"import {MODULES[name]}": f"import {MODULES[name]}" for name in THERE if name in MODULES},
        }

        # As after an installation, all is compiled.
        environment = {**self._environment(), "PYTHONPYCACHEPREFIX": str(self._folder / "compiled")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def run(code: str) -> float:
            began = time.perf_counter()
            with subprocess.Popen([PYTHON, "-P", "-c", code], env=environment) as process:
                ended = os.pidfd_open(process.pid)
                # Not wait(), which with a timeout sleeps between looks.
                ready, _, _ = select.select([ended], [], [], _LONGEST)
                taken = (time.perf_counter() - began) * 1e3
                os.close(ended)
                if not ready:
                    process.kill()
            if process.returncode:
                raise RuntimeError(f"python -c {code!r} ended with {process.returncode}")
            return taken

        for code in programs.values():
            run(code)
        taken = self._compare({name: lambda code=code: run(code) for name, code in programs.items()})  # type: ignore[misc]
        empty = taken.pop("empty")
        above = {name: [a - b for a, b in zip(each, empty, strict=True)] for name, each in taken.items()}
        got = statistics.median(above["import"])
        self._add(
            "import libxenvchan_shim, above an empty interpreter",
            "≤ 15 ms",
            f"{got:.1f} ms",
            got <= 15,
            f"ms: {'; '.join(f'{name} {spread(each)}' for name, each in above.items())}; the empty one itself {spread(empty)}",
        )

    @staticmethod
    def _best(taken: Figures, of: Callable[..., str]) -> str:
        return of((name for name in taken if name != _OURS), key=lambda name: statistics.median(taken[name]))

    def _row(self, what: str, wanted: str, taken: Figures, unit: str, reached: bool, *, ours: str = "") -> None:
        ratios = [f"{_figure(ratio(taken[_OURS], each))} × {name}" for name, each in taken.items() if name != _OURS]
        left_out = f"; not installed: {', '.join(MISSING)}" if MISSING and "socket" in taken else ""
        self._add(what, wanted, ", ".join([*filter(None, [ours]), *ratios]), reached, _details(taken, unit) + left_out)

    def forget(self) -> None:
        """Remove what iceoryx2 leaves in memory."""
        for path in Path("/dev/shm").glob(f"{self._prefix}*"):
            path.unlink()


def _figure(number: float) -> str:
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}" if number >= 0.1 else f"{number:.3f}"


def _details(taken: Figures, unit: str) -> str:
    return f"{unit}: {', '.join(f'{name} {spread(figures)}' for name, figures in taken.items())}"


FIGURES: dict[str, Callable[[Bench], None]] = {
    "cpu": Bench.put_and_take,
    "messages": Bench.one_way,
    "stream": lambda bench: bench.stream("fill", "recv_into"),
    "recv": lambda bench: bench.stream("recv", "recv"),
    "in-place": Bench.in_place,
    "asyncio": Bench.asyncio,
    "round-trip": Bench.round_trip,
    "start": Bench.start,
}


def measure(daemon: Daemon, pairs: int, add: Add, *, share: float = 1.0, only: list[str] | None = None) -> None:
    """Measure all figures, or some, and add a row for each.

    `share`: of the usual length of runs.
    """
    folder = Path(tempfile.mkdtemp(prefix="kvmchan-bench-", dir="/dev/shm"))
    bench = Bench(daemon, folder, pairs, share, add)
    try:
        for name in only or FIGURES:
            try:
                FIGURES[name](bench)
            except (TimeoutError, RuntimeError, subprocess.SubprocessError) as error:
                add(name, "—", "failed", False, str(error))
    finally:
        shutil.rmtree(folder)
        bench.forget()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="./run bench python", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=9, help="runs of each (default 9)")
    parser.add_argument("--quick", action="store_true", help="3 short runs of each: to see that it works")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)} (default: all)")
    arguments = parser.parse_args()
    if unknown := set(arguments.figures) - FIGURES.keys():
        parser.error(f"no figure is called {', '.join(sorted(unknown))}: give some of {', '.join(FIGURES)}")
    pairs, share = (3, 0.2) if arguments.quick else (arguments.pairs, 1.0)
    with tempfile.TemporaryDirectory(prefix="kvmchan-bench-", dir="/dev/shm") as name:
        daemon = Daemon(Path(name))
        try:
            report = Report(
                ROOT / "docs" / "benchmarks-python.md", "Benchmarks of the Python API", "./run bench python", EXPLANATION, WHY
            )
            measure(daemon, pairs, report.add, share=share, only=arguments.figures)
            daemon.stop()
            if not arguments.figures and not arguments.quick:
                report.write()
        finally:
            daemon.kill()


if __name__ == "__main__":
    main()
