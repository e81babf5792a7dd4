# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Python API's connection to the daemon: one per open channel, whose end it is."""

from __future__ import annotations

import os
import select
import socket
import struct
from fcntl import F_DUPFD_CLOEXEC, fcntl

from kvmchand.errors import TimedOut, Unreachable
from kvmchand.wire import client
from kvmchand.wire.packet import Fds, receive_packet, send_packet
from libxenvchan_shim.forks import own
from libxenvchan_shim.protocol import (
    DEADLINE,
    answer_of,
    check_grant,
    check_pages,
    check_port,
    connect_failure,
    receive_failure,
    socket_path,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self, TypeVar

    from kvmchand.ids import Size

    Reply = TypeVar("Reply")

_STDIO_MAX = 2


class Exchange:
    """Packets to the daemon and back, on a blocking connection with a deadline.

    The hello goes out with the first packet.
    """

    def __init__(self, path: str) -> None:
        """Connect to the daemon.

        Raises Unreachable if no daemon answers, and AccessDenied if it does not serve this user.
        The first request finds out whether its version is another.
        """
        self._path = path
        self._greeted = False
        self._sock = _new_socket()
        own(self)
        try:
            # If the daemon's queue is full, a blocking connect waits for a place, and one with a
            # timeout of Python's fails.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(DEADLINE), 0))
            try:
                self._sock.connect(path)
            except OSError as error:
                raise connect_failure(path, error) from error
            self._sock.settimeout(DEADLINE)
        except BaseException:
            self.close()
            raise

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """Make a connection of a descriptor that has been one before. Takes ownership of it."""
        made = cls.__new__(cls)
        made._path = "the daemon's socket"
        made._greeted = True
        made._sock = socket.socket(fileno=fd)
        made._sock.settimeout(DEADLINE)
        own(made)
        return made

    def send(self, request: object) -> None:
        """Send a request. The connection is readable when the answer has come."""
        try:
            if not self._greeted:
                send_packet(self._sock, client.requests.encode(client.Hello(client.VERSION)))
            send_packet(self._sock, client.requests.encode(request))
        except TimeoutError:
            raise TimedOut(f"kvmchand at {self._path} took no request within {DEADLINE:.0f} s") from None
        except OSError:
            pass  # it has refused us already, and its answer says why
        self._greeted = True

    def _receive(self, *wanted: type[Reply]) -> tuple[Reply, Fds]:
        data, fds = self._receive_packet()
        try:
            return answer_of(data, self._path, *wanted), fds
        except BaseException:
            fds.close()
            raise

    def _receive_packet(self) -> tuple[bytes, Fds]:
        try:
            try:
                return receive_packet(self._sock)
            except ConnectionResetError:
                # The daemon left a packet of ours unread; what it said before is still to come.
                return receive_packet(self._sock)
        except OSError as error:
            raise receive_failure(self._path, error) from error

    def close_channel(self) -> None:
        """Close this connection and its end, and return when the daemon has released it."""
        try:
            if self.begin_close():
                while not self.is_over():
                    pass
        finally:
            self.close()

    def begin_close(self) -> bool:
        """Tell the daemon that this end closes. Closes, and returns False, if it is gone."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return False
        return True

    def is_over(self) -> bool:
        """Wait for the next packet. Returns whether that was the last: the end is released."""
        try:
            data, fds = self._receive_packet()
        except OSError:
            return True  # the daemon is gone, and with it what there was to release
        fds.close()  # an answer that nobody took
        return not data

    def detach(self) -> int:
        """Return the descriptor, which the caller then owns."""
        return self._sock.detach()

    def close(self) -> None:
        """Close the connection without telling the daemon first."""
        self._sock.close()

    def _forget(self) -> None:
        """In a forked child: let the daemon see the parent end."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close the connection unless it was detached."""
        self.close()


class Connection(Exchange):
    """What the daemon may answer a client, one request at a time."""

    @classmethod
    def from_environment(cls) -> Self:
        """Connect to the daemon that the environment names, as the domain that it names."""
        return cls(socket_path(os.environ.get("KVMCHAN_RUNTIME_DIR", ""), os.environ.get("KVMCHAN_DOMAIN", "")))

    def settimeout(self, timeout: float | None) -> None:
        """Set how many seconds an answer may take, None for any; DEADLINE at first."""
        self._sock.settimeout(timeout)

    def fileno(self) -> int:
        """Return the descriptor, which is readable when the answer has come."""
        return self._sock.fileno()

    def refuse_taken_back(self, granted: Granted) -> None:
        """Raise Unreachable if the daemon has taken the grant back, as we did not read it.

        That ends the connection, and another may have the vchan.
        """
        ended = select.poll()
        ended.register(self._sock, select.POLLRDHUP)
        if ended.poll(0):
            Fds([fd for fd in (granted.region, granted.event, granted.notify) if fd >= 0]).close()
            raise Unreachable(f"kvmchand at {self._path} took its grant back, for it was not read: connect again")

    def take_pages(self) -> tuple[client.Pages, int]:
        """Take the answer to Share or Map. The descriptor of the memory is the caller's."""
        reply, fds = self._receive(client.Pages)
        with fds:
            check_pages(reply, len(fds), self._path)
            return reply, _all_above_stdio(fds)[0]

    def take_done(self) -> None:
        """Take the answer to a request that is only done."""
        self._receive(client.Done)[1].close()

    def take_port(self) -> client.Port:
        """Take the answer to GetPort."""
        reply, fds = self._receive(client.Port)
        fds.close()
        check_port(reply, self._path)
        return reply

    def take_grant(self) -> Granted:
        """Take the answer to a request for an end."""
        return self._grant_of(*self._receive(client.Grant))

    def take_grant_or_vacancy(self) -> Granted | None:
        """Take the answer to a request that may have waited.

        Returns None if it is to be sent again.
        """
        reply, fds = self._receive(client.Grant, client.Vacant)
        if type(reply) is client.Grant:
            return self._grant_of(reply, fds)
        fds.close()
        return None

    def _grant_of(self, grant: client.Grant, fds: Fds) -> Granted:
        with fds:
            check_grant(grant, len(fds), self._path)
            return Granted(grant, *_all_above_stdio(fds))

    def take_domains(self) -> client.Domains:
        """Take the answer to GetDomains."""
        reply, fds = self._receive(client.Domains)
        fds.close()
        return reply

    def list(self, after: Size) -> client.Listing:
        """Ask for the page of the listing that follows `after`."""
        self.send(client.List(after))
        reply, fds = self._receive(client.Listing)
        fds.close()
        return reply


class Granted:
    """A grant, and the descriptors that came beside it, which are the holder's."""

    __slots__ = ("event", "grant", "notify", "region")

    def __init__(self, grant: client.Grant, region: int, event: int, notify: int = -1) -> None:
        self.grant = grant
        self.region = region
        self.event = event
        self.notify = notify


def _duplicate_above_stdio(fd: int) -> int:
    """Return `fd`, or another in its place if it is one of stdio's, which programs write to."""
    if fd > _STDIO_MAX:
        return fd
    try:
        return int(fcntl(fd, F_DUPFD_CLOEXEC, _STDIO_MAX + 1))
    finally:
        os.close(fd)


def _all_above_stdio(fds: Fds) -> list[int]:
    """Return the descriptors, or others in their place. If that fails, none is left open."""
    left = fds.steal()
    moved: list[int] = []
    try:
        while left:
            moved.append(_duplicate_above_stdio(left.pop(0)))
    except BaseException:
        Fds(left + moved).close()
        raise
    return moved


def _new_socket() -> socket.socket:
    try:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        return socket.socket(fileno=_duplicate_above_stdio(made.detach()))
    except OSError as error:
        raise connect_failure("", error) from error
