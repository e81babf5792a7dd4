# SPDX-License-Identifier: LGPL-2.1-or-later
"""The IOMMU groups that a guest's daemon has open, each in a VFIO container of its own.

They need no common container because nothing of ours uses DMA. A group lives from the first device
that is opened in it to the last: a kernel that sees the last one unplugged makes another group of
the same name for the next device, and the old descriptor is useless.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NamedTuple

from kvmchand.linux import pci, vfio
from kvmchand.runtime import log

DRIVER = "vfio-pci"
IOMMU_MODULE = "vfio_iommu_type1"


class Unusable(Exception):
    """A sentence that says why a device cannot be used, and what to do."""


class Later(Exception):
    """The device cannot be used yet."""


def no_module(name: str) -> str:
    """Return why nothing can be used without a module of the kernel, and what to do."""
    return (
        f"this guest's kernel has no {name}: modprobe {name} says why. Install a kernel that has it (Debian's for the cloud has "
        "not), then start kvmchand guest again"
    )


class Group(NamedTuple):
    """A group. `fd` and `container` are descriptors, closed when Groups closes it."""

    name: str
    fd: int
    container: int


class Groups:
    """The open groups."""

    def __init__(self, on_open: Callable[[Group], None]) -> None:
        self._on_open = on_open
        self._groups: dict[str, Group] = {}
        self._busy: set[str] = set()
        """Groups that are open elsewhere, and were reported."""

    def restore(self, group: Group) -> None:
        """Take over a group that an earlier process opened."""
        self._groups[group.name] = group

    def open(self, name: str) -> Group:
        """Return a group, opened if need be. Raises Unusable, or Later if it is open elsewhere."""
        known = self._groups.get(name)
        if known is not None:
            return known
        fd = self._open(name)
        try:
            if not vfio.is_viable(fd):
                raise Unusable(f"its IOMMU group {name} has others in it that a driver has: {self._strangers(name)}")
            container = self._contain(fd, is_noiommu=name.startswith(vfio.NOIOMMU_PREFIX))
        except BaseException:
            os.close(fd)
            raise
        group = self._groups[name] = Group(name, fd, container)
        self._busy.discard(name)
        self._on_open(group)
        return group

    def names(self) -> list[str]:
        """Return the names of the open groups."""
        return list(self._groups)

    def close(self, name: str) -> None:
        """Close a group whose last device was closed."""
        group = self._groups.pop(name)
        os.close(group.fd)
        os.close(group.container)

    def _open(self, name: str) -> int:
        try:
            return vfio.open_group(name)
        except OSError as error:
            if error.errno == errno.EPERM and name.startswith(vfio.NOIOMMU_PREFIX):
                raise Unusable("without a vIOMMU only root may use it (CAP_SYS_RAWIO): start kvmchand guest as root") from error
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

    def _contain(self, group: int, *, is_noiommu: bool) -> int:
        """Return a container that has the group."""
        container = vfio.open_container()
        try:
            vfio.join(group, container)
            confining = (each for each in (vfio.TYPE1V2_IOMMU, vfio.TYPE1_IOMMU) if vfio.has_iommu(container, each))
            kind = vfio.NOIOMMU_IOMMU if is_noiommu else next(confining, None)
            if kind is None:
                raise Unusable(no_module(IOMMU_MODULE))
            vfio.set_iommu(container, kind)
        except BaseException:
            os.close(container)
            raise
        return container
