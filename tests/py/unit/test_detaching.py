# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who waits for a guest that is detached, and for how long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from kvmchand.channels.registry import DomainKind, Registry
from kvmchand.host import detaching
from kvmchand.host.detaching import Detaching
from kvmchand.ids import HOST, ClientId, DomainId
from kvmchand.runtime.loop import Loop
from kvmchand.wire import client
from rig.requester import Silent

ALICE = DomainId(11)


class Guests:
    """A guest that has two devices, as Machines and Detachments show it."""

    def __init__(self) -> None:
        self.detachments = self
        self.asked = 0

    def detach(self, domain: DomainId) -> None:
        assert domain == ALICE
        self.asked += 1

    def left(self, domain: DomainId) -> int:
        assert domain == ALICE
        return 2


class Asking(Silent):
    """A client of the host's administrator."""

    def __init__(self, number: int, loop: Loop) -> None:
        super().__init__(ClientId(number), HOST, 1, is_admin=True)
        self._loop = loop
        self.replies: list[client.Reply] = []

    def answer(self, reply: client.Reply, fds: Sequence[int] = ()) -> bool:
        self.replies.append(reply)
        self._loop.stop()
        return True


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def guests() -> Guests:
    return Guests()


@pytest.fixture
def desk(loop: Loop, guests: Guests) -> Detaching:
    registry = Registry()
    registry.add_domain(ALICE, DomainKind.GUEST)
    return Detaching(loop, registry, guests)  # type: ignore[arg-type]


def test_a_guest_that_does_not_let_go_is_told_of_in_time(
    loop: Loop, desk: Detaching, guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detaching, "DETACH_DEADLINE", 0.001)
    for asked in (1, 2):
        asking = Asking(1, loop)
        desk.detach(asking, ALICE)
        assert asking.number in desk
        loop.run()
        (reply,) = asking.replies
        assert isinstance(reply, client.Error)
        assert reply.code == "timeout"
        assert "its guest has not let go of 2 devices" in reply.sentence
        assert asking.number not in desk
        assert guests.asked == asked


def test_all_who_wait_hear_that_it_is_done_but_those_that_have_gone(loop: Loop, desk: Detaching) -> None:
    first, second, gone = (Asking(number, loop) for number in range(3))
    for each in (first, second, gone):
        desk.detach(each, ALICE)
    desk.forget(gone.number)
    desk.finish(DomainId(12))
    assert first.replies == []
    desk.finish(ALICE)
    assert (first.replies, second.replies, gone.replies) == ([client.Done()], [client.Done()], [])
