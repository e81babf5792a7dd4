# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program's answers over Xen's own libxenvchan, and where others part from them."""

from __future__ import annotations

import os
from pathlib import Path

from rig.paths import C_BUILD, REFERENCE_LIBDIR
from rig.processes import run

PROGRAM = C_BUILD / "differential"


STEPS = 1500


# What server_init is asked for: each of the ways in which the two rings can lie, and small, large
# and uneven ones.
RINGS = [
    (0, 0),
    (1024, 2048),
    (2048, 1024),
    (2048, 4096),
    (4096, 10),
    (5000, 9000),
    (65536, 65536),
    (1048576, 1048576),
    (1, 1048576),
]


def over_xens(folder: Path, *arguments: str) -> list[str]:
    folder.mkdir()
    environment = {**os.environ, "XEN_STANDIN_DIR": str(folder), "LD_LIBRARY_PATH": f"{C_BUILD}:{REFERENCE_LIBDIR}"}
    return run(PROGRAM, *arguments, env=environment).stdout.splitlines()


def first_difference(ours: list[str], xens: list[str]) -> str:
    """Return where the two part, with what led to it, or ""."""
    for number, (one, other) in enumerate(zip([*ours, "(nothing)"], [*xens, "(nothing)"], strict=False)):
        if one != other:
            before = "\n".join(ours[max(0, number - 8) : number])
            return f"{before}\nours: {one}\nXen's: {other}"
    return ""
