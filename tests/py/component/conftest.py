# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

from rig.ivshmem import rig
from rig.served import qemu

__all__ = ["qemu", "rig"]
