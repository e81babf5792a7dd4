# SPDX-License-Identifier: LGPL-2.1-or-later
"""IOMMU groups that a guest's daemon has open, all in one VFIO container. They stay open as long as the daemon lives: a device
can be opened again only by way of its group.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from kvmchand import log
from kvmchand.linux import pci, vfio

DRIVER = "vfio-pci"


class Unusable(Exception):
    """A sentence that says why a device can't be used, and what to do."""


class Later(Exception):
    """It can't be used yet."""


class Groups:
    def __init__(self, on_open: Callable[[str, int, int], None]) -> None:
        """`on_open`: hears of each new group, by its name, and of its descriptor and the container's, which stay ours."""
        self._on_open = on_open
        self._container = -1
        self._groups: dict[str, int] = {}
        self._busy: set[str] = set()
        """Groups that are open elsewhere, and were complained of."""

    def restore(self, name: str, group: int, container: int) -> None:
        """Takes the descriptors of a group that a process before this one opened."""
        self._groups[name] = group
        if self._container < 0:
            self._container = container
        else:
            os.close(container)

    def open(self, name: str) -> int:
        """A group's descriptor, which stays ours. Unusable, or Later where it is open elsewhere."""
        known = self._groups.get(name)
        if known is not None:
            return known
        group = self._open(name)
        try:
            if not vfio.is_viable(group):
                raise Unusable(f"its IOMMU group {name} has others in it that a driver has: {self._strangers(name)}")
            self._join(group)
        except BaseException:
            os.close(group)
            raise
        self._groups[name] = group
        self._busy.discard(name)
        self._on_open(name, group, self._container)
        return group

    def _open(self, name: str) -> int:
        try:
            return vfio.open_group(name)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise Unusable(
                    f"its IOMMU group {name} can't be opened: {error.strerror}: is the module {DRIVER} there?"
                ) from error
            if name not in self._busy:
                self._busy.add(name)
                log.warning(f"IOMMU group {name} is still open elsewhere: programs with channels of a daemon before this one?")
            raise Later from error

    def _strangers(self, name: str) -> str:
        members = [pci.function(address) for address in pci.group_members(name)]
        return ", ".join(f"{each.address} ({each.driver})" for each in members if each.driver not in ("", DRIVER, "pcieport"))

    def _join(self, group: int) -> None:
        if self._container >= 0:
            vfio.join(group, self._container)
            return
        container = vfio.open_container()
        try:
            vfio.join(group, container)
            kind = vfio.TYPE1V2_IOMMU if vfio.has_iommu(container, vfio.TYPE1V2_IOMMU) else vfio.TYPE1_IOMMU
            vfio.set_iommu(container, kind)
        except BaseException:
            os.close(container)
            raise
        self._container = container
