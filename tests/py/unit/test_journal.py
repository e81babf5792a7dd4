# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a store process notes is there for the next one, however the first one ended."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kvmchand.ids import ClientId
from kvmchand.services.store.journal import Found, Journal

ONE, TWO = ClientId(1), ClientId(2**40)


@pytest.fixture
def memory() -> Iterator[int]:
    made = os.memfd_create("journal")
    yield made
    os.close(made)


class Opened(Journal):
    """A process's: it closes its own descriptor."""

    def __init__(self, memory: int) -> None:
        self._mine = os.dup(memory)
        super().__init__(self._mine)

    def end(self) -> None:
        os.close(self._mine)


def found_in(memory: int) -> Found:
    journal = Opened(memory)
    found = journal.read()
    journal.end()
    assert found is not None
    os.pwrite(memory, bytes(8), 8)  # reading it was not in vain
    return found


def test_an_empty_one_has_nothing(memory: int) -> None:
    assert found_in(memory) == Found()


def test_records_come_back_in_their_order_and_events_until_they_are_told(memory: int) -> None:
    journal = Opened(memory)
    journal.append([b"a", b""], [(ONE, b"event")])
    journal.told()
    journal.append([b"b" * 5000], [(TWO, b"later"), (ONE, b"")])
    assert found_in(memory) == Found([b"a", b"", b"b" * 5000], [(TWO, b"later"), (ONE, b"")])
    journal.told()
    assert found_in(memory).events == []
    journal.end()


def test_who_is_owed_something_is_known_until_it_is_paid(memory: int) -> None:
    journal = Opened(memory)
    for client in (ONE, TWO):
        journal.owe(client, True)
    journal.owe(ONE, False)
    journal.end()
    assert found_in(memory).owed == {TWO}


def test_what_was_cut_off_at_any_byte_is_the_end(memory: int) -> None:
    journal = Opened(memory)
    journal.append([b"kept"], [])
    kept = os.fstat(memory).st_size
    journal.append([b"torn", b"off"], [])
    whole = os.fstat(memory).st_size
    data = os.pread(memory, whole, 0)
    second = kept + (whole - kept) // 2 + 1
    for size in range(kept, whole):
        os.ftruncate(memory, size)
        assert found_in(memory).records in ([b"kept"], [b"kept", b"torn"])
        os.pwrite(memory, data, 0)
        os.ftruncate(memory, second)
        os.ftruncate(memory, whole)  # zeroes in place of the rest
        assert found_in(memory).records in ([b"kept"], [b"kept", b"torn"])
        os.pwrite(memory, data, 0)
    for at in range(kept, whole):
        spoilt = bytearray(data)
        spoilt[at] ^= 0x40
        os.pwrite(memory, spoilt, 0)
        assert found_in(memory).records in ([b"kept"], [b"kept", b"torn"])
        os.pwrite(memory, data, 0)
    assert found_in(memory).records == [b"kept", b"torn", b"off"]
    journal.end()


def test_the_next_process_writes_behind_what_it_has_read(memory: int) -> None:
    first = Opened(memory)
    first.append([b"a"], [])
    first.end()
    os.pwrite(memory, b"torn", os.fstat(memory).st_size)
    second = Opened(memory)
    second.read()
    second.start()
    second.append([b"b"], [])
    second.end()
    assert found_in(memory).records == [b"a", b"b"]


def test_one_that_is_large_is_written_anew_and_gives_its_memory_back(memory: int) -> None:
    journal = Opened(memory)
    journal.start()
    written = 0
    while not journal.is_large():
        journal.append([b"x" * 4096], [])
        written += 4096
    assert written >= 1 << 20
    journal.compact([b"all", b"of it"], [TWO])
    assert not journal.is_large()
    assert os.fstat(memory).st_blocks * 512 < 64 * 1024
    journal.append([b"more"], [])
    assert found_in(memory) == Found([b"all", b"of it", b"more"], [], {TWO})
    journal.end()


def test_one_that_is_large_again_is_written_anew_again(memory: int) -> None:
    journal = Opened(memory)
    journal.start()
    for turn in range(3):
        while not journal.is_large():
            journal.append([b"x" * 100_000], [])
        journal.compact([b"state", str(turn).encode()], [])
    assert found_in(memory).records == [b"state", b"2"]
    assert os.fstat(memory).st_blocks * 512 < 64 * 1024
    journal.end()


def test_one_that_ends_whoever_reads_it_is_not_read_for_ever(memory: int) -> None:
    writer = Opened(memory)
    writer.append([b"deadly"], [])
    writer.end()
    for _ in range(2):
        victim = Opened(memory)
        assert victim.read() is not None
        victim.end()  # before it could start
    survivor = Opened(memory)
    assert survivor.read() is None
    survivor.clear()
    again = Opened(memory)  # where that one ended before it could start
    assert again.read() is None
    again.end()
    survivor.start()
    survivor.append([b"new"], [])
    survivor.end()
    assert found_in(memory).records == [b"new"]
