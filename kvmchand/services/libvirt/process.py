# SPDX-License-Identifier: LGPL-2.1-or-later
"""The libvirt process: tells main of the hypervisor's domains, and plugs their devices.

It uses only libvirt's typed interface, so no domain is tainted. It reconnects when libvirtd comes
back. No domain waits for another one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kvmchand.ids import DomainId
from kvmchand.linux import libc
from kvmchand.runtime import log
from kvmchand.runtime.marker import BEAT, Marker
from kvmchand.runtime.supervisor import HOPELESS
from kvmchand.services.libvirt import inspection
from kvmchand.services.libvirt.plugger import Plugger
from kvmchand.wire import libvirt as wire
from kvmchand.wire.packet import receive_packet, send_packet

try:
    import libvirt
    import libvirtaio
except ImportError:
    libvirt = None

_BACK_OFF = (0.5, 30.0)
"""Seconds between two attempts to connect: the first ones, and the most."""
_CALLS_MAX = 512
"""Calls of libvirt's at once. One that hangs has its thread until it ends."""
_KEEP_ALIVE = (5, 3)
"""Seconds between two probes of libvirtd, and how many may go unanswered."""


def _register_events(loop: asyncio.AbstractEventLoop) -> None:
    """Let libvirt use the loop from any thread.

    A call on another thread may receive an event, or the end of its connection, and a sleeping loop
    would not notice.
    """
    ours = threading.get_ident()
    events = libvirtaio.virEventAsyncIOImpl(loop)

    def waking(do: Callable[..., Any]) -> Callable[..., Any]:
        def wake(*arguments: Any) -> Any:
            result = do(*arguments)
            if threading.get_ident() != ours:
                loop.call_soon_threadsafe(lambda: None)
            return result

        return wake

    handles = (events._add_handle, events._update_handle, events._remove_handle)
    timeouts = (events._add_timeout, events._update_timeout, events._remove_timeout)
    libvirt.virEventRegisterImpl(*map(waking, handles + timeouts))


class Domains:
    """The process's whole state."""

    def __init__(self, main: socket.socket, marker: Marker) -> None:
        self._main = main
        self._marker = marker
        self._folder = Path()
        """The folder of the devices' sockets."""
        self._connection: Any = None
        self._ids: dict[str, DomainId] = {}
        """Numbers of running domains, by uuid: one that has ended has no number any more."""
        self._plugger = Plugger(self._call, self._say)
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """For what happens to a domain, by uuid: one thing after another."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._connected = asyncio.Event()
        self._events: asyncio.Queue[tuple[Any, int | None, int] | None] = asyncio.Queue()
        """What happened to which domain: a lifecycle event, or None for a reset, and its detail.

        A None alone says that the connection is lost.
        """

    async def run(self) -> None:
        """Serve until main ends."""
        loop = asyncio.get_running_loop()
        _register_events(loop)
        loop.set_default_executor(ThreadPoolExecutor(_CALLS_MAX))
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self._main.setblocking(False)
        loop.add_reader(self._main.fileno(), self._hear_main)
        self._beat()
        await self._ended.wait()
        for task in self._tasks:
            task.cancel()
        # A thread may be within a call of libvirt's that does not end: nothing is ours to tidy up.
        os._exit(0)

    def _beat(self) -> None:
        self._marker.beat()
        asyncio.get_running_loop().call_later(BEAT, self._beat)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- main ----

    def _hear_main(self) -> None:
        try:
            data, fds = receive_packet(self._main)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._ended.set()
            return
        fds.close()
        message = wire.to_libvirt.decode(data)
        match message:
            case wire.Start():
                self._folder = Path(message.folder)
                self._say(wire.Started())
                self._spawn(self._stay_connected(message))
            case wire.Attach():
                self._spawn(self._plugger.attach(message))
            case wire.Detach():
                self._spawn(self._plugger.detach(message))

    def _say(self, message: object) -> None:
        data = wire.to_main.encode(message)  # a ProtocolError is no sign that main has ended
        self._main.setblocking(True)
        try:
            send_packet(self._main, data)
        except OSError:
            self._ended.set()
        finally:
            self._main.setblocking(False)

    # ---- the hypervisor ----

    async def _stay_connected(self, start: wire.Start) -> None:
        wait, complained = _BACK_OFF[0], False
        while True:
            try:
                self._connection = await asyncio.to_thread(libvirt.open, start.uri)
                await self._serve(complained)
                wait, complained = _BACK_OFF[0], True
                log.warning(f"the connection to libvirt ({start.uri}) is lost")
            except libvirt.libvirtError as error:
                if not complained:
                    log.warning(f"libvirt ({start.uri}) can't be reached, and is tried again: {error.get_error_message()}")
                    complained = True
            self._connection = None
            await asyncio.sleep(wait)
            wait = min(2 * wait, _BACK_OFF[1])

    async def _serve(self, again: bool) -> None:
        """Serve until the connection is lost."""
        connection, loop = self._connection, asyncio.get_running_loop()
        events = self._events = asyncio.Queue()
        connection.registerCloseCallback(lambda *_arguments: loop.call_soon_threadsafe(events.put_nowait, None), None)
        connection.setKeepAlive(*_KEEP_ALIVE)
        callbacks: list[int] = []
        try:
            for event, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._on_removed),
            ):
                callbacks.append(await asyncio.to_thread(connection.domainEventRegisterAny, None, event, callback, None))
            running = await asyncio.to_thread(inspection.running, connection, self._folder)
            self._list(running, await asyncio.to_thread(inspection.persistent, connection, self._folder))
            self._connected.set()
            log.info(f"connected to libvirt{' again' if again else ''}: {len(self._ids)} domains run")
            for detach in self._plugger.asked():
                self._spawn(self._plugger.detach(detach))
            while (happened := await events.get()) is not None:
                self._spawn(self._note(connection, *happened))
        finally:
            self._connected.clear()
            await asyncio.to_thread(_deregister, connection, callbacks)

    def _list(self, running: list[tuple[wire.Found, bool]], persistent: list[object]) -> None:
        """Report all domains at once, because main takes the list for complete.

        `running`: each domain, and whether it is paused. `persistent`: what main is told.
        """
        self._ids.clear()
        for found, paused in running:
            self._find(found)
            self._say(wire.Paused(found.domain, paused))
        for message in persistent:
            self._say(message)
        self._say(wire.Listed())

    def _find(self, found: wire.Found) -> None:
        self._ids[found.uuid] = found.domain
        self._say(found)

    async def _tell_if_prepared(self, domain: Any) -> None:
        message = await asyncio.to_thread(inspection.prepared, domain, self._folder)
        if message is not None:
            self._say(message)

    def _on_lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        self._events.put_nowait((domain, event, detail))

    def _on_removed(self, _connection: Any, domain: Any, alias: str, _opaque: Any) -> None:
        self._plugger.note_removed(domain.UUIDString(), alias)

    def _on_reboot(self, _connection: Any, domain: Any, _opaque: Any) -> None:
        self._events.put_nowait((domain, None, 0))

    async def _note(self, connection: Any, domain: Any, event: int | None, detail: int) -> None:
        """Report what happened to a domain, after what happened to it before."""
        uuid = domain.UUIDString()
        async with self._turns[uuid]:
            found = None
            if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
                found = await asyncio.to_thread(inspection.look_at, domain, self._folder)
            if connection is self._connection:  # or all is reported anew
                self._report(domain, uuid, event, detail, found)
        if uuid not in self._ids and not self._turns[uuid].locked():
            del self._turns[uuid]

    def _report(self, domain: Any, uuid: str, event: int | None, detail: int, found: wire.Found | None) -> None:
        match event:
            case libvirt.VIR_DOMAIN_EVENT_STARTED:
                if found is not None:
                    self._find(found)
            case libvirt.VIR_DOMAIN_EVENT_DEFINED:
                self._spawn(self._tell_if_prepared(domain))
            case libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
                self._say(wire.Unprepared(uuid))
                if detail != libvirt.VIR_DOMAIN_EVENT_UNDEFINED_RENAMED and uuid not in self._ids:
                    self._say(wire.Undefined(uuid))
            case libvirt.VIR_DOMAIN_EVENT_STOPPED:
                if uuid in self._ids:
                    number = self._ids.pop(uuid)
                    self._plugger.forget(uuid, number)
                    self._say(wire.Gone(number))
            case libvirt.VIR_DOMAIN_EVENT_SUSPENDED | libvirt.VIR_DOMAIN_EVENT_RESUMED:
                if uuid in self._ids:
                    self._say(wire.Paused(self._ids[uuid], event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED))
            case None:
                if uuid in self._ids:
                    self._say(wire.Rebooted(self._ids[uuid]))

    # ---- calls ----

    async def _call(self, work: Callable[..., Any], *arguments: object) -> Any:
        """Call `work` with the connection, in a thread.

        Calls it again if the connection ends meanwhile.
        """
        while True:
            await self._connected.wait()
            connection = self._connection
            try:
                return await asyncio.to_thread(work, connection, *arguments)
            except libvirt.libvirtError:
                if connection.isAlive():
                    raise
                if connection is self._connection:
                    self._connected.clear()
                    self._events.put_nowait(None)


def _deregister(connection: Any, callbacks: list[int]) -> None:
    """Let go of a connection.

    libvirt has a reference for each callback, and the callbacks have one to the connection.
    """
    for callback in callbacks:
        try:
            connection.domainEventDeregisterAny(callback)
        except libvirt.libvirtError:
            pass  # libvirtd can't be told, as it is gone
    gc.collect()


def main(socket_fd: int, marker_fd: int) -> None:
    """Run the process."""
    libc.set_process_name("kvmchand-virt")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # main's, which ends us
    if libvirt is None:
        log.warning(
            "virtual machines can't be served without libvirt's Python module: install python3-libvirt (libvirt-python), "
            "or start kvmchand host with --no-libvirt"
        )
        sys.exit(HOPELESS)
    asyncio.run(_serve(socket.socket(fileno=socket_fd), Marker(marker_fd)))


async def _serve(main_socket: socket.socket, marker: Marker) -> None:
    await Domains(main_socket, marker).run()
