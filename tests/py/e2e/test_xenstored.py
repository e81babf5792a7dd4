# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store and Debian's xenstored, asked the same by the same domains, must answer alike, and tell
the same.

What is asked is made of a number, so that a difference can be had again. What differs on purpose is
not asked: see `Script`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmchand.xenstore import protocol
from kvmchand.xenstore.nodes import format_permissions
from kvmchand.xenstore.protocol import Kind
from kvmchand.xenstore.store import Quotas
from rig.store import HOST, ONE, TWO, Rig
from rig.xenstored import DOMAINS, PROGRAM, Xenstored, running

CLIENTS = {0: HOST, 1: ONE, 2: TWO}
STEPS = 150
PATHS = [
    *("a", "a/b", "a/b/c", "x", "/", "/a", "/a/b", "/shared", "/shared/one", "/shared/two"),
    *("/local", "/local/domain", "/local/domain/1", "/local/domain/2", "/local/domain/1/a", "/local/domain/1/a/b"),
    *("/local/domain/2/a", "/local/domain/1/name", "/tool/x"),
]
ODD_PATHS = ["@releaseDomain", "@introduceDomain", "@other", "", "//", "a/", "/x y", "x" * 1500]
KEPT = ("/local", "/local/domain", "/local/domain/1", "/local/domain/2")
PERMISSIONS = ["n0", "n1", "n2", "b1", "b2", "r1", "r2", "w1", "w2"]
ODD_PERMISSIONS = ["r3", "n3", "x1", "n"]
OFTEN = [
    *[Kind.WRITE] * 5,
    *[Kind.MKDIR] * 2,
    *[Kind.RM] * 2,
    *[Kind.READ] * 3,
    *[Kind.DIRECTORY] * 2,
    *[Kind.GET_PERMS] * 2,
    *[Kind.SET_PERMS] * 4,
    *[Kind.WATCH] * 3,
    *[Kind.TRANSACTION_END] * 2,
    Kind.UNWATCH,
    Kind.TRANSACTION_START,
    Kind.GET_DOMAIN_PATH,
    Kind.IS_DOMAIN_INTRODUCED,
    Kind.DIRECTORY_PART,
    Kind.RESET_WATCHES,
]
NO_SUCH_TRANSACTION = 999
IN_NO_TRANSACTION = {
    *(Kind.TRANSACTION_START, Kind.WATCH, Kind.UNWATCH, Kind.GET_DOMAIN_PATH, Kind.IS_DOMAIN_INTRODUCED, Kind.RESET_WATCHES)
}

Answer = tuple[int, bytes]
Told = dict[int, list[tuple[str, str]]]


class Script:
    """What is asked.

    Not asked, since it differs: domain 0's introduce, release and the like; a domain's own node to
    be removed, which it could not make again; numbers that are none, which xenstored takes for 0;
    paths of over 2048 characters, which xenstored's settings allow below /local/domain/N only; and
    what a domain may not do with the permissions of @releaseDomain, where xenstored answers with
    the last error that there was, or with @other's, by which it ends.

    A script ends early where a transaction sees what has changed outside since it began, as it does
    in xenstored and not in ours (either then has to try again), or where xenstored fails with EIO,
    as it does when a transaction removes what it has made.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.open: dict[int, list[int]] = {domain: [] for domain in DOMAINS}
        """Our numbers of each domain's transactions."""
        self.stale: set[tuple[int, int]] = set()
        """Domain and number of those during which something was changed outside."""

    def next(self) -> tuple[int, Kind, bytes, int]:
        """Return a domain, a request's kind and payload, and its transaction."""
        choice = self._random.choice
        while True:
            domain, kind = choice((0, 1, 1, 2)), choice(OFTEN)
            path = choice(ODD_PATHS if self._random.random() < 0.1 else PATHS)
            if kind == Kind.RM and path in KEPT:
                continue
            if kind == Kind.SET_PERMS and path.startswith("@") and (domain != 0 or path == "@other"):
                continue
            return domain, kind, self._payload(kind, path.encode()), self._transaction(domain, kind)

    def _transaction(self, domain: int, kind: Kind) -> int:
        if kind in IN_NO_TRANSACTION:
            return 0
        if self.open[domain] and self._random.random() < 0.5:
            return self._random.choice(self.open[domain])
        return NO_SUCH_TRANSACTION if self._random.random() < 0.02 else 0

    def _payload(self, kind: Kind, path: bytes) -> bytes:
        choice = self._random.choice
        match kind:
            case Kind.WRITE:
                return path + b"\0" + choice((b"", b"v", b"value" * 10))
            case Kind.SET_PERMS:
                known = ODD_PERMISSIONS if self._random.random() < 0.1 else PERMISSIONS
                return path + b"\0" + b"".join(choice(known).encode() + b"\0" for _ in range(choice((1, 1, 2, 3))))
            case Kind.WATCH | Kind.UNWATCH:
                return path + b"\0" + choice((b"t", b"u", b"")) + b"\0"
            case Kind.TRANSACTION_START | Kind.RESET_WATCHES:
                return b"\0"
            case Kind.TRANSACTION_END:
                return choice((b"T\0", b"T\0", b"F\0", b"X\0"))
            case Kind.GET_DOMAIN_PATH | Kind.IS_DOMAIN_INTRODUCED:
                return choice((b"0\0", b"1\0", b"3\0"))
            case Kind.DIRECTORY_PART:
                return path + b"\0" + choice((b"0\0", b"1\0", b"2\0"))
        return path + b"\0"

    def note(self, domain: int, kind: Kind, payload: bytes, transaction: int, answer: Answer) -> None:
        """Note what became of a request."""
        mine = self.open[domain]
        if answer[0] == Kind.TRANSACTION_START:
            mine.append(int(answer[1][:-1]))
        elif kind == Kind.RESET_WATCHES:
            mine.clear()
        elif kind == Kind.TRANSACTION_END and transaction in mine and payload != b"X\0":
            mine.remove(transaction)
            self.stale.discard((domain, transaction))
        has_committed = kind == Kind.TRANSACTION_END and payload == b"T\0"
        if answer[1] == protocol.OK and (not transaction or has_committed) and kind not in (Kind.WATCH, Kind.UNWATCH):
            self.stale.update((each, number) for each, numbers in self.open.items() for number in numbers)


class Both:
    """Ours and theirs, with the same nodes."""

    def __init__(self, theirs: Xenstored) -> None:
        self._ours = Rig(Quotas())
        self._theirs = theirs
        self._numbers: dict[int, dict[int, int]] = {
            domain: {0: 0, NO_SUCH_TRANSACTION: NO_SUCH_TRANSACTION} for domain in DOMAINS
        }
        """Their numbers of transactions by ours."""
        assert theirs.ask(0, Kind.RM, b"/tool\0", 0)[1] == protocol.OK
        for path, node in self._ours.store._tree.nodes.items():
            if path != "/":
                assert theirs.ask(0, Kind.WRITE, path.encode() + b"\0" + node.value, 0)[1] == protocol.OK
            strings = [path, *format_permissions(node.permissions)]
            assert theirs.ask(0, Kind.SET_PERMS, "".join(f"{each}\0" for each in strings).encode(), 0)[1] == protocol.OK

    def ask(self, domain: int, kind: Kind, payload: bytes, transaction: int) -> tuple[Answer, Answer]:
        """Return our answer and theirs."""
        message = self._ours.store.execute(CLIENTS[domain], protocol.Request(kind, 0, transaction, payload))
        self._ours.store.flush_events()
        ours = (protocol.HEADER.unpack_from(message)[0], message[protocol.HEADER.size :])
        theirs = self._theirs.ask(domain, kind, payload, self._numbers[domain][transaction])
        if ours[0] == theirs[0] == Kind.TRANSACTION_START:
            self._numbers[domain][int(ours[1][:-1])] = int(theirs[1][:-1])
            return ours, ours
        if ours[0] == theirs[0] == Kind.DIRECTORY_PART:  # but for the generation
            return (kind, ours[1].partition(b"\0")[2]), (kind, theirs[1].partition(b"\0")[2])
        return ours, theirs

    def told(self) -> tuple[Told, Told]:
        """Return what ours and theirs told each domain, in any order."""
        ours: Told = {domain: [] for domain in DOMAINS}
        for client, path, token in self._ours.events:
            ours[client - HOST].append((path, token))
        self._ours.events.clear()
        theirs = {domain: sorted(self._theirs.take_events(domain)) for domain in DOMAINS}
        return {domain: sorted(events) for domain, events in ours.items()}, theirs


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    if not PROGRAM.exists():
        pytest.skip("this machine's Debian has another release of xenstored than the stand-ins are for, 4.17")
    with running(tmp_path) as theirs:
        yield Both(theirs)


@pytest.mark.parametrize("seed", range(40))
def test_the_store_answers_as_xenstored_does(both: Both, seed: int) -> None:
    script = Script(seed)
    asked: list[object] = []
    for _ in range(STEPS):
        domain, kind, payload, transaction = script.next()
        asked.append((domain, kind.name, payload[:60], transaction))
        ours, theirs = both.ask(domain, kind, payload, transaction)
        if ours != theirs and ((domain, transaction) in script.stale or theirs[1] == b"EIO\0"):
            return
        assert ours == theirs, asked
        ours_told, theirs_told = both.told()
        assert ours_told == theirs_told, asked
        script.note(domain, kind, payload, transaction, ours)
