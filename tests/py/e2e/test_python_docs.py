# SPDX-License-Identifier: LGPL-2.1-or-later
"""What users of the Python API read: the tutorial, the docstrings, and the examples all run.

In docs/python.md, a block that begins with "# NAME.py" is a script. One called NAME_server.py runs
in the background while the next one runs. All other blocks are one session, in order, in a process
of its own. A block of text shows what the block before it prints.
"""

from __future__ import annotations

import contextlib
import doctest
import errno
import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import pkgutil
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kvmchan
import libxenvchan_shim
from kvmchand import errors
from libxenvchan_shim import api
from rig.daemon import Daemon, acting_as
from rig.paths import PYTHON, ROOT, SITE
from rig.processes import run
from rig.program import Program

TUTORIAL = ROOT / "docs" / "python.md"
EXAMPLES = ROOT / "examples"
CLASSES = (
    kvmchan.Listener,
    kvmchan.MappedPages,
    kvmchan.SharedPages,
    kvmchan.Span,
    kvmchan.Vchan,
    kvmchan.VchanServer,
)
NEED_NO_EXAMPLE = {
    "Listener": {"close", "fileno", "getblocking", "gettimeout", "setblocking"},
    "MappedPages": {"close"},
    "SharedPages": {"revoke"},
    "Span": {"release"},
    "Vchan": {"close", "commit", "consume", "detach", "getblocking", "gettimeout", "setblocking"},
    "VchanServer": {"close", "is_serving", "serve_forever", "wait_closed"},
}
"""Methods that are plain, or that another one's example shows."""


# ---- the tutorial ----


class Block(NamedTuple):
    """A block of code of the tutorial."""

    line: int
    """The number of its first line."""
    code: str
    prints: str | None
    """The block of text after it."""

    @property
    def script(self) -> str | None:
        """Return its file's name, if it is a script."""
        found = re.match(r"# (\w+\.py)\n", self.code)
        return found.group(1) if found else None


def blocks() -> list[Block]:
    text = TUTORIAL.read_text()
    found: list[Block] = []
    for each in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        language, code = each.groups()
        if language == "python":
            found.append(Block(text.count("\n", 0, each.start(2)) + 1, code, None))
        elif language == "text":
            found[-1] = found[-1]._replace(prints=code)
    return found


def scripts() -> dict[str, Block]:
    return {block.script: block for block in blocks() if block.script}


def environment(daemon: Daemon, domain: int = 0) -> dict[str, str]:
    before = os.environ.get("PYTHONPATH", "")
    return daemon.environment(domain, PYTHONPATH=f"{SITE}:{before}", PYTHONUNBUFFERED="1")


def require_installed(code: str) -> None:
    for name in re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def test_the_session_of_the_tutorial_runs(daemon: Daemon, tmp_path: Path) -> None:
    session = [block for block in blocks() if not block.script]
    assert len(session) > 20
    (tmp_path / "session.json").write_text(json.dumps(session))
    path = f"{ROOT / 'tests' / 'py'}:{ROOT}"
    env = environment(daemon)
    env["PYTHONPATH"] += f":{path}"
    run(PYTHON, "-W", "error", __file__, tmp_path / "session.json", env=env, cwd=tmp_path)


@pytest.mark.parametrize("name", [name for name in scripts() if not name.endswith("_server.py")])
def test_a_script_of_the_tutorial_runs(daemon: Daemon, tmp_path: Path, name: str) -> None:
    known = scripts()
    require_installed(known[name].code)
    names = list(known)
    before = names[names.index(name) - 1] if names.index(name) else ""
    with contextlib.ExitStack() as servers:
        if before.endswith("_server.py"):
            server = servers.enter_context(background(daemon, tmp_path, before))
        (tmp_path / name).write_text(known[name].code)
        done = run(PYTHON, "-W", "error", tmp_path / name, env=environment(daemon, domain_of(name)), cwd=tmp_path)
        assert (done.stdout, done.stderr) == (known[name].prints, "")
        if before.endswith("_server.py"):
            server.status = -signal.SIGTERM
            server.process.terminate()


def domain_of(name: str) -> int:
    """Return the domain that the tutorial's command for a script sets."""
    found = re.search(rf"^KVMCHAN_DOMAIN=(\d+) python3 {re.escape(name)}$", TUTORIAL.read_text(), re.MULTILINE)
    return int(found.group(1)) if found else 0


def background(daemon: Daemon, folder: Path, name: str) -> Program:
    (folder / name).write_text(scripts()[name].code)
    return Program(PYTHON, "-W", "error", folder / name, env=environment(daemon, domain_of(name)), cwd=folder)


def rows(head: str) -> list[list[str]]:
    """Return the cells of the table of the tutorial that begins with this head."""
    lines = TUTORIAL.read_text().partition(f"{head}\n")[2].splitlines()[1:]
    table = lines[: next(number for number, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_table_of_errors_is_complete_and_right() -> None:
    told = {}
    for name, also, number, _ in rows("| exception | also a | errno | raised when |"):
        kind = getattr(kvmchan, name)
        told[name] = kind
        assert issubclass(kind, getattr(__import__("builtins"), also)), name
        assert kind.number == getattr(errno, number), name
        standard = {base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"}
        assert also == "OSError" or also in standard - {"OSError", "Exception", "BaseException", "object"}, name
        if also == "OSError":
            assert standard == {"OSError", "Exception", "BaseException", "object"}, name
    assert set(told.values()) == {each for each in vars(errors).values() if is_error(each)} - {errors.VchanError}


def is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, errors.VchanError)


def test_every_call_in_the_table_of_calls_exists() -> None:
    table = rows("| libxenvchan | kvmchan | socket |")
    named = {name for row in table for name in re.findall(r"`([\w.]+)(?:\(\))?`", row[1])}
    assert len(named) > 20
    for name in named:
        value: Any = kvmchan
        for part in name.split("."):
            value = getattr(value, part)


# ---- docstrings ----


def public(kind: type) -> dict[str, Any]:
    return {name: inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")}


def test_every_public_name_has_a_docstring() -> None:
    without = [name for name in libxenvchan_shim.__all__ if name != "__version__" and not inspect.getdoc(getattr(kvmchan, name))]
    for kind in CLASSES:
        documented = (name for name, value in public(kind).items() if inspect.isroutine(value) or isinstance(value, property))
        without += [f"{kind.__name__}.{name}" for name in documented if not inspect.getdoc(getattr(kind, name))]
    assert not without


def test_functions_and_main_methods_have_an_example() -> None:
    without = [
        name
        for name in libxenvchan_shim.__all__
        if inspect.isfunction(value := getattr(kvmchan, name)) and not has_example(value)
    ]
    for kind in CLASSES:
        for name, value in public(kind).items():
            if inspect.isfunction(value) and name not in NEED_NO_EXAMPLE[kind.__name__] and not has_example(value):
                without.append(f"{kind.__name__}.{name}")
    assert not without


def has_example(value: object) -> bool:
    return ">>> " in (inspect.getdoc(value) or "")


def doctests() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(f"{api.__name__}.{each.name}") for each in pkgutil.iter_modules(api.__path__)]
    for module in modules:
        yield from (each for each in finder.find(module) if each.examples)


@pytest.mark.parametrize("example", list(doctests()), ids=lambda example: example.name.removeprefix(f"{api.__name__}."))
def test_an_example_of_a_docstring_runs(daemon: Daemon, example: doctest.DocTest) -> None:
    """With all of kvmchan imported, and `server` and `client`, which are the ends of a vchan."""
    with contextlib.ExitStack() as opened:
        opened.enter_context(acting_as(daemon))
        listener = opened.enter_context(kvmchan.listen("host", "data/ends"))
        client = opened.enter_context(kvmchan.connect("host", "data/ends"))
        server = opened.enter_context(listener.accept())
        example.globs.update({name: getattr(kvmchan, name) for name in libxenvchan_shim.__all__})
        example.globs.update(kvmchan=kvmchan, client=client, server=server)
        said = io.StringIO()
        failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.write)
    assert not failed, said.getvalue()


def test_help_shows_the_calls_with_their_arguments() -> None:
    said = run(PYTHON, "-c", "import kvmchan; help(kvmchan)", cwd="/", env={**os.environ, "PYTHONPATH": str(SITE)}).stdout
    shown = " ".join(said.split())  # a long line is several lines from Python 3.13 on
    assert re.search(r" connect\( ?domain: 'int \| str', path: 'str', \*, timeout: [^>]* -> 'Vchan' ", shown)
    assert re.search(r" listen\( ?peer: 'int \| str', path: 'str', \*, read_min: [^>]* -> 'Listener' ", shown)
    assert re.search(r" async open_vchan\( ?domain: 'int \| str', path: 'str', \*, timeout: [^>]* -> ", shown)
    assert "docs/python.md" in shown


# ---- examples ----


def start(daemon: Daemon, name: str, *arguments: str | Path, domain: int = 0) -> Program:
    return Program(PYTHON, "-W", "error", EXAMPLES / name, *arguments, env=environment(daemon, domain), preexec_fn=let_interrupt)


def let_interrupt() -> None:
    """So that SIGINT interrupts a program, also where the tests run with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finished(daemon: Daemon, name: str, *arguments: str | Path, domain: int = 0) -> str:
    done = run(PYTHON, "-W", "error", EXAMPLES / name, *arguments, env=environment(daemon, domain))
    assert done.stderr == ""
    return done.stdout


def test_the_example_of_an_echo_server(daemon: Daemon) -> None:
    with start(daemon, "echo_server.py", "--peer", "1") as server:
        server.expect("listening at /local/domain/0/data/echo")
        for text in ("hello", "häå"):
            assert finished(daemon, "echo_server.py", "--client", "--peer", "host", text, domain=1) == f"{text}\n"
        server.process.send_signal(signal.SIGINT)
        server.expect("stopped")


def test_the_example_of_a_chat(daemon: Daemon) -> None:
    with start(daemon, "asyncio_chat.py", "--serve", "--peer", "1") as server:
        server.expect("serving at /local/domain/0/data/chat")
        with start(daemon, "asyncio_chat.py", "--peer", "0", "--name", "Ada", domain=1) as ada:
            ada.expect("* Ada has come")
            with start(daemon, "asyncio_chat.py", "--peer", "0", "--name", "Bob", domain=1) as bob:
                bob.expect("* Bob has come")
                ada.expect("* Bob has come")
                ada.tell("hello")
                bob.expect("Ada: hello")
                bob.tell("hello Ada")
                ada.expect("Bob: hello Ada")
            ada.expect("* Bob has gone")
        server.process.send_signal(signal.SIGINT)


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_the_example_of_sending_a_file(daemon: Daemon, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "sent.bin").write_bytes(data)
    (tmp_path / "folder").mkdir()
    digest = hashlib.sha256(data).hexdigest()
    with start(daemon, "send_file.py", "receive", "--peer", "host", tmp_path / "folder", domain=1) as receiver:
        said = finished(daemon, "send_file.py", "send", "--peer", "1", tmp_path / "sent.bin")
        receiver.expect(f"received sent.bin, {size} bytes, sha256 {digest}")
    assert said == f"sent {size} bytes, sha256 {digest}\n"
    assert (tmp_path / "folder" / "sent.bin").read_bytes() == data
    assert [each.name for each in (tmp_path / "folder").iterdir()] == ["sent.bin"]


def test_the_example_of_frames(daemon: Daemon) -> None:
    require_installed("import numpy")
    with start(daemon, "numpy_frames.py", "--serve", "--peer", "1", "--frames", "256") as server:
        said = finished(daemon, "numpy_frames.py", "--peer", "host", domain=1)
        server.expect("sent 256 frames")
    assert re.fullmatch(r"received 256 frames, mean 127\.50, \d+ MB/s\n", said)


def test_the_example_of_a_pool(daemon: Daemon) -> None:
    said = finished(daemon, "worker_pool.py", "--workers", "3", "--tasks", "10")
    assert said == "10 tasks by 3 workers: 1229 primes below 10000\n"


@pytest.mark.parametrize("loop", ["trio", "anyio"])
def test_the_example_of_another_event_loop(daemon: Daemon, loop: str) -> None:
    require_installed(f"import {loop}")
    assert finished(daemon, "trio_or_anyio.py", "--loop", loop) == f"{loop}: 1024 KiB came back as they were\n"


def test_each_example_says_how_to_run_it() -> None:
    for path in EXAMPLES.glob("*.py"):
        if path.name != "demo_vm.py":
            assert f"    python3 {path.name}" in path.read_text(), path.name
            assert f"{path.stem}.py" in Path(__file__).read_text(), f"no test runs {path.name}"


# ---- the process of the session ----


def _run_session(path: str) -> None:
    """Run the blocks. Ends with the first that fails."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for line, code, prints in json.loads(Path(path).read_text()):
        place = f"{TUTORIAL.name}, line {line}"
        if code.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(code, {}, place, str(TUTORIAL), line - 1)
            test.globs = names
            failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, clear_globs=False)
            if failed:
                raise SystemExit(1)
        else:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                exec(compile(code, place, "exec"), names)
            assert said.getvalue() == (prints or ""), f"{place} printed {said.getvalue()!r}"


if __name__ == "__main__":
    _run_session(sys.argv[1])
