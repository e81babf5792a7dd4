# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which daemon of this machine serves a libvirt's domains: the first that finds one that runs.

Another, started by mistake in a folder of its own, would plug devices of its own into them. The
claim lasts until no domain runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

from kvmchand.runtime import log

_SAME = ("qemu+unix:///system", "qemu:///system")
"""Two names of one libvirt."""


class Claim:
    """A locked file, in a folder in which nobody else can make one. It is removed by close()."""

    def __init__(self, uri: str) -> None:
        """Claim nothing yet. `uri`: libvirt's."""
        folder = Path("/run") if os.geteuid() == 0 else Path(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere")
        name = hashlib.sha256((_SAME[1] if uri == _SAME[0] else uri).encode()).hexdigest()[:16]
        self._path = folder / f"kvmchand-libvirt-{name}.lock"
        self._lock = -1
        self.holder = ""
        """The process that has it, if it is another."""

    def take(self) -> bool:
        """Claim the domains. Returns False if another daemon has done so."""
        while self._lock < 0:
            try:
                lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                log.warning(
                    f"{self._path} can't be made ({error.strerror}), so nothing keeps a second kvmchand from these domains"
                )
                return True
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.holder = os.pread(lock, 16, 0).decode(errors="replace")
                os.close(lock)
                return False
            if self._is_at_path(lock):
                self._lock = lock
                os.ftruncate(lock, 0)
                os.pwrite(lock, str(os.getpid()).encode(), 0)
            else:
                os.close(lock)  # whoever had it has just removed it
        return True

    def _is_at_path(self, lock: int) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(lock).st_ino
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Claim nothing any more."""
        if self._lock >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1
