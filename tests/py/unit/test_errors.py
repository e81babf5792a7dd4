# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one table: code, errno, exception."""

from __future__ import annotations

import errno
import pickle

import pytest

from kvmchand import errors
from kvmchand.errors import ChannelClosed, EndOfStream, InternalError, VchanError, from_code, from_errno

KINDS = VchanError.__subclasses__()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_an_oserror_with_its_errno_and_sentence(kind: type[VchanError]) -> None:
    error = kind("what failed: what to do")
    assert isinstance(error, OSError)
    assert (error.errno, error.strerror, error.sentence) == (kind.number, *["what failed: what to do"] * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_crosses_a_process_boundary_by_code_by_errno_and_pickled(kind: type[VchanError]) -> None:
    for again in (from_code(kind.code, "why"), from_errno(kind.number, "why"), pickle.loads(pickle.dumps(kind("why")))):
        assert type(again) is kind
        assert (again.errno, again.sentence) == (kind.number, "why")


def test_codes_and_numbers_are_distinct() -> None:
    assert len({kind.code for kind in KINDS}) == len({kind.number for kind in KINDS}) == len(KINDS)


def test_the_tree_drawn_in_the_module_is_the_table() -> None:
    drawn = [line.split()[1:4] for line in (errors.__doc__ or "").splitlines() if "── " in line]
    assert drawn == [[kind.__name__, errno.errorcode[kind.number], own_of_python(kind)] for kind in KINDS]


def own_of_python(kind: type[VchanError]) -> str:
    """The exception of Python's own that an error also is."""
    return next((base.__name__ for base in kind.__bases__ if base is not VchanError), "-")


def test_an_error_of_the_end_is_two_kinds_of_python() -> None:
    again = pickle.loads(pickle.dumps(EndOfStream("why")))
    assert type(again) is EndOfStream
    assert isinstance(again, BrokenPipeError) and isinstance(again, EOFError) and isinstance(again, ChannelClosed)
    assert (again.errno, again.sentence) == (errno.EPIPE, "why")


def test_a_code_of_a_newer_daemon_is_an_internal_error_with_its_sentence() -> None:
    error = from_code("of-tomorrow", "why")
    assert (type(error), error.sentence) == (InternalError, "why")


def test_an_errno_outside_the_table_keeps_its_number() -> None:
    error = from_errno(errno.ENODEV, "why")
    assert (type(error), error.errno, error.sentence) == (VchanError, errno.ENODEV, "why")
    assert pickle.loads(pickle.dumps(error)).errno == errno.ENODEV
