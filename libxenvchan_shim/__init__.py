# SPDX-License-Identifier: LGPL-2.1-or-later
"""vchans for programs: libxenvchan.so for C, and this package for Python.

`listen` and `connect` return a `Vchan`. They load at their first use, because libxenvchan.so's
interpreter must start fast: it needs the package, but not these.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from libxenvchan_shim.api import State, Vchan, connect, listen

__all__ = ["State", "Vchan", "connect", "listen"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from libxenvchan_shim import api

    return getattr(api, name)
