# SPDX-License-Identifier: LGPL-2.1-or-later
"""Eventfds that somebody hostile has too make nobody wait."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator

import pytest

from kvmchand.linux.eventfd import drain_event, signal_event

FULL = 2**64 - 2


@pytest.fixture
def event() -> Iterator[int]:
    made = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield made
    os.close(made)


def test_an_event_is_sent_and_taken(event: int) -> None:
    signal_event(event)
    signal_event(event)
    assert os.eventfd_read(event) == 2
    signal_event(event)
    drain_event(event)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(event)


def test_a_full_one_is_not_waited_for_though_calls_on_it_block(event: int) -> None:
    os.eventfd_write(event, FULL)
    fcntl.fcntl(event, fcntl.F_SETFL, 0)
    signal_event(event)
    assert os.eventfd_read(event) == FULL


def test_an_empty_one_is_not_waited_for_though_calls_on_it_block(event: int) -> None:
    fcntl.fcntl(event, fcntl.F_SETFL, 0)
    drain_event(event)


def test_who_makes_it_block_just_then_makes_nobody_wait_for_long(event: int, monkeypatch: pytest.MonkeyPatch) -> None:
    os.eventfd_write(event, FULL)
    real = os.eventfd_write

    def blocking(to: int, value: int) -> None:
        fcntl.fcntl(to, fcntl.F_SETFL, 0)
        real(to, value)

    monkeypatch.setattr(os, "eventfd_write", blocking)
    signal_event(event)
    assert fcntl.fcntl(event, fcntl.F_GETFL) & os.O_NONBLOCK == 0
    assert os.eventfd_read(event) == FULL


def test_an_alarm_that_was_set_stays_set(event: int) -> None:
    def on_alarm(_number: int, _frame: object) -> None: ...

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 3600)
    try:
        signal_event(event)
        assert signal.getsignal(signal.SIGALRM) is on_alarm
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 3600
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
