# SPDX-License-Identifier: LGPL-2.1-or-later
"""A memory file whose lock another process holds: it writes to it, from memory that never comes.

So may any program do with a file that it was given. write(2), fallocate(2) and the like then wait
for that process, and no signal wakes them.

As a program: held.py FD, says "held" once the write has begun.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFD_API, _UFFDIO_API, _UFFDIO_REGISTER = 0xAA, 0xC018AA3F, 0xC020AA00
_MODE_MISSING = 1


@contextmanager
def held(memory: int) -> Iterator[None]:
    """Hold the file's lock within the context."""
    command = [sys.executable, "-I", "-S", __file__, str(memory)]
    with subprocess.Popen(command, pass_fds=[memory], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"held\n"
            yield
        finally:
            process.kill()


def _hold(memory: int) -> None:
    faults = ctypes.CDLL(None, use_errno=True).syscall(_USERFAULTFD[os.uname().machine], os.O_CLOEXEC)
    if faults < 0:
        sys.exit(f"userfaultfd: {os.strerror(ctypes.get_errno())}")
    fcntl.ioctl(faults, _UFFDIO_API, struct.pack("=QQQ", _UFFD_API, 0, 0))
    absent = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(absent))
    fcntl.ioctl(faults, _UFFDIO_REGISTER, struct.pack("=QQQQ", address, mmap.PAGESIZE, _MODE_MISSING, 0))
    threading.Thread(target=os.pwrite, args=(memory, memoryview(absent)[:1], 0), daemon=True).start()
    os.read(faults, 32)  # the write has begun, and waits for the page
    print("held", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _hold(int(sys.argv[1]))
