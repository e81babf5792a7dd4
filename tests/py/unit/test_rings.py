# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ring orders, exactly as the table of Xen's server_init has them, at every boundary."""

from __future__ import annotations

import itertools

import pytest

from kvmchand.channels import rings
from kvmchand.channels.rings import Rings, Sizes
from kvmchand.config import RING_MAX, RingSettings
from kvmchand.errors import InvalidArgument

# Sizes at each boundary of the table and of the powers of two above it; with each the order of a
# ring with pages of its own.
SIZES = [
    *((size, 12) for size in (0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096)),
    (4097, 13),
    (8192, 13),
    (8193, 14),
    (65535, 16),
    (65536, 16),
    (65537, 17),
    (524288, 19),
    (524289, 20),
    (1048575, 20),
    (1048576, 20),
]


def expected(read: tuple[int, int], write: tuple[int, int]) -> Rings:
    """The table of the observed behaviour, row by row; the first row that holds counts."""
    (read_min, read_order), (write_min, write_order) = read, write
    rows = [
        (read_min <= 1024 and write_min <= 2048, (10, 11)),
        (read_min <= 2048 and write_min <= 1024, (11, 10)),
        (read_min <= 2048, (11, write_order)),
        (write_min <= 2048, (read_order, 11)),
        (True, (read_order, write_order)),
    ]
    return Rings(*next(orders for holds, orders in rows if holds))


@pytest.mark.parametrize(
    ("read", "write"), list(itertools.product(SIZES, SIZES)), ids=lambda size: str(size[0]) if isinstance(size, tuple) else None
)
def test_the_orders_are_those_of_the_table(read: tuple[int, int], write: tuple[int, int]) -> None:
    chosen = rings.choose(read[0], write[0])
    assert chosen == expected(read, write)
    assert 1 << chosen.left >= read[0]
    assert 1 << chosen.right >= write[0]


@pytest.mark.parametrize(
    ("read_min", "write_min", "orders"),
    [
        (0, 0, (10, 11)),
        (1024, 2048, (10, 11)),
        (1025, 1024, (11, 10)),
        (1025, 1025, (11, 12)),
        (1024, 2049, (11, 12)),
        (2048, 2048, (11, 12)),
        (2049, 1, (12, 11)),
        (2049, 2048, (12, 11)),
        (2049, 2049, (12, 12)),
        (1 << 20, 1 << 20, (20, 20)),
    ],
)
def test_the_orders_spelled_out(read_min: int, write_min: int, orders: tuple[int, int]) -> None:
    assert rings.choose(read_min, write_min) == Rings(*orders)


def test_no_two_rings_share_a_place_in_the_page() -> None:
    for read, write in itertools.product(SIZES, SIZES):
        chosen = rings.choose(read[0], write[0])
        assert chosen.left != chosen.right or chosen.left >= 12


@pytest.mark.parametrize("most", [1 << 20, 4 << 20, 5000])
def test_over_the_most_is_refused_either_way(most: int) -> None:
    assert 1 << rings.choose(most, 1, most).left >= most
    assert 1 << rings.choose(1, most, most).right >= most
    for name, sizes in (("read_min", (most + 1, 1)), ("write_min", (1, most + 1)), ("read_min", (2**63 - 1, 2**63 - 1))):
        with pytest.raises(InvalidArgument) as caught:
            rings.choose(*sizes, most)
        assert name in caught.value.sentence
        assert str(most) in caught.value.sentence


def test_xens_limit_is_the_default() -> None:
    rings.choose(1 << 20, 1 << 20)
    with pytest.raises(InvalidArgument):
        rings.choose((1 << 20) + 1, 1)


@pytest.mark.parametrize(
    ("orders", "size"),
    [
        ((10, 11), 4096),
        ((11, 10), 4096),
        ((11, 12), 2 * 4096),
        ((12, 11), 2 * 4096),
        ((12, 12), 3 * 4096),
        ((13, 12), 4 * 4096),
        ((20, 20), 4096 + (2 << 20)),
        ((30, 30), 4096 + (2 << 30)),
    ],
)
def test_a_region_has_the_page_and_the_rings_that_do_not_fit_into_it(orders: tuple[int, int], size: int) -> None:
    assert Rings(*orders).size == size


# ---- rings that nobody asked for, and settings ----

PATH = "/local/domain/3/data/vchan/1/7"
ENDLESS = 1 << 62


def chosen(read_min: int, write_min: int, spare: int = ENDLESS, **settings: object) -> tuple[int, int]:
    made = Sizes(RingSettings(**settings), RING_MAX).choose(read_min, write_min, PATH, spare)  # type: ignore[arg-type]
    return made.left, made.right


@pytest.mark.parametrize(
    ("read_min", "write_min", "orders"),
    [
        (0, 0, (18, 18)),
        (1, 0, (10, 18)),
        (0, 1, (18, 11)),
        (2000, 0, (11, 18)),
        (0, 5000, (18, 13)),
        (1, 1, (10, 11)),
        (1 << 20, 0, (20, 18)),
    ],
)
def test_only_a_ring_for_which_0_is_asked_is_larger_than_xens(read_min: int, write_min: int, orders: tuple[int, int]) -> None:
    assert chosen(read_min, write_min) == orders


@pytest.mark.parametrize(
    ("spare", "orders"),
    [
        (4096 + (1 << 19), (18, 18)),
        (4095 + (1 << 19), (17, 17)),
        (4096 * 3, (12, 12)),
        (4096 * 3 - 1, (10, 11)),
        (0, (10, 11)),
        (-5, (10, 11)),
    ],
)
def test_a_ring_is_no_larger_than_there_is_room_and_xens_at_the_least(spare: int, orders: tuple[int, int]) -> None:
    assert chosen(0, 0, spare) == orders


@pytest.mark.parametrize(
    ("unasked", "orders"), [(0, (10, 11)), (4095, (10, 11)), (4096, (12, 12)), (300_000, (18, 18)), (1 << 30, (30, 30))]
)
def test_the_setting_says_how_large(unasked: int, orders: tuple[int, int]) -> None:
    assert chosen(0, 0, unasked=unasked) == orders


def test_what_nobody_asks_for_is_no_larger_than_what_may_be_asked_for() -> None:
    made = Sizes(RingSettings(), most=65536).choose(0, 0, PATH, ENDLESS)
    assert (made.left, made.right) == (16, 16)


@pytest.mark.parametrize("pattern", ["data/vchan/*", "data/vchan/1/7", "/local/domain/3/*", "*/7"])
def test_a_path_may_have_larger_rings_than_its_server_asks_for(pattern: str) -> None:
    minimum = ((pattern, 65536), ("other/*", 1 << 20))
    assert chosen(1, 100, minimum=minimum) == (16, 16)
    assert chosen(0, 70_000, minimum=minimum) == (16, 17)


@pytest.mark.parametrize("pattern", ["vchan/*", "data/vchan", "/data/*", "DATA/*"])
def test_another_path_has_not(pattern: str) -> None:
    assert chosen(1, 100, minimum=((pattern, 65536),)) == (10, 11)
