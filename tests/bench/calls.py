# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that live for one call, many at once: the rate of them."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from pathlib import Path

CALLS = 200
AT_ONCE = 25


def rate(program: Path, mode: str, environment: dict[str, str], argument: str = "{}") -> float:
    """Return calls a second. `argument`: of each call; {} is its number."""
    numbers = "".join(f"{number}\n" for number in range(CALLS))
    command = ["xargs", f"-P{AT_ONCE}", "-I{}", str(program), mode, argument]
    began = time.monotonic()
    subprocess.run(command, input=numbers, env={**os.environ, **environment}, text=True, timeout=120, check=True)
    return CALLS / (time.monotonic() - began)


def socket_rate(program: Path, folder: Path) -> float:
    """Return calls a second of the same process that does the same over a UNIX socket."""
    path = folder / "calls.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(AT_ONCE)
        server = threading.Thread(target=_serve, args=(listener,))
        server.start()
        taken = rate(program, "socket", {}, str(path))
        server.join()
    path.unlink()
    return taken


def _serve(listener: socket.socket) -> None:
    for _ in range(CALLS):
        connection, _ = listener.accept()
        with connection:
            connection.sendall(connection.recv(1))
