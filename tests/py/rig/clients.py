# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients of the daemon and of its store, with nothing of ours between: they can say anything."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from kvmchand.wire.client import VERSION
from kvmchand.xenstore import protocol
from kvmchand.xenstore.protocol import Kind


class HasSockets(Protocol):
    """A daemon, as far as its clients see it."""

    def socket_path(self, domain: int = 0) -> Path: ...


class RawClient:
    """A connection to the daemon that says what a test wants, and hears what the daemon says to
    that.
    """

    def __init__(self, daemon: HasSockets, domain: int = 0) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(daemon.socket_path(domain)))
        self._granted: list[int] = []

    def say(self, message: bytes | dict[str, Any], fds: Sequence[int] = ()) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(self.sock, [data], fds) if fds else self.sock.send(data)

    def hello(self, **fields: Any) -> Self:
        self.say({"type": "hello", "version": VERSION, **fields})
        return self

    def offer(self, peer: int = 0, path: str = "raw", **fields: Any) -> dict[str, Any]:
        """Ask for a channel."""
        self.say({"type": "offer", "peer": peer, "path": path, "read_min": 1, "write_min": 1, "once": False, **fields})
        return self.hear()

    def connect(self, domain: int = 0, path: str = "raw", *, waits: bool = False) -> dict[str, Any]:
        self.say({"type": "connect", "domain": domain, "path": path, "waits": waits})
        return self.hear()

    def list(self) -> dict[str, Any]:
        self.say({"type": "list", "after": 0})
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """Return the next reply, with its descriptors as `fds`, which stay this connection's."""
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 8)
        except ConnectionResetError:
            data, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 8)  # what it said before it left ours unread
        assert data, "the daemon ended the connection without a word"
        self._granted += fds
        return {**json.loads(data), "fds": fds}

    def hear_end(self) -> None:
        """Assert that the daemon has ended the connection, and says nothing more."""
        try:
            assert self.sock.recv(1 << 16) == b""
        except ConnectionResetError:
            pass

    def hear_error(self, code: str) -> str:
        """Assert that the reply is this error, and return its sentence."""
        reply = self.hear()
        assert (reply["type"], reply.get("code"), reply["fds"]) == ("error", code, []), reply
        sentence: str = reply["sentence"]
        assert len(sentence) > 10
        assert sentence.isprintable()
        return sentence

    def let_go(self) -> None:
        """Close the descriptors that came with replies."""
        while self._granted:
            os.close(self._granted.pop())

    def close(self) -> None:
        self.let_go()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def packet(kind: int, *strings: str | bytes, transaction: int = 0, request: int = 0) -> bytes:
    """Return a request, each of whose strings ends with a NUL."""
    payload = b"".join((each.encode() if isinstance(each, str) else each) + b"\0" for each in strings)
    return protocol.HEADER.pack(kind, request, transaction, len(payload)) + payload


def write_packet(path: str, value: str, transaction: int = 0) -> bytes:
    payload = path.encode() + b"\0" + value.encode()
    return protocol.HEADER.pack(Kind.WRITE, 0, transaction, len(payload)) + payload


class StoreClient:
    """One connection. A request that is refused raises an OSError of that errno."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(path))
        self.events: list[tuple[str, str]] = []
        """Those that came while a reply was waited for."""

    def hear(self) -> tuple[int, bytes]:
        """Return the kind and the payload of the next packet."""
        kind, _, _, length = protocol.HEADER.unpack(self._take(protocol.HEADER.size))
        return kind, self._take(length)

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise EOFError("the store has ended the connection")
            data += more
        return data

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reply(self) -> bytes:
        while True:
            kind, payload = self.hear()
            if kind == Kind.ERROR:
                raise OSError(getattr(errno, payload[:-1].decode()), payload[:-1].decode())
            if kind != Kind.WATCH_EVENT:
                return payload
            self.events.append(self._event(payload))

    @staticmethod
    def _event(payload: bytes) -> tuple[str, str]:
        path, token, end = payload.decode().split("\0")
        assert end == ""
        return path, token

    def ask(self, kind: Kind, *strings: str | bytes, transaction: int = 0) -> bytes:
        self.say(packet(kind, *strings, transaction=transaction))
        return self.reply()

    # ---- requests ----

    def read(self, path: str, transaction: int = 0) -> str:
        return self.ask(Kind.READ, path, transaction=transaction).decode()

    def exists(self, path: str) -> bool:
        try:
            self.read(path)
        except OSError as error:
            assert error.errno == errno.ENOENT, error
            return False
        return True

    def write(self, path: str, value: str, transaction: int = 0) -> None:
        self.say(write_packet(path, value, transaction))
        assert self.reply() == protocol.OK

    def remove(self, path: str) -> None:
        assert self.ask(Kind.RM, path) == protocol.OK

    def children(self, path: str) -> list[str]:
        return self.ask(Kind.DIRECTORY, path).decode().split("\0")[:-1]

    def permissions(self, path: str) -> list[str]:
        return self.ask(Kind.GET_PERMS, path).decode().split("\0")[:-1]

    def begin(self) -> int:
        return int(self.ask(Kind.TRANSACTION_START, "")[:-1])

    def end(self, transaction: int, *, commits: bool = True) -> None:
        self.ask(Kind.TRANSACTION_END, "T" if commits else "F", transaction=transaction)

    def watch(self, path: str, token: str = "t") -> None:
        """Watch a path, and take the first event."""
        assert self.ask(Kind.WATCH, path, token) == protocol.OK
        assert self.event() == (path, token)

    def event(self) -> tuple[str, str]:
        """Return the next event's path and token."""
        if self.events:
            return self.events.pop(0)
        kind, payload = self.hear()
        assert kind == Kind.WATCH_EVENT, (kind, payload)
        return self._event(payload)

    def await_event(self, path: str, token: str = "t") -> None:
        """Wait for this event: others may come before it, and any may come twice."""
        while self.event() != (path, token):
            pass

    def hear_end(self) -> None:
        """Assert that the store ends the connection; what it was sent before is dropped."""
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
