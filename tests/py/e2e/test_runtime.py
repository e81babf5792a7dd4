# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the library runs Python: inside the program, or beside it, as the library chooses; and what
it says of an installation that lacks something.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from rig.daemon import Daemon
from rig.deadline import eventually
from rig.paths import LIBDIR, PROGRAMS, PYTHON, SITE
from rig.processes import is_asleep, open_fds, run
from rig.program import Program
from rig.shell import Compiled, assert_says, attempt

# ---- where Python can't be in the process ----


def libpython() -> Path:
    """Return the file that the runtime is linked to."""
    (runtime,) = LIBDIR.glob("kvmchan-python3*.so")
    (found,) = re.findall(r"libpython\S+ => (\S+)", run("ldd", runtime).stdout)
    return Path(found)


@pytest.mark.parametrize("when", ["before", "loaded"])
def test_a_program_may_embed_the_same_python(daemon: Daemon, compiled: Compiled, when: str) -> None:
    assert_says(run(compiled("own_python"), "data/own", libpython(), when, env=daemon.environment()), "ok\n")


@pytest.mark.parametrize("when", ["before", "loaded", "after"])
def test_a_program_may_embed_another_python(daemon: Daemon, compiled: Compiled, tmp_path: Path, when: str) -> None:
    other = tmp_path / "libpython3.99.so"
    run("gcc", "-shared", "-fPIC", "-o", other, PROGRAMS / "libpython_stub.c")
    assert_says(run(compiled("own_python"), "data/own", other, when, env=daemon.environment()), "ok\n")


def test_a_python_program_may_use_the_library(daemon: Daemon) -> None:
    code = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1], use_errno=True)\n"
        "library.libxenvchan_server_init.restype = ctypes.c_void_p\n"
        "end = library.libxenvchan_server_init(None, 0, b'data/python', 0, 0)\n"
        "assert end and 'libxenvchan_shim' not in sys.modules\n"
        "library.libxenvchan_close(ctypes.c_void_p(end))\n"
    )
    run(PYTHON, "-c", code, LIBDIR / "libxenvchan.so", env=daemon.environment())


@pytest.mark.parametrize("when", ["before", "loaded"])
def test_a_runtime_that_is_forced_inside_says_what_keeps_it_out(daemon: Daemon, compiled: Compiled, when: str) -> None:
    environment = daemon.environment(KVMCHAN_RUNTIME="inside", KVMCHAN_DEBUG="1")
    command = [str(compiled("own_python")), "data/own", str(libpython()), when]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert re.search(
        r"this library was built for Python 3\.\d+ and the program runs 3\.\d+\S+: "
        "set KVMCHAN_RUNTIME to beside, or unset it",
        done.stderr,
    )


def test_a_runtime_of_another_name_is_refused(compiled: Compiled, tmp_path: Path) -> None:
    number, sentence = attempt(compiled, tmp_path, KVMCHAN_RUNTIME="outside")
    assert (number, sentence) == (22, "KVMCHAN_RUNTIME is 'outside': set it to inside or beside, or unset it")


def test_the_library_works_in_a_linker_namespace_of_its_own(daemon: Daemon, compiled: Compiled) -> None:
    library = LIBDIR / "libxenvchan.so"
    assert_says(run(compiled("other_namespace"), "data/other", library, env=daemon.environment()), "ok\n")


@pytest.mark.parametrize("chosen", ["", "beside"])
def test_a_child_works_that_python_does_not_know_of(daemon: Daemon, compiled: Compiled, chosen: str) -> None:
    assert_says(run(compiled("bare_fork"), "data/bare", env=daemon.environment(KVMCHAN_RUNTIME=chosen)), "ok\n")


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA], ids=["address space", "data"])
def test_a_program_that_may_use_little_memory_has_python_beside_it(daemon: Daemon, compiled: Compiled, kind: int) -> None:
    """By its soft limit, which is not for the helper."""
    hard = resource.getrlimit(kind)[1]
    with Program(
        compiled("shell"), env=daemon.environment(), preexec_fn=lambda: resource.setrlimit(kind, (8 << 20, hard))
    ) as shell:
        assert shell.ask("server 0 0 0 data/little") == "ok"
        assert shell.ask("close") == "ok"


# ---- the helper ----


class Helpers:
    """The helper processes that the programs of one test have started."""

    def __init__(self, mark: Path) -> None:
        self._mark = f"LD_LIBRARY_PATH={mark}".encode()
        self._settings = {"KVMCHAN_RUNTIME": "beside", "LD_LIBRARY_PATH": str(mark)}

    def environment(self, daemon: Daemon) -> dict[str, str]:
        return daemon.environment() | self._settings

    def pids(self) -> list[int]:
        return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit() and self._is_ours(each)]

    def _is_ours(self, process: Path) -> bool:
        try:
            name = (process / "comm").read_text()
            return name == "kvmchan-helper\n" and self._mark in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


@pytest.fixture
def helpers(tmp_path: Path) -> Helpers:
    return Helpers(tmp_path)


def test_a_helper_has_nothing_of_its_program_and_ends_with_it(
    daemon: Daemon, compiled: Compiled, helpers: Helpers, tmp_path: Path
) -> None:
    with Program(compiled("shell"), env=helpers.environment(daemon), cwd=tmp_path) as shell:
        assert shell.ask("server 0 0 0 data/helped") == "ok"
        (helper,) = helpers.pids()
        # And the socket of a step, until its thread has ended.
        eventually(lambda: open_fds(helper) == ["/dev/null", "/dev/null", "socket"])
        assert Path(f"/proc/{helper}/cwd").readlink() == Path("/")
        assert os.getsid(helper) == helper
        assert [each["server_pid"] for each in daemon.channels()] == [shell.pid]
        shell.process.kill()
        shell.status = -signal.SIGKILL
    eventually(lambda: helpers.pids() == [])


@pytest.mark.parametrize("when", ["in a call", "between calls"])
def test_a_helper_that_is_killed_is_not_noticed(daemon: Daemon, compiled: Compiled, helpers: Helpers, when: str) -> None:
    with Program(compiled("shell"), env=helpers.environment(daemon)) as shell:
        assert shell.ask("client 0 data/first").startswith("NULL 2 ")
        before = shell.ask("fds")
        (first,) = helpers.pids()
        if when == "in a call":
            os.kill(first, signal.SIGSTOP)
            shell.tell("server 0 0 0 data/helped")
            # It has asked, and waits.
            eventually(lambda: is_asleep(shell.pid))
            os.kill(first, signal.SIGKILL)
        else:
            os.kill(first, signal.SIGKILL)
            shell.tell("server 0 0 0 data/helped")
        assert shell.line() == "ok"
        assert shell.ask("close") == "ok"
        assert shell.ask("fds") == before
        eventually(lambda: len(helpers.pids()) == 1)
        assert helpers.pids() != [first]


def test_a_helper_that_ends_at_once_is_told(compiled: Compiled, tmp_path: Path) -> None:
    for each in (LIBDIR / "libxenvchan.so", LIBDIR / "kvmchan-beside.so"):
        shutil.copy(each, tmp_path)
    (tmp_path / "kvmchan-helper").write_text("#!/bin/sh\n")
    (tmp_path / "kvmchan-helper").chmod(0o755)
    number, sentence = attempt(compiled, tmp_path, KVMCHAN_RUNTIME="beside", LD_LIBRARY_PATH=str(tmp_path))
    assert number == 104  # ECONNRESET
    assert sentence == "kvmchan's helper ends before it answers: install kvmchan again, if nobody kills it"


def test_a_helper_that_is_not_there_is_told(compiled: Compiled, tmp_path: Path, helpers: Helpers) -> None:
    for each in (LIBDIR / "libxenvchan.so", LIBDIR / "kvmchan-beside.so"):
        shutil.copy(each, tmp_path)
    number, sentence = attempt(compiled, tmp_path, KVMCHAN_RUNTIME="beside", LD_LIBRARY_PATH=str(tmp_path))
    assert number == 2  # ENOENT
    path = tmp_path / "kvmchan-helper"
    assert sentence == f"kvmchan's helper {path} can't be started (No such file or directory): install kvmchan again"
    assert helpers.pids() == []


# ---- what can be wrong with the installation ----


def test_library_without_its_python_code_fails_with_a_sentence(compiled: Compiled, tmp_path: Path, runtime: str) -> None:
    alone = Path(shutil.copy(LIBDIR / "libxenvchan.so", tmp_path))
    number, sentence = attempt(compiled, tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    assert number == 2  # ENOENT
    name = "kvmchan-python3.*.so" if runtime == "inside" else "kvmchan-beside.so"
    assert sentence == f"kvmchan's runtime ({name}) is not beside {alone}: install kvmchan again"


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("names", [[], ["kvmchan-python3.99.so"], ["kvmchan-python3.so", "kvmchan-python3.x.so"]])
def test_a_runtime_that_is_none_is_told_or_passed_over(
    daemon: Daemon, compiled: Compiled, tmp_path: Path, names: list[str]
) -> None:
    packages = tmp_path / "site"
    shutil.copytree(SITE, packages)
    libraries = packages / LIBDIR.relative_to(SITE)
    for name in names:
        (libraries / name).write_text("nothing")
    run(compiled("loopback"), "0", "data/passed", env=daemon.environment(LD_LIBRARY_PATH=str(libraries)))
    (runtime,) = (each for each in libraries.glob("kvmchan-python3*.so") if each.name not in names)
    runtime.write_text("nothing")
    number, sentence = attempt(compiled, tmp_path, LD_LIBRARY_PATH=str(libraries))
    assert number == 79  # ELIBACC
    version = runtime.name.removeprefix("kvmchan-python").removesuffix(".so")
    assert sentence.startswith(f"kvmchan's runtime can't be loaded: install Python {version}, for which it was built (")


def test_a_runtime_of_another_release_is_refused(compiled: Compiled, tmp_path: Path, runtime: str) -> None:
    shutil.copy(LIBDIR / "libxenvchan.so", tmp_path)
    (tmp_path / "other.c").write_text("const unsigned kvmchan_runtime[16] = {999};\n")
    name = "kvmchan-python3.11.so" if runtime == "inside" else "kvmchan-beside.so"
    run("gcc", "-shared", "-o", tmp_path / name, tmp_path / "other.c")
    number, sentence = attempt(compiled, tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    assert number == 80  # ELIBBAD
    assert sentence == f"{tmp_path}/{name} is of another release: install kvmchan again"


@pytest.mark.usefixtures("runtime")
def test_library_needs_no_python_files(daemon: Daemon, compiled: Compiled, tmp_path: Path) -> None:
    """Neither ours nor the standard library's are looked for."""
    shutil.copytree(LIBDIR, tmp_path / "lib")
    environment = daemon.environment(LD_LIBRARY_PATH=str(tmp_path / "lib"))
    strace = shutil.which("strace")
    if strace is None:
        run(compiled("loopback"), "0", "data/alone", env=environment)
        return
    log = tmp_path / "log"
    run(strace, "-f", "-e", "trace=%file", "-o", log, compiled("loopback"), "0", "data/alone", env=environment)
    assert not [line for line in log.read_text().splitlines() if re.search(r'\.pyc?"|pyvenv|__pycache__', line)]


@pytest.mark.usefixtures("runtime")
def test_library_is_found_through_links_and_from_a_moved_folder(daemon: Daemon, compiled: Compiled, tmp_path: Path) -> None:
    moved = tmp_path / "else where"
    shutil.copytree(SITE, moved)
    (tmp_path / "link").symlink_to(moved / LIBDIR.relative_to(SITE))
    run(compiled("loopback"), "0", "data/moved", env=daemon.environment(LD_LIBRARY_PATH=str(tmp_path / "link")))
