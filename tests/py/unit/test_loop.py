# SPDX-License-Identifier: LGPL-2.1-or-later
"""The event loop: which callback is called, in which order, and which timers are."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from kvmchand.runtime.loop import HALF_CLOSED, HUNG_UP, READABLE, WRITABLE, Loop, Timer


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


class Pairs:
    """Socket pairs, and what the loop reports of them."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.called: list[str] = []
        self.open: list[socket.socket] = []

    def add(
        self, name: str, *, last: bool = False, events: int = READABLE, then: Callable[[], None] | None = None
    ) -> socket.socket:
        """A pair whose one end is watched; the other, returned, makes it ready."""
        watched, other = socket.socketpair()
        self.open += [watched, other]

        def callback(_events: int) -> None:
            self.called.append(name)
            watched.recv(16)
            (then or self.loop.stop)()

        self.loop.add(watched.fileno(), callback, events, last=last)
        return other


@pytest.fixture
def pairs(loop: Loop) -> Iterator[Pairs]:
    made = Pairs(loop)
    yield made
    for sock in made.open:
        sock.close()


def test_only_who_is_ready_is_called(loop: Loop, pairs: Pairs) -> None:
    pairs.add("idle")
    pairs.add("ready").send(b"x")
    loop.run()
    assert pairs.called == ["ready"]


def test_who_is_not_done_is_called_again(loop: Loop) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"abc")
    got: list[bytes] = []

    def take_one(_events: int) -> None:
        got.append(os.read(reading, 1))
        if len(got) == 3:
            loop.stop()

    loop.add(reading, take_one)
    loop.run()
    assert got == [b"a", b"b", b"c"]
    os.close(reading)
    os.close(writing)


def test_the_last_comes_after_all_that_are_ready_at_the_same_time(loop: Loop, pairs: Pairs) -> None:
    first = pairs.add("last", last=True)
    others = [pairs.add(f"other {number}", then=lambda: None) for number in range(200)]
    for sock in (first, *others):
        sock.send(b"x")
    loop.run()
    assert pairs.called[-1] == "last"
    assert len(pairs.called) == 201


def test_who_was_removed_by_an_earlier_callback_is_not_called(loop: Loop, pairs: Pairs) -> None:
    numbers: dict[str, int] = {}

    def remove(other: str) -> Callable[[], None]:
        def act() -> None:
            loop.remove(numbers[other])
            loop.stop()

        return act

    for name, other in (("a", "b"), ("b", "a")):
        sock = pairs.add(name, then=remove(other))
        numbers[name] = pairs.open[-2].fileno()
        sock.send(b"x")
    loop.run()
    assert len(pairs.called) == 1


def test_a_callback_gets_the_events(loop: Loop) -> None:
    watched, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    got: list[int] = []

    def callback(events: int) -> None:
        got.append(events)
        loop.stop()

    loop.add(watched.fileno(), callback, HALF_CLOSED)
    other.send(b"not of interest")
    other.shutdown(socket.SHUT_WR)
    loop.run()
    other.close()
    loop.run()
    assert got[0] & HALF_CLOSED
    assert not got[0] & HUNG_UP
    assert got[1] & HUNG_UP
    watched.close()


class Clock:
    """What time.monotonic() says, as the tests move it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def turn(loop: Loop) -> None:
    """One turn that does not wait."""
    loop.stop()
    loop.turn()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def test_timers_are_called_by_their_deadlines_and_equal_ones_as_they_were_made(loop: Loop, clock: Clock) -> None:
    called: list[str] = []
    for name, deadline in (("late", 1003.0), ("second", 1001.0), ("third", 1001.0), ("first", 999.0)):
        loop.call_at(deadline, lambda name=name: called.append(name))  # type: ignore[misc]
    clock.now = 1001.0
    loop.call_soon(loop.stop)
    loop.run()
    assert called == ["first", "second", "third"]
    clock.now = 1003.0
    turn(loop)
    assert called[3:] == ["late"]


def test_a_timer_is_not_called_before_its_deadline_and_then_once(loop: Loop) -> None:
    called: list[float] = []
    start = time.monotonic()
    loop.call_at(start + 0.02, lambda: called.append(time.monotonic()))
    loop.call_at(start + 0.03, loop.stop)
    loop.run()
    assert len(called) == 1
    assert called[0] >= start + 0.02


def test_a_cancelled_timer_is_not_called(loop: Loop, clock: Clock) -> None:
    called: list[str] = []
    first = loop.call_at(1001.0, lambda: called.append("first"))
    loop.call_at(1002.0, lambda: called.append("second"))
    assert first.is_waiting
    first.cancel()
    first.cancel()
    assert not first.is_waiting
    clock.now = 1002.0
    turn(loop)
    assert called == ["second"]


def test_a_timer_may_cancel_another_that_is_due_at_the_same_time_and_itself(loop: Loop, clock: Clock) -> None:
    called: list[str] = []
    timers: dict[str, Timer] = {}

    def cancel_both(name: str) -> None:
        called.append(name)
        for each in timers.values():
            each.cancel()

    for name in ("a", "b"):
        timers[name] = loop.call_at(1000.0, lambda name=name: cancel_both(name))  # type: ignore[misc]
    turn(loop)
    assert called == ["a"]


def test_a_timer_made_by_a_timer_is_called_in_the_next_turn(loop: Loop, pairs: Pairs) -> None:
    called = pairs.called

    def again() -> None:
        called.append("again")
        loop.call_soon(loop.stop)

    def first() -> None:
        called.append("first")
        loop.call_soon(again)

    loop.call_soon(first)
    pairs.add("ready", then=lambda: None).send(b"x")
    loop.run()
    assert called == ["first", "ready", "again"]


def test_a_loop_that_a_timer_stops_does_not_wait(loop: Loop) -> None:
    loop.call_soon(loop.stop)
    loop.run()


def test_cancelled_timers_take_no_room_for_long(loop: Loop, clock: Clock) -> None:
    called: list[int] = []
    loop.call_at(1002.0, lambda: called.append(1))
    loop.call_at(1003.0, lambda: called.append(2))
    for _ in range(10_000):
        loop.call_at(1001.0, lambda: called.append(0)).cancel()
        assert len(loop._timers) < 200
    clock.now = 1003.0
    turn(loop)
    assert called == [1, 2]


def test_other_events_can_be_watched_later(loop: Loop) -> None:
    watched, other = socket.socketpair()
    got: list[int] = []

    def callback(events: int) -> None:
        got.append(events)
        loop.modify(watched.fileno(), READABLE)
        if events & READABLE:
            loop.stop()
        else:
            other.send(b"x")

    loop.add(watched.fileno(), callback, READABLE)
    loop.modify(watched.fileno(), READABLE | WRITABLE)
    loop.run()
    assert got == [WRITABLE, READABLE]
    watched.close()
    other.close()
