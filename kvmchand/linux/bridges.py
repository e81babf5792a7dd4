# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bridges behind which devices are plugged, and the windows that they have.

They are bridges to conventional PCI. On arm64 they are root ports of PCI Express, for one device
each, for whose memory Linux makes the window itself when the device comes.

A bridge forwards a window of addresses to what is behind it. Firmware sets it: SeaBIOS leaves 2 MiB
to a bridge with nothing behind it, and UEFI leaves none, or 512 MiB. The kernel keeps a window
while there is anything behind the bridge, and sets it anew when it finds the bridge again: at least
as large as what is behind it, and with Linux 6.1 and 6.12 as large as its registers say, too
(calculate_memsize()).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kvmchand.linux import pci

ON_PORTS = os.uname().machine == "aarch64"
"""Whether devices are plugged right into ports of PCI Express here."""
_PREFETCHABLE = 0x24
"""Offset of a bridge's registers of its prefetchable window (PCI-to-PCI Bridge 1.2, 3.2.5.9)."""
_REGISTERS = struct.Struct("<HHII")
"""Bits 31 to 20 of its first and its last address, and the upper 32 of each."""
_START = 1 << 38
"""Where a window is put on paper: the kernel moves it."""


class Bridge(NamedTuple):
    """A bridge behind which a device may be plugged.

    `top`: the function on the root complex that it is behind, or is itself. `place`: the slots and
    functions on the way to it from there, by which the host knows it, too. `room`: the size of the
    largest memory that a device could still get there. `is_idle`: nothing there is in use.
    """

    address: str
    top: str
    place: str
    room: int
    is_idle: bool


def bridges(is_idle: Callable[[pci.Function], bool], root: Path = pci.SYS, *, on_ports: bool = ON_PORTS) -> list[Bridge]:
    """Return all bridges behind which devices may be plugged, sorted.

    `is_idle`: whether a function that is no bridge may go and come again. `on_ports`: that is right
    behind ports of PCI Express, each of which takes one device. Raises SysfsError if they can't be
    told.
    """
    seen = [pci.function(each, root) for each in pci.addresses(root)]
    bars = [bar for each in seen for bar in each.bars]
    ports = {each.address for each in seen if pci.is_bridge(each.address, root)}
    busy = {pci.way(each.address, root)[0] for each in seen if each.address not in ports and not is_idle(each)}
    full = busy | {pci.bridge(each, root) for each in ports} if on_ports else set[str]()
    found = []
    for address in sorted(ports - full):
        if pci.is_express_port(address, root) == on_ports:
            way = pci.way(address, root)
            place = "/".join(each.rpartition(":")[2] for each in way)
            room = max((pci.largest_fit(window, bars) for window in pci.windows(address, root)), default=0)
            found.append(Bridge(address, way[0], place, room, way[0] not in busy))
    return found


def find_anew(tops: Iterable[str], root: Path = pci.SYS) -> None:
    """Make the kernel find functions of a root complex again, with all that is behind them.

    Nothing there may be in use. Raises SysfsError if it does not look for them.
    """
    for top in tops:
        with suppress(pci.SysfsError):  # it went by itself
            pci.remove(top, root)
    pci.rescan(root)


def widen(found: Iterable[Bridge], size: int, root: Path = pci.SYS) -> None:
    """Give idle bridges windows of at least `size` bytes, if the kernel takes that from them.

    Raises SysfsError.
    """
    last = _START + size - 1
    registers = _REGISTERS.pack(_START >> 16 & 0xFFF0, last >> 16 & 0xFFF0, _START >> 32, last >> 32)
    tops = set()
    for each in found:
        pci.write_config(each.address, _PREFETCHABLE, registers, root)
        tops.add(each.top)
    find_anew(sorted(tops), root)
