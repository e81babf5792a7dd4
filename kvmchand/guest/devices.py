# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ivshmem devices in this guest: which one the host means, and what it may grant of it."""

from __future__ import annotations

from collections.abc import Iterator

from kvmchand.errors import ProtocolError
from kvmchand.ids import CONTROL_PEER, PAGE
from kvmchand.services.vfio.functions import Function
from kvmchand.wire import client, control


class Devices:
    """The devices that work, by PCI address. The control device is one of them."""

    def __init__(self) -> None:
        """Begin without any."""
        self._devices: dict[str, Function] = {}
        self._had_control = False

    def __iter__(self) -> Iterator[Function]:
        """Iterate over the devices that channels may be on."""
        return iter([each for each in self._devices.values() if each.peer != CONTROL_PEER])

    def infos(self) -> tuple[client.DeviceInfo, ...]:
        """Return what `kvmchan ls` shows of all of them."""
        return tuple(each.info for each in self._devices.values())

    def outdated_by(self, function: Function) -> list[str]:
        """Return the addresses of the devices that are over when `function` comes.

        That is the one at its address, or all if the host's daemon is another one now.
        """
        if function.peer == CONTROL_PEER and self._had_control:
            return list(self._devices)
        return [address for address in self._devices if address == function.address]

    def add(self, function: Function) -> None:
        """Take ownership of a device."""
        self._devices[function.address] = function
        self._had_control |= function.peer == CONTROL_PEER

    def remove(self, address: str) -> Function | None:
        """Return the device at an address, which is the caller's to close, if there is one."""
        return self._devices.pop(address, None)

    def of_peer(self, peer: int) -> Function | None:
        """Return the last device of an id.

        One that an earlier daemon made may still be on its way out.
        """
        return next((each for each in reversed(self._devices.values()) if each.peer == peer), None)

    def of_grant(self, granted: control.Granted) -> Function:
        """Return the device that a grant is on.

        Raises ProtocolError if it does not lie within a device that is here.
        """
        function = self._of_channels(granted.peer)
        function.require(granted)
        return function

    def of_pages(self, shared: control.Shared) -> Function:
        """Return the device that pages are on.

        Raises ProtocolError if they do not lie within a device that is here.
        """
        function = self._of_channels(shared.peer)
        function.require_within(shared.pages.offset, shared.pages.pages * PAGE)
        return function

    def _of_channels(self, peer: int) -> Function:
        function = self.of_peer(peer)
        if function is None or peer == CONTROL_PEER:
            raise ProtocolError(f"there is no device {peer} here")
        return function

    def close(self) -> None:
        """Close all of them."""
        for function in self._devices.values():
            function.close()
        self._devices.clear()
