# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Store with clients, for tests: what they ask in a line, what it told them, and whether all
within is as it must be.
"""

from __future__ import annotations

from collections import defaultdict

from kvmchand.ids import ChannelId, ClientId, DomainId
from kvmchand.xenstore import protocol
from kvmchand.xenstore.protocol import Kind
from kvmchand.xenstore.quotas import Usage
from kvmchand.xenstore.store import Quotas, Store

DOMAINS = {0: ("Domain-0", ""), 1: ("one", "aaaa-1"), 2: ("two", "")}
HOST, ONE, TWO = ClientId(10), ClientId(11), ClientId(12)
"""A client in each domain."""


class Failed(Exception):
    """The error's name, as the reply has it."""


class Rig:
    def __init__(self, quotas: Quotas | None = None, records: list[bytes] | None = None) -> None:
        self.events: list[tuple[ClientId, str, str]] = []
        """Client, path, token."""
        self.withdrawn: list[ChannelId] = []
        self.records: list[bytes] = []
        self.store = Store(quotas or Quotas(), self._take_event, self.withdrawn.append, self.records.append)
        if records is not None:
            self.store.replay(records)
        for domain, (name, uuid) in DOMAINS.items():
            self.store.introduce(DomainId(domain), name, uuid)
            self.connect(ClientId(10 + domain), domain)
        if records is None:
            self.store.flush_events()
            self.events.clear()

    def _take_event(self, client: ClientId, message: bytes) -> None:
        kind, request_id, transaction, length = protocol.HEADER.unpack_from(message)
        assert (kind, request_id, transaction, length) == (Kind.WATCH_EVENT, 0, 0, len(message) - protocol.HEADER.size)
        path, token = protocol.strings(message[protocol.HEADER.size :], 2)
        self.events.append((client, path.decode(), token.decode("latin-1")))

    def connect(self, client: ClientId, domain: int) -> None:
        self.store.connect(client, DomainId(domain))

    def raw(self, client: ClientId, kind: int, payload: bytes, transaction: int = 0) -> bytes:
        """Return the reply's payload. Raises Failed if it is an error. Events are handed out."""
        message = self.store.execute(client, protocol.Request(kind, 77, transaction, payload))
        answered, request_id, in_transaction, length = protocol.HEADER.unpack_from(message)
        assert (request_id, in_transaction, length) == (77, transaction, len(message) - protocol.HEADER.size)
        self.store.flush_events()
        if answered == Kind.ERROR:
            raise Failed(message[protocol.HEADER.size : -1].decode())
        assert answered == kind
        return message[protocol.HEADER.size :]

    def ask(self, client: ClientId, kind: Kind, *strings: str, transaction: int = 0) -> str:
        """Ask with strings, each with a NUL after it."""
        payload = "".join(f"{each}\0" for each in strings).encode()
        return self.raw(client, kind, payload, transaction).decode()

    def write(self, client: ClientId, path: str, value: str, transaction: int = 0) -> None:
        assert self.raw(client, Kind.WRITE, f"{path}\0{value}".encode(), transaction) == protocol.OK

    def read(self, client: ClientId, path: str, transaction: int = 0) -> str:
        return self.ask(client, Kind.READ, path, transaction=transaction)

    def remove(self, client: ClientId, path: str, transaction: int = 0) -> None:
        assert self.ask(client, Kind.RM, path, transaction=transaction) == "OK\0"

    def children(self, client: ClientId, path: str, transaction: int = 0) -> list[str]:
        return self.ask(client, Kind.DIRECTORY, path, transaction=transaction).split("\0")[:-1]

    def permissions(self, client: ClientId, path: str) -> list[str]:
        return self.ask(client, Kind.GET_PERMS, path).split("\0")[:-1]

    def permit(self, client: ClientId, path: str, *permissions: str, transaction: int = 0) -> None:
        assert self.ask(client, Kind.SET_PERMS, path, *permissions, transaction=transaction) == "OK\0"

    def watch(self, client: ClientId, path: str, token: str = "t") -> None:
        """Watch a path, and take the first event."""
        assert self.ask(client, Kind.WATCH, path, token) == "OK\0"
        assert self.events.pop() == (client, path, token)

    def begin(self, client: ClientId) -> int:
        return int(self.ask(client, Kind.TRANSACTION_START, "")[:-1])

    def end(self, client: ClientId, transaction: int, how: str = "T") -> None:
        assert self.ask(client, Kind.TRANSACTION_END, how, transaction=transaction) == "OK\0"

    def offer(self, channel: int = 5, path: str = "/local/domain/1/ch", server: int = 1, client: int = 2) -> str:
        """Offer a channel. Returns why it is not shown, by the errno's name, or ""."""
        refused = self.store.offer(ChannelId(channel), path, DomainId(server), DomainId(client), 100 + channel, 200 + channel)
        self.store.flush_events()
        return str(refused or "")

    def withdraw(self, channel: int) -> None:
        self.store.withdraw(ChannelId(channel))
        self.store.flush_events()

    def usage(self, domain: int) -> Usage:
        return self.store._ledger.usage[DomainId(domain)]

    def told(self, client: ClientId) -> list[str]:
        """Return the paths of the events that this client got since the last time."""
        mine = [path for each, path, _ in self.events if each == client]
        self.events = [event for event in self.events if event[0] != client]
        return mine


def state(store: Store) -> dict[str, object]:
    """Return all that outlives the process."""
    return {
        "nodes": {
            path: (node.value, node.permissions, node.counted, set(node.children)) for path, node in store._tree.nodes.items()
        },
        "watches": set(store._watches.all()),
        "offers": dict(store._offers.by_channel),
        "domains": dict(store._domains),
    }


def assert_sound(store: Store) -> None:
    """Assert that every node has its parent, every number is what it counts, and nothing is kept
    for clients that are gone.
    """
    assert store.errors() == []
    expected: dict[DomainId, Usage] = defaultdict(Usage)
    for path, node in store._tree.nodes.items():
        if node.counted:
            expected[node.owner].nodes += 1
            expected[node.owner].bytes += len(path) + len(node.value)
    for watch in store._watches.all():
        assert watch in store._watches.at(watch.path)
        assert watch.client in store._clients
        expected[watch.domain].watches += 1
        expected[watch.domain].bytes += watch.size
    assert sum(map(len, store._watches._at.values())) == sum(usage.watches for usage in expected.values())
    for client in store._clients.values():
        for transaction in client.transactions.values():
            expected[client.domain].transactions += 1
            expected[client.domain].bytes += transaction.held
    used = {domain: usage for domain, usage in store._ledger.usage.items() if usage != Usage()}
    assert used == {domain: usage for domain, usage in expected.items() if usage != Usage()}
    for offer in store._offers.by_channel.values():
        for path, value in offer.nodes.items():
            assert store._tree.nodes[path].value == value
            assert not store._tree.nodes[path].counted
            assert store._offers.of_node(path) is offer
    assert len(store._offers._by_node) == 2 * len(store._offers.by_channel)
    assert not store._tree.notes
