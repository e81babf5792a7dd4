# SPDX-License-Identifier: LGPL-2.1-or-later
"""How often a guest's request is encoded on its way to the line that decides about it, and its
answer on the way back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from kvmchand.ids import ChannelId, ClientId, DomainId, Size
from kvmchand.wire import client, control, local, store
from kvmchand.wire.codec import Codec, _Plan

CLIENT, SESSION = ClientId(7), Size(3)
OFFER = client.Offer(0, '/local/domain/11/{"type":"list"}', Size(1), Size(1), False)
LISTING = client.Listing((client.DomainInfo(DomainId(0), "host", "host", ""),), (), (), (), (), Size(0))
GRANT = client.Grant(ChannelId(1), "/local/domain/11/x", 10, 11, "doorbell", Size(4096), Size(0), Size(65536))


class Way:
    """Passes messages on as the processes do, and looks at every packet."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def pass_on(self, codec: Codec, message: object) -> Any:
        """One process encodes a message, the next decodes it."""
        packet = codec.encode(message)
        self.packets.append(packet)
        return codec.decode(packet)

    def request(self, request: client.Request) -> Any:
        """From a program in a guest to the host's main."""
        asked = self.pass_on(client.requests, request)  # libxenvchan, the local process
        known = self.pass_on(local.to_main, local.Ask(CLIENT, asked)).request  # main in the guest
        return self._through_the_ring(control.to_host, control.Ask(CLIENT, 1, 1, known))

    def answer(self, answer: object) -> Any:
        """From the host's main to the guest's, and what comes with it to the program."""
        heard = self._through_the_ring(control.to_guest, answer)
        return self.pass_on(client.replies, heard.reply if isinstance(heard, control.Reply) else heard.grant)

    def _through_the_ring(self, codec: Codec, message: object) -> Any:
        sent = self.pass_on(control.to_control, control.Send(SESSION, codec.encode(message)))  # the control process
        judged = codec.decode(sent.packet)  # the other machine's control process
        return codec.decode(self.pass_on(control.to_main, control.Received(SESSION, codec.encode(judged))).packet)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[type]]:
    """How often each record was made JSON of."""
    counts: Counter[type] = Counter()
    show = _Plan.show

    def count(self: _Plan, message: Any) -> dict[str, Any]:
        counts[type(message)] += 1
        return show(self, message)

    monkeypatch.setattr(_Plan, "show", count)
    yield counts


def test_a_request_is_encoded_four_times_at_most_before_it_is_decided_about(encoded: Counter[type]) -> None:
    assert Way().request(OFFER) == control.Ask(CLIENT, 1, 1, OFFER)
    assert encoded[client.Offer] <= 4


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (control.Reply(CLIENT, 1, LISTING), LISTING),
        (control.Granted(CLIENT, 1, 5, 2, GRANT), GRANT),
    ],
)
def test_an_answer_is_encoded_three_times_at_most(encoded: Counter[type], answer: object, content: object) -> None:
    assert Way().answer(answer) == content
    assert encoded[type(content)] <= 3


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_in(each)


def is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def test_no_json_stands_in_a_text_of_json() -> None:
    way = Way()
    way.request(OFFER)
    way.answer(control.Reply(CLIENT, 1, LISTING))
    way.answer(control.Granted(CLIENT, 1, 5, 2, GRANT))
    assert len(way.packets) == 10
    for packet in way.packets:
        head = json.loads(packet.partition(b"\n")[0])
        assert not [text for text in texts_in(head) if is_json(text)]


def test_bytes_of_the_store_pass_as_they_are() -> None:
    data = bytes(range(256)) * 16
    request = store.Request(CLIENT, data)
    assert data in store.from_forwarder.encode(request)
    packet = control.to_host.encode(request)
    assert data in packet
    sent = control.to_control.encode(control.Send(SESSION, packet))
    assert sent.endswith(packet)
    assert len(sent) < len(data) + 200
