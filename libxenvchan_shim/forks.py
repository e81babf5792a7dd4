# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is one process's own: a forked child forgets it, and so holds nothing of its parent's."""

from __future__ import annotations

import os
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Owned(Protocol):
        """Something with ends in other processes."""

        def _forget(self) -> None:
            """In a forked child: let go of what is the parent's, and tell nobody."""


_owned: weakref.WeakSet[Owned] = weakref.WeakSet()


def own(what: Owned) -> None:
    """Have a forked child forget this."""
    _owned.add(what)


def disown(what: Owned) -> None:
    """Leave this to whoever has it, as it is closed."""
    _owned.discard(what)


def _forget_all() -> None:
    for each in list(_owned):
        each._forget()
    _owned.clear()


os.register_at_fork(after_in_child=_forget_all)
