# SPDX-License-Identifier: LGPL-2.1-or-later
"""All that serves guests, built, started and closed together.

What only has state and takes commands comes first: devices, sessions, the hypervisor, and the pool
of devices on them. When the services start, they are told who hears what happens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from kvmchand.channels.requester import RequesterEvents
from kvmchand.config import Settings
from kvmchand.errors import VchanError
from kvmchand.links.detachments import Detachments
from kvmchand.links.guest import GuestEvents
from kvmchand.links.guests import Guests
from kvmchand.links.handshake import Handshakes
from kvmchand.links.lifecycle import Lifecycle
from kvmchand.links.links import LinkLimits, Links
from kvmchand.links.messages import Messages
from kvmchand.links.plugs import Plugs
from kvmchand.links.pool import Pool
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.services.control.sessions import Sessions
from kvmchand.services.ivshmem.devices import Devices
from kvmchand.services.libvirt.hypervisor import Hypervisor


class Machines:
    """The guests, their devices, and the services for both."""

    detachments: Detachments
    """Made by start()."""

    def __init__(self, loop: Loop, settings: Settings, fail: Callable[[VchanError], None]) -> None:
        """Prepare all, and start nothing.

        `fail` is called when a service that must run has ended for good. Raises InvalidArgument if
        the directory of sockets is unusable.
        """
        self._loop = loop
        self._settings = settings
        limits, user = settings.limits, settings.service_user
        folder = settings.runtime_dir / "ivshmem"
        self._links = Links(LinkLimits(limits.guest_devices, limits.guest_bytes), settings.links.dedicated)
        self._undo = ExitStack()
        self._devices = Devices(loop, folder, user, fail)
        self._undo.callback(self._devices.close)
        self._sessions = Sessions(loop, user, fail, is_host=True, rate=limits.guest_requests)
        self._hypervisor = Hypervisor(loop, settings.libvirt, folder, _log_failure)
        self.guests = Guests(self._links, self._sessions)
        self.pool = Pool(loop, self._links, self._devices, self._hypervisor, settings.links, self.guests.tell_daemon)
        self._undo.callback(self.pool.cold_plug.close)
        self._undo.callback(self._sessions.close)
        self._undo.callback(self._hypervisor.close)

    def start(self, requests: RequesterEvents, events: GuestEvents, next_generation: Callable[[], int]) -> None:
        """Serve guests. `requests` hears their clients, and `events` all else."""
        loop, links, guests, pool = self._loop, self._links, self.guests, self.pool
        settings = self._settings
        limits, pairs = settings.limits, settings.links.pairs
        handshakes = Handshakes(loop, links, self._devices, self._sessions, events, next_generation)
        plugs = Plugs(guests, pool, handshakes, events)
        messages = Messages(
            links, guests, pool, self._sessions, handshakes, plugs, requests, events, limits.guest_channels, pairs
        )
        self.detachments = Detachments(loop, links, guests, pool, self._devices, self._hypervisor, handshakes, events)
        served = settings.local_domains, settings.guests.serve
        lifecycle = Lifecycle(loop, links, guests, pool, handshakes, plugs, self.detachments, events, *served)
        self._devices.start(plugs)
        self._sessions.start(messages)
        self._hypervisor.start(lifecycle)

    def leave_memory(self) -> None:
        """Zero nothing any more that guests may have mapped, who do not know yet that we end."""
        for device in self._links.devices.values():
            device.ready.clear()

    def close(self) -> None:
        """End the services, and all devices with them."""
        self._undo.close()


def _log_failure(error: VchanError) -> None:
    log.warning(f"no virtual machines are served: {error.sentence}")
