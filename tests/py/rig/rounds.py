# SPDX-License-Identifier: LGPL-2.1-or-later
"""How often a test repeats what may fail now and then."""

from __future__ import annotations

import os


def rounds(full: int, few: int) -> range:
    """Return as many rounds as were asked for: `few`, or `full` with KVMCHAN_TEST_ROUNDS=full."""
    return range(full if os.environ.get("KVMCHAN_TEST_ROUNDS", "") == "full" else few)
