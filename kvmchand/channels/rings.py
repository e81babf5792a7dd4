# SPDX-License-Identifier: LGPL-2.1-or-later
"""How large a channel's rings are and where they lie, by Xen's rules (xen/io/libxenvchan.h)."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from kvmchand.config import XEN_RING_MAX, RingSettings
from kvmchand.errors import InvalidArgument
from kvmchand.ids import PAGE, Size

_SMALL, _LARGE = 10, 11  # the two orders that fit into the shared page, each once
_OWN_PAGES = 12
SHARE = 8
"""Of what is free, a channel without a wish for a size gets one part in so many."""
_NODE_PARTS = 4
"""Parts of a path up to what is below a domain's node: /local/domain/<id>/."""


@dataclass(frozen=True, slots=True)
class Rings:
    """Orders of the two rings.

    The client writes `left` and the server reads it; `right` is the other way.
    """

    left: int
    right: int

    @property
    def size(self) -> Size:
        """Return the bytes of the region.

        They are the shared page, and the rings that do not fit into it.
        """
        return Size(PAGE + sum(1 << order for order in (self.left, self.right) if order >= _OWN_PAGES))


def _order(least: int) -> int:
    return max(_OWN_PAGES, (least - 1).bit_length())


def choose(read_min: int, write_min: int, most: int = XEN_RING_MAX) -> Rings:
    """Return the rings for a server that wants to read and write at least this many bytes.

    By Xen's rule. Raises InvalidArgument if that is more than `most`.
    """
    for name, least in (("read_min", read_min), ("write_min", write_min)):
        if least > most:
            raise InvalidArgument(f"{name} is {least} bytes, and rings may have {most}: max_ring in the daemon's settings")
    small, large = 1 << _SMALL, 1 << _LARGE
    if read_min <= small and write_min <= large:
        return Rings(_SMALL, _LARGE)
    if read_min <= large and write_min <= small:
        return Rings(_LARGE, _SMALL)
    if read_min <= large:
        return Rings(_LARGE, _order(write_min))
    if write_min <= large:
        return Rings(_order(read_min), _LARGE)
    return Rings(_order(read_min), _order(write_min))


class Sizes:
    """How large the rings of an offered vchan are: Xen's rule, and the daemon's settings."""

    def __init__(self, settings: RingSettings, most: int = XEN_RING_MAX) -> None:
        """Allow rings of `most` bytes."""
        self._settings = settings
        self._most = most

    def choose(self, read_min: int, write_min: int, path: str, spare: int) -> Rings:
        """Return the rings for a server that wants to read and write at least this many bytes.

        `path`: the whole path. `spare`: bytes that the region should not exceed. Who asks for a
        size gets what Xen gives, as some programs bound their latency by it; who asks for 0 has no
        wish. Raises InvalidArgument if the server wants more than is allowed.
        """
        least = self._minimum(path)
        read_min, write_min = max(read_min, least), max(write_min, least)
        rings = choose(read_min, write_min, self._most)
        order = max(0, min(self._settings.unasked, self._most, (spare - PAGE) // 2)).bit_length() - 1
        if order < _OWN_PAGES:
            return rings
        return Rings(rings.left if read_min else order, rings.right if write_min else order)

    def _minimum(self, path: str) -> int:
        below = path.split("/", _NODE_PARTS)[-1]
        wanted = (least for pattern, least in self._settings.minimum if fnmatchcase(path, pattern) or fnmatchcase(below, pattern))
        return max(wanted, default=0)
