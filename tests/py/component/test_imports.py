# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the processes of a guest's daemon import: it also starts in small and emulated guests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rig.paths import SITE

SLOW = {"dataclasses", "inspect", "tomllib"}
LOOK = "import sys; sys.path.insert(0, sys.argv[1]); __import__(sys.argv[2]); print(*sys.modules)"


@pytest.mark.parametrize("process", ["control.process", "local.process", "store.forwarder", "vfio.process"])
def test_a_service_of_a_guest_imports_nothing_that_takes_long(process: str) -> None:
    command = [sys.executable, "-I", "-S", "-c", LOOK, str(SITE), f"kvmchand.services.{process}"]
    imported = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert f"kvmchand.services.{process}" in imported
    assert imported & SLOW == set()
    assert not [each for each in imported if each.startswith("kvmchand.config")], "it is main's"
