# SPDX-License-Identifier: LGPL-2.1-or-later
"""The C library's functions that nothing else tests by itself."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator

import pytest

from kvmchand.linux import libc

PAGE = os.sysconf("SC_PAGESIZE")
PAGES = 4


@pytest.fixture
def memory() -> Iterator[int]:
    """A memfd of ones."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, b"\1" * PAGES * PAGE)
    yield fd
    os.close(fd)


def test_a_hole_reads_as_zero_and_gives_its_pages_back(memory: int) -> None:
    before = os.fstat(memory)
    libc.punch_hole(memory, PAGE, 2 * PAGE)
    after = os.fstat(memory)
    assert os.pread(memory, PAGES * PAGE, 0) == b"\1" * PAGE + bytes(2 * PAGE) + b"\1" * PAGE
    assert after.st_size == before.st_size
    assert before.st_blocks - after.st_blocks == 2 * PAGE // 512


def test_a_hole_may_be_a_part_of_a_page(memory: int) -> None:
    libc.punch_hole(memory, 10, 5)
    assert os.pread(memory, 20, 0) == b"\1" * 10 + bytes(5) + b"\1" * 5


def test_a_hole_can_not_be_where_writing_is_sealed(memory: int) -> None:
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with pytest.raises(PermissionError, match="fallocate"):
        libc.punch_hole(memory, 0, PAGE)


def test_what_a_peer_has_not_read_is_there_until_it_has() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert libc.unread(ours.fileno()) == 0
        ours.send(b"one")
        ours.send(b"two")
        assert libc.unread(ours.fileno()) > 0
        theirs.recv(5)
        assert libc.unread(ours.fileno()) > 0
        theirs.recv(1)
        assert libc.unread(ours.fileno()) == 0
