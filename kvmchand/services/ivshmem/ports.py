# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where each QEMU connects to get a device, and its connection, as main has them.

Main accepts a QEMU and tells it everything by one system call. So no other process of ours can fail
in between, and leave the QEMU standing still.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kvmchand.channels.device import Device
from kvmchand.ids import DomainId
from kvmchand.linux import libc
from kvmchand.linux.burst import Burst
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop, Timer
from kvmchand.services.ivshmem.handshake import refuse, refuse_all

_LOOK_INTERVAL = 0.02
"""Seconds between two attempts to send what there was no room for, as happens without privileges
only.
"""


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that a QEMU connects to. `path`: a secret; whoever knows it gets the device."""

    path: Path
    sock: socket.socket

    def close(self) -> None:
        """Refuse who waits, close the socket and remove its path."""
        refuse_all(self.sock)
        self.sock.close()
        self.path.unlink(missing_ok=True)


@dataclass(slots=True, eq=False)
class Connection:
    """A QEMU's connection. `told`: messages of the handshake that it was sent."""

    sock: socket.socket
    told: int = 0
    next_look: Timer | None = None


class Spare:
    """A descriptor that is given up for a moment when there is no other."""

    def __init__(self) -> None:
        """Take one."""
        self._fd = _open_nothing()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Give it up within the context."""
        os.close(self._fd)
        try:
            yield
        finally:
            self._fd = _open_nothing()

    def close(self) -> None:
        """Give it up."""
        os.close(self._fd)


class PortEvents(Protocol):
    """Hears what QEMUs do at a port. May close the port when it is called."""

    def on_connected(self, port: Port) -> None:
        """React when a QEMU has connected, before the port says that it is served."""

    def on_served(self, port: Port) -> None:
        """React when the QEMU has been sent everything."""

    def on_disconnected(self, port: Port, *, was_served: bool) -> None:
        """React when the QEMU has ended its connection, or lost it."""


class Port:
    """One guest's way to a device. Its last connection counts."""

    def __init__(
        self,
        loop: Loop,
        events: PortEvents,
        spare: Spare,
        device: Device,
        peer: int,
        listener: Listener,
        burst: Burst,
        *,
        once: bool,
    ) -> None:
        """Let nobody in yet.

        `burst`: the handshake. `once`: the listener serves another device after one connection. It
        stays the caller's, as `spare` does.
        """
        self._loop = loop
        self._events = events
        self.device = device
        self._peer = peer
        self.listener = listener
        self._burst = burst
        self._once = once
        self._spare = spare
        self.is_listening = False
        self.connection: Connection | None = None

    def __str__(self) -> str:
        return f"domain {self.domain}'s QEMU, of device {self.device.number},"

    @property
    def domain(self) -> DomainId:
        """The guest's number, which a domain that starts gets later than its device."""
        return next(domain for domain, peer in self.device.peers.items() if peer == self._peer)

    @property
    def is_served(self) -> bool:
        """Whether the QEMU that is connected was sent everything."""
        return self.connection is not None and self.connection.told == len(self._burst)

    @property
    def has_read(self) -> bool:
        """Whether no QEMU is connected that has anything left to read."""
        return self.connection is None or (self.is_served and libc.unread(self.connection.sock.fileno()) == 0)

    # ---- the listener ----

    def listen(self) -> None:
        """Let the QEMU in from now on."""
        self.is_listening = True
        self._loop.add(self.listener.sock.fileno(), lambda _events: self.accept())

    def _stop_listening(self) -> None:
        if self.is_listening:
            self.is_listening = False
            self._loop.remove(self.listener.sock.fileno())

    def accept(self) -> None:
        """Serve the QEMU that waits, if one does."""
        if not self.is_listening:
            return
        try:
            sock, _ = self.listener.sock.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning(f"{self} is refused, for lack of descriptors: {error.strerror}")
            self._refuse_without_descriptors()
            return
        if self.connection is not None and _has_gone(self.connection.sock):
            self.end()  # as the ivshmem process is about to say
        if self.connection is not None and not libc.are_of_one_process(self.connection.sock, sock):
            log.warning(f"{self} is connected: another that connected is refused")
            refuse(sock)
            return
        # The same QEMU: libvirtd ended while it plugged the device, and the next one begins anew.
        self._let_go(hangs_up=True)
        self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._burst.make_room(sock)
        self.connection = Connection(sock)
        self._tell(self.connection)
        if self._once:
            self._stop_listening()
        self._events.on_connected(self)
        self._go_on()

    def _refuse_without_descriptors(self) -> None:
        """Refuse who waits: it would keep waking the loop, and stand still."""
        with self._spare.lent(), suppress(OSError):  # it may have gone
            refuse(self.listener.sock.accept()[0])

    # ---- the connection ----

    def _tell(self, connection: Connection) -> None:
        try:
            connection.told = self._burst.send(connection.sock, connection.told)
        except ConnectionError:
            pass  # it has gone, as the ivshmem process says
        except OSError as error:
            log.warning(f"{self} waits for the rest of it: {error.strerror}")

    def _go_on(self) -> None:
        """Report that the QEMU is served, or look again soon whether the rest can be sent."""
        if self.is_served:
            self._events.on_served(self)
        elif self.connection is not None:
            self.connection.next_look = self._loop.call_at(time.monotonic() + _LOOK_INTERVAL, self._look)

    def _look(self) -> None:
        if self.connection is not None:
            self._tell(self.connection)
            self._go_on()

    def end(self, *, hangs_up: bool = False) -> None:
        """End the connection. `hangs_up`: the QEMU does not know that yet."""
        was_served = self.is_served
        self._let_go(hangs_up=hangs_up)
        self._events.on_disconnected(self, was_served=was_served)

    def _let_go(self, *, hangs_up: bool) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if connection.next_look is not None:
            connection.next_look.cancel()
        if hangs_up:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)  # for the ivshmem process's duplicate, too
            except OSError:
                pass  # gone already
        connection.sock.close()

    def close(self) -> None:
        """Let nobody in any more. A QEMU that has the device keeps what it has."""
        self._stop_listening()
        self._let_go(hangs_up=False)


def _open_nothing() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def _has_gone(sock: socket.socket) -> bool:
    """Return whether the other end is closed."""
    poll = select.poll()
    poll.register(sock, 0)  # its end is told in any case
    return bool(poll.poll(0))
