# SPDX-License-Identifier: LGPL-2.1-or-later
"""The event loop: who is called, in which order, and when it looks again."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from kvmchand.runtime.loop import HALF_CLOSED, HUNG_UP, READABLE, WRITABLE, Loop


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


def test_the_timeout_is_asked_before_each_wait_and_ends_it(loop: Loop) -> None:
    answers = iter([0.0, 0.001, 0.0])
    asked = 0

    def timeout() -> float:
        nonlocal asked
        asked += 1
        answer = next(answers, None)
        if answer is None:
            loop.stop()
            return 0.0
        return answer

    loop.run(timeout)
    assert asked == 4


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
