# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rules of links: who gets which part of which device, and that no two get the same."""

from __future__ import annotations

import random

import pytest

from kvmchand.channels.device import Device, Slice, pair_of, with_shared
from kvmchand.channels.registry import Side
from kvmchand.errors import LimitReached
from kvmchand.ids import CONTROL_PEER, HOST_PEER, PAGE, START_PEER, DomainId, Size
from kvmchand.links.links import LinkLimits, Links

HOST, ONE, TWO, THREE = (DomainId(each) for each in range(4))
PAGES = 16
SIZE = Size(PAGES * PAGE)
OWN, VECTORS = 4, 5
"""Of its vectors the last one is for sharing."""
DEVICES_AT_ONCE = 8
ENOUGH = LinkLimits(max_devices=100, max_bytes=1 << 40)


@pytest.fixture
def links() -> Links:
    return Links(ENOUGH)


def link(links: Links, one: DomainId = HOST, other: DomainId = ONE, *, size: Size = SIZE, vectors: int = VECTORS) -> Device:
    """A new device of the pair."""
    return links.add(pair_of(one, other), {one, other} - {HOST}, size, vectors)


FIRST = link(Links(ENOUGH)).peers[ONE]
"""The smallest id that a link's device has."""


def pages(count: int) -> Size:
    return Size(count * PAGE)


def allocate(links: Links, device: Device, size: Size) -> Slice:
    taken = links.allocate(device, size)
    assert taken is not None
    return taken


def assert_whole(device: Device, vectors: int = VECTORS) -> None:
    """As if nothing had ever been taken: one run of pages, every vector."""
    assert (device.free, device.usable, device.slices) == ({0: device.size // PAGE}, vectors, 0)
    assert (device.owned, device.sharers.total()) == (set(), 0)


# ---- devices ----


def test_a_pair_has_the_smaller_number_first() -> None:
    assert pair_of(TWO, ONE) == pair_of(ONE, TWO) == (ONE, TWO)
    assert pair_of(TWO, TWO) == (TWO, TWO)


def test_devices_count_up_and_a_number_never_comes_again(links: Links) -> None:
    first, second = link(links), link(links)
    links.remove(second)
    assert [first.number, second.number, link(links).number] == [1, 2, 3]


def test_the_host_has_no_id_of_its_own_but_0(links: Links) -> None:
    device = link(links, HOST, ONE)
    assert HOST not in device.peers
    assert device.peer_of(HOST) == HOST_PEER
    assert device.peer_of(ONE) == device.peers[ONE]


def test_a_control_device_is_known_by_its_id_which_no_other_has(links: Links) -> None:
    control = links.add((HOST, ONE), {ONE}, SIZE, 1, control=True)
    assert control.peers == {ONE: CONTROL_PEER}
    others = [link(links, HOST, ONE) for _ in range(5)]
    assert CONTROL_PEER not in {device.peers[ONE] for device in others}


def test_ids_are_the_smallest_that_are_free_in_the_guest(links: Links) -> None:
    first, second, third = (link(links) for _ in range(3))
    assert [device.peers[ONE] for device in (first, second, third)] == [FIRST, FIRST + 1, FIRST + 2]
    links.remove(second)
    assert link(links).peers[ONE] == FIRST + 1
    assert link(links, HOST, TWO).peers[TWO] == FIRST  # of another guest, that may be the same


def test_the_two_guests_of_a_device_have_different_ids(links: Links) -> None:
    assert link(links, ONE, TWO).peers == {ONE: FIRST, TWO: FIRST + 1}
    assert link(links, ONE, TWO).peers == {ONE: FIRST + 1, TWO: FIRST}
    assert link(links, TWO, THREE).peers == {TWO: FIRST + 2, THREE: FIRST}


def test_a_guest_that_talks_to_itself_has_one_id(links: Links) -> None:
    assert link(links, ONE, ONE).peers == {ONE: FIRST}


def test_a_device_is_the_pairs_that_it_is_for(links: Links) -> None:
    ours, _other = link(links, ONE, TWO), link(links, ONE, THREE)
    links.add((HOST, ONE), {ONE}, SIZE, 1, control=True)
    assert links.devices_for((ONE, TWO)) == [ours]
    assert links.devices_for((HOST, ONE)) == []


def test_a_closing_device_gets_no_channel_and_stays_its_guests_until_removed(links: Links) -> None:
    device = link(links, ONE, TWO)
    device.is_closing = True
    assert links.devices_for((ONE, TWO)) == []
    assert links.of(ONE) == links.of(TWO) == [device]
    links.remove(device)
    assert links.of(ONE) == links.of(TWO) == []


def test_the_host_is_always_ready_and_a_guest_when_it_says_so(links: Links) -> None:
    device = link(links, HOST, ONE)
    assert device.is_ready(HOST)
    assert not device.is_ready(ONE)
    device.ready.add(ONE)
    assert device.is_ready(ONE)


# ---- limits of a guest ----


def test_a_guest_may_have_so_many_devices_and_what_goes_makes_room() -> None:
    links = Links(LinkLimits(max_devices=2, max_bytes=1 << 40))
    first, second, third = (link(links, ONE, TWO) for _ in range(3))
    links.attach(first, ONE)
    links.attach(second, ONE)
    with pytest.raises(LimitReached, match="guest_devices"):
        links.attach(third, ONE)
    assert ONE not in third.attached
    links.attach(third, TWO)  # the other guest has room
    links.remove(first)
    links.attach(third, ONE)


def test_a_guests_devices_may_have_so_many_bytes_to_the_last() -> None:
    links = Links(LinkLimits(max_devices=100, max_bytes=3 * SIZE))
    first, double, small = link(links), link(links, size=Size(2 * SIZE)), link(links, size=Size(PAGE))
    links.attach(first, ONE)
    links.attach(double, ONE)
    with pytest.raises(LimitReached, match="guest_bytes"):
        links.attach(small, ONE)
    first.attached.discard(ONE)
    links.attach(small, ONE)


def test_devices_that_are_in_no_guest_count_for_none() -> None:
    links = Links(LinkLimits(max_devices=1, max_bytes=SIZE))
    devices = [link(links) for _ in range(5)]
    links.attach(devices[-1], ONE)


def test_a_guest_without_kvm_is_told_what_to_do_when_useless_devices_fill_it() -> None:
    links = Links(LinkLimits(max_devices=3, max_bytes=2 * SIZE))
    links.keepers[ONE] = 1
    given_up, good, third = (link(links, ONE, TWO, size=Size(PAGE)) for _ in range(3))
    large = link(links, ONE, TWO, size=Size(2 * SIZE))
    links.attach(good, ONE)
    with pytest.raises(LimitReached, match="guest_bytes in the host's settings; 1 of them are of no use"):
        links.attach(large, ONE)
    links.attach(given_up, ONE)
    given_up.plugged.add(ONE)
    given_up.attached.discard(ONE)
    with pytest.raises(LimitReached, match=r"has 3 devices: guest_devices .*; 2 of them are of no use .* run it with KVM"):
        links.attach(third, ONE)
    links.attach(third, TWO)  # the other guest lets devices go


def test_a_guest_without_kvm_whose_devices_are_all_of_use_is_not_told_to_restart() -> None:
    links = Links(LinkLimits(max_devices=1, max_bytes=1 << 40))
    links.keepers[ONE] = 0
    links.attach(link(links), ONE)
    with pytest.raises(LimitReached, match=r"guest_devices in the host's settings$"):
        links.attach(link(links), ONE)


def test_a_control_device_is_refused_only_by_what_an_earlier_daemon_left() -> None:
    links = Links(LinkLimits(max_devices=1, max_bytes=SIZE))
    links.keepers[ONE] = 0
    links.attach(link(links), ONE)
    links.attach(links.add((HOST, ONE), {ONE}, SIZE, 1, control=True), ONE)
    links.keepers[TWO] = 1
    with pytest.raises(LimitReached, match="1 of them are of no use"):
        links.attach(links.add((HOST, TWO), {TWO}, SIZE, 1, control=True), TWO)


# ---- slices ----


def test_a_slice_is_whole_pages_and_a_vector_at_each_end(links: Links) -> None:
    device = link(links)
    first, second = allocate(links, device, Size(1)), allocate(links, device, Size(PAGE + 1))
    assert (first.offset, second.offset) == (0, PAGE)
    assert device.free == {3: PAGES - 3}
    assert first.vectors[Side.SERVER] == first.vectors[Side.CLIENT]  # each at its own end
    assert first.vectors[Side.SERVER] != second.vectors[Side.SERVER]


def test_a_guest_that_talks_to_itself_needs_a_vector_for_each_side(links: Links) -> None:
    device = link(links, ONE, ONE)
    slices = [allocate(links, device, pages(1)) for _ in range(OWN // 2)]
    used = [vector for each in slices for vector in each.vectors.values()]
    assert sorted(used) == list(range(OWN))
    slices.append(allocate(links, device, pages(1)))
    assert slices[-1].is_shared
    assert set(slices[-1].vectors.values()) == {OWN}
    for each in slices:
        links.free(each)
    assert_whole(device)


def test_a_device_takes_what_fills_it_and_nothing_more(links: Links) -> None:
    device = link(links)
    assert links.allocate(device, Size(SIZE + 1)) is None
    assert_whole(device)
    taken = allocate(links, device, SIZE)
    assert links.allocate(device, Size(1)) is None
    links.free(taken)
    assert_whole(device)


def test_a_channel_that_finds_no_vector_of_its_own_shares_the_one_with_the_fewest(links: Links) -> None:
    device = link(links, vectors=with_shared(8))
    own = [allocate(links, device, pages(1)) for _ in range(8)]
    assert not any(each.is_shared for each in own)
    assert {vector for each in own for vector in each.vectors.values()} == set(range(8))
    shared = [allocate(links, device, pages(1)) for _ in range(4)]
    assert all(each.is_shared for each in shared)
    assert [each.vectors[Side.SERVER] for each in shared] == [8, 9, 8, 9]
    for each in (shared[0], shared[2], own[3]):
        links.free(each)
    again = [allocate(links, device, pages(1)) for _ in range(2)]
    assert [(each.is_shared, each.vectors[Side.SERVER]) for each in again] == [(False, 3), (True, 8)]


@pytest.mark.parametrize(("wanted", "made"), [(1, 2), (2, 3), (3, 4), (4, 5), (64, 80), (255, 318), (2048, 2048)])
def test_a_device_has_vectors_to_share_beside_those_of_one_channel_alone(links: Links, wanted: int, made: int) -> None:
    assert with_shared(wanted) == made
    device = link(links, size=pages(wanted), vectors=made)
    taken = [allocate(links, device, pages(1)) for _ in range(min(wanted, 4 * made // 5))]
    assert not any(each.is_shared for each in taken)


def test_the_smallest_run_that_will_do_is_taken(links: Links) -> None:
    device = link(links, vectors=PAGES)
    slices = [allocate(links, device, pages(count)) for count in (4, 1, 2, 1, 8)]
    for each in (slices[0], slices[2]):
        links.free(each)
    assert device.free == {0: 4, 5: 2}
    assert allocate(links, device, pages(2)).offset == 5 * PAGE
    assert allocate(links, device, pages(2)).offset == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_free_runs_that_meet_become_one(links: Links, order: tuple[int, ...]) -> None:
    device = link(links)
    slices = [allocate(links, device, size) for size in (pages(3), Size(4 * PAGE + 1), pages(2))]
    for at in order:
        links.free(slices[at])
    assert_whole(device)


# ---- vectors that a guest does not have ----


def test_a_guest_with_fewer_vectors_limits_the_device_for_good(links: Links) -> None:
    device = link(links)
    first, second = allocate(links, device, pages(1)), allocate(links, device, pages(1))
    device.limit_vectors(1)
    assert (device.vectors, device.usable) == (VECTORS, 1)
    assert links.allocate(device, pages(1)) is None  # the only vector is one channel's alone
    links.free(second)
    assert links.allocate(device, pages(1)) is None
    links.free(first)
    device.limit_vectors(VECTORS)
    assert_whole(device, vectors=1)
    assert allocate(links, device, pages(1)).vectors == {Side.SERVER: 0, Side.CLIENT: 0}


def test_a_guest_without_vectors_gets_no_channel_there(links: Links) -> None:
    device = link(links)
    device.limit_vectors(0)
    assert links.allocate(device, pages(1)) is None
    assert device.free == {0: PAGES}


# ---- a device for each channel ----


def test_dedicated_devices_have_one_channel_and_never_another() -> None:
    links = Links(ENOUGH, dedicated=True)
    device = link(links, ONE, TWO)
    taken = allocate(links, device, pages(1))
    assert links.allocate(device, pages(1)) is None
    links.free(taken)
    assert device.is_closing
    assert links.devices_for((ONE, TWO)) == []


def test_shared_devices_stay_for_the_next_channel(links: Links) -> None:
    device = link(links, ONE, TWO)
    links.free(allocate(links, device, pages(1)))
    assert not device.is_closing
    assert links.devices_for((ONE, TWO)) == [device]


# ---- listing ----


def test_a_summary_adds_up_each_pairs_devices_and_leaves_the_control_devices_out(links: Links) -> None:
    links.add((HOST, ONE), {ONE}, SIZE, 1, control=True)
    assert links.summary() == []
    first, second, third = link(links, TWO, ONE), link(links, ONE, TWO, size=Size(2 * SIZE)), link(links, HOST, ONE)
    for device in (first, second, second, third):
        allocate(links, device, pages(1))
    assert links.summary() == [((HOST, ONE), 1, SIZE, 1), ((ONE, TWO), 2, 3 * SIZE, 3)]


# ---- any sequence ----


class Model:
    """What the rules say, kept as plainly as can be: the owner of each page and vector of each
    device.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.pages: list[Slice | None] = [None] * (device.size // PAGE)
        self.vectors = device.vectors
        self.ends = 2 if device.pair[0] == device.pair[1] else 1
        self.slices: list[Slice] = []

    def span(self, taken: Slice) -> range:
        first = taken.offset // PAGE
        return range(first, first + -(-taken.size // PAGE))

    def take(self, taken: Slice) -> None:
        assert taken.device is self.device
        for page in self.span(taken):
            assert self.pages[page] is None, "two slices have a page"
            self.pages[page] = taken
        for vector in taken.vectors.values():
            assert 0 <= vector < self.vectors
            assert vector not in self.used_vectors(by_shared=not taken.is_shared), "a slice's own vector is another's"
        assert not taken.is_shared or self.free_own() < self.ends
        self.slices.append(taken)

    def refuse(self, size: int) -> None:
        """Asserts that there was reason to."""
        own = self.used_vectors(by_shared=False)
        shareable = set(range(self.vectors - self.shared(), self.vectors)) - own
        assert not ((shareable or self.free_own() >= self.ends) and self.longest_run() * PAGE >= size), "there was room"

    def free(self, freed: Slice) -> None:
        self.slices.remove(freed)
        for page in self.span(freed):
            self.pages[page] = None

    def used_vectors(self, *, by_shared: bool) -> set[int]:
        """Those of slices that have them alone, and of others too if `by_shared`."""
        return {vector for each in self.slices if by_shared or not each.is_shared for vector in each.vectors.values()}

    def shared(self) -> int:
        return min(self.vectors, max(1, self.vectors // 5))

    def free_own(self) -> int:
        return len(set(range(self.vectors - self.shared())) - self.used_vectors(by_shared=False))

    def runs(self) -> dict[int, int]:
        found: dict[int, int] = {}
        first = 0
        for page, owner in enumerate(self.pages):
            if owner is not None:
                first = page + 1
            else:
                found[first] = page + 1 - first
        return found

    def longest_run(self) -> int:
        return max(self.runs().values(), default=0)

    def check(self) -> None:
        assert self.device.free == self.runs()
        assert self.device.owned == self.used_vectors(by_shared=False)
        assert self.device.slices == len(self.slices)


@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_leaves_what_a_plain_model_of_pages_and_vectors_has(seed: int) -> None:
    chance = random.Random(seed)
    links = Links(ENOUGH)
    pairs = [(HOST, ONE), (ONE, TWO), (TWO, TWO), (HOST, THREE)]
    models: dict[int, Model] = {}
    for _ in range(800):
        action = chance.random()
        model = chance.choice(list(models.values())) if models else None
        if model is None or (action < 0.03 and len(models) < DEVICES_AT_ONCE):
            one, other = chance.choice(pairs)
            device = link(links, one, other, size=pages(chance.choice((1, 4, PAGES))), vectors=chance.choice((1, 2, 8)))
            models[device.number] = Model(device)
            for guest in (ONE, TWO, THREE):
                ids = [each.peers[guest] for each in links.of(guest)]
                assert len(set(ids)) == len(ids)
                assert all(FIRST <= each <= FIRST + DEVICES_AT_ONCE for each in ids)
            continue
        if action < 0.6:
            size = Size(chance.randint(1, 6 * PAGE))
            taken = links.allocate(model.device, size)
            if taken is None:
                model.refuse(size)
            else:
                model.take(taken)
        elif action < 0.97 and model.slices:
            freed = chance.choice(model.slices)
            model.free(freed)
            links.free(freed)
        elif action < 0.98:
            usable = chance.randint(0, 8)
            model.device.limit_vectors(usable)
            model.vectors = min(model.vectors, usable)
        elif not model.slices:
            links.remove(model.device)
            del models[model.device.number]
        for each in models.values():
            each.check()
    assert links.devices == {number: model.device for number, model in models.items()}


# ---- what a guest whose daemon is gone may still have ----


def test_a_slice_that_a_guest_was_given_waits_until_the_guest_is_ready_again(links: Links) -> None:
    device = link(links)
    links.attach(device, ONE)
    links.set_ready(device, ONE)
    given, kept = allocate(links, device, pages(1)), allocate(links, device, pages(1))
    given.given = True
    device.ready.discard(ONE)  # its daemon is gone
    links.free(given)
    links.free(kept)  # nobody there ever had it
    assert device.slices == 0
    assert allocate(links, device, pages(1)).offset == kept.offset
    assert allocate(links, device, pages(1)).offset not in (given.offset, kept.offset)
    assert links.set_ready(device, ONE) == [given]
    assert allocate(links, device, pages(1)).offset == given.offset
    assert links.set_ready(device, ONE) == []


def test_a_slice_between_two_guests_waits_for_both(links: Links) -> None:
    device = link(links, ONE, TWO)
    for guest in (ONE, TWO):
        links.attach(device, guest)
        links.set_ready(device, guest)
    taken = allocate(links, device, pages(1))
    taken.given = True
    device.ready.clear()
    links.free(taken)
    assert links.set_ready(device, TWO) == []
    assert links.set_ready(device, ONE) == [taken]
    assert_whole(device)


# ---- what no limit counts ----


def test_the_control_device_goes_into_a_guest_that_has_all_it_may_have() -> None:
    links = Links(LinkLimits(max_devices=1, max_bytes=SIZE))
    links.attach(link(links), ONE)
    links.attach(links.add((HOST, ONE), {ONE}, SIZE, 1, control=True), ONE)
    with pytest.raises(LimitReached):
        links.attach(link(links), ONE)


def test_a_device_from_the_start_takes_nothing_from_what_a_guest_may_have() -> None:
    links = Links(LinkLimits(max_devices=1, max_bytes=SIZE))
    large = links.make((HOST, HOST), {HOST: START_PEER}, Size(1 << 30), VECTORS)
    links.take_over(large, ONE)
    assert links.devices_for((HOST, ONE)) == [large]
    links.attach(link(links), ONE)
    with pytest.raises(LimitReached):
        links.attach(link(links), ONE)


def test_a_guest_whose_qemu_has_lost_many_routes_gets_no_more_devices() -> None:
    links = Links(LinkLimits(100, 1 << 30))
    links.lose_routes(ONE, 2900)
    fitting = links.add(pair_of(HOST, ONE), {ONE}, Size(1 << 20), 64)
    links.attach(fitting, ONE)
    links.lose_routes(ONE, 64)
    for is_control in (False, True):
        device = links.add(pair_of(HOST, ONE), {ONE}, Size(1 << 20), 64, control=is_control)
        with pytest.raises(LimitReached, match=r"has lost 2964 interrupt routes.*start it again"):
            links.attach(device, ONE)
    links.attach(links.add(pair_of(HOST, TWO), {TWO}, Size(1 << 20), 64), TWO)
    links.forget(ONE)
    links.attach(device, ONE)


def test_a_qemu_without_kvm_has_no_routes_to_lose() -> None:
    links = Links(LinkLimits(100, 1 << 30), keepers={ONE: 0})
    links.lose_routes(ONE, 5000)
    links.attach(links.add(pair_of(HOST, ONE), {ONE}, Size(1 << 20), 64), ONE)


def test_vectors_that_are_in_use_are_no_reason_to_refuse() -> None:
    links = Links(LinkLimits(100, 1 << 30))
    for _ in range(4):
        links.attach(links.add(pair_of(HOST, ONE), {ONE}, Size(1 << 20), 1024), ONE)


def test_a_device_gets_no_id_of_one_that_an_earlier_daemon_left() -> None:
    links = Links(LinkLimits(100, 1 << 30), foreign_peers={ONE: {3, 4}})
    peers = [links.add(pair_of(HOST, ONE), {ONE}, Size(1 << 20), 64).peers[ONE] for _ in range(2)]
    assert not set(peers) & {3, 4}


# ---- the size of a device ----

MIB = 1 << 20


def sized(links: Links, least: int, *guests: DomainId) -> int:
    return links.size_for(set(guests), Size(MIB), Size(least)) // MIB


@pytest.mark.parametrize(
    ("least", "size"), [(4096, 1), (MIB, 1), (4 * MIB, 16), (16 * MIB, 64), (64 * MIB, 128), (256 * MIB, 256)]
)
def test_a_device_that_is_larger_than_usual_has_room_for_more_such_slices(least: int, size: int) -> None:
    links = Links(LinkLimits(16, 256 * MIB), rooms={ONE: Size(1 << 34)})
    assert sized(links, least, ONE) == size


@pytest.mark.parametrize(("room", "size"), [(64, 16), (8, 8), (4, 4), (1, 4)])
def test_a_large_device_has_no_more_than_all_its_guests_have_room_for(room: int, size: int) -> None:
    links = Links(LinkLimits(16, 256 * MIB), rooms={ONE: Size(64 * MIB), TWO: Size(room * MIB)})
    assert sized(links, 4 * MIB, ONE, TWO) == size


def test_a_large_device_for_a_guest_that_says_nothing_of_its_room_is_as_small_as_can_be() -> None:
    assert sized(Links(ENOUGH), 4 * MIB, ONE) == 4


def test_a_large_device_leaves_half_of_what_a_guest_may_have_to_others() -> None:
    links = Links(LinkLimits(16, 32 * MIB), rooms={ONE: Size(1 << 34)})
    links.add(pair_of(HOST, ONE), {ONE}, Size(4 * MIB), 64)
    assert sized(links, 4 * MIB, ONE) == 8
