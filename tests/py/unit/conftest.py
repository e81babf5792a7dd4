# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

from collections.abc import Iterator

import pytest

from rig.store import Rig, assert_sound


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A store with a client in each domain, which must be sound at the end."""
    made = Rig()
    yield made
    assert_sound(made.store)
