# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes: what they have open, started and wait for, as seen from outside; and programs that run
to their end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rig.paths import PYTHON

_POLL = "7"
"""poll(2)'s number."""


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def services_of(main: int) -> dict[str, int]:
    """Return a kvmchand's processes beside main, by name. One that is just starting is missing."""
    found = {}
    for pid in children(main):
        try:
            *_, entry, name, _closer, _socket, _page, _end = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, ValueError):
            continue  # it has ended, or not begun
        if entry.endswith(b"services/__main__.py"):
            found[name.decode()] = pid
    return found


def socket_of(service: int) -> socket.socket:
    """Return a service's socket to main, as somebody has it who took over the process."""
    number = int(Path(f"/proc/{service}/cmdline").read_bytes().split(b"\0")[-3])
    process = os.pidfd_open(service)
    pidfd_getfd = 438
    fd = ctypes.CDLL(None, use_errno=True).syscall(pidfd_getfd, process, number, 0)
    os.close(process)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return socket.socket(fileno=fd)


def open_fds(pid: int) -> list[str]:
    """Return what a process's descriptors are, sorted, without the numbers of sockets."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(each.readlink()).split(":[")[0])
        except FileNotFoundError:
            continue
    return sorted(found)


def is_asleep(pid: int) -> bool:
    """Return whether a process waits for something, as far as can be told from outside."""
    return _state(pid) == "S"


def is_stopped(pid: int) -> bool:
    """Return whether a process stands still after a SIGSTOP."""
    return _state(pid) == "T"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_running(pid: int) -> bool:
    """Return whether a process has not ended. Somebody else may have to reap it."""
    try:
        return _state(pid) != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def next_fd() -> int:
    """Return the number of the next descriptor: the same before and after, if none leaks."""
    fd = os.dup(0)
    os.close(fd)
    return fd


def run(*command: str | Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and show what it printed if it failed."""
    done = subprocess.run([str(each) for each in command], env=env, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


NOBODY = 65534


def run_as(
    user: int, code: str, *arguments: str | Path, group: int = NOBODY, groups: Sequence[int] = (), fds: Sequence[int] = ()
) -> str:
    """Return what Python code prints that runs as another user, which needs root.

    Its modules are os, json, socket and sys: the process becomes that user when it has these, for
    another user can't run Python in a home that is closed to others.
    """
    become = f"""
import json, os, socket, sys
os.chdir("/")
os.setgroups({list(groups)})
os.setresgid({group}, {group}, {group})
os.setresuid({user}, {user}, {user})
"""
    return run(PYTHON, "-I", "-S", "-c", become + code, *arguments, pass_fds=fds).stdout


def in_poll(pid: int) -> bool:
    """Whether a thread of the process is in poll(2), by the number of its call."""
    calls = []
    for each in Path(f"/proc/{pid}/task").glob("*/syscall"):
        with contextlib.suppress(OSError):  # it has ended
            calls.append(each.read_text().split()[0])
    return _POLL in calls


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process within the context."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def in_child(action: Callable[[], object]) -> int:
    """Runs it in a forked child. Returns the child's status: 0 if the action returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads, from Python 3.12 on
        child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
