# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon shows the doctor: pages of a listing, each asked for when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvmchand.errors import TimedOut, VchanError
from kvmchand.wire.client import Listing, joined

PATIENCE = 5.0
"""Seconds in which a daemon has to answer the doctor, and the host a guest's daemon. Both take
milliseconds.
"""


class Shown:
    """What the daemon shows, or why it does not.

    `first`: the first page, which a guest's daemon knows by itself. The others are the host's.
    """

    def __init__(self, pages: Iterator[Listing]) -> None:
        """Ask for the first page. `pages` asks for the next one, and may raise VchanError."""
        self._pages = pages
        self.first = _or_error(lambda: next(pages))

    def whole(self) -> Listing | VchanError:
        """Ask for the other pages, and return all as one. To be called once."""
        first = self.first
        return first if isinstance(first, VchanError) else _or_error(lambda: joined([first, *self._pages]))


def _or_error(ask: Callable[[], Listing]) -> Listing | VchanError:
    try:
        return ask()
    except TimedOut:
        return TimedOut(f"it has not answered in {PATIENCE:.0f} s: is it stopped, or is the machine very busy?")
    except VchanError as error:
        return error
