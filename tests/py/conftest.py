# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from rig.daemon import Daemon, serving
from rig.deadline import in_time
from rig.fixtures import (
    accelerator,
    alice,
    bare_host,
    bare_kernel,
    bare_libvirtd,
    bob,
    folder,
    fresh,
    guest_program,
    host,
    host_program,
    kept_guest,
    kept_host,
    lacking_kvm,
    libvirtd,
    machines,
    require_bare_kvm,
    run,
    shared_machines,
)
from rig.kept import Kept
from rig.xen_program import xen, xen_program

__all__ = [
    "accelerator",
    "alice",
    "bare_host",
    "bare_kernel",
    "bare_libvirtd",
    "bob",
    "daemon",
    "folder",
    "fresh",
    "guest_program",
    "host",
    "host_program",
    "kept_guest",
    "kept_host",
    "lacking_kvm",
    "libvirtd",
    "machines",
    "require_bare_kvm",
    "run",
    "shared_machines",
    "xen",
    "xen_program",
]


DEADLINE = 120.0
"""Seconds that each step of a test may take, not counting those in which it waits for a processor.
"""


class GuestsFirst(LoadScopeScheduling):  # type: ignore[misc] # it has no types
    """Give each test to a worker that is free, and first those of real guests, which take the
    longest, to one.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "guests" if nodeid.startswith("tests/py/vm/") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GuestsFirst:
    return GuestsFirst(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with in_time(DEADLINE, f"the set-up of {item.nodeid}"):
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with in_time(DEADLINE, item.nodeid):
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    with in_time(DEADLINE, f"the teardown of {item.nodeid}"):
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Leaves a line for each skipped test, with the reason, to ./run, which sums them up."""
    # A worker has a summary of its own, which is part of the whole one.
    if (path := os.environ.get("KVMCHAN_SKIPPED")) and not hasattr(terminalreporter.config, "workerinput"):
        with Path(path).open("a") as file:
            for report in terminalreporter.stats.get("skipped", []):
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                print(" ".join(reason.removeprefix("Skipped: ").split()), file=file)


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short path, as sockets need."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture(scope="session")
def kept_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept[Daemon]]:
    kept = Kept(lambda: Daemon(tmp_path_factory.mktemp("d")))
    yield kept
    kept.end()


@pytest.fixture
def daemon(kept_daemon: Kept[Daemon], request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon with local domains 1 and 2, that must be clean again at the end."""
    yield from kept_daemon.lend(request)


@pytest.fixture
def own_daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon that no test has used, whose descriptors are the first there are."""
    yield from serving(Daemon(tmp_path), request)
