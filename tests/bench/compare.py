# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compares this build with another one, such as that of the commit before a change.

Both daemons run at once, and the same programs measure both, in alternating pairs: each figure is
the median of the ratios of runs beside each other, so it holds while a machine's speed drifts.
Prints a table; a ratio above 1 means that this build is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "py"))

import calls
import store
from report import KIB, ratio, spread
from rig.paths import C_BUILD, PREFIX, XEN_RELEASE

RING = 1 << 20
_CALLS = ("server_init", "client_init", "client_close", "server_close")


@dataclass(frozen=True, slots=True)
class Build:
    """An installed build whose daemon runs. `libdir`: its KVMCHAN_LIBDIR."""

    libdir: Path
    runtime_dir: Path

    @property
    def library_path(self) -> str:
        """Return where the loader finds the build's libraries."""
        return f"{self.libdir / f'xen-{XEN_RELEASE}'}:{self.libdir}"

    def run(self, program: str, *arguments: object, **environment: str) -> dict[str, Any]:
        """Return what a program of this tree prints when it runs on the libraries of the build."""
        done = subprocess.run(
            [str(C_BUILD / program), *map(str, arguments)],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": self.library_path,
                "KVMCHAN_RUNTIME_DIR": str(self.runtime_dir),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures

    def rate(self, call: int, total: int) -> float:
        """Return bytes a second of one way in calls of this size."""
        return float(self.run("benchpeer", "--path", "data/bench", "vchan-stream", call, total, RING)["bytes_per_second"])

    def round_trip(self, count: int, **environment: str) -> float:
        """Return round trips a second, of so many."""
        figures = self.run("benchpeer", "--path", "data/bench", "vchan-pingpong", 64, count, **environment)
        return 1e9 / float(figures["round_trip_ns"])

    def set_up(self) -> float:
        """Return set-ups of both ends a second, closes included."""
        figures = self.run("benchpeer", "--path", "data/bench", "vchan-setup", 500)
        return 1e9 / sum(float(figures[call]["median_ns"]) for call in _CALLS)

    def first_call(self) -> float:
        """Return first calls a second, the median of three fresh processes."""
        return 1e3 / statistics.median(float(self.run("benchsetup", "first")["ms"]) for _ in range(3))

    def calls(self) -> float:
        """Return calls a second of programs that live for one, many at once."""
        environment = {"LD_LIBRARY_PATH": self.library_path, "KVMCHAN_RUNTIME_DIR": str(self.runtime_dir)}
        return calls.rate(C_BUILD / "benchsetup", "call", environment)

    def store_reads(self) -> float:
        """Return reads a second of the store by one client."""
        return store.reads_per_second(self.runtime_dir / "store.sock")


FIGURES: dict[str, Callable[[Build], float]] = {
    "first call, /s": Build.first_call,
    "set-up and close of both ends, /s": Build.set_up,
    "calls of new processes, 25 at once, /s": Build.calls,
    "store reads, /s": Build.store_reads,
    "one way, 64 B calls, MB/s": lambda build: build.rate(64, 200_000_000) / 1e6,
    "one way, 4 KiB calls, MB/s": lambda build: build.rate(4 * KIB, 4_000_000_000) / 1e6,
    "one way, 64 KiB calls, MB/s": lambda build: build.rate(64 * KIB, 6_000_000_000) / 1e6,
    "round trip 64 B, both ends awake, /s": lambda build: build.round_trip(1_000_000),  # until the scheduler has placed both
    "round trip 64 B, spin off, /s": lambda build: build.round_trip(20_000, KVMCHAN_SPIN_US="0"),
}


@contextmanager
def running(prefix: Path, folder: Path) -> Iterator[Build]:
    """Run the daemon of an installed build. `prefix`: build/prefix of its clone.

    Talks to it only through the build's own libraries, as the protocols may differ.
    """
    folder.mkdir()
    notify_path = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(notify_path))
        notify.settimeout(30)
        daemon = subprocess.Popen(
            [str(prefix / "bin" / "kvmchand"), "host", "--no-libvirt", "--runtime-dir", str(folder / "run")],
            env={**os.environ, "NOTIFY_SOCKET": str(notify_path)},
            stderr=subprocess.DEVNULL,
        )
        try:
            notify.recv(4096)
            yield Build(prefix / "lib" / "kvmchan" / "libxenvchan_shim" / "lib", folder / "run")
        finally:
            daemon.terminate()
            daemon.wait()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="./run bench compare", description="Compare this build with another one.")
    parser.add_argument("other", type=Path, help="another clone of the project, in which ./run setup was run")
    parser.add_argument("--pairs", type=int, default=9, help="runs of each (default 9)")
    arguments = parser.parse_args()
    prefixes = (PREFIX, arguments.other.absolute() / "build" / "prefix")
    for prefix in prefixes:
        if not (prefix / "bin" / "kvmchand").exists():
            parser.error(f"{prefix} has no kvmchand: run ./run setup in that clone")
    with tempfile.TemporaryDirectory(prefix="kvmchan-bench-", dir="/dev/shm") as name, ExitStack() as stack:
        builds = [stack.enter_context(running(each, Path(name) / str(at))) for at, each in enumerate(prefixes)]
        print("| figure | this / other | this | other |\n|---|---|---|---|")
        for what, measure in FIGURES.items():
            taken: list[list[float]] = [[], []]
            for turn in range(arguments.pairs):
                for which in (0, 1) if turn % 2 == 0 else (1, 0):
                    taken[which].append(measure(builds[which]))
            print(f"| {what} | {ratio(*taken):.2f} | {spread(taken[0])} | {spread(taken[1])} |", flush=True)


if __name__ == "__main__":
    main()
