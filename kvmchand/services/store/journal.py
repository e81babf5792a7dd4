# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a store process notes so that another can go on where it was killed: in a memory file of main's, who never reads it.

The file starts with two numbers: where the first entry is, and how many processes have tried to read it in vain. An entry is
its length, a checksum, its kind and its bytes. What is killed in the midst of writing leaves an entry that can't be true, which
is the end. When much of it is outdated, the state is written behind it anew, and what was before becomes a hole.
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
"""Bytes that are not worth writing anew."""


class Kind(IntEnum):
    RECORD = 1
    """A change of the tree, in its own words."""
    EVENT = 2
    """A client is to be told of it."""
    TOLD = 3
    """All events until here are told, or wait to be taken."""
    OWED = 4
    """A client has not taken all it was told."""
    PAID = 5
    """It has."""


@dataclass(slots=True)
class Found:
    """What a process before has left. `owed`: clients that lack a part of what they were told, which is lost."""

    records: list[bytes] = field(default_factory=list)
    events: list[tuple[ClientId, bytes]] = field(default_factory=list)
    owed: set[ClientId] = field(default_factory=set)


class Journal:
    def __init__(self, fd: int) -> None:
        """Takes the descriptor."""
        self._fd = fd
        if os.fstat(fd).st_size < _HEADER.size:
            os.pwrite(fd, _HEADER.pack(_HEADER.size, 0), 0)
        self._first, self._tries = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        self._end = self._first
        self._compact = _LEAST

    def read(self) -> Found | None:
        """What is there; None: reading it has ended processes before, so it is not tried again. Then start() or clear()."""
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
        """Nothing of it counts any more."""
        self._end = self._first = _HEADER.size
        os.pwrite(self._fd, _HEADER.pack(self._first, self._tries), 0)
        os.ftruncate(self._fd, self._end)

    def start(self) -> None:
        """It was understood, and is written from now on."""
        os.pwrite(self._fd, _HEADER.pack(self._first, 0), 0)
        self._compact = max(2 * (self._end - self._first), _LEAST)

    def append(self, records: Sequence[bytes], events: Sequence[tuple[ClientId, bytes]]) -> None:
        """A change, and what is to be told of it: all of it stands when this returns, before anyone hears of it."""
        made = [_entry(Kind.RECORD, record) for record in records]
        made += [_entry(Kind.EVENT, _NUMBER.pack(client) + packet) for client, packet in events]
        self._write(made)

    def told(self) -> None:
        self._write([_entry(Kind.TOLD, b"")])

    def owe(self, client: ClientId, owes: bool) -> None:
        self._write([_entry(Kind.OWED if owes else Kind.PAID, _NUMBER.pack(client))])

    def _write(self, entries: Iterable[bytes]) -> None:
        data = b"".join(entries)
        os.pwrite(self._fd, data, self._end)
        self._end += len(data)

    def is_large(self) -> bool:
        """Whether compact() is due."""
        return bool(self._end - self._first > self._compact)

    def compact(self, records: Iterable[bytes], owed: Iterable[ClientId]) -> None:
        """The whole state takes the place of all that led to it."""
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
    """The kind and bytes of the entry there, unless it is none."""
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
