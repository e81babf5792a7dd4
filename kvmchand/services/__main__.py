# SPDX-License-Identifier: LGPL-2.1-or-later
"""The entry of a service process.

kvmchand.runtime.supervisor gives it the arguments NAME CLOSER-FD SOCKET-FD MARKER-FD. CLOSER-FD is
-1 where there is no closer process.
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
    closer_fd, socket_fd, marker_fd = map(int, sys.argv[2:])
    if closer_fd >= 0:
        socket, closer = import_module("socket"), import_module("kvmchand.runtime.closer")
        closer.use(socket.socket(fileno=closer_fd))
    service = import_module(f"kvmchand.services.{_MODULES.get(sys.argv[1], sys.argv[1] + '.process')}")
    service.main(socket_fd, marker_fd)
