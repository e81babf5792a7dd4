# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service manager is told that main lives, as often as it asks for."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmchand.runtime.loop import Loop
from kvmchand.runtime.signals import keep_watchdog


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.mark.parametrize("is_named", [False, True])
def test_it_is_told_again_and_again(manager: socket.socket, loop: Loop, monkeypatch: pytest.MonkeyPatch, is_named: bool) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if is_named else "")
    keep_watchdog(loop)
    assert manager.recv(99) == b"WATCHDOG=1"
    for _ in range(3):
        loop.turn()  # waits for the timer
        loop.turn()
        assert manager.recv(99) == b"WATCHDOG=1"


@pytest.mark.parametrize(("period", "pid"), [("", ""), ("often", ""), ("2000", "1")])
def test_it_is_not_told_what_it_did_not_ask_for(
    manager: socket.socket, loop: Loop, monkeypatch: pytest.MonkeyPatch, period: str, pid: str
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", period)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    keep_watchdog(loop)
    with pytest.raises(BlockingIOError):
        manager.recv(99, socket.MSG_DONTWAIT)
