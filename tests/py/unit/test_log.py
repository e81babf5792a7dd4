# SPDX-License-Identifier: LGPL-2.1-or-later
"""The log never waits for whoever reads it, and nobody outside can fill it."""

from __future__ import annotations

import os
import sys

import pytest

from kvmchand.runtime import log
from rig.stalled import drain, stalled


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock's time, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr("kvmchand.runtime.log.time.monotonic", lambda: now[0])
    monkeypatch.setattr(log, "_count", log._Count())
    return now


def test_lines_that_nobody_reads_are_lost_and_counted(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    with capfd.disabled(), stalled() as (reading, writing):
        stderr = os.dup(2)
        os.dup2(writing, 2)
        try:
            log.warning("one")
            log.warning("two")
            drain(reading)
            log.warning("three")
            log.info("four")
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        lines = drain(reading).decode().splitlines()
    assert lines == [
        "kvmchand: warning: 2 lines before this one were lost, for nobody read them",
        "kvmchand: warning: three",
        "kvmchand: four",
    ]


def test_a_line_is_as_long_as_a_pipe_takes_at_once(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    log.info("ä" * 4096)
    said = capfd.readouterr().err
    assert len(said.encode()) == 4096
    assert said.endswith("ä...\n")


def test_lines_about_one_client_are_limited_and_counted(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(50):
        log.warning(f"it errs {number}", whose="domain 1")
    log.warning("it errs, too", whose="domain 2")
    log.info("something of our own")
    clock[0] += 1
    log.warning("it errs again", whose="domain 1")
    lines = capfd.readouterr().err.splitlines()
    assert lines[:20] == [f"kvmchand: warning: it errs {number}" for number in range(20)]
    assert lines[20:] == [
        "kvmchand: warning: it errs, too",
        "kvmchand: something of our own",
        "kvmchand: warning: domain 1: 30 more lines in a second were left out",
        "kvmchand: warning: it errs again",
    ]


def test_nothing_is_written_where_stderr_was_closed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    log.warning("what became descriptor 2 since is none of ours")
    assert capfd.readouterr().err == ""
