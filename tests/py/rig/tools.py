# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tools that judge the tree's text."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        if os.environ.get("KVMCHAN_TEST_FORCE") == "1":
            raise AssertionError(f"{name} is missing")
        pytest.skip(f"{name} is not installed (KVMCHAN_TEST_FORCE=1 makes this a failure)")
    return found
