# SPDX-License-Identifier: LGPL-2.1-or-later
"""The registry's rules: who may offer and connect, who has a path, and when a channel is over."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmchand.channels.registry import Channel, DomainKind, End, Registry, Side, State
from kvmchand.channels.rings import Rings
from kvmchand.errors import AccessDenied, Busy, InvalidArgument, LimitReached, NotFound, TooLong, VchanError
from kvmchand.ids import ChannelId, ClientId, DomainId

HOST, ONE, TWO = DomainId(0), DomainId(1), DomainId(2)
SERVER, CLIENT, OTHER, THIRD = (ClientId(each) for each in (11, 12, 13, 14))
PATH = "/local/domain/1/vchan"


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    made.add_domain(HOST, DomainKind.HOST)
    made.add_domain(ONE, DomainKind.LOCAL)
    made.add_domain(TWO, DomainKind.LOCAL)
    return made


def end(holder: ClientId) -> End:
    return End(holder, pid=1000 + holder)


def offer(
    registry: Registry, holder: ClientId = SERVER, caller: DomainId = ONE, peer: DomainId = TWO, path: str = PATH
) -> Channel:
    return registry.add(registry.permit_offer(caller, peer, path, end(holder)), Rings(10, 11))


def connect(
    registry: Registry, holder: ClientId = CLIENT, caller: DomainId = TWO, domain: DomainId = ONE, path: str = PATH
) -> Channel:
    channel = registry.require_connect(caller, domain, path, end(holder))
    registry.connect(channel, end(holder))
    return channel


def assert_empty(registry: Registry) -> None:
    """Nothing is remembered of what is over."""
    fresh = Registry(registry.max_channels, registry.guest_channels, domains=dict(registry.domains), _last=registry._last)
    assert registry == fresh


def test_an_offer_is_a_waiting_channel(registry: Registry) -> None:
    channel = offer(registry, path="vchan")
    assert (channel.path, channel.server_domain, channel.client_domain) == (PATH, ONE, TWO)
    assert channel.rings == Rings(10, 11)
    assert channel.state is State.WAITING
    assert registry.ends.held(SERVER) == (channel, Side.SERVER)
    assert channel.server == end(SERVER)
    assert channel.client is None


def test_a_connected_channel_has_both_ends(registry: Registry) -> None:
    channel = offer(registry)
    assert connect(registry) is channel
    assert channel.state is State.CONNECTED
    assert registry.ends.held(CLIENT) == (channel, Side.CLIENT)
    assert channel.client == end(CLIENT)


def test_channels_are_numbered_upwards_from_1(registry: Registry) -> None:
    numbers = [offer(registry, ClientId(each), path=f"p{each}").number for each in (1, 2, 3)]
    registry.release(ClientId(3))
    assert [*numbers, offer(registry, ClientId(4)).number] == [1, 2, 3, 4]


# ---- refusals; each leaves the registry as it was ----


@pytest.mark.parametrize(
    ("caller", "peer", "path", "error"),
    [
        (ONE, TWO, "/local/domain/2/x", AccessDenied),
        (ONE, TWO, "/local/domain/0/x", AccessDenied),
        (ONE, TWO, "/x", AccessDenied),
        (ONE, DomainId(3), "x", NotFound),
        (ONE, DomainId(-1), "x", NotFound),
        (ONE, TWO, "", InvalidArgument),
        (ONE, TWO, "x y", InvalidArgument),
        (ONE, TWO, "x" * 2049, TooLong),
    ],
)
def test_an_offer_that_can_not_be_is_refused(
    registry: Registry, caller: DomainId, peer: DomainId, path: str, error: type[VchanError]
) -> None:
    with pytest.raises(error):
        offer(registry, caller=caller, peer=peer, path=path)
    assert_empty(registry)


def test_domain_0_offers_anywhere(registry: Registry) -> None:
    for holder, path in ((SERVER, "/local/domain/1/x"), (OTHER, "/x"), (THIRD, "x")):
        offer(registry, holder, caller=HOST, path=path)


def test_a_path_that_nobody_offers_is_not_found(registry: Registry) -> None:
    offer(registry)
    for wrong in ({"path": "/local/domain/1/other"}, {"domain": TWO}, {"domain": DomainId(9)}, {"path": "vchan"}):
        with pytest.raises(NotFound):
            connect(registry, **wrong)
    assert registry.ends.held(CLIENT) is None


def test_only_the_named_domain_may_connect(registry: Registry) -> None:
    channel = offer(registry)
    for caller in (HOST, ONE):
        with pytest.raises(AccessDenied):
            connect(registry, caller=caller)
    assert channel.state is State.WAITING
    assert connect(registry, caller=TWO) is channel


def test_a_second_client_is_refused_while_there_is_one(registry: Registry) -> None:
    offer(registry)
    connect(registry)
    with pytest.raises(Busy) as caught:
        connect(registry, OTHER)
    assert str(end(CLIENT).pid) in caught.value.sentence
    registry.release(CLIENT)
    connect(registry, OTHER)


def test_a_connection_holds_one_end_at_most(registry: Registry) -> None:
    offer(registry)
    offer(registry, OTHER, path="second")
    again: list[Callable[[], Channel]] = [lambda: offer(registry, path="third"), lambda: connect(registry, SERVER)]
    for open_again in again:
        with pytest.raises(VchanError, match="one connection a channel"):
            open_again()
    connect(registry)
    with pytest.raises(VchanError, match="one connection a channel"):
        connect(registry, CLIENT, path="/local/domain/1/second")


def test_a_connection_may_open_again_what_it_released(registry: Registry) -> None:
    offer(registry)
    registry.release(SERVER)
    offer(registry)


# ---- the limit ----


def test_a_domain_offers_max_channels_at_most(registry: Registry) -> None:
    registry.max_channels = 2
    offer(registry, ClientId(1), path="a")
    second = offer(registry, ClientId(2), path="b")
    with pytest.raises(LimitReached):
        offer(registry, ClientId(3), path="c")
    with pytest.raises(LimitReached):  # a take-over is one more, while the old channel goes on
        offer(registry, ClientId(3), path="b")
    offer(registry, ClientId(4), caller=TWO, path="c")  # another domain has its own
    connect(registry, path=second.path)
    registry.release(ClientId(2))
    offer(registry, ClientId(3), path="c")  # that its client stays is not the server's to answer for


def test_a_domain_connects_to_max_channels_at_most(registry: Registry) -> None:
    registry.max_channels = 2
    for number in (1, 2):
        offered = offer(registry, ClientId(number), path=f"p{number}")
        connect(registry, ClientId(10 + number), path=offered.path)
    registry.release(ClientId(1))
    third = offer(registry, ClientId(3), path="p3")
    with pytest.raises(LimitReached):  # it keeps the client end of the first
        connect(registry, ClientId(13), path=third.path)
    registry.release(ClientId(11))
    connect(registry, ClientId(13), path=third.path)


def test_refused_offers_do_not_count(registry: Registry) -> None:
    registry.max_channels = 1
    for _ in range(3):
        with pytest.raises(AccessDenied):
            offer(registry, path="/local/domain/2/x")
    offer(registry)


# ---- the end of an end ----


def test_a_client_that_went_leaves_room_for_another(registry: Registry) -> None:
    channel = offer(registry)
    connect(registry)
    assert registry.release(CLIENT) == (channel, Side.CLIENT)
    left = channel.state
    assert connect(registry, OTHER) is channel
    assert (left, channel.state) == (State.CLIENT_GONE, State.CONNECTED)


def test_a_server_that_went_leaves_its_client_the_channel_but_not_the_path(registry: Registry) -> None:
    channel = offer(registry)
    connect(registry)
    assert registry.release(SERVER) == (channel, Side.SERVER)
    assert channel.state is State.SERVER_GONE
    assert registry.channels == {channel.number: channel}
    with pytest.raises(NotFound):
        connect(registry, OTHER)
    registry.release(CLIENT)
    assert_empty(registry)


@pytest.mark.parametrize("order", [(SERVER,), (SERVER, CLIENT), (CLIENT, SERVER)])
def test_a_channel_is_over_when_both_ends_are(registry: Registry, order: tuple[ClientId, ...]) -> None:
    offer(registry)
    if CLIENT in order:
        connect(registry)
    for holder in order:
        assert registry.channels
        registry.release(holder)
    assert_empty(registry)


def test_to_release_nothing_is_nothing(registry: Registry) -> None:
    assert registry.release(SERVER) is None
    offer(registry)
    registry.release(SERVER)
    assert registry.release(SERVER) is None


def test_a_domain_may_talk_to_itself(registry: Registry) -> None:
    channel = offer(registry, caller=ONE, peer=ONE)
    assert connect(registry, caller=ONE, domain=ONE, path="vchan") is channel
    assert channel.state is State.CONNECTED


# ---- taking a path over ----


def test_a_second_offer_takes_the_path_over_and_the_old_channel_keeps_its_client(registry: Registry) -> None:
    old = offer(registry)
    connect(registry)
    new = offer(registry, OTHER)
    assert (old.state, new.state) == (State.CONNECTED, State.WAITING)
    assert connect(registry, THIRD) is new
    registry.release(CLIENT)
    registry.release(THIRD)
    assert connect(registry, CLIENT) is new  # not the old one, though it has no client


def test_closing_the_old_server_does_not_withdraw_the_new_offer(registry: Registry) -> None:
    offer(registry)
    new = offer(registry, OTHER)
    registry.release(SERVER)
    assert connect(registry) is new


def test_closing_the_new_server_does_not_bring_the_old_offer_back(registry: Registry) -> None:
    offer(registry)
    offer(registry, OTHER)
    registry.release(OTHER)
    with pytest.raises(NotFound):
        connect(registry)


def test_only_its_domain_and_domain_0_take_a_path_over(registry: Registry) -> None:
    offer(registry, caller=HOST)  # at a path of domain 1's, which domain 1 may write
    with pytest.raises(AccessDenied):
        offer(registry, OTHER, caller=ONE)
    assert connect(registry, domain=HOST).server_domain == HOST
    registry.release(CLIENT)
    registry.release(SERVER)
    offer(registry, caller=ONE)
    new = offer(registry, OTHER, caller=HOST)
    assert connect(registry, domain=HOST) is new


# ---- listing ----


def test_a_domain_sees_the_channels_it_is_an_end_of_and_domain_0_sees_all(registry: Registry) -> None:
    one_two = offer(registry, ClientId(1), ONE, TWO, "a").number
    two_host = offer(registry, ClientId(2), TWO, HOST, "b").number
    one_one = offer(registry, ClientId(3), ONE, ONE, "c").number

    def seen(caller: DomainId, after: int = 0) -> list[ChannelId]:
        return [channel.number for channel in registry.visible(caller, ChannelId(after))]

    assert seen(HOST) == [one_two, two_host, one_one]
    assert seen(ONE) == [one_two, one_one]
    assert seen(TWO) == [one_two, two_host]
    assert seen(HOST, one_two) == [two_host, one_one]
    assert seen(HOST, one_one) == []


def test_a_vchan_is_free_while_it_stands_at_its_path_without_a_client(registry: Registry) -> None:
    assert not registry.offered_at(ONE, PATH)
    offer(registry)
    assert registry.offered_at(ONE, PATH)
    assert not registry.offered_at(TWO, PATH)
    connect(registry)
    assert not registry.offered_at(ONE, PATH)
    registry.release(CLIENT)
    assert registry.offered_at(ONE, PATH)
    registry.release(SERVER)
    assert not registry.offered_at(ONE, PATH)


# ---- event channels ----


def bind(registry: Registry, holder: ClientId = SERVER, caller: DomainId = ONE, peer: DomainId = TWO) -> Channel:
    return registry.add(registry.permit_bind(caller, peer, end(holder)), Rings(10, 11))


def join(registry: Registry, port: int, holder: ClientId = CLIENT, caller: DomainId = TWO, domain: DomainId = ONE) -> Channel:
    channel = registry.require_join(caller, domain, port, end(holder))
    registry.connect(channel, end(holder))
    return channel


def test_an_event_channel_is_a_channel_at_its_number(registry: Registry) -> None:
    vchan, bound = offer(registry, OTHER), bind(registry)
    assert (vchan.is_vchan, bound.is_vchan) == (True, False)
    assert (bound.number, bound.server_domain, bound.client_domain) == (2, ONE, TWO)
    assert join(registry, 4) is bound
    assert registry.ends.held(SERVER) == (bound, Side.SERVER)
    assert registry.ends.held(CLIENT) == (bound, Side.CLIENT)
    for holder in (OTHER, SERVER, CLIENT):
        registry.release(holder)
    assert_empty(registry)


def test_an_event_channel_is_joined_anew_while_its_server_end_is_there(registry: Registry) -> None:
    bind(registry)
    join(registry, 2)
    with pytest.raises(Busy, match="process 1012"):
        join(registry, 2, OTHER)
    registry.release(CLIENT)
    join(registry, 2, OTHER)
    registry.release(SERVER)
    registry.release(OTHER)
    with pytest.raises(NotFound):
        join(registry, 2, OTHER)
    assert_empty(registry)


@pytest.mark.parametrize(
    ("kind", "caller", "domain", "port"),
    [
        (NotFound, TWO, ONE, 0),
        (NotFound, TWO, ONE, 1),
        (NotFound, TWO, ONE, 3),
        (NotFound, TWO, ONE, 4),  # a vchan
        (NotFound, TWO, ONE, 6),
        (NotFound, TWO, ONE, 2**63),
        (NotFound, ONE, TWO, 2),
        (NotFound, TWO, DomainId(9), 2),
        (NotFound, TWO, DomainId(-1), 2),
        (AccessDenied, ONE, ONE, 2),
        (AccessDenied, HOST, ONE, 2),
    ],
)
def test_what_is_no_event_channel_for_the_caller_is_not_joined(
    registry: Registry, kind: type[VchanError], caller: DomainId, domain: DomainId, port: int
) -> None:
    bind(registry)
    offer(registry, OTHER)
    with pytest.raises(kind):
        join(registry, port, caller=caller, domain=domain)
    assert registry.ends.held(CLIENT) is None


def test_an_event_channel_is_for_a_domain_that_is_there(registry: Registry) -> None:
    with pytest.raises(NotFound, match="no domain 9"):
        bind(registry, peer=DomainId(9))
    assert_empty(registry)


def test_an_event_channel_counts_as_a_channel(registry: Registry) -> None:
    registry.max_channels = 1
    bind(registry)
    for make in (bind, offer):
        with pytest.raises(LimitReached):
            make(registry, OTHER)
    join(registry, 2)
    bind(registry, OTHER, caller=TWO, peer=TWO)
    with pytest.raises(LimitReached):
        join(registry, 4, THIRD, domain=TWO)
    with pytest.raises(VchanError, match="one connection a channel"):
        bind(registry, SERVER)


def test_no_event_channel_stands_where_a_vchan_could(registry: Registry) -> None:
    bound = bind(registry)
    for path in (bound.path, f"/{bound.path}"):
        with pytest.raises(InvalidArgument):
            connect(registry, path=path)


def test_a_port_is_an_end_that_is_held_and_the_domains_own(registry: Registry) -> None:
    bound, vchan = bind(registry), offer(registry, OTHER, caller=TWO, peer=ONE, path="/local/domain/2/vchan")
    assert registry.port(ONE, ONE, 2) == (bound, Side.SERVER)
    assert registry.port(TWO, TWO, 4) == (vchan, Side.SERVER)
    assert registry.port(TWO, TWO, 3) is None  # not joined yet
    join(registry, 2)
    assert registry.port(TWO, TWO, 3) == registry.port(HOST, TWO, 3) == (bound, Side.CLIENT)
    for domain, port in ((ONE, 3), (TWO, 2), (ONE, 0), (ONE, 6), (ONE, 2**63), (HOST, 2), (DomainId(9), 2)):
        assert registry.port(HOST, domain, port) is None
    registry.release(SERVER)
    assert registry.port(ONE, ONE, 2) is None
    assert registry.port(TWO, TWO, 3) == (bound, Side.CLIENT)


@pytest.mark.parametrize("port", [2, 3, 99])
def test_a_domain_does_not_learn_of_anothers_ports(registry: Registry, port: int) -> None:
    join(registry, 2 * bind(registry).number)
    for caller, domain in ((ONE, TWO), (TWO, ONE), (ONE, HOST), (ONE, DomainId(9))):
        with pytest.raises(AccessDenied):
            registry.port(caller, domain, port)
