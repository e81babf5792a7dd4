# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a benchmark reports: rows of what is to be reached and what was measured, in a document of
its own.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import textwrap
from dataclasses import dataclass
from pathlib import Path

KIB = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report."""

    what: str
    reach: str
    got: str
    reached: bool
    detail: str


class Report:
    """Prints each row as it comes, and writes all into a document."""

    def __init__(self, document: Path, title: str, command: str, explanation: list[str], why: dict[str, str]) -> None:
        """`explanation`: lines above the table.

        `why`: what is known of a row that a machine may not reach.
        """
        self._document = document
        self._title = title
        self._command = command
        self._explanation = explanation
        self._why = why
        self._rows: list[Row] = []

    def add(self, what: str, reach: str, got: str, reached: bool, detail: str) -> None:
        self._rows.append(Row(what, reach, got, reached, detail))
        print(f"{what}: {got} (to reach: {reach}) {'' if reached else 'NOT REACHED'}\n    {detail}", flush=True)

    def write(self) -> None:
        rows = self._rows
        lines = [
            f"# {self._title}",
            "",
            f"`{self._command}`, {datetime.date.today()}, {_machine()}. Written by it.",
            "",
            *self._explanation,
            "",
            "| | to reach | measured | |",
            "|---|---|---|---|",
            *(f"| {row.what} | {row.reach} | {row.got} | {'' if row.reached else 'not reached'} |" for row in rows),
            "",
            "The figures behind them, median (minimum–maximum):",
            "",
            *(f"- {row.what}: {row.detail}" for row in rows),
            "",
            *(f"Why not, {row.what}: {self._why[row.what]}\n" for row in rows if not row.reached and row.what in self._why),
        ]
        self._document.write_text("\n".join(map(_wrapped, lines)))


def _wrapped(line: str) -> str:
    """Wrap a line of prose; a table's row stays one line."""
    if line.startswith("|"):
        return line
    return "\n".join(
        textwrap.fill(each, 100, subsequent_indent="  " * each.startswith("- "), break_long_words=False)
        for each in line.split("\n")
    )


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def spread(figures: list[float]) -> str:
    digits = 0 if min(figures) >= 100 else 2
    return f"{statistics.median(figures):.{digits}f} ({min(figures):.{digits}f}–{max(figures):.{digits}f})"


def size(count: int) -> str:
    return f"{count} B" if count < KIB else f"{count // KIB} KiB"


def pss(pid: int) -> int:
    """KiB of memory that a process uses, shared pages in proportion."""
    return _memory(pid)["Pss:"]


def private(pid: int) -> int:
    """KiB of memory that a process uses alone."""
    kib = _memory(pid)
    return kib["Private_Clean:"] + kib["Private_Dirty:"]


def _memory(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split()[0]: int(line.split()[1]) for line in lines}


def _machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    virtual = ", virtual" if "hypervisor" in Path("/proc/cpuinfo").read_text() else ""
    kernel = platform.release().split("-")[0]
    return f"{os.cpu_count()} × {model or platform.machine()}{virtual}, Linux {kernel}, Python {platform.python_version()}"
