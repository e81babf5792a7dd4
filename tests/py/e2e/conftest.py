# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rig.compiler import compile_c, our_flags
from rig.paths import PROGRAMS


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A program of tests/c/programs by its name, compiled once."""
    folder = tmp_path_factory.mktemp("programs")
    flags = our_flags()

    def get(name: str) -> Path:
        made = folder / name
        return made if made.exists() else compile_c(folder, PROGRAMS / f"{name}.c", "-pthread", *flags, "-lm")

    return get


@pytest.fixture(params=["inside", "beside"])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where Python runs: in the program's process, or in a helper beside it."""
    chosen = str(request.param)
    monkeypatch.setenv("KVMCHAN_RUNTIME", chosen)
    return chosen
