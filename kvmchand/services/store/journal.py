# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a store process records so that another one can continue after it was killed.

The journal is a memory file of main's, which main never reads. It starts with two numbers: the
place of the first entry, and how many processes have failed to read it. An entry is its length, a
checksum, its kind and its bytes. A process killed while writing leaves an invalid entry, which is
the end. When much of the journal is outdated, the present state is written behind it, and what was
before becomes a hole.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from zlib import crc32

from kvmchand.ids import ClientId
from kvmchand.linux import libc

_HEADER = struct.Struct("=QQ")
_ENTRY = struct.Struct("=II")
_NUMBER = struct.Struct("=Q")
_TRIES_MAX = 2
_LEAST = 1 << 20
"""Bytes below which compacting is not worth it."""


class Kind(IntEnum):
    """The kinds of entries."""

    RECORD = 1
    """A change of the tree, as the tree encodes it."""
    EVENT = 2
    """A client must be notified of it."""
    TOLD = 3
    """All events up to here were sent, or wait in a queue."""
    OWED = 4
    """A client has not taken everything it was sent."""
    PAID = 5
    """It has taken everything."""


@dataclass(slots=True)
class Found:
    """What an earlier process left. `owed`: clients that lost a part of what they were sent."""

    records: list[bytes] = field(default_factory=list)
    events: list[tuple[ClientId, bytes]] = field(default_factory=list)
    owed: set[ClientId] = field(default_factory=set)


class Journal:
    """The file, and where it ends."""

    def __init__(self, fd: int) -> None:
        """Take ownership of the descriptor."""
        self._fd = fd
        if os.fstat(fd).st_size < _HEADER.size:
            os.pwrite(fd, _HEADER.pack(_HEADER.size, 0), 0)
        self._first, self._tries = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        self._end = self._first
        self._compact = _LEAST

    def read(self) -> Found | None:
        """Return the entries, or None if reading them has ended processes before.

        start() or clear() must follow.
        """
        if self._tries >= _TRIES_MAX:
            return None
        os.pwrite(self._fd, _HEADER.pack(self._first, self._tries + 1), 0)
        data = os.pread(self._fd, os.fstat(self._fd).st_size - self._first, self._first)
        found = Found()
        at = 0
        while True:
            whole = _entry_at(data, at)
            if whole is None:
                break
            _note(found, whole)
            at += _ENTRY.size + len(whole)
        self._end = self._first + at
        os.ftruncate(self._fd, self._end)
        return found

    def clear(self) -> None:
        """Drop all entries."""
        self._end = self._first = _HEADER.size
        os.pwrite(self._fd, _HEADER.pack(self._first, self._tries), 0)
        os.ftruncate(self._fd, self._end)

    def start(self) -> None:
        """Note that the entries were understood. From now on the journal is written."""
        os.pwrite(self._fd, _HEADER.pack(self._first, 0), 0)
        self._compact = max(2 * (self._end - self._first), _LEAST)

    def append(self, records: Sequence[bytes], events: Sequence[tuple[ClientId, bytes]]) -> None:
        """Record a change and the events that it causes, before anyone hears of it."""
        made = [_entry(Kind.RECORD, record) for record in records]
        made += [_entry(Kind.EVENT, _NUMBER.pack(client) + packet) for client, packet in events]
        self._write(made)

    def told(self) -> None:
        """Record that all events were sent."""
        self._write([_entry(Kind.TOLD, b"")])

    def owe(self, client: ClientId, owes: bool) -> None:
        """Record whether a client has output waiting."""
        self._write([_entry(Kind.OWED if owes else Kind.PAID, _NUMBER.pack(client))])

    def _write(self, entries: Iterable[bytes]) -> None:
        data = b"".join(entries)
        os.pwrite(self._fd, data, self._end)
        self._end += len(data)

    def is_large(self) -> bool:
        """Return whether compact() is due."""
        return bool(self._end - self._first > self._compact)

    def compact(self, records: Iterable[bytes], owed: Iterable[ClientId]) -> None:
        """Replace everything recorded by the whole present state."""
        first = self._end
        self._write(_entry(Kind.RECORD, record) for record in records)
        self._write(_entry(Kind.OWED, _NUMBER.pack(client)) for client in owed)
        os.pwrite(self._fd, _HEADER.pack(first, 0), 0)
        self._first = first
        libc.punch_hole(self._fd, _HEADER.size, first - _HEADER.size)
        self._compact = max(2 * (self._end - self._first), _LEAST)


def _entry(kind: Kind, content: bytes) -> bytes:
    body = bytes((kind,)) + content
    return _ENTRY.pack(len(body), crc32(body)) + body


def _entry_at(data: bytes, at: int) -> bytes | None:
    """Return the kind and bytes of the entry at a place, or None if it is invalid."""
    if at + _ENTRY.size > len(data):
        return None
    size, checksum = _ENTRY.unpack_from(data, at)
    body = data[at + _ENTRY.size : at + _ENTRY.size + size]
    return body if size and len(body) == size and crc32(body) == checksum else None


def _note(found: Found, body: bytes) -> None:
    kind, content = body[0], body[1:]
    if kind == Kind.RECORD:
        found.records.append(content)
    elif kind == Kind.EVENT:
        found.events.append((ClientId(_NUMBER.unpack_from(content)[0]), content[_NUMBER.size :]))
    elif kind == Kind.TOLD:
        found.events.clear()
    elif kind == Kind.OWED:
        found.owed.add(ClientId(_NUMBER.unpack(content)[0]))
    elif kind == Kind.PAID:
        found.owed.discard(ClientId(_NUMBER.unpack(content)[0]))
