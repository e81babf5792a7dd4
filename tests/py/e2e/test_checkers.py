# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that are built with a checker of memory or threads, or run under one, find nothing of
ours: neither a leak nor a race, and no Python.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rig.compiler import compile_c, our_flags
from rig.daemon import Daemon
from rig.paths import PROGRAMS
from rig.processes import run


@pytest.mark.parametrize(
    ("checker", "name", "arguments"),
    [
        ("address", "loopback", ["0", "data/checked"]),
        ("address", "threads", ["data/checked", "3"]),
        ("undefined", "threads", ["data/checked", "3"]),
        ("thread", "loopback", ["0", "data/checked"]),
        # One round, in which no thread forks: such a child may start no thread under this checker.
        ("thread", "threads", ["data/checked", "1"]),
    ],
)
def test_a_program_built_with_a_checker_ends_well(
    daemon: Daemon, tmp_path: Path, checker: str, name: str, arguments: list[str]
) -> None:
    program = compile_c(tmp_path, PROGRAMS / f"{name}.c", f"-fsanitize={checker}", "-pthread", *our_flags(), "-lm")
    done = run(program, *arguments, env=daemon.environment(UBSAN_OPTIONS="halt_on_error=1"))
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_valgrind_finds_no_definite_loss(daemon: Daemon, tmp_path: Path) -> None:
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("valgrind is not installed")
    program = compile_c(tmp_path, PROGRAMS / "loopback.c", "-pthread", *our_flags(), "-lm")
    leaks = ["-q", "--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite", "--error-exitcode=9"]
    done = run(valgrind, *leaks, program, "0", "data/checked", env=daemon.environment())
    assert (done.stdout, done.stderr) == ("ok\n", "")
