# SPDX-License-Identifier: LGPL-2.1-or-later
"""How fast two of Xen's own vchan-socket-proxy move a stream from one's standard input to the
other's standard output.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time

from rig.paths import REFERENCE_PROGRAMS

PROGRAM = REFERENCE_PROGRAMS / "vchan-socket-proxy"
SERVER, CLIENT = 1, 2
PATH = f"/local/domain/{SERVER}/data/bench"
_CHUNK = 1 << 20


def rate(total: int, server: dict[str, str], client: dict[str, str]) -> float:
    """Bytes a second, from the server to the client, between the first that arrive and the last of
    `total`. The dictionaries are the two processes' environments.
    """
    feed = f"{{ head -c {total} /dev/zero; cat; }} | exec {shlex.quote(str(PROGRAM))} --mode=server {CLIENT} {PATH} -"
    with (
        subprocess.Popen(["sh", "-c", feed], env=server, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as feeding,
        subprocess.Popen(
            [str(PROGRAM), "--mode=client", str(SERVER), PATH, "-"], env=client, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as reading,
    ):
        assert feeding.stdin is not None and reading.stdin is not None and reading.stdout is not None
        try:
            out = reading.stdout.fileno()
            first = len(os.read(out, _CHUNK))
            began, left = time.monotonic(), total - first
            while left:
                left -= len(os.read(out, _CHUNK)) or _fail(left)
            took = time.monotonic() - began
            feeding.stdin.close()  # the server ends by it, and the client by the server's end
            reading.wait(10)
        finally:
            reading.kill()
    return (total - first) / took


def _fail(left: int) -> int:
    raise AssertionError(f"the proxy ended with {left} bytes to come")
