# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ./run says where it can't work: one sentence, before it changes anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rig.paths import ROOT

COMMANDS = [["setup"], ["demo"], ["demo", "vm"], ["test"], ["bench"], ["bench", "vm"], ["lint"], ["env"]]


class Tree:
    """A fresh clone, as far as ./run has looked when it refuses, and a PATH with programs that a
    test makes up.
    """

    def __init__(self, folder: Path, name: str = "tree") -> None:
        self.folder = folder / name
        self.folder.mkdir()
        for file in ("run", "requirements-dev.txt", "requirements-vm.txt"):
            shutil.copy(ROOT / file, self.folder)
        self._programs = folder / "programs"
        self._programs.mkdir()

    def fake(self, name: str, script: str) -> Path:
        made = self._programs / name
        made.write_text(f"#!/bin/sh\n{script}\n")
        made.chmod(0o755)
        return made

    def refusal(self, *command: str, within: tuple[str, ...] = (), status: int = 1) -> str:
        """The sentence. `within`: a program that runs ./run."""
        before = sorted(self.folder.rglob("*"))
        done = subprocess.run(
            [*within, str(self.folder / "run"), *command],
            env={**os.environ, "PATH": f"{self._programs}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        assert sorted(self.folder.rglob("*")) == before, done
        *_, last = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (status, ""), done
        if status == 1:
            assert done.stderr == last + "\n", "more than a sentence"
        assert last.startswith("run: ")
        return last.removeprefix("run: ")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def unshare() -> tuple[str, ...]:
    """Runs a shell script, and then what follows, in a network without devices and with mounts of
    its own.
    """
    alone = ("unshare", "-m", "-n")
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("other mounts and another network need root, and a machine that lets it have them")
    return (*alone, "sh", "-ec")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["frobnicate"], "there is no command 'frobnicate'"),
        (["setup", "now"], "'setup' takes no arguments, but was given 'now'"),
        (["env", "-x"], "'env' takes no arguments, but was given '-x'"),
        (["demo", "all", "of it"], "'demo' takes no arguments, but was given 'all of it'"),
        (["demo", "vm", "x"], "'demo vm' takes no arguments, but was given 'x'"),
    ],
)
def test_commands_and_arguments_that_do_not_exist(tree: Tree, command: list[str], sentence: str) -> None:
    assert tree.refusal(*command, status=2) == sentence


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_another_architecture(tree: Tree, command: list[str]) -> None:
    tree.fake("uname", "echo riscv64")
    assert tree.refusal(*command) == "this machine is of the architecture riscv64, and x86_64 is the only one supported"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_missing_packages_without_root(tree: Tree, command: list[str]) -> None:
    tree.fake("dpkg-query", "exit 1")
    tree.fake("id", "echo 1000")
    said = tree.refusal(*command)
    assert said.startswith("these packages are missing: gcc ")
    assert said.endswith("; install them, or run this as root")
    assert (" qemu-system-x86 " in said) == (command[-1] == "vm")


@pytest.mark.parametrize(
    ("release", "known"),
    [
        ("ID=debian\nVERSION_ID=11\n", "debian 11"),
        ("ID=ubuntu\nVERSION_ID='24.04'\n", "ubuntu 24.04"),
        ("ID=debian\nPRETTY_NAME=sid\n", "debian"),
        ("not what it should be (\n", "no system that says its name"),
    ],
)
def test_a_release_that_is_not_known(tree: Tree, tmp_path: Path, unshare: tuple[str, ...], release: str, known: str) -> None:
    (tmp_path / "os-release").write_text(release)
    script = 'mount --bind "$0" /etc/os-release; exec "$@"'
    said = tree.refusal("demo", within=(*unshare, script, str(tmp_path / "os-release")))
    assert said == f"this is {known}, and Debian 12 and 13 are the only systems supported"


def test_no_python(tree: Tree, unshare: tuple[str, ...]) -> None:
    tree.fake("dpkg-query", "echo ii")
    fake = tree.fake("python3", "exit 127")
    script = 'mount --bind "$0" /usr/bin/python3; exec "$@"'
    said = tree.refusal("demo", within=(*unshare, script, str(fake)))
    assert said == "no Python 3.11 or newer with a shared libpython here"


@pytest.mark.parametrize("installed", ["echo ii", "exit 1"], ids=["packages", "no-packages"])
def test_no_network(tree: Tree, unshare: tuple[str, ...], installed: str) -> None:
    sources = subprocess.run(["apt-get", "indextargets", "--format", "$(BASE_URI)"], capture_output=True, text=True).stdout
    if not sources or "file:" in sources:
        pytest.skip("this machine's package sources need no network")
    tree.fake("dpkg-query", installed)
    tree.fake("id", "echo 0")
    said = tree.refusal("demo", within=(*unshare, 'exec "$0" "$@"'))
    assert said.startswith("there is no network: ")


@pytest.mark.parametrize("name", ["it's", 'a"b', "a$b", "a:b", "a,b", "a;b", "a#b", "a&b", "a\\b", "(a)", "[a]", "a*"])
def test_a_path_that_compilers_and_loaders_take_for_something_else(tmp_path: Path, name: str) -> None:
    assert Tree(tmp_path, name).refusal("setup").startswith("a path may have ")
