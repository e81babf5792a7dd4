# SPDX-License-Identifier: LGPL-2.1-or-later
"""Watching ends that live by their mapping only: each is told of once, and many cost no more than
one look at each.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from kvmchand.channels.lifelines import Lifelines
from kvmchand.ids import ClientId
from kvmchand.linux import ofd

MANY = 200


class Memory:
    """A memory file that holders have open, as the daemon sees it.

    `looks`: how often it was asked who has.
    """

    def __init__(self, undo: ExitStack) -> None:
        self.memory = os.memfd_create("test")
        undo.callback(os.close, self.memory)
        self.looks = 0

    def open(self, holder: int) -> int:
        opened = os.open(f"/proc/self/fd/{self.memory}", os.O_RDWR)
        ofd.lock_byte(opened, holder)
        return opened

    def is_mapped(self, holder: ClientId) -> bool:
        self.looks += 1
        return ofd.byte_is_locked(self.memory, holder)


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def ended() -> list[int]:
    return []


class Timers:
    """Notes which calls are to be made. The tests make none."""

    def __init__(self) -> None:
        self.waiting: set[Timer] = set()

    def call_at(self, _deadline: float, _callback: Callable[[], None]) -> Timer:
        made = Timer(self.waiting)
        self.waiting.add(made)
        return made


class Timer:
    def __init__(self, waiting: set[Timer]) -> None:
        self._waiting = waiting

    def cancel(self) -> None:
        self._waiting.discard(self)


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def lifelines(undo: ExitStack, timers: Timers, ended: list[int]) -> Lifelines:
    made = Lifelines(timers.call_at, ended.append)
    undo.callback(made.close)
    return made


def look(lifelines: Lifelines) -> None:
    assert select.select([lifelines.fd], [], [], 5)[0]
    lifelines.take_events(0)


def test_an_end_is_told_of_when_nobody_has_its_memory_any_more(lifelines: Lifelines, undo: ExitStack, ended: list[int]) -> None:
    memory = Memory(undo)
    first, second = memory.open(1), memory.open(2)
    for holder in (1, 2):
        lifelines.watch(ClientId(holder), memory)
    os.close(first)
    look(lifelines)
    assert ended == [1]
    os.close(second)
    look(lifelines)
    assert ended == [1, 2]


def test_an_end_that_went_before_it_was_watched_is_told_of(
    lifelines: Lifelines, timers: Timers, undo: ExitStack, ended: list[int]
) -> None:
    lifelines.watch(ClientId(1), Memory(undo))
    assert ended == [1]
    assert not timers.waiting


def test_many_ends_cost_a_look_at_each_when_they_come_and_when_they_go(
    lifelines: Lifelines, undo: ExitStack, ended: list[int]
) -> None:
    memories = [Memory(undo) for _ in range(MANY)]
    opened = [memory.open(holder) for holder, memory in enumerate(memories)]
    for holder, memory in enumerate(memories):
        lifelines.watch(ClientId(holder), memory)
    assert sum(each.looks for each in memories) == MANY
    for each in opened:
        os.close(each)
    look(lifelines)
    assert ended == list(range(MANY))
    assert sum(each.looks for each in memories) == 2 * MANY
