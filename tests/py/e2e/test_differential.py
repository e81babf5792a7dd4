# SPDX-License-Identifier: LGPL-2.1-or-later
"""One program, compiled with Xen's headers, run over Xen's own libxenvchan and over ours: both must
answer all the same.

The program (tests/c/differential.c) asks a random series of questions, and the seed tells which.
Xen's library runs on stand-ins for what it needs of Xen (tests/c/standins).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.daemon import Daemon, serving
from rig.differential import PROGRAM, RINGS, STEPS, first_difference, over_xens
from rig.paths import KVMCHAN
from rig.processes import run

SEEDS = 3


@pytest.fixture(scope="module")
def xens_rings(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon that gives who asks for 0 bytes what Xen gives."""
    folder = tmp_path_factory.mktemp("xens")
    settings = folder / "settings.toml"
    settings.write_text("[rings]\nunasked = 0\n")
    yield from serving(Daemon(folder, "--config", str(settings)), request)


def over_ours(daemon: Daemon, *arguments: str) -> list[str]:
    return run(KVMCHAN, "exec", "--", PROGRAM, *arguments, env=daemon.environment()).stdout.splitlines()


@pytest.mark.parametrize(("read_min", "write_min"), RINGS)
def test_random_series_of_calls_are_answered_as_by_xens_library(
    xens_rings: Daemon, tmp_path: Path, read_min: int, write_min: int
) -> None:
    for seed in range(SEEDS):
        # Other seeds for every kind of ring.
        number = 1 + seed + SEEDS * RINGS.index((read_min, write_min))
        arguments = ["--raw", "--second-client", str(number), str(STEPS), str(read_min), str(write_min), f"data/vchan/{seed}"]
        ours, xens = over_ours(xens_rings, *arguments), over_xens(tmp_path / f"standin-{seed}", *arguments)
        assert first_difference(ours, xens) == "", f"seed {number}"
        assert ours[-1] == "end"
        assert len(ours) > STEPS // 2


def test_rings_of_every_pair_of_sizes_are_xens(xens_rings: Daemon, tmp_path: Path) -> None:
    ours, xens = (
        over_ours(xens_rings, "--table", "data/vchan/table"),
        over_xens(tmp_path / "standin", "--table", "data/vchan/table"),
    )
    assert first_difference(ours, xens) == ""
    # 23 sizes either way, two of them too large.
    assert len([line for line in ours if line.startswith("server_init") and line.endswith("ok")]) == 21 * 21
    assert len([line for line in ours if line.startswith("server_init") and line.endswith("NULL")]) == 23 * 23 - 21 * 21
