# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program that a test talks with in lines."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Self

from rig.deadline import eventually
from rig.processes import is_asleep


class Program:
    """A running program that is told lines and says lines.

    As a context it must, at the end, have ended well, and have said nothing more, nor anything on
    stderr.
    """

    def __init__(self, *command: str | Path, env: dict[str, str] | None = None, **options: Any) -> None:
        pipe = subprocess.PIPE
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [str(each) for each in command], bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, env=env, **options
        )
        self.status = 0
        """How it shall end."""
        self._heard = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """Return what it says next, or "" at its end."""
        assert self.process.stdout is not None
        while b"\n" not in self._heard:
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                return ""
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def expect(self, line: str) -> None:
        """Assert what it says next."""
        said = self.line()
        rest = "" if said else self.process.communicate()
        assert said == line, f"{self.process.args!r} said {said!r}: {rest}"

    def tell(self, line: str | bytes = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((line.encode() if isinstance(line, str) else line) + b"\n")

    def ask(self, line: str | bytes) -> str:
        self.tell(line)
        answer = self.line()
        assert answer, f"{self.process.args!r} did not answer {line!r}: {self.process.communicate()}"
        return answer

    def wait_asleep(self) -> None:
        """Return when it waits for something."""
        eventually(lambda: is_asleep(self.pid))

    def block_in(self, line: str) -> None:
        """Have it make a call that blocks, and return when it does."""
        self.tell(line)
        self.wait_asleep()

    def finish(self) -> None:
        """Close its stdin, and wait for its end."""
        output, errors = self.process.communicate()
        ended = (self.process.returncode, self._heard + output, errors)
        assert ended == (self.status, b"", b""), f"{self.process.args!r}: {ended}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_exception: object) -> None:
        try:
            if failed is None:
                self.finish()
        finally:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()
