# SPDX-License-Identifier: LGPL-2.1-or-later
"""Formats, types, warnings, and the order of the layers, as tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import libxenvchan_shim
from kvmchand import config
from kvmchand.channels import page
from kvmchand.wire import client, dataplane
from rig import bare
from rig.paths import ROOT
from rig.tools import tool

# What the modules of a folder may import beside each other, a row a folder, from the top down. ""
# is the root.
MAY_IMPORT = {
    "cli": {"admin", "host", "guest", "base"},
    "host": {"links", "services", "channels", "runtime", "xenstore", "wire", "linux", "base"},
    "guest": {"services", "channels", "runtime", "wire", "linux", "base"},
    "links": {"services", "channels", "runtime", "wire", "linux", "base"},
    "admin": {"services", "wire", "linux", "base"},
    "services": {"channels", "runtime", "xenstore", "wire", "linux", "base"},
    "channels": {"xenstore", "wire", "linux", "base"},
    "runtime": {"wire", "linux", "base"},
    "xenstore": {"base"},
    "wire": {"base"},
    "linux": set(),
    "base": set(),
}
SHIM_MAY_IMPORT = ("kvmchand.wire", "kvmchand.errors")
TOOL_MAY_IMPORT = (*SHIM_MAY_IMPORT, "kvmchand.admin", "kvmchand.config", "kvmchand.services.libvirt.coldplug_xml")
"""The command's parts that are the daemon's to know; it imports them when it is asked for them."""
CSRC = ROOT / "libxenvchan_shim" / "csrc"
MAY_INCLUDE = {
    "xen": {"setup", "runtime", "dataplane", "ring"},
    "qubes": {"setup", "runtime", "dataplane", "ring"},
    "kvmchan": {"setup", "runtime", "dataplane", "ring"},
    "beside": {"setup", "runtime", "dataplane", "ring"},
    "setup": {"runtime", "dataplane", "ring"},
    "runtime": {"dataplane", "ring"},
    "dataplane": {"ring"},
    "ring": set(),
}
"""The same of the shim's C, a row a folder of csrc.

Of include/, which is what programs see, each may include all.
"""
BARE = ROOT / "tests" / "bare"
BARE_LINES_MAX = 400
MODULE_LINES_MAX = 420
CLASS_METHODS_MAX = 20
ROOT_MODULES_MAX = 6
FOLDER_MODULES_MAX = 14


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports when it runs: `from a import b` counts as a.b where
    that is a module.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if is_for_types(node):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = ROOT / Path(*node.module.split("."), alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return {name for name in found if name.split(".")[0] in ("kvmchand", "libxenvchan_shim")}


def folder_of(name: str) -> str:
    """The row of MAY_IMPORT that a module of the daemon stands in."""
    parts = name.split(".")
    if len(parts) > 1 and parts[1] in MAY_IMPORT:
        return parts[1]
    return "base"  # kvmchand itself, and config, errors and ids


@cache
def daemon_imports() -> dict[str, set[str]]:
    """What each of the daemon's modules imports of the daemon."""
    return {
        module_name(path): {each for each in imports(path) if each.split(".")[0] == "kvmchand"}
        for path in python_files("kvmchand")
    }


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_lower_folders_only(folder: str) -> None:
    wrong = {
        f"{name} imports {each}"
        for name, imported in daemon_imports().items()
        if folder_of(name) == folder
        for each in imported
        if folder_of(each) not in MAY_IMPORT[folder] | {folder}
    }
    assert not wrong, "\n".join(sorted(wrong))


def in_a_circle(graph: dict[str, set[str]]) -> list[str]:
    """Those that need each other, or need such: the others are taken away as long as one needs none
    that is left.
    """
    left = dict(graph)
    while free := [name for name, needed in left.items() if not (needed - {name}) & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_no_folder_has_an_import_cycle() -> None:
    assert not in_a_circle(daemon_imports())


def test_services_do_not_import_each_other() -> None:
    for name, imported in daemon_imports().items():
        if name.startswith("kvmchand.services.") and not name.endswith("__main__"):
            mine = name.split(".")[2]
            others = {each for each in imported if each.startswith("kvmchand.services.") and each.split(".")[2] != mine}
            assert not others, f"{name} imports {others}"


def reached(name: str, graph: dict[str, set[str]]) -> set[str]:
    """All that a module imports, and what that imports."""
    found: set[str] = set()
    new = {name}
    while new:
        found |= new
        new = {each for known in new for each in graph.get(known, ())} - found
    return found


def test_service_processes_import_no_side_of_mains() -> None:
    """Main's side of a service is what main's own modules import of its folder; what only serves
    both is neither.
    """
    graph = daemon_imports()
    mains = set().union(*(reached(f"kvmchand.{role}.main", graph) for role in ("host", "guest")))
    sides = {each for each in mains if "kvmchand.runtime.supervisor" in graph[each]} - {"kvmchand.runtime.supervisor"}
    for name in graph:
        if name.endswith((".process", ".forwarder")):
            assert not reached(name, graph) & sides, name


def test_the_root_and_each_folder_stay_small() -> None:
    for folder in {path.parent for path in python_files("kvmchand")}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= (ROOT_MODULES_MAX if folder == ROOT / "kvmchand" else FOLDER_MODULES_MAX), folder
    assert [each for each in CSRC.iterdir() if each.is_file()] == []
    for folder in CSRC.iterdir():
        assert len({each.stem for each in folder.iterdir()}) <= FOLDER_MODULES_MAX, folder


def classes() -> dict[str, ast.ClassDef]:
    """Every class of the product, by module and name."""
    return {
        f"{module_name(path)}.{node.name}": node
        for path in python_files("kvmchand", "libxenvchan_shim")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }


def methods(node: ast.ClassDef) -> set[str]:
    """A property and its setter are one."""
    return {each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}


def bases(node: ast.ClassDef) -> set[str]:
    return {each.id for each in node.bases if isinstance(each, ast.Name)}


def test_no_class_has_too_many_methods() -> None:
    large = {name for name, node in classes().items() if len(methods(node)) > CLASS_METHODS_MAX}
    assert not large


def test_a_class_is_called_back_by_one_protocol_at_most() -> None:
    """Callbacks begin with on_, and no other method that others call does: so none is a command,
    too. A protocol of callbacks is named ...Events, and whoever is called by it derives from it.
    """
    protocols = {
        node.name: methods(node) for node in classes().values() if node.name.endswith("Events") and "Protocol" in bases(node)
    }
    assert len(protocols) > 5
    for name, node in classes().items():
        if node.name in protocols:
            continue
        own = bases(node) & protocols.keys()
        assert len(own) <= 1, f"{name} is called by {own}"
        declared = set().union(*(protocols[each] for each in own))
        undeclared = {each for each in methods(node) if each.startswith("on_")} - declared
        assert not undeclared, f"{name}: {undeclared} are callbacks of no protocol that it derives from"


def includes() -> dict[str, set[str]]:
    """What each C file of the shim includes of the shim, all by their names below csrc."""
    names = {str(path.relative_to(CSRC)): path for path in CSRC.rglob("*.*")}
    return {
        name: set(re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE)) & names.keys()
        for name, path in names.items()
    }


@pytest.mark.parametrize("folder", MAY_INCLUDE)
def test_a_c_folder_includes_lower_folders_only(folder: str) -> None:
    found = {name: included for name, included in includes().items() if Path(name).parent.name == folder}
    wrong = {
        f"{name} includes {each}"
        for name, included in found.items()
        for each in included
        if Path(each).parent.name not in MAY_INCLUDE[folder] | {folder}
    }
    assert found
    assert not wrong, "\n".join(sorted(wrong))


def test_every_c_folder_has_a_row() -> None:
    assert {path.name for path in CSRC.iterdir()} == set(MAY_INCLUDE)


def test_an_include_names_the_folder() -> None:
    """So that no line says just error.h or event.h, whatever the compiler's search path finds by
    that.
    """
    public = {str(path.relative_to(ROOT / "include")) for path in (ROOT / "include").rglob("*.h")}
    known = includes()
    for path in CSRC.rglob("*.*"):
        for each in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
            assert each in known or each in public, f"{path.name} includes {each}"


def test_c_files_do_not_include_each_other_in_a_circle() -> None:
    assert not in_a_circle(includes())


@pytest.mark.parametrize("path", python_files("kvmchand"), ids=module_name)
def test_daemon_modules_import_when_they_are_loaded(path: Path) -> None:
    """A service that has become nobody can't read Python's files, nor ours, in a home that is
    closed to others.
    """
    functions = (
        each for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    late = [each.lineno for function in functions for each in ast.walk(function) if isinstance(each, ast.Import | ast.ImportFrom)]
    assert not late, f"{path} imports in a function, at lines {late}"


@pytest.mark.parametrize("path", python_files("libxenvchan_shim"), ids=module_name)
def test_the_shim_imports_of_the_daemon_the_wire_and_the_errors_only(path: Path) -> None:
    allowed = TOOL_MAY_IMPORT if path.name == "tool.py" else SHIM_MAY_IMPORT
    wrong = {each for each in imports(path) if each.startswith("kvmchand") and not each.startswith(allowed)}
    assert not wrong


@pytest.mark.parametrize("path", python_files("kvmchand", "libxenvchan_shim"), ids=module_name)
def test_modules_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_LINES_MAX
    assert ast.get_docstring(ast.parse(text)), "no docstring"


def tracked() -> list[Path]:
    """Every file that is, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_every_file_names_its_licence() -> None:
    without_comments = {"LICENSE", "py.typed"}
    for path in tracked():
        if path.name not in without_comments and path.suffix != ".md":
            head = path.read_text().splitlines()[:3]
            assert any("SPDX-License-Identifier: LGPL-2.1-or-later" in line for line in head), path


def test_no_file_has_a_path_of_one_machine() -> None:
    machine_path = re.compile(r"(?<![\w.$}])/(work|root|home)/\w")
    for path in tracked():
        if path != Path(__file__):
            assert not machine_path.search(path.read_text()), path


def test_links_in_documents_lead_somewhere() -> None:
    for path in tracked():
        if path.suffix == ".md":
            for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that a person writes as sentences, with their numbers: a document's, but
    for tables and code; C's and the shell's comments. Python's are ruff's to check.
    """
    is_code = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if path.suffix == ".md":
            is_code ^= line.startswith("```")
            if not is_code and not line.startswith(("|", "    ", "```")):
                yield number, line
        elif re.match(r"\s*(#|//|/?\*) ", line):
            yield number, line


def test_prose_wraps_at_100_columns() -> None:
    files = [path for path in tracked() if path.suffix in (".md", ".c", ".h", ".sh", ".build") or path.name == "run"]
    long = [f"{path.relative_to(ROOT)}:{number}" for path in files for number, line in prose(path) if len(line) > 100]
    assert not long, f"lines of over 100 columns: {long}"


def test_readme_shows_the_default_settings(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"^    runtime_dir = .*?(?=^\w)", text, re.DOTALL | re.MULTILINE)
    assert block
    (tmp_path / "settings.toml").write_text(textwrap.dedent(block.group()))
    assert config.load(tmp_path / "settings.toml") == config.Settings()


def test_python_and_c_agree_on_the_shared_page() -> None:
    text = (ROOT / "libxenvchan_shim/csrc/dataplane/attach.c").read_text()
    for name, value in (("LEFT_INDEXES", page.LEFT_INDEXES), ("RIGHT_INDEXES", page.RIGHT_INDEXES)):
        assert re.search(rf"#define {name} {value}\b", text), name


def test_the_bare_guest_is_short() -> None:
    lines = [line for path in BARE.iterdir() if path.suffix in (".c", ".h", ".ld") for line in path.read_text().splitlines()]
    assert 0 < len(lines) <= BARE_LINES_MAX


def test_python_and_c_agree_on_the_bare_guests_vectors() -> None:
    assert re.search(rf"\bOWN = {bare.OWN_VECTORS}\b", (BARE / "guest.c").read_text())
    assert f"| irq DEVICE VECTOR | an interrupt came; VECTOR {bare.OWN_VECTORS - 1:x} " in (BARE / "README.md").read_text()


def test_python_and_c_agree_on_a_grant() -> None:
    text = (CSRC / "dataplane/grant.h").read_text()
    struct = re.sub(r"/\*.*?\*/", "", text.partition("struct kvmchan_grant {")[2].partition("};")[0], flags=re.DOTALL)
    names = re.findall(r"(\w+)(?:\[(?:\d+)\])?[,;]", struct)
    assert names == [field[0] for field in dataplane.Grant._fields_]
    assert set(client.Grant.__annotations__) < set(names)


def test_python_touches_no_mapped_ring() -> None:
    """Only C does, in atomics.h and ring.c: no Python object is made of a ring's address, except
    for who looks at its bytes in place.
    """
    touches = re.compile(r"\.from_address\(|\.(read|write)\.(buffer|shr)\b")
    for path in python_files("kvmchand", "libxenvchan_shim"):
        if path != ROOT / "libxenvchan_shim/api/end.py":
            assert not touches.search(path.read_text()), path


def test_every_installed_module_is_in_the_build() -> None:
    for folder in ("kvmchand", "kvmchan", "libxenvchan_shim"):
        listed = (ROOT / folder / "meson.build").read_text()
        for path in python_files(folder):
            if path.name != "build_embed.py":
                assert re.search(rf"'{path.stem}(\.py)?'", listed), f"{path} is not installed"


def test_the_version_is_the_same_everywhere() -> None:
    versions = {
        re.search(r"^ *version(?: =|:) [\"']([^\"']+)[\"']", (ROOT / name).read_text(), re.MULTILINE).group(1)  # type: ignore[union-attr]
        for name in ("meson.build", "pyproject.toml")
    }
    assert versions == {libxenvchan_shim.__version__}


def check(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    check(tool("ruff"), "check", "--no-cache", ".")


def test_python_is_formatted() -> None:
    check(tool("ruff"), "format", "--no-cache", "--check", ".")


def test_types_are_right() -> None:
    check(tool("mypy"))


def test_words_are_spelled_right() -> None:
    check(tool("codespell"), "--toml", str(ROOT / "pyproject.toml"), *map(str, tracked()))


def shell_scripts() -> list[Path]:
    shells = (b"#!/bin/sh\n", b"#!/bin/busybox sh\n")
    return [path for path in tracked() if path.suffix != ".in" and path.read_bytes().startswith(shells)]


def test_shellcheck_finds_nothing() -> None:
    found = shell_scripts()
    assert ROOT / "run" in found
    check(tool("shellcheck"), "--shell=sh", *map(str, found))


def c_files() -> list[Path]:
    return [path for path in tracked() if path.suffix in (".c", ".h")]


def test_c_is_formatted() -> None:
    check(tool("clang-format"), "--dry-run", "--Werror", *map(str, c_files()))


def compiler_flags() -> list[str]:
    # The embedded interpreter's headers.
    config = sysconfig.get_path("include", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix})
    return ["-std=gnu11", "-D_GNU_SOURCE", f"-I{CSRC}", f"-I{ROOT / 'include'}", f"-isystem{config}"]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_c_compiles_without_a_warning(compiler: str) -> None:
    flags = ["-Wall", "-Wextra", "-Werror", "-O2", "-fsyntax-only"]
    sources = [*sorted(CSRC.rglob("*.c")), *sorted((ROOT / "examples").glob("*.c"))]
    check(tool(compiler), *compiler_flags(), *flags, *map(str, sources))


def test_c_files_do_not_call_each_other_in_a_circle(tmp_path: Path) -> None:
    has: dict[str, set[str]] = {}
    needs: dict[str, set[str]] = {}
    sources = sorted(CSRC.rglob("*.c"))
    subprocess.run([tool("gcc"), *compiler_flags(), "-c", *map(str, sources)], cwd=tmp_path, check=True)
    for path in sources:
        lines = subprocess.run(
            [tool("nm"), "--extern-only", path.with_suffix(".o").name], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        symbols = [line.split()[-2:] for line in lines]
        has[path.name] = {name for kind, name in symbols if kind != "U"}
        needs[path.name] = {name for kind, name in symbols if kind == "U"}
    calls = {user: {name for name, symbols in has.items() if symbols & needed} for user, needed in needs.items()}
    assert calls["libxenvchan.c"] >= {"open.c", "daemon.c"}
    assert not in_a_circle(calls)
