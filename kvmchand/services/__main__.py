# SPDX-License-Identifier: LGPL-2.1-or-later
"""The entry of a service process.

kvmchand.runtime.supervisor gives it the arguments NAME SOCKET-FD MARKER-FD.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

_MODULES = {"forward": "store.forwarder"}
"""Those that are not named for their folder."""

if __name__ == "__main__":
    # The interpreter is isolated: it knows the standard library, and from here on us. No pathlib,
    # which takes long to import.
    sys.path.insert(0, os.path.abspath(f"{__file__}/../../.."))  # noqa: PTH100
    service = import_module(f"kvmchand.services.{_MODULES.get(sys.argv[1], sys.argv[1] + '.process')}")
    service.main(int(sys.argv[2]), int(sys.argv[3]))
