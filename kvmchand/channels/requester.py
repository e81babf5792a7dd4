# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that ask main for something, and how main answers each.

A client is one of this machine's local sockets, or one in a guest, whose daemon asks on its behalf.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from kvmchand.channels.grants import Share
from kvmchand.channels.region import Region, SharedMemory
from kvmchand.channels.registry import Channel, Side
from kvmchand.ids import ClientId, DomainId
from kvmchand.wire import client


class Requester(ABC):
    """A client, as main knows it.

    It exists from its first request until its connection ends or what it held is released.
    """

    __slots__ = ("domain", "is_admin", "number", "pid")

    def __init__(self, number: ClientId, domain: DomainId, pid: int, *, is_admin: bool = False) -> None:
        """Name a client.

        `pid` is its process, as its own machine numbers it. `is_admin`: it may detach guests.
        """
        self.number = number
        self.domain = domain
        self.pid = pid
        self.is_admin = is_admin

    @abstractmethod
    def answer(self, reply: client.Reply, fds: Sequence[int] = ()) -> bool:
        """Send a reply, and descriptors beside it, which stay the caller's.

        Returns False if the client is gone, or was dropped because it does not read.
        """

    @abstractmethod
    def grant(self, channel: Channel, region: Region, side: Side) -> bool:
        """Answer with an end of a channel, as answer(). Raises VchanError if it can't."""

    @abstractmethod
    def give(self, share: Share, memory: SharedMemory, *, writable: bool) -> bool:
        """Answer with shared pages, as grant()."""

    @abstractmethod
    def forget(self) -> None:
        """End the connection of a client that closed it. What it held must be released before."""

    @abstractmethod
    def drop(self) -> None:
        """End a client from this side, and with it what it holds."""

    def move(self, packet: bytes, memory: int) -> bool:
        """Tell a server's end in this guest where it goes on, in memory that stays the caller's.

        Returns False if the client is gone, or was dropped because it does not read.
        """
        raise NotImplementedError

    def take_back(self) -> bool | None:
        """End the connection of a client that has not read its grant, which it left behind.

        Returns True if it never will, False if it has read it; None if it read it in this moment,
        so that it has a grant and no connection. A guest's client has always read it: its daemon
        did. drop() must follow unless False is returned.
        """
        return False

    @abstractmethod
    def pause(self) -> None:
        """Stop watching the connection until forget().

        A half-closed client would keep waking the loop.
        """

    @abstractmethod
    def mark_busy(self) -> None:
        """Count the client as one that holds something or waits for it."""

    @abstractmethod
    def mark_idle(self) -> None:
        """Count the client as one that holds nothing yet."""


class RequesterEvents(Protocol):
    """Hears what clients do."""

    def on_request(self, requester: Requester, request: client.Request) -> None:
        """React when a client asks for something."""

    def on_close(self, closing: Requester) -> None:
        """React when a client wants its end released, and then forget()."""

    def on_loss(self, number: ClientId) -> None:
        """React when a connection has ended without a close. The client is forgotten already."""

    def on_drop(self, number: ClientId) -> None:
        """React when a client was ended by drop(). It is forgotten already."""
