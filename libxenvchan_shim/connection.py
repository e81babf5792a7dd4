# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client's connection to the daemon: one per open channel, whose end it is.

The Python API uses it, and libxenvchan.so's embedded interpreter, which must start fast. So it
imports little.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SHUT_WR, SO_SNDTIMEO, SOCK_CLOEXEC, SOCK_SEQPACKET, SOL_SOCKET, socket
from errno import EACCES, EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM
from fcntl import F_DUPFD_CLOEXEC, fcntl
from struct import pack

from kvmchand.errors import (
    AccessDenied,
    InvalidArgument,
    KvmchanError,
    ProtocolError,
    TimedOut,
    TooLong,
    Unreachable,
    from_code,
    from_errno,
)
from kvmchand.wire import client
from kvmchand.wire.packet import Fds, receive_packet, send_packet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self, TypeVar

    from kvmchand.ids import Size

    Reply = TypeVar("Reply")

RUNTIME_DIR = "/run/kvmchand"
PATH_MAX = 4096
"""Characters of a path that the protocol carries. The daemon's own limits are lower."""
DEADLINE = 40.0
"""Seconds that the daemon may take to answer.

The first channel between two guests costs a hot-plug in each.
"""
_PAGE = 4096
_DOORBELL_VALUE_MAX = 2**32 - 1
"""The register has 32 bits."""
_REF_END = 2**32
"""Xen's grant references have 32 bits."""
_STDIO_MAX = 2
_DOMAIN_DIGITS = 5


def socket_path(runtime_dir: str, domain: str) -> str:
    """Return the path of the daemon's socket.

    The arguments are the values of KVMCHAN_RUNTIME_DIR and KVMCHAN_DOMAIN, "" if unset.
    """
    number = _local_domain(domain)
    return f"{runtime_dir or RUNTIME_DIR}/{client.socket_name(number) if number else client.SOCKET_NAME}"


def store_path(runtime_dir: str, domain: str) -> str:
    """Return the path of its store's socket, which libxenstore takes as XENSTORED_PATH."""
    number = _local_domain(domain)
    return f"{runtime_dir or RUNTIME_DIR}/{client.store_socket_name(number) if number else client.STORE_SOCKET_NAME}"


def _local_domain(domain: str) -> int:
    """Return the domain's number; 0 if none is set."""
    if not domain:
        return 0
    if not (domain.isascii() and domain.isdigit() and len(domain) <= _DOMAIN_DIGITS):
        raise InvalidArgument(f"KVMCHAN_DOMAIN is {domain[:20]!r}: set it to a local domain's number, or unset it")
    return int(domain)


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
        try:
            # If the daemon's queue is full, a blocking connect waits for a place, and one with a
            # timeout of Python's fails.
            self._sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, pack("@ll", int(DEADLINE), 0))
            try:
                self._sock.connect(path)
            except OSError as error:
                raise connect_failure(path, error) from error
            self._sock.settimeout(DEADLINE)
        except BaseException:
            self.close()
            raise

    @classmethod
    def adopt(cls, fd: int, *, is_new: bool = False) -> Self:
        """Make a connection of a descriptor, new or one that has been one before.

        Takes ownership of it.
        """
        made = cls.__new__(cls)
        made._greeted = not is_new
        made._path = "the daemon's socket"
        made._sock = socket(AF_UNIX, SOCK_SEQPACKET, 0, fd)
        made._sock.settimeout(DEADLINE)
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
            return self._judge(data, wanted), fds
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
        except TimeoutError:
            raise TimedOut(f"kvmchand at {self._path} did not answer within {DEADLINE:.0f} s") from None
        except OSError as error:
            if isinstance(error, KvmchanError):
                raise
            raise Unreachable(f"kvmchand at {self._path} ended the connection: {error.strerror}") from error

    def _judge(self, data: bytes, wanted: tuple[type[Reply], ...]) -> Reply:
        if not data:
            raise Unreachable(f"kvmchand at {self._path} ended the connection")
        try:
            reply = client.replies.decode(data)
        except ProtocolError as error:
            sentence = f"kvmchand at {self._path} can't be understood: {error.sentence}: use the same release"
            raise ProtocolError(sentence) from error
        if type(reply) is client.Error:
            raise from_code(reply.code, reply.sentence)
        if type(reply) not in wanted:
            raise ProtocolError(f"kvmchand at {self._path} answered with {type(reply).__name__}, not {wanted[0].__name__}")
        answer: Reply = reply
        return answer

    def close_channel(self) -> None:
        """Close this connection and its end, and return when the daemon has released it."""
        try:
            self._sock.shutdown(SHUT_WR)
            while True:  # an answer that nobody took may be on the way
                data, fds = self._receive_packet()
                fds.close()
                if not data:
                    break
        except OSError:
            pass  # the daemon is gone, and with it what there was to release
        finally:
            self.close()

    def detach(self) -> int:
        """Return the descriptor, which the caller then owns."""
        return self._sock.detach()

    def close(self) -> None:
        """Close the connection without telling the daemon first."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close the connection unless it was detached."""
        self.close()


class Connection(Exchange):
    """What a client may ask the daemon, one request at a time."""

    @classmethod
    def from_environment(cls) -> Self:
        """Connect to the daemon that the environment names, as the domain that it names."""
        return cls(socket_path(os.environ.get("KVMCHAN_RUNTIME_DIR", ""), os.environ.get("KVMCHAN_DOMAIN", "")))

    def offer(self, peer: int, path: str, read_min: Size, write_min: Size, *, once: bool = False) -> Granted:
        """Offer a vchan. `once`: no other client can come after the first."""
        self.send(client.Offer(peer, carried(path), read_min, write_min, once))
        return self.take_grant()

    def connect(self, domain: int, path: str, *, waits: bool = False) -> Granted:
        """Connect to a vchan.

        `waits`: block while `domain` exists and offers nothing at `path`, or has another client
        there.
        """
        self._sock.settimeout(None if waits else DEADLINE)
        try:
            granted = None
            while granted is None:
                self.send(client.Connect(domain, carried(path), waits))
                granted = self.take_grant_or_vacancy()
        finally:
            self._sock.settimeout(DEADLINE)
        return granted

    def take_pages(self) -> tuple[client.Pages, int]:
        """Take the answer to Share or Map. The descriptor of the memory is the caller's."""
        reply, fds = self._receive(client.Pages)
        with fds:
            if len(fds) != 1 or reply.pages < 1 or reply.offset % _PAGE or reply.ref + reply.pages > _REF_END:
                raise ProtocolError(f"kvmchand at {self._path} gave pages that can't be: use the same release")
            return reply, _all_above_stdio(fds)[0]

    def take_done(self) -> None:
        """Take the answer to a request that is only done."""
        self._receive(client.Done)[1].close()

    def take_port(self) -> client.Port:
        """Take the answer to GetPort."""
        reply, fds = self._receive(client.Port)
        fds.close()
        if reply.state not in client.PORT_STATES:
            raise ProtocolError(f"kvmchand at {self._path} says {reply.state[:40]!r} of an event channel: use the same release")
        return reply

    def take_domains(self) -> client.Domains:
        """Take the answer to GetDomains."""
        reply, fds = self._receive(client.Domains)
        fds.close()
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
            if grant.events not in client.EVENTS:
                raise ProtocolError(
                    f"kvmchand at {self._path} granted a channel with {grant.events[:40]!r} for events: use the same release"
                )
            wanted = 3 if grant.events == "eventfd" else 2
            if len(fds) != wanted:
                raise ProtocolError(f"kvmchand at {self._path} granted a channel with {len(fds)} descriptors, not {wanted}")
            if (
                not grant.path.isascii()
                or min(grant.left_order, grant.right_order) < 0
                or grant.offset % _PAGE
                or grant.doorbell % _PAGE
                or grant.doorbell_value > _DOORBELL_VALUE_MAX
            ):
                raise ProtocolError(f"kvmchand at {self._path} granted an invalid channel: use the same release")
            return Granted(grant, *_all_above_stdio(fds))

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


def carried(path: str) -> str:
    """Return the path. Raises TooLong or InvalidArgument if the protocol can't carry it."""
    if len(path) > PATH_MAX:
        raise TooLong(f"the path has {len(path)} characters: too many")
    if not path.isascii():
        raise InvalidArgument(f"the path {path[:80]!r} has characters that no path may have: letters, digits and -/_@")
    return path


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


def _unknown_domain(path: str) -> KvmchanError | None:
    """Return what to raise if a daemon is there, but KVMCHAN_DOMAIN is none that it serves."""
    folder, _, name = path.rpartition("/")
    try:
        there = os.listdir(folder)  # noqa: PTH208 # pathlib takes long to import
    except OSError:
        return None
    if client.SOCKET_NAME not in there or name in there:
        return None
    numbers = (each.removeprefix("domain-").removesuffix(".sock") for each in there if each.startswith("domain-"))
    served = ", ".join(map(str, sorted(int(each) for each in numbers if each.isdigit())))
    return InvalidArgument(
        f"kvmchand in {folder} has no socket {name}: "
        f"set KVMCHAN_DOMAIN to a domain that it serves ({served or 'there is none'}), or unset it"
    )


def connect_failure(path: str, error: OSError) -> KvmchanError:
    """Return what to raise where connecting to the daemon's socket failed."""
    number, reason = error.errno or 0, error.strerror or str(error)
    if number == EAGAIN:
        return TimedOut(f"kvmchand at {path} took no connection within {DEADLINE:.0f} s")
    if number in (EACCES, EPERM):
        return AccessDenied(
            f"kvmchand's socket {path} may not be used by this user: be root, or have the daemon's settings allow it "
            "([socket] group and mode)"
        )
    if number in (EMFILE, ENFILE, ENOMEM, ENOBUFS):
        sentence = f"no connection to kvmchand can be made: {reason}: close descriptors, or raise the limit (ulimit -n)"
        return from_errno(number, sentence)
    return _unknown_domain(path) or Unreachable(
        f"no kvmchand answers at {path} ({reason}): start it, or set KVMCHAN_RUNTIME_DIR to where it is"
    )


def _new_socket() -> socket:
    try:
        made = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        return socket(AF_UNIX, SOCK_SEQPACKET, 0, _duplicate_above_stdio(made.detach()))
    except OSError as error:
        raise connect_failure("", error) from error
