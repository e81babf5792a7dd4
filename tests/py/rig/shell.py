# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs of tests/c/programs, and shell.c, which makes a call for each line that it is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rig.deadline import in_time
from rig.program import Program

if TYPE_CHECKING:
    import subprocess

Compiled = Callable[[str], Path]
"""A program of tests/c/programs by its name, compiled once."""

SHIM_DEADLINE = 10.0
"""What ends sooner has not waited for a deadline of the library's."""


def assert_says(output: subprocess.CompletedProcess[str], stdout: str = "") -> None:
    """Nothing but what the program itself says; run() has seen that it ended well."""
    assert (output.stdout, output.stderr) == (stdout, "")


def attempt(compiled: Compiled, runtime_dir: Path, **more: str) -> tuple[int, str]:
    """The errno and the sentence of a server_init that fails, soon and without leaving a
    descriptor.
    """
    environment = {**os.environ, "KVMCHAN_RUNTIME_DIR": str(runtime_dir), **more}
    with Program(compiled("shell"), env=environment) as shell:
        return refused(shell, "server 0 0 0 data/attempt")


def refused(shell: Program, command: str | bytes) -> tuple[int, str]:
    before = shell.ask("fds")
    with in_time(SHIM_DEADLINE / 2, f"{command!r}, as if it waited for the deadline,"):
        answer = shell.ask(command)
    assert shell.ask("fds") == before
    null, number, sentence = answer.split(" ", 2)
    assert null == "NULL"
    assert "unexpected" not in sentence, "that is what a bug of ours is called"
    return int(number), sentence
