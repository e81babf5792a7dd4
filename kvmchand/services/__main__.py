# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a service process starts: NAME SOCKET-FD MARKER-FD, given by kvmchand.ipc."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    # The interpreter is isolated: it knows the standard library, and from here on us.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    service = import_module(f"kvmchand.services.{sys.argv[1]}")
    service.main(int(sys.argv[2]), int(sys.argv[3]))
