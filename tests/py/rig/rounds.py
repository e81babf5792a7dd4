# SPDX-License-Identifier: LGPL-2.1-or-later
"""How often a test repeats what may fail now and then."""

from __future__ import annotations

import os
import random
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SPAN = 0.025
"""Seconds in which a QEMU gets a device, and some more."""


def rounds(full: int, few: int) -> range:
    """Return as many rounds as were asked for: `few`, or `full` with KVMCHAN_TEST_ROUNDS=full."""
    return range(full if os.environ.get("KVMCHAN_TEST_ROUNDS", "") == "full" else few)


class Moments:
    """Random moments around a plug."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    @contextmanager
    def strike(self, act: Callable[[], None]) -> Iterator[None]:
        """Act at a random moment, from another thread. At the latest, this ends with it."""
        timer = threading.Timer(self._random.uniform(0, SPAN), act)
        timer.start()
        try:
            yield
        finally:
            timer.join()


@contextmanager
def random_moments() -> Iterator[Moments]:
    """Return moments, whose seed is a note of what fails."""
    seed = secrets.randbits(32)
    try:
        yield Moments(seed)
    except BaseException as failure:
        failure.add_note(f"the seed of the moments is {seed}")
        raise
