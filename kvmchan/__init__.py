# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Python API of kvmchan, by the name that one installs: the same as libxenvchan_shim."""

from __future__ import annotations

import libxenvchan_shim
from libxenvchan_shim import __version__ as __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from libxenvchan_shim import *  # noqa: F403
    from libxenvchan_shim import __all__ as __all__

__doc__ = libxenvchan_shim.__doc__

if not TYPE_CHECKING:  # else checkers would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name == "__all__":
            return libxenvchan_shim.__all__
        if name not in libxenvchan_shim.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(libxenvchan_shim, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *libxenvchan_shim.__all__})
