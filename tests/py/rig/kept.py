# SPDX-License-Identifier: LGPL-2.1-or-later
"""One daemon for test after test, since starting one takes longer than most tests do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic

import pytest

from rig.daemon import D


class Kept(Generic[D]):
    """A daemon that is as new at the start of each test.

    A test may do to it what it likes. It must be clean after each; and where a test has changed it
    for good, as by killing a service, the next test gets another.
    """

    def __init__(self, start: Callable[[], D]) -> None:
        self._start = start
        self._daemon: D | None = None
        self._when_new: dict[str, Any] = {}

    def lend(self, request: pytest.FixtureRequest) -> Iterator[D]:
        """Serve as a fixture's body."""
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            daemon = self._start()
            self._when_new = daemon.state()
        daemon.begin()
        failed_before = request.session.testsfailed
        try:
            yield daemon
            if request.session.testsfailed == failed_before:
                if self._is_as_new(daemon):
                    self._daemon = daemon
                else:
                    daemon.stop()
        finally:
            if self._daemon is None:
                daemon.kill()
            if request.session.testsfailed != failed_before:
                print(daemon.log())

    def _is_as_new(self, daemon: D) -> bool:
        if not daemon.is_running():
            return False
        daemon.assert_clean()
        daemon.tidy(self._when_new)
        return daemon.state() == self._when_new

    def end(self) -> None:
        """Stop the daemon that the next test would get."""
        if self._daemon is not None:
            try:
                self._daemon.stop()
            finally:
                self._daemon.kill()
