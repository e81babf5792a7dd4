# SPDX-License-Identifier: LGPL-2.1-or-later
"""A clone of this tree works anywhere: here in a folder whose path has a space and more, and that
is closed to other users.

What this tree has fetched, the clone takes from here; all else it makes itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rig.paths import ROOT

SCRIPTS = """
import sys
from importlib.metadata import entry_points
from pip._vendor.distlib.scripts import ScriptMaker

maker = ScriptMaker(None, f"{sys.prefix}/bin")
maker.set_mode, maker.variants = True, {""}
for each in entry_points(group="console_scripts"):
    maker.make(f"{each.name} = {each.value}")
"""
"""Makes the scripts of all packages, as pip does."""


SKIPPED = """
import pytest


@pytest.mark.parametrize("each", [1, 2])
def test_skipped(each: int) -> None:
    pytest.skip("it is a   test")
"""


class Clone:
    def __init__(self, root: Path) -> None:
        self.root = root
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        )
        for name in map(os.fsdecode, listed.stdout.split(b"\0")):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, root / name)
        self._fetch()

    def _fetch(self) -> None:
        build, venv = self.root / "build", self.root / ".venv"
        build.mkdir()
        (build / "reference").symlink_to(ROOT / "build" / "reference")
        for part in (".reference", ".venv"):
            shutil.copy(ROOT / "build" / part, build)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        packages = next(venv.glob("lib/python*/site-packages"))
        ours = ROOT / packages.relative_to(self.root)
        (packages / "outer.pth").write_text(f"{ours}\n")
        for name in ("cffi", "pycparser"):
            shutil.copytree(ours / name, packages / name)
        for each in ours.glob("_cffi_backend*"):
            shutil.copy(each, packages)
        subprocess.run([venv / "bin" / "python", "-c", SCRIPTS], check=True)
        shutil.copy(ROOT / ".venv" / "bin" / "ninja", venv / "bin")

    def call(self, *command: str, **environment: str) -> list[str]:
        """The lines that it writes; it must succeed."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVMCHAN_", "PYTHON", "PKG_CONFIG"))}
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**kept, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    folder = tmp_path_factory.mktemp("anywhere")
    assert folder.stat().st_mode & 0o777 == 0o700
    made = Clone(folder / "a clone of \u00e9")
    made.call("./run", "setup")
    return made


def test_the_demo(clone: Clone) -> None:
    *_, domains, channels = clone.call("./run", "demo")
    assert (domains, channels) == ("domains: 0 (host), 1 (local), 2 (local)", "no channels")


def test_a_program_is_compiled_and_run_by_the_exports(clone: Clone, tmp_path: Path) -> None:
    script = """
        eval "$(./run env)"
        eval gcc examples/vchan-pipe.c -o '"$1"' "$(pkg-config --cflags --libs xenvchan)"
        ldd "$1" && command -v kvmchand && command -v kvmchan
    """
    told = clone.call("sh", "-euc", script, "sh", str(tmp_path / "program"))
    assert f"{clone.root}/build/prefix/lib/kvmchan/libxenvchan_shim/lib/libxenvchan.so" in "\n".join(told)
    assert told[-2:] == [f"{clone.root}/build/prefix/bin/{name}" for name in ("kvmchand", "kvmchan")]


def test_tests_pass_and_their_last_line_says_what_was_skipped(clone: Clone) -> None:
    """Those of the kinds that have failed in such a place."""
    kinds = ("not_root", "another_user", "preload", "streams_between_two_domains and 0-1", "layout", "test_skipped")
    (clone.root / "tests/py/e2e/test_skipped.py").write_text(SKIPPED)
    folders = ("tests/py/e2e", "tests/py/component/test_sharing.py", "tests/py/component/test_store.py")
    told = clone.call("./run", "test", "-q", "-p", "no:cacheprovider", *folders, "-k", " or ".join(kinds), KVMCHAN_TEST_VM="0")
    assert told[-1] == "skipped 2: it is a test (2)"
    assert " passed, 2 skipped" in told[-2]


def test_setup_needs_no_root_when_all_is_there(clone: Clone, tmp_path: Path) -> None:
    for name, script in {"id": "echo 1000", "apt-get": "exit 100"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    assert clone.call("./run", "setup", PATH=f"{tmp_path}:{os.environ['PATH']}") == []
