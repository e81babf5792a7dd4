# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs for Xen that do as they are told (tests/c/programs/xen.c), on our libraries in place of
Xen's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rig.compiler import compile_c
from rig.daemon import Daemon
from rig.paths import PROGRAMS, REFERENCE, REFERENCE_LIBDIR, XEN_LIBDIR, XEN_MINOR
from rig.program import Program

LIBRARIES = str(XEN_LIBDIR)
"""For the loader."""
OLD_NAMES = ("-include", str(PROGRAMS / "xen_old_names.h"))
"""For a program that calls libxenevtchn's and libxengnttab's functions by the names that libxenctrl
has for them.
"""


class XenProgram(Program):
    """Each line it is asked is one of xen.c's commands."""

    def ok(self, line: str) -> None:
        said = self.ask(line)
        assert said == "ok", f"{line!r}: {said}"

    def numbers(self, line: str) -> list[int]:
        said = self.ask(line)
        assert said.replace(" ", "").isdigit(), f"{line!r}: {said}"
        return [int(each) for each in said.split()]

    def number(self, line: str) -> int:
        (only,) = self.numbers(line)
        return only

    def kill(self) -> None:
        self.process.kill()
        self.status = -9
        self.process.wait()


Start = Callable[[int], XenProgram]
"""Starts one in a domain."""


@contextmanager
def two_handles(xen: Start, domains: tuple[int, int] = (1, 2)) -> Iterator[tuple[XenProgram, XenProgram]]:
    """Start programs in two domains, each with a handle for event channels."""
    with xen(domains[0]) as one, xen(domains[1]) as other:
        one.number("evtchn")
        other.number("evtchn")
        yield one, other


def bound(one: XenProgram, other: XenProgram, domains: tuple[int, int] = (1, 2)) -> tuple[int, int]:
    """Make an event channel between two programs, and return the port of each.

    Nothing is pending.
    """
    port = one.number(f"bind {domains[1]}")
    joined = other.number(f"join {domains[0]} {port}")
    assert other.number("pending") == joined
    other.ok(f"unmask {joined}")
    return port, joined


def compile_xen(folder: Path, source: str, *flags: str) -> Path:
    """Compile with Xen's headers, linked with Xen's own libraries; XEN_MINOR is their release's."""
    libraries = ["-lxenevtchn", "-lxengnttab", "-lxenctrl", "-lxenvchan", "-Wl,--allow-shlib-undefined", "-pthread"]
    xens = ["-isystem", str(REFERENCE / "include"), f"-L{REFERENCE_LIBDIR}", *libraries]
    return compile_c(folder, PROGRAMS / source, f"-DXEN_MINOR={XEN_MINOR}", *flags, *xens)


@pytest.fixture(scope="session")
def xen_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_xen(tmp_path_factory.mktemp("xen"), "xen.c")


def start_in(daemon: Daemon, program: Path, **environment: str) -> Start:
    def start(domain: int) -> XenProgram:
        return XenProgram(program, env=daemon.environment(domain, **{"LD_LIBRARY_PATH": LIBRARIES, **environment}))

    return start


@pytest.fixture
def xen(daemon: Daemon, xen_program: Path) -> Start:
    return start_in(daemon, xen_program)
