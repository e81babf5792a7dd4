# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Python API's types, as a user's type checker sees them: kvmchan is an installed package.

No daemon is needed, and the checked programs do not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import venv
from pathlib import Path

import pytest

import kvmchan
import libxenvchan_shim
from rig.paths import SITE
from rig.tools import tool

TYPED_USER = Path(__file__).with_name("typed_user.py")
HEAD = """\
from __future__ import annotations
import kvmchan
def print_one(number: int) -> None: print(number)
vchan = kvmchan.connect("host", "path")
"""
WRONG_USES = """\
vchan.send("text")
vchan.sendall(5)
vchan.put(None)
vchan.recv("5")
vchan.take(1.5)
vchan.recv(1, timeout="1")
vchan.recv_into(5)
vchan.nothing()
vchan.recv_object()
vchan.recv_object(trust_peer=False)
vchan.send_bytes("text")
vchan.peer = 5
vchan.look("5")
vchan.look(5, True)
vchan.consume()
vchan.settimeout("1")
vchan.makefile(5)
kvmchan.connect("host")
kvmchan.connect("host", b"path")
kvmchan.connect("host", "path", 5)
kvmchan.connect(1.5, "path")
kvmchan.listen("host", "path", read_min="1M")
kvmchan.listen("host", "path").accept(timeout="1")
kvmchan.share("host", "4096")
kvmchan.map("host", None)
kvmchan.nothing()
wrong_name = kvmchan.nothing
wrong_type: str = vchan.recv(1)
wrong_class: kvmchan.Vchan = kvmchan.listen("host", "path")
async def wrong_await() -> None: await kvmchan.connect("host", "path")
async def wrong_handler() -> None: await kvmchan.start_server(print_one, "host", "path")
"""
"""Lines that are wrong in one way each."""


class Checker:
    """A type checker in strict mode, for a Python in which kvmchan is installed."""

    def __init__(self, name: str, folder: Path) -> None:
        self._folder = folder
        venv.create(folder / "venv", symlinks=True)
        python = folder / "venv" / "bin" / "python"
        (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (site_packages / "kvmchan.pth").write_text(f"{SITE}\n")
        if name == "mypy":
            (folder / "mypy.ini").write_text("[mypy]\nstrict = True\n")
            self._command = [tool(name), "--python-executable", str(python)]
        else:
            (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}\n')
            self._command = [tool(name), "--pythonpath", str(python)]
        # Nothing of this project's own, and no question to a server whether there is a newer one.
        self._environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
        self._environment.pop("PYTHONPATH", None)
        self._environment.pop("MYPYPATH", None)

    def wrong_lines(self, program: str) -> tuple[set[int], str]:
        """Return the numbers of the lines in which it finds errors, and all that it says."""
        (self._folder / "program.py").write_text(program)
        done = subprocess.run(
            [*self._command, "program.py"], cwd=self._folder, env=self._environment, capture_output=True, text=True
        )
        said = done.stdout + done.stderr
        found = {
            int(line)
            for line in re.findall(r"program\.py:(\d+):.* error:|program\.py:(\d+):\d+ - error", said)
            for line in line
            if line
        }
        assert done.returncode == bool(found), said
        return found, said


@pytest.fixture(params=["mypy", "pyright"])
def checker(request: pytest.FixtureRequest, tmp_path: Path) -> Checker:
    return Checker(str(request.param), tmp_path)


def test_a_program_that_uses_the_whole_api_is_accepted(checker: Checker) -> None:
    wrong, said = checker.wrong_lines(TYPED_USER.read_text())
    assert not wrong, said


def test_each_wrong_use_is_refused(checker: Checker) -> None:
    program = HEAD + WRONG_USES
    wrong, said = checker.wrong_lines(program)
    expected = {number for number, line in enumerate(program.splitlines(), 1) if line in WRONG_USES.splitlines()}
    assert wrong == expected, f"{sorted(wrong ^ expected)}\n{said}"


def test_every_public_name_is_in_the_typed_program() -> None:
    text = TYPED_USER.read_text()
    missing = {name for name in libxenvchan_shim.__all__ if not re.search(rf"\b{name}\b", text)}
    for kind in (kvmchan.Vchan, kvmchan.Listener, kvmchan.VchanServer, kvmchan.SharedPages, kvmchan.MappedPages, kvmchan.Span):
        missing |= {name for name in dir(kind) if name[0] != "_" and not re.search(rf"\.{name}\b", text)}
    assert not missing
