# SPDX-License-Identifier: LGPL-2.1-or-later
"""Packets and the descriptors beside them.

No descriptor leaks: the next number is the same before and after.
"""

from __future__ import annotations

import array
import os
import resource
import signal
import socket
from collections.abc import Iterator

import pytest

from kvmchand.errors import OutOfResources, ProtocolError
from kvmchand.wire.codec import PACKET_MAX
from kvmchand.wire.packet import Fds, receive_packet, send_packet
from rig.processes import next_fd

FDS_MAX = 253
"""The kernel's SCM_MAX_FD."""


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection; after the test no descriptor more is open than before."""
    before = next_fd()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    yield ours, theirs
    ours.close()
    theirs.close()
    assert next_fd() == before


def raw_send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


@pytest.mark.parametrize("size", [1, 2, 1000, PACKET_MAX - 1, PACKET_MAX])
def test_a_packet_arrives_whole(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    ours, theirs = pair
    data = bytes(each % 251 for each in range(size))
    send_packet(ours, data)
    got, fds = receive_packet(theirs)
    assert got == data
    assert len(fds) == 0


@pytest.mark.parametrize("count", [1, 2, FDS_MAX])
def test_descriptors_arrive_in_order_and_close_on_exec(pair: tuple[socket.socket, socket.socket], count: int) -> None:
    ours, theirs = pair
    pipes = [os.pipe() for _ in range((count + 1) // 2)]
    sent = [end for pipe in pipes for end in pipe][:count]
    send_packet(ours, b"x", sent)
    data, fds = receive_packet(theirs)
    assert data == b"x"
    with fds:
        assert [identity(fd) for fd in fds.borrow()] == [identity(fd) for fd in sent]
        assert not any(os.get_inheritable(fd) for fd in fds.borrow())
    for pipe in pipes:
        for end in pipe:
            os.close(end)  # still ours: sending gave them a copy


def test_the_end_is_no_bytes(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.shutdown(socket.SHUT_WR)
    data, fds = receive_packet(theirs)
    assert (data, len(fds)) == (b"", 0)


@pytest.mark.parametrize("count", [1, FDS_MAX])
def test_descriptors_of_an_oversized_packet_are_closed(pair: tuple[socket.socket, socket.socket], count: int) -> None:
    ours, theirs = pair
    raw_send(ours, bytes(PACKET_MAX + 1), [0] * count)
    with pytest.raises(ProtocolError, match=str(PACKET_MAX)):
        receive_packet(theirs)


def test_descriptors_of_a_packet_without_bytes_are_owned(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    raw_send(ours, b"", [0, 0])
    data, fds = receive_packet(theirs)
    assert (data, len(fds)) == (b"", 2)
    fds.close()


def test_a_packet_whose_descriptors_do_not_all_fit_is_refused_and_the_others_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    raw_send(ours, b"x", [0] * 5)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_fd() + 3, limits[1]))
    try:
        with pytest.raises(OutOfResources, match="ulimit -n"):
            receive_packet(theirs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_packet_is_lost_with_its_descriptors_when_nobody_receives_it(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _theirs = pair
    reading, writing = os.pipe()
    send_packet(ours, b"x", [writing])
    os.close(writing)
    pair[1].close()
    assert os.read(reading, 1) == b""  # the last writer is gone
    os.close(reading)


def test_sending_to_a_gone_peer_raises_no_signal(pair: tuple[socket.socket, socket.socket]) -> None:
    signals: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _frame: signals.append(number))
    try:
        pair[1].close()
        with pytest.raises(BrokenPipeError):
            send_packet(pair[0], b"x")
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert signals == []


def test_stolen_descriptors_are_the_thiefs() -> None:
    fds = Fds([os.dup(0), os.dup(0)])
    with fds:
        stolen = fds.steal()
        assert len(fds) == 0
    for fd in stolen:
        os.close(fd)  # would raise if they were closed already
    assert fds.steal() == []


def test_borrowed_descriptors_are_closed_with_the_rest() -> None:
    before = next_fd()
    with Fds([os.dup(0)]) as fds:
        (borrowed,) = fds.borrow()
        assert len(fds) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(borrowed)
    fds.close()  # a second time is nothing
    assert next_fd() == before
