# SPDX-License-Identifier: LGPL-2.1-or-later
"""One end of a vchan in this process: what C has allocated and mapped.

It lives until nobody refers to it, so that neither a thread in a call nor a view of a ring's bytes
outlives it. Closing the vchan closes its descriptors, and leaves the memory to those.
"""

from __future__ import annotations

import ctypes
import weakref

from kvmchand.wire import dataplane

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from libxenvchan_shim.connection import Granted


class End:
    """An attached end."""

    def __init__(self, granted: Granted, *, is_server: bool, control_fd: int) -> None:
        """Attach. Takes ownership of the descriptors."""
        self._pointer: Any = None
        self._viewed: list[weakref.ref[Any]] = []
        fds = (granted.region, granted.event, granted.notify)
        self._pointer = dataplane.attach_end(granted.grant, fds, is_server=is_server, control_fd=control_fd)
        control = self._pointer.contents
        self.ref = ctypes.byref(control)
        """What C's functions take."""
        self.read_ring: int = 1 << control.read.order
        """Bytes that the ring holds from which this end reads."""
        self.write_ring: int = 1 << control.write.order
        self._read_address: int = control.read.buffer
        self._write_address: int = control.write.buffer
        self.chars: Any = (ctypes.c_char * self.read_ring).from_address(self._read_address)
        """The bytes of the ring from which this end reads. A slice is a copy."""

    def views(self) -> tuple[memoryview, memoryview]:
        """Return the rings in place: to read from, and to write to. The end lives while they do."""
        return self._view(self._read_address, self.read_ring).toreadonly(), self._view(self._write_address, self.write_ring)

    def _view(self, address: int, size: int) -> memoryview:
        ring = (ctypes.c_ubyte * size).from_address(address)
        ring._end = self  # type: ignore[attr-defined]
        self._viewed.append(weakref.ref(ring))
        return memoryview(ring).cast("B")

    def address(self) -> int:
        """Return where the struct libxenvchan is, and leave it to the caller.

        Raises BufferError while there are views, which would outlive the memory.
        """
        if any(each() is not None for each in self._viewed):
            raise BufferError("something is still made of a span of the vchan, such as a slice or a numpy array")
        pointer, self._pointer = self._pointer, None
        return ctypes.addressof(pointer.contents)

    def hang_up(self) -> None:
        """Tell the peer that this end is gone, and end the waits that can be woken."""
        dataplane.hang_up(self._pointer)
        dataplane.shut(self._pointer)

    def forget(self) -> None:
        """In a forked child: let go of the parent's end, and tell nobody."""
        dataplane.forget(self._pointer)

    def close_descriptors(self) -> int:
        """Close them, but return the connection to the daemon, which is the caller's; -1: none."""
        fd: int = dataplane.steal_control(self._pointer)
        dataplane.close_descriptors(self._pointer)
        return fd

    def __del__(self) -> None:
        if self._pointer is not None:
            dataplane.detach(self._pointer)
