# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ivshmem functions of a guest, as main has them, and the vfio process that drives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvmchand.channels.rings import Rings
from kvmchand.config import RING_MAX
from kvmchand.errors import ProtocolError, VchanError
from kvmchand.ids import Size
from kvmchand.linux.vfio import close_device
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.supervisor import ServiceEvents, SupervisedService
from kvmchand.wire import client, control, vfio
from kvmchand.wire.packet import Fds

_PATIENCE = 120.0
"""As the supervisor's: where the processor is emulated, to find devices anew takes long."""
_ORDER_MIN = 10


@dataclass(slots=True, eq=False)
class Function:
    """A device that works. Its descriptors are ours until close().

    `memory` and `doorbell`: where BAR 2 and BAR 0 are in `fd`.
    """

    settings: vfio.Device
    fd: int
    events: list[int] = field(default_factory=list)
    """One eventfd for each vector."""

    @property
    def address(self) -> str:
        """Return its PCI address."""
        return self.settings.address

    @property
    def peer(self) -> int:
        """Return its ivshmem id."""
        return self.settings.peer

    @property
    def size(self) -> int:
        """Return the bytes of its memory."""
        return self.settings.size

    @property
    def memory(self) -> int:
        """Return where BAR 2 is in the descriptor."""
        return self.settings.memory

    @property
    def doorbell(self) -> int:
        """Return where BAR 0 is in the descriptor."""
        return self.settings.doorbell

    @property
    def info(self) -> client.DeviceInfo:
        """Return what `kvmchan ls` shows of it."""
        return client.DeviceInfo(self.address, Size(self.size), len(self.events), self.settings.speed)

    def require(self, granted: control.Granted) -> None:
        """Raise ProtocolError unless what was granted can be.

        Such rings must exist, and they and the vector lie within the device.
        """
        grant = granted.grant
        orders = (grant.left_order, grant.right_order)
        if not all(_ORDER_MIN <= order < RING_MAX.bit_length() for order in orders):
            raise ProtocolError(f"no rings have the orders {orders}")
        self.require_within(grant.offset, Rings(*orders).size)
        if not 0 <= granted.vector < len(self.events):
            raise ProtocolError(f"the device has no vector {granted.vector}")
        if not grant.events.endswith("doorbell"):
            raise ProtocolError(f"a channel here has no {grant.events[:40]!r} for events")

    def place(self, grant: client.Grant) -> client.Grant:
        """Return a grant as a client uses it.

        Its places are those of mmap, and not those in the device.
        """
        places = Size(self.memory + grant.offset), Size(self.doorbell)
        return client.Grant(
            grant.channel, grant.path, grant.left_order, grant.right_order, grant.events, *places, grant.doorbell_value
        )

    def require_within(self, offset: int, size: int) -> None:
        """Raise ProtocolError unless the device has this many bytes there."""
        if size <= 0 or offset + size > self.size:
            raise ProtocolError(f"{size} bytes at {offset} are not within a device of {self.size}")

    def close(self) -> None:
        """Close the descriptors."""
        fd, self.fd = self.fd, -1
        close_device(fd, self.events)


class FunctionEvents(Protocol):
    """Hears which devices a guest has."""

    def on_device(self, function: Function) -> None:
        """React when a device that works has come. It is the callee's to close."""

    def on_removed(self, address: str) -> None:
        """React when a device is gone, or is being unplugged and waits for all to let go of it."""

    def on_unusable(self, address: str, sentence: str) -> None:
        """React when a device is unusable, or all are, if `address` is empty."""

    def on_room(self, room: vfio.Room) -> None:
        """React when there is a window for one more device of a size, and for no larger one."""


class Functions(ServiceEvents):
    """A guest's ivshmem functions, and the vfio process that drives them."""

    _events: FunctionEvents
    """The object that start() was given."""

    def __init__(self, loop: Loop, fail: Callable[[VchanError], None], *, noiommu: bool) -> None:
        """Know of no function yet. `fail` is called when the vfio process has ended for good."""
        self._noiommu = noiommu
        self._groups: dict[str, Fds] = {}
        self._functions: dict[str, Function] = {}
        """The functions that were reported, including closed ones until they are removed."""
        self._service = SupervisedService(loop, "vfio", fail, patience=_PATIENCE)

    def start(self, events: FunctionEvents) -> None:
        """Start the vfio process. From now on `events` hears of devices."""
        self._events = events
        self._service.start(self)

    def release(self, function: Function) -> None:
        """Let go of a device, whose interrupts are turned off first. on_removed() follows."""
        self._service.send(vfio.to_vfio.encode(vfio.Release(function.address)))

    # ---- the vfio process: ServiceEvents ----

    def first_messages(self) -> list[tuple[bytes, Sequence[int]]]:
        """Return what a new vfio process is told."""
        told: list[tuple[object, Sequence[int]]] = [(vfio.Group(name), fds.borrow()) for name, fds in self._groups.items()]
        for function in self._functions.values():
            if function.fd < 0:
                told.append((vfio.LetGo(function.address), ()))
                continue
            told.append((function.settings, (function.fd,)))
            most = vfio.EVENTS_PER_PACKET
            for first in range(0, len(function.events), most):
                told.append((vfio.Events(function.address), function.events[first : first + most]))
        told.append((vfio.Start(self._noiommu), ()))
        return [(vfio.to_vfio.encode(message), fds) for message, fds in told]

    def decode(self, data: bytes, fds: Fds) -> object:
        """Return the message of a packet, whose descriptors are taken."""
        message = vfio.to_main.decode(data)
        match message:
            case vfio.Group():
                if len(fds) != 2 or message.name in self._groups:
                    raise ProtocolError(f"group {message.name} came without its descriptors, or twice")
                self._groups[message.name] = Fds(fds.steal())
                return None
            case vfio.GroupClosed():
                self._groups.pop(message.name).close()
                return None
            case vfio.Device():
                if len(fds) != 1 or message.vectors < 1:
                    raise ProtocolError(f"device {message.address} came without its descriptor or vectors")
                return Function(message, fds.steal()[0])
            case vfio.Events():
                function = self._functions.get(message.address)
                if function is None or len(function.events) + len(fds) > function.settings.vectors:
                    raise ProtocolError(f"device {message.address} has more vectors than it said")
                function.events += fds.steal()
                return function if len(function.events) == function.settings.vectors else None
        return message

    def on_message(self, message: object) -> None:
        """React to what the vfio process said."""
        self._service.reset_failures()
        match message:
            case Function():
                if message.events:
                    self._events.on_device(message)
                else:
                    self._functions[message.address] = message
            case vfio.Removed():
                self._functions.pop(message.address, None)
                self._events.on_removed(message.address)
            case vfio.Room():
                self._events.on_room(message)
            case vfio.Unusable():
                self._events.on_unusable(message.address, message.sentence)

    def on_death(self, culprit: int | None) -> None:
        """Continue: the next process gets everything back."""
        for function in [each for each in self._functions.values() if each.fd >= 0 and len(each.events) != each.settings.vectors]:
            self._functions.pop(function.address).close()  # it had not come whole

    def close(self) -> None:
        """End the process, and close what was not reported yet."""
        self._service.stop()
        for fds in self._groups.values():
            fds.close()
        self._groups.clear()
