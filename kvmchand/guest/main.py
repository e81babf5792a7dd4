# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's main process in a guest.

It forwards what local clients ask to the host's daemon, and hands them their ends.
"""

from __future__ import annotations

from contextlib import ExitStack

from kvmchand.config import Settings
from kvmchand.errors import VchanError
from kvmchand.guest.devices import Devices
from kvmchand.guest.plugging import Plugging
from kvmchand.guest.session import Session
from kvmchand.ids import HOST
from kvmchand.linux import libc
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.privileges import raise_descriptor_limit, require_user
from kvmchand.runtime.signals import keep_watchdog, notify, open_stdio, stopped_by_signals
from kvmchand.runtime.sockets import Sockets
from kvmchand.services.closer.closer import Closer
from kvmchand.services.local.clients import Clients
from kvmchand.services.vfio.functions import Functions
from kvmchand.wire import client


class Guest:
    """The parts of the process, which it builds, runs and closes.

    close() leaves nothing of it on the machine.
    """

    def __init__(self, settings: Settings) -> None:
        """Start all that the settings ask for. Raises VchanError if that is impossible."""
        self._loop = Loop()
        self._failure: VchanError | None = None
        self._undo = ExitStack()
        self._undo.callback(self._loop.close)
        try:
            self._open(settings)
        except BaseException:
            self.close()
            raise

    def _open(self, settings: Settings) -> None:
        raise_descriptor_limit()
        require_user(settings.service_user)
        self._undo.callback(Closer(self._loop, settings.service_user, self._fail).close)
        devices = Devices()
        self._undo.callback(devices.close)
        self._sockets = Sockets(settings.runtime_dir, settings.socket)
        self._undo.callback(self._sockets.close)
        self._undo.enter_context(stopped_by_signals(self._loop))
        # What number this guest has, the host says later.
        self._sockets.listen(HOST, client.SOCKET_NAME, client.STORE_SOCKET_NAME, "this guest")
        functions = Functions(self._loop, self._fail, noiommu=settings.noiommu)
        session = Session(self._loop, self._sockets, devices, functions, settings, self._fail)
        clients = Clients(
            self._loop, self._sockets, settings.service_user, settings.limits.max_channels, self._on_ready, self._fail
        )
        self._undo.callback(clients.close)
        self._undo.callback(session.close)
        self._undo.callback(functions.close)
        functions.start(Plugging(devices, session))
        session.start()
        clients.start(session.requests)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        keep_watchdog(self._loop)
        self._loop.run()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the services, close the devices and remove the sockets."""
        self._undo.close()

    def _on_ready(self) -> None:
        log.info(f"ready: {self._sockets}")
        notify("READY=1")

    def _fail(self, error: VchanError) -> None:
        self._failure = error
        self._loop.stop()


def serve(settings: Settings) -> None:
    """Run a guest's daemon until it is told to stop."""
    open_stdio()
    libc.set_process_name("kvmchand")
    guest = Guest(settings)
    try:
        guest.run()
    finally:
        guest.close()
