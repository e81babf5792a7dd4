# SPDX-License-Identifier: LGPL-2.1-or-later
"""The deadline of these tests themselves: it ends what hangs, and its clock stands still while the
machine is busy.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from rig import deadline
from rig.deadline import Hangs, eventually, in_time
from rig.paths import PYTHON


def test_what_sleeps_is_ended() -> None:
    with pytest.raises(Hangs, match="it hangs"), in_time(0.1, "it"):
        time.sleep(60)


def test_what_spins_is_ended_and_says_how_it_stood() -> None:
    with pytest.raises(Hangs, match="it hangs: as it was"), in_time(0.1, "it"):
        eventually(lambda: False, lambda: "as it was")


def test_the_inner_of_two_ends_first_and_the_outer_goes_on() -> None:
    with in_time(60, "outer"):
        for _ in range(2):
            with pytest.raises(Hangs, match="inner hangs"), in_time(0.1, "inner"):
                time.sleep(60)


def test_the_clock_stands_still_while_ours_wait_for_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = [100.0], {"1": 0}
    monkeypatch.setattr(deadline, "_waited", lambda _pids: dict(waited))
    watch = deadline._Watch(os.getpid(), 1)
    watch.obey("begin 10")

    def pass_time(passed: float, delayed: float) -> float:
        """What is left then."""
        now[0] += passed
        waited["1"] += int(delayed * 1e9)
        with monkeypatch.context() as during:
            during.setattr(time, "monotonic", lambda: now[0])
            watch.look()
        (left,) = watch._left
        return left

    assert pass_time(0, 7) == 10
    assert pass_time(2, 0) == 8
    assert pass_time(3, 2) == 7
    assert pass_time(20, 20) == 5, "a tenth always counts"
    assert pass_time(20, 60) == 3


def test_what_does_not_react_is_killed_and_shows_where_it_was() -> None:
    code = f"""
import faulthandler, signal, sys, time
sys.path.insert(0, {str(Path(deadline.__file__).parents[1])!r})
from rig import deadline
deadline.GRACE = 0.1
faulthandler.enable()
with deadline.in_time(0.1, "it"):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    time.sleep(600)
"""
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -6
    assert "line 9 in <module>" in done.stderr
