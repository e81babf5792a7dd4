# SPDX-License-Identifier: LGPL-2.1-or-later
"""A short run of the store's fuzzer.

A longer one: python tests/py/fuzz/fuzz_store.py -max_total_time=3600 CORPUS.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_the_store_takes_whatever_it_is_sent(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no package for this Python, so nothing is fuzzed")
    fuzzer = Path(__file__).with_name("fuzz_store.py")
    bounds = ["-seed=1", "-runs=20000", "-max_total_time=10", "-max_len=512", "-len_control=0", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run([sys.executable, fuzzer, *bounds], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr
