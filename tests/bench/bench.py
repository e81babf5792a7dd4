# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measures vchans side by side with what one would use instead, and writes docs/benchmarks.md.

Each figure is the median of ratios of pairs that ran one after the other, since a machine's speed
drifts. The others: Debian's own libxenvchan over the stand-ins of tests/c/standins, a UNIX socket
pair, and a plain copy through shared memory as the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "py"))

import calls
import proxy
import store
from report import KIB, Report, pss, ratio, size, spread
from rig.daemon import Daemon
from rig.paths import C_BUILD, LIBDIR, REFERENCE_LIBDIR, REFERENCE_LIBXENVCHAN, ROOT, XEN_LIBDIR
from rig.processes import children

RING = 1 << 20
_NO_SPIN = {"KVMCHAN_SPIN_US": "0"}
PEER = C_BUILD / "benchpeer"
PATH = "data/vchan/0/bench"
# What is known of a row that a machine may not reach.
WHY = {
    "one way, 4 KiB calls, 1 MiB ring": (
        "what bounds it is how fast one core's cache hands lines to the other's; the reference is there already, as the plain "
        "copy beside it shows, which is the limit."
    ),
    "one way, 64 KiB calls, 1 MiB ring": (
        "as with 4 KiB: the reference, the copy and ours all run at the speed of the memory between two cores."
    ),
    "round trip 64 B, spin off": (
        "our events are bytes in a socket pair and the reference's are eventfds, which cost about 1 µs less to write and to "
        "read; docs/design.md says what that buys. Waking the other core costs ten times that."
    ),
    "server_init + client_init + both closes, warm": (
        "ten wake-ups between three Python processes, on cores that sleep; about half of the time is waking."
    ),
}
DESCRIPTORS_PER_CHANNEL = 5
"""Main's: the region, two ends of the event channel, two connections."""
SPARE_DESCRIPTORS = 500


class Bench:
    """The programs under measurement, and one daemon for ours."""

    def __init__(self, daemon: Daemon, folder: Path, pairs: int, report: Report) -> None:
        self._daemon = daemon
        self._standins = folder / "standins"
        self._pairs = pairs
        self._report = report

    def _run(self, environment: dict[str, str], *arguments: object) -> dict[str, Any]:
        command = [str(PEER), "--path", PATH, *map(str, arguments)]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=True)
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures

    def ours(self, *arguments: object, **environment: str) -> dict[str, Any]:
        loader = {"LD_LIBRARY_PATH": str(XEN_LIBDIR), "KVMCHAN_RUNTIME_DIR": str(self._daemon.runtime_dir)}
        return self._run({**loader, **environment}, *arguments)

    def theirs(self, *arguments: object) -> dict[str, Any]:
        """Debian's libxenvchan; also what needs none, so that all are the same program."""
        self._standins.mkdir()
        try:
            return self._run(
                {"LD_LIBRARY_PATH": f"{C_BUILD}:{REFERENCE_LIBDIR}", "XEN_STANDIN_DIR": str(self._standins)}, *arguments
            )
        finally:
            shutil.rmtree(self._standins)

    def _compare(self, figure: str, *runs: Callable[[], dict[str, Any]]) -> list[list[float]]:
        """Runs all in turn, `pairs` times; each one's figures."""
        taken: list[list[float]] = [[] for _ in runs]
        for turn in range(self._pairs):
            order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
            for which in order:
                taken[which].append(float(runs[which]()[figure]))
        return taken

    def stream(self, call: int, total: int, least_reference: float, least_copy: float | None) -> None:
        ours, theirs, sockets, copies = self._compare(
            "bytes_per_second",
            lambda: self.ours("vchan-stream", call, total, RING),
            lambda: self.theirs("vchan-stream", call, total, RING),
            lambda: self.theirs("socket-stream", call, total // 8),
            lambda: self.theirs("copy-stream", call, total, RING),
        )
        reference, copy, socket = ratio(ours, theirs), ratio(ours, copies), ratio(ours, sockets)
        reached = reference >= least_reference and (least_copy is None or copy >= least_copy)
        wanted = f"≥ {least_reference} × reference" + (f", ≥ {least_copy} × copy" if least_copy else "")
        got = f"{reference:.2f} × reference, {copy:.2f} × copy, {socket:.1f} × socket"
        rates = ", ".join(
            f"{name} {spread([each / 1e6 for each in rate])}"
            for name, rate in (("ours", ours), ("reference", theirs), ("copy", copies), ("socket", sockets))
        )
        self._report.add(f"one way, {size(call)} calls, 1 MiB ring", wanted, got, reached, f"MB/s: {rates}")

    def round_trip(self, what: str, most: float, count: int, **environment: str) -> None:
        ours, theirs, sockets = self._compare(
            "round_trip_ns",
            lambda: self.ours("vchan-pingpong", 64, count, **environment),
            lambda: self.theirs("vchan-pingpong", 64, count),
            lambda: self.theirs("socket-pingpong", 64, count),
        )
        got = ratio(ours, theirs)
        rates = ", ".join(
            f"{name} {spread([each / 1e3 for each in figures])}"
            for name, figures in (("ours", ours), ("reference", theirs), ("socket", sockets))
        )
        self._report.add(
            f"round trip 64 B, {what}", f"≤ {most} × reference", f"{got:.3f} × reference", got <= most, f"µs: {rates}"
        )

    def think(self, microseconds: int, count: int) -> None:
        """Round trips in which the other end works before it answers, so that there is a wait."""
        limits: dict[str, dict[str, str]] = {
            "learned": {},
            "50 µs": {"KVMCHAN_SPIN_US": "50"},
            "always": {"KVMCHAN_SPIN_US": "1000"},
            "never": _NO_SPIN,
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in limits}
        for turn in range(self._pairs):
            for name in list(limits)[:: 1 if turn % 2 == 0 else -1]:
                thought = (microseconds * 1000,) if microseconds else ()
                run = self.ours("vchan-pingpong", 64, count, *thought, **limits[name])
                taken[name].append((run["round_trip_ns"] / 1e3, run["cpu_ns"] / 1e3))
        times = {name: [time for time, _ in runs] for name, runs in taken.items()}
        best = min(("always", "never"), key=lambda name: statistics.median(times[name]))
        got = ratio(times["learned"], times[best])
        figures = ", ".join(
            f"{name} {spread(times[name])} with {statistics.median(cpu for _, cpu in runs):.1f} of the processor"
            for name, runs in taken.items()
        )
        self._report.add(
            f"round trip 64 B, the other end works for {microseconds} µs",
            "≤ 2 × the best of always and never spinning",
            f"{got:.2f} × {best}",
            got <= 2,
            f"µs, by how long a wait spins: {figures}",
        )

    def setup(self) -> None:
        steps = ("server_init", "client_init", "client_close", "server_close")
        ours: list[float] = []
        theirs: list[float] = []
        for turn in range(self._pairs):
            for taken, run in ((ours, self.ours), (theirs, self.theirs))[:: 1 if turn % 2 == 0 else -1]:
                figures = run("vchan-setup", 500)
                taken.append(sum(float(figures[step]["median_ns"]) for step in steps) / 1e6)
        got = ratio(ours, theirs)
        self._report.add(
            "server_init + client_init + both closes, warm",
            "≤ 1.0 × reference",
            f"{got:.2f} × reference",
            got <= 1,
            f"ms: ours {spread(ours)}, reference {spread(theirs)}",
        )

    def calls(self, program: Path, folder: Path) -> None:
        environment = {"KVMCHAN_RUNTIME_DIR": str(self._daemon.runtime_dir), "LD_LIBRARY_PATH": str(LIBDIR)}
        ours, sockets = [], []
        for _ in range(self._pairs):
            ours.append(calls.rate(program, "call", environment))
            sockets.append(calls.socket_rate(program, folder))
        self._report.add(
            f"{calls.CALLS} calls, each in a new process, {calls.AT_ONCE} at once",
            "—",
            f"{statistics.median(ours):.0f} /s, {ratio(ours, sockets):.2f} × socket",
            True,
            f"calls a second: ours {spread(ours)}, socket {spread(sockets)}",
        )

    def first_init(self, program: Path) -> None:
        # The installed library: beside that of the build tree our modules are not compiled.
        environment = {"KVMCHAN_RUNTIME_DIR": str(self._daemon.runtime_dir), "LD_LIBRARY_PATH": str(LIBDIR)}
        runs, pythons = [], []
        for _ in range(max(5, self._pairs)):
            runs.append(_json(program, environment, "first"))
            began = time.monotonic()
            subprocess.run([sys._base_executable, "-I", "-S", "-c", ""], check=True)  # type: ignore[attr-defined]
            pythons.append((time.monotonic() - began) * 1e3)
        took = [run["ms"] for run in runs]
        got, memory = ratio(took, pythons), statistics.median(run["kib"] for run in runs) / KIB
        self._report.add(
            "first init in a process",
            "≤ 1.0 × an empty Python process, ≤ 8 MiB more resident memory",
            f"{got:.2f} × Python, {memory:.1f} MiB",
            got <= 1 and memory <= 8,
            f"ms: {spread(took)}, Python {spread(pythons)}",
        )

    def many(self, program: Path, wanted: int) -> None:
        """One process opens and keeps channels; what the last ones take, beside the first, and the
        daemon's memory.
        """
        descriptors = int(
            next(
                line.split()[4]
                for line in Path(f"/proc/{self._daemon.pid}/limits").read_text().splitlines()
                if "open files" in line
            )
        )
        count = min(wanted, (descriptors - SPARE_DESCRIPTORS) // DESCRIPTORS_PER_CHANNEL)
        processes = [self._daemon.pid, *children(self._daemon.pid)]
        before = sum(pss(pid) for pid in processes)
        environment = {"KVMCHAN_RUNTIME_DIR": str(self._daemon.runtime_dir)}
        with subprocess.Popen(
            [str(program), "many", str(count)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as running:
            assert running.stdout is not None and running.stdin is not None
            figures = json.loads(running.stdout.readline())
            after = sum(pss(pid) for pid in processes)
            running.stdin.close()
        ratio = figures["last_us"] / figures["first_us"]
        each = (after - before) / count
        self._report.add(
            f"{wanted:,} channels open at once",
            "set-up ≤ 1.5 × that with 10 open; daemon's memory ≤ 8 KiB a channel",
            f"{count:,} open: {ratio:.2f} ×, {each:.1f} KiB",
            ratio <= 1.5 and each <= 8 and count == wanted,
            ("" if count == wanted else f"the hard limit of descriptors here, {descriptors}, allows no more than {count:,}; ")
            + f"set-up of both ends, median µs: {figures['first_us']:.0f} with 10 open, {figures['last_us']:.0f} with {count:,}",
        )


class ProxyBench:
    """Xen's vchan-socket-proxy between two local domains: all of ours, and Debian's libxenvchan on
    the stand-ins of the tests in place of the libraries that move data. The store, and libxenctrl,
    are ours for both.
    """

    def __init__(self, daemon: Daemon, folder: Path, pairs: int, report: Report) -> None:
        self._daemon = daemon
        self._pairs = pairs
        self._report = report
        self._standins = folder / "proxy-standins"
        self._theirs = folder / "proxy-libraries"
        self._theirs.mkdir()
        for name, where in (
            (REFERENCE_LIBXENVCHAN.name, REFERENCE_LIBDIR),
            ("libxenevtchn.so.1", C_BUILD),
            ("libxengnttab.so.1", C_BUILD),
        ):
            (self._theirs / name).symlink_to(where / name)

    def _environment(self, domain: int, *first: Path, **more: str) -> dict[str, str]:
        folders = [*first, LIBDIR, XEN_LIBDIR, REFERENCE_LIBDIR]
        return self._daemon.environment(
            domain, XENSTORED_PATH=str(self._daemon.store_path(domain)), LD_LIBRARY_PATH=":".join(map(str, folders)), **more
        )

    def _ours(self, total: int) -> float:
        return proxy.rate(total, self._environment(proxy.SERVER), self._environment(proxy.CLIENT))

    def _reference(self, total: int) -> float:
        self._standins.mkdir()
        try:
            server, client = (
                self._environment(domain, self._theirs, XEN_STANDIN_DIR=str(self._standins), XEN_STANDIN_DOMID=str(domain))
                for domain in (proxy.SERVER, proxy.CLIENT)
            )
            return proxy.rate(total, server, client)
        finally:
            shutil.rmtree(self._standins)

    def stream(self, total: int) -> None:
        ours: list[float] = []
        theirs: list[float] = []
        for turn in range(self._pairs):
            for taken, run in ((ours, self._ours), (theirs, self._reference))[:: 1 if turn % 2 == 0 else -1]:
                taken.append(run(total))
        got = ratio(ours, theirs)
        rates = ", ".join(
            f"{name} {spread([each / 1e6 for each in rate])}" for name, rate in (("ours", ours), ("reference", theirs))
        )
        self._report.add(
            "vchan-socket-proxy between two local domains",
            "≥ 10 × reference",
            f"{got:.1f} × reference",
            got >= 10,
            f"MB/s: {rates}; it asks for rings of 0 bytes",
        )


def _json(program: Path, environment: dict[str, str], *arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [str(program), *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _explanation(pairs: int) -> list[str]:
    return [
        f"Two processes, {pairs} runs of each in turn; a ratio is the median of the ratios of runs beside each other.",
        f"The reference is Debian's own {REFERENCE_LIBXENVCHAN.name} on our stand-ins for the libraries below it (eventfds,",
        "files in memory); the copy a ring that spins and never tells anyone: the limit; the socket a UNIX socket pair. The",
        "store is asked by Debian's libxenstore.so.4.",
    ]


@contextmanager
def _daemon(folder: Path) -> Iterator[Daemon]:
    daemon = Daemon(folder)
    try:
        yield daemon
        daemon.stop()
    finally:
        daemon.kill()


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=9, help="runs of each (default 9)")
    parser.add_argument("--channels", type=int, default=10_000, help="open at once (default 10,000)")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="kvmchan-bench-", dir="/dev/shm") as name, _daemon(Path(name)) as daemon:
        report = Report(ROOT / "docs" / "benchmarks.md", "Benchmarks", "./run bench", _explanation(arguments.pairs), WHY)
        bench = Bench(daemon, Path(name), arguments.pairs, report)
        bench.stream(64, 200_000_000, 2.5, None)
        bench.stream(4 * KIB, 4_000_000_000, 1.2, 0.8)
        bench.stream(64 * KIB, 6_000_000_000, 1.2, 0.8)
        bench.round_trip("both ends awake", 0.3, 20_000)
        bench.round_trip("spin off", 1.0, 20_000, KVMCHAN_SPIN_US="0")
        for microseconds in (0, 20, 60, 100, 300):
            bench.think(microseconds, 200_000 if microseconds == 0 else 8_000)
        bench.setup()
        bench.first_init(C_BUILD / "benchsetup")
        bench.calls(C_BUILD / "benchsetup", Path(name))
        bench.many(C_BUILD / "benchsetup", arguments.channels)
        store.measure(daemon, arguments.pairs, report)
        ProxyBench(daemon, Path(name), arguments.pairs, report).stream(100_000_000)
        report.write()


if __name__ == "__main__":
    main()
