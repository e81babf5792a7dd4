# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where each QEMU connects to get a device, and its connection, as main has them.

Main accepts a QEMU and tells it everything by one system call. So no other process of ours can fail
in between, and leave the QEMU standing still.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kvmchand.channels.device import Device
from kvmchand.ids import DomainId
from kvmchand.linux import libc
from kvmchand.linux.burst import Burst
from kvmchand.runtime import closer, log
from kvmchand.runtime.loop import Loop, Timer
from kvmchand.services.ivshmem.handshake import refuse, refuse_all
from kvmchand.services.ivshmem.unread import Unread, has_gone, has_read, wait_read

_LOOK_INTERVAL = 0.02
"""Seconds between two attempts to send what there was no room for, as happens without privileges
only.
"""


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that a QEMU connects to. `path`: a secret; whoever knows it gets the device."""

    path: Path
    sock: socket.socket
    unread: Unread

    def close(self) -> None:
        """Refuse who waits, close the socket and remove its path."""
        for refused in refuse_all(self.sock):
            self.unread.end(refused)
        closer.close(self.sock)
        self.path.unlink(missing_ok=True)


@dataclass(slots=True, eq=False)
class Connection:
    """A QEMU's connection. `told`: messages of the handshake that it was sent."""

    sock: socket.socket
    told: int = 0
    next_look: Timer | None = None


class Spare:
    """A descriptor that is given up to refuse a QEMU when there is no other."""

    def __init__(self) -> None:
        """Take one."""
        self._fd = _open_nothing()
        self._refused: socket.socket | None = None

    @property
    def is_lent(self) -> bool:
        """Whether it is given up for one that was refused."""
        return self._refused is not None

    def refuse(self, listener: socket.socket) -> bool:
        """Refuse who waits. Returns False if one that was refused before has not read that yet."""
        if self._refused is not None:
            if not has_read(self._refused):
                return False
            closer.close(self._refused)
            self._refused = None
            self._fd = _open_nothing()
        os.close(self._fd)
        try:
            self._refused = listener.accept()[0]
            refuse(self._refused)
        except OSError:  # it may have gone
            self._fd = _open_nothing()
        return True

    def close(self) -> None:
        """Give it up."""
        if self._refused is None:
            os.close(self._fd)
        else:
            wait_read([self._refused])
            closer.close(self._refused)


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
        self._resume: Timer | None = None
        """Lets the listener be watched again, which it is not for a moment."""
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
        self._watch_listener()

    def _stop_listening(self) -> None:
        if self.is_listening:
            self.is_listening = False
            if self._resume is None:
                self._loop.remove(self.listener.sock.fileno())
            else:
                self._resume.cancel()

    def accept(self) -> None:
        """Serve the QEMU that waits, if one does."""
        if not self.is_listening or self._resume is not None:
            return
        try:
            sock, _ = self.listener.sock.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if self._spare.refuse(self.listener.sock):
                log.warning(f"{self} is refused, for lack of descriptors: {error.strerror}")
            self._pause()
            return
        if self.connection is not None and has_gone(self.connection.sock):
            self.end()  # as the ivshmem process is about to say
        if self.connection is not None and not libc.are_of_one_process(self.connection.sock, sock):
            log.warning(f"{self} is connected: another that connected is refused", whose=str(self))
            refuse(sock)
            self.listener.unread.end(sock)
            return
        # The same QEMU: libvirtd ended while it plugged the device, and the next one begins anew.
        self._let_go()
        self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._burst.make_room(sock)
        self.connection = connection = Connection(sock)
        self._events.on_connected(self)  # the connection outlives us from now on
        self._tell(connection)
        if self._once:
            self._stop_listening()
        self._go_on()

    def _pause(self) -> None:
        """Look again soon. One that can't even be refused would keep waking the loop."""
        self._loop.remove(self.listener.sock.fileno())
        self._resume = self._loop.call_at(time.monotonic() + _LOOK_INTERVAL, self._watch_listener)

    def _watch_listener(self) -> None:
        self._resume = None
        self._loop.add(self.listener.sock.fileno(), lambda _events: self.accept())

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

    def end(self) -> None:
        """End the connection, if QEMU has not."""
        was_served = self.is_served
        self._let_go()
        self._events.on_disconnected(self, was_served=was_served)

    def _let_go(self) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if connection.next_look is not None:
            connection.next_look.cancel()
        self.listener.unread.end(connection.sock)

    def close(self) -> None:
        """Let nobody in any more. A QEMU that has the device keeps what it has."""
        self._stop_listening()
        self._let_go()


def _open_nothing() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
