# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is asked of the daemon, step by step, apart from how the answers are waited for.

A generator yields each request with the method that takes its answer, and is sent the answer.
run() waits for them; the asyncio side does the same with the event loop.
"""

from __future__ import annotations

from libxenvchan_shim.connection import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, TypeVar

    Result = TypeVar("Result")


class Step:
    """A request, and how its answer is taken."""

    __slots__ = ("request", "take", "waits")

    def __init__(self, request: object, take: Callable[[Connection], object], *, waits: bool = False) -> None:
        """Name a request. `waits`: whether the answer may come late, when a server is there."""
        self.request = request
        self.take = take
        self.waits = waits


def run(
    connection: Connection, steps: Generator[Step, Any, Result], patience: Callable[[], float | None] | None = None
) -> Result:
    """Take the steps, and wait for each answer.

    `patience` returns the seconds that are left for an answer that may come late.
    """
    try:
        step = next(steps)
        while True:
            connection.send(step.request)
            if step.waits and patience is not None:
                connection.settimeout(patience())
            step = steps.send(step.take(connection))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
