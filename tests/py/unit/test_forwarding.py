# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest's main does for connections to the store while there is no link to the host."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kvmchand.config import SocketSettings
from kvmchand.errors import VchanError
from kvmchand.ids import ClientId
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.sockets import Sockets
from kvmchand.services.store.forwarding import Asked, Forward
from kvmchand.wire import store


def fail(error: VchanError) -> None:
    raise error


def test_who_has_waited_longest_for_the_host_is_ended_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    loop, sockets = Loop(), Sockets(tmp_path, SocketSettings())
    forward = Forward(loop, sockets, "nobody", lambda: 1, lambda _message: False, fail)
    for number in (1, 2):
        forward._asked[ClientId(number)] = Asked()
    forward.on_message(store.Request(ClientId(2), b"x"))
    now += 15
    forward.on_message(store.Request(ClientId(1), b"x"))
    loop.stop()  # so that no turn waits
    loop.turn()
    assert list(forward._asked) == [1, 2]
    now += 5
    loop.turn()
    assert list(forward._asked) == [1]
    now += 15
    loop.turn()
    assert not forward._asked
    forward.close()
    sockets.close()
    loop.close()
