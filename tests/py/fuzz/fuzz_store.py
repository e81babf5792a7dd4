# SPDX-License-Identifier: LGPL-2.1-or-later
"""Feed the store what no client would send: python fuzz_store.py [libFuzzer's arguments].

An input is a byte that says how to read the rest: as the bytes of one connection; or as steps, each
a request whose parts mostly fit each other, or something that the daemon tells. After each input
all within must be as it must be, and the records say it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with atheris.instrument_imports(include=["kvmchand.xenstore", "kvmchand.wire"]):
    from kvmchand.errors import ProtocolError
    from kvmchand.ids import ChannelId, ClientId, DomainId
    from kvmchand.xenstore import protocol
    from kvmchand.xenstore.store import Quotas, Store
    from rig.store import HOST, ONE, TWO, Rig, assert_sound, state

CLIENTS = (HOST, ONE, TWO)
QUOTAS = Quotas(nodes=24, bytes=6000, watches=4, transactions=3, permissions=3)
"""Small, so that they are met."""
PATHS = [
    *(
        b"a",
        b"a/b",
        b"a/b/c",
        b"ch",
        b"ch/ring-ref",
        b"ch/event-channel",
        b"/local/domain/1",
        b"/local/domain/2",
        b"/local/domain/1/a",
    ),
    *(
        b"/local/domain/1/ch",
        b"/local/domain/1/ch/ring-ref",
        b"/",
        b"/vm",
        b"/tool/x",
        b"/local/domain/1/name",
        b"@releaseDomain",
    ),
    *(b"", b"//", b"a/", b"/\xff", b"x" * 2049),
]
OFFERED = ["ch", "a", "a/b", "x/y/z"]
WORDS = [*PATHS, b"n0", b"n1", b"b2", b"r1", b"w2", b"0", b"1", b"2", b"token", b"check", b"help", b"v" * 900, b"-1"]
STRINGS = {
    protocol.Kind.WATCH: 2,
    protocol.Kind.UNWATCH: 2,
    protocol.Kind.WRITE: 2,
    protocol.Kind.DIRECTORY_PART: 2,
    protocol.Kind.SET_PERMS: 3,
}
"""How many strings a request has: one, unless it is here."""
OFTEN = [
    protocol.Kind.WRITE,
    protocol.Kind.RM,
    protocol.Kind.READ,
    protocol.Kind.SET_PERMS,
    protocol.Kind.TRANSACTION_START,
    protocol.Kind.TRANSACTION_END,
]


def execute(rig: Rig, client: ClientId, request: protocol.Request) -> bytes:
    reply = rig.store.execute(client, request)
    kind, request_id, transaction, length = protocol.HEADER.unpack_from(reply)
    assert (request_id, transaction) == request[1:3]
    assert kind in (request.kind, protocol.Kind.ERROR)
    assert length == len(reply) - protocol.HEADER.size <= protocol.PAYLOAD_MAX
    rig.store.flush_events()
    return reply[protocol.HEADER.size :]


def stream(rig: Rig, data: atheris.FuzzedDataProvider) -> None:
    client = CLIENTS[data.ConsumeIntInRange(0, 2)]
    buffer = bytearray(data.ConsumeBytes(data.remaining_bytes()))
    try:
        while (taken := protocol.take(buffer)) is not None:
            request, size = taken
            assert protocol.HEADER.size <= size <= len(buffer)
            del buffer[:size]
            execute(rig, client, request)
    except ProtocolError:
        pass


def payload_for(kind: int, data: atheris.FuzzedDataProvider) -> bytes:
    if kind == protocol.Kind.TRANSACTION_END and data.ConsumeBool():
        return b"T\0"
    payload: bytes = PATHS[data.ConsumeIntInRange(0, len(PATHS) - 1)] + b"\0"
    # Most are as they should be.
    is_odd = data.ConsumeIntInRange(0, 15) == 15
    count = data.ConsumeIntInRange(0, 3) if is_odd else STRINGS.get(kind, 1) - 1  # type: ignore[call-overload]
    for _ in range(count):
        payload += WORDS[data.ConsumeIntInRange(0, len(WORDS) - 1)] + b"\0"
    return payload[:-1] if is_odd else payload


def steps(rig: Rig, data: atheris.FuzzedDataProvider) -> None:
    transactions: dict[ClientId, list[int]] = {client: [0] for client in CLIENTS}
    while data.remaining_bytes():
        domain, step = data.ConsumeIntInRange(0, 2), data.ConsumeIntInRange(0, 39)
        client, channel = CLIENTS[domain], ChannelId(data.ConsumeIntInRange(0, 3))
        if step < 32:
            kind = step if step < 24 else OFTEN[step % len(OFTEN)]
            mine = transactions[client]
            transaction = mine[data.ConsumeIntInRange(0, len(mine) - 1)]
            reply = execute(rig, client, protocol.Request(kind, 5, transaction, payload_for(kind, data)))
            if kind == protocol.Kind.TRANSACTION_START and reply[:-1].isdigit():
                mine.append(int(reply[:-1]))
        elif step < 35:
            path = OFFERED[data.ConsumeIntInRange(0, len(OFFERED) - 1)]
            rig.store.offer(channel, f"/local/domain/1/{path}", DomainId(1), DomainId(2), 3, 4)
        elif step < 37:
            rig.store.withdraw(channel)
        elif step == 37:
            rig.store.disconnect(client)
            rig.connect(client, domain)
        elif step == 38 and domain:
            rig.store.release(DomainId(domain))
        else:
            rig.store.introduce(DomainId(domain), "again", "")
        rig.store.flush_events()


def one(raw: bytes) -> None:
    data = atheris.FuzzedDataProvider(raw)
    rig = Rig(QUOTAS)
    (steps if data.ConsumeIntInRange(0, 3) else stream)(rig, data)
    assert_sound(rig.store)
    for records in (rig.records, list(rig.store.dump())):
        replayed = Store(QUOTAS, lambda *_: None, lambda _: None, lambda _: None)
        replayed.replay(records)
        assert_sound(replayed)
        assert state(replayed) == state(rig.store)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
