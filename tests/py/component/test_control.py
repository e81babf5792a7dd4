# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the control process takes out of a ring while the other end changes it under its hands, and
how often that may ask.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvmchand.channels.page import LEFT_INDEXES, Page
from kvmchand.channels.rings import Rings
from kvmchand.errors import ProtocolError
from kvmchand.ids import PAGE, ClientId, DomainId, Size
from kvmchand.services.control.process import Bucket, Session
from kvmchand.wire import client, control, dataplane
from kvmchand.wire.codec import PACKET_MAX
from rig.words import set_word, word

CONS, PROD = LEFT_INDEXES, LEFT_INDEXES + 4
RATE = 10


class Ring:
    """A session's control page, with the hand of a guest on it."""

    def __init__(self) -> None:
        self.fds = [os.memfd_create("control"), *(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2))]
        os.ftruncate(self.fds[0], control.DEVICE_BYTES)
        Page(self.fds[0]).initialize(Rings(control.LEFT_ORDER, control.RIGHT_ORDER))
        self.page = mmap.mmap(self.fds[0], control.DEVICE_BYTES)
        settings = control.Attach(Size(1), DomainId(1), True, RATE, control.grant("eventfd"))
        self.session = Session(settings, [os.dup(fd) for fd in self.fds], Bucket(RATE), Bucket(RATE))

    def set(self, where: int, value: int) -> None:
        set_word(self.page, where, value)

    def get(self, where: int) -> int:
        return word(self.page, where)

    def put(self, data: bytes) -> None:
        at = self.get(PROD)
        assert at + len(data) <= 1 << control.LEFT_ORDER, "the ring's end comes"
        self.page[PAGE + at : PAGE + at + len(data)] = data
        self.set(PROD, at + len(data))

    def close(self) -> None:
        self.session.close()
        self.page.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring()
    yield made
    made.close()


def packet(message: object) -> bytes:
    data = control.to_host.encode(message)
    return control.LENGTH.pack(len(data)) + data


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Has something done after the look at a packet's length, and before the packet is taken."""
    real = dataplane.recv

    def arrange(action: Callable[[], None]) -> None:
        def recv(*arguments: Any) -> Any:
            action()
            return real(*arguments)

        monkeypatch.setattr(dataplane, "recv", recv)

    return arrange


CLOSE = packet(control.Close(ClientId(12345)))


@pytest.mark.parametrize("length", [0, 1, PACKET_MAX, PACKET_MAX + 1, 2**32 - 1])
def test_a_length_that_changes_after_the_look_counts_as_it_was(
    ring: Ring, between: Callable[[Callable[[], None]], None], length: int
) -> None:
    ring.put(CLOSE)
    ring.put(CLOSE)
    at = PAGE + ring.get(CONS)
    between(lambda: ring.page.__setitem__(slice(at, at + 4), control.LENGTH.pack(length)))
    for _ in range(2):
        assert ring.session.take() == CLOSE[4:]
    assert ring.get(CONS) == 2 * len(CLOSE)
    assert ring.session.take() is None


def test_bytes_that_change_are_understood_as_they_were_taken(ring: Ring, between: Callable[[Callable[[], None]], None]) -> None:
    ring.put(CLOSE)
    changed = CLOSE.replace(b"12345", b"54321")
    at = PAGE + ring.get(CONS)
    between(lambda: ring.page.__setitem__(slice(at, at + len(changed)), changed))
    data = ring.session.take()
    assert data == changed[4:]
    ring.page[at : at + len(CLOSE)] = CLOSE
    assert ring.session.decode(data) == changed[4:]


def test_an_index_that_goes_back_after_the_look_ends_the_session_at_the_next(
    ring: Ring, between: Callable[[Callable[[], None]], None]
) -> None:
    ring.put(CLOSE)
    between(lambda: ring.set(PROD, 0))
    assert ring.session.take() == CLOSE[4:]
    with pytest.raises(ProtocolError):
        ring.session.take()


def test_our_own_index_in_the_page_is_not_looked_at(ring: Ring, between: Callable[[Callable[[], None]], None]) -> None:
    ring.put(CLOSE)
    ring.put(CLOSE)
    between(lambda: ring.set(CONS, 2**31))
    for _ in range(2):
        ring.set(CONS, 77)
        assert ring.session.take() == CLOSE[4:]
    assert ring.get(CONS) == 2 * len(CLOSE)


# ---- how often ----


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_bucket_gives_two_seconds_worth_at_once_and_then_its_rate(clock: list[float]) -> None:
    bucket = Bucket(RATE)
    assert [bucket.take() for _ in range(2 * RATE + 1)] == [True] * 2 * RATE + [False]
    for _ in range(1000):
        assert not bucket.take()  # which costs nothing
    clock[0] += 1
    assert [bucket.take() for _ in range(RATE + 1)] == [True] * RATE + [False]


def test_a_bucket_that_is_overdrawn_is_filled_first_and_overdrawn_so_far_only(clock: list[float]) -> None:
    bucket = Bucket(RATE)
    overdrawn = 0
    while bucket.take() or bucket.overdraw():
        overdrawn += 1
    assert overdrawn == 2 * RATE + 10 * RATE
    clock[0] += 10
    assert not bucket.take()
    clock[0] += 1
    assert bucket.take()


def test_a_flood_is_over_when_a_second_has_passed_without_one(clock: list[float]) -> None:
    bucket = Bucket(RATE)
    while bucket.take():
        pass
    for _ in range(50):
        clock[0] += 1.01 / RATE
        assert bucket.take()
        assert not bucket.is_calm()
    clock[0] += 1.2
    assert bucket.take()
    assert bucket.is_calm()


def test_a_flood_is_two_lines_in_the_log(clock: list[float], ring: Ring, capfd: pytest.CaptureFixture[str]) -> None:
    asking = control.to_host.encode(control.Ask(ClientId(1), 1, 1, client.List(Size(0))))
    passed = 0
    for _ in range(500):
        clock[0] += 0.5 / RATE
        passed += ring.session.decode(asking) is not None
    assert 250 <= passed <= 275
    clock[0] += 10
    assert ring.session.decode(asking) is not None
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "faster than guest_requests" in line] == lines[:1]
    assert f"{500 - passed} requests were refused" in lines[1]
    assert len(lines) == 2
