# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every error that crosses a process boundary: one code, one errno, one exception.

Most are also the exception of Python's own that fits.

VchanError (an OSError: errno, and the sentence as strerror)
├── InvalidArgument   EINVAL        ValueError              an invalid path, domain, size or timeout
├── TooLong           E2BIG         ValueError              a path over the limit
├── TooBig            EMSGSIZE      ValueError              more at once than a ring holds
├── AccessDenied      EACCES        PermissionError         not the caller's to use
├── NotFound          ENOENT        FileNotFoundError       no such domain, or nothing offered there
├── Busy              EBUSY         -                       another client or thread is there
├── LimitReached      ENOSPC        -                       a limit in the settings
├── OutOfResources    EMFILE        -                       the machine's descriptors or memory
├── ProtocolError     EPROTO        -                       bytes that break the protocol
├── Unreachable       ECONNREFUSED  ConnectionRefusedError  no daemon answers
├── TimedOut          ETIMEDOUT     TimeoutError            a wait took too long
├── WouldBlock        EAGAIN        BlockingIOError         it would have to wait, and may not
├── ChannelClosed     EPIPE         BrokenPipeError         the other end has gone
├── AlreadyClosed     EBADF         ValueError              used after it was closed here
└── InternalError     EIO           -                       a bug of ours

EndOfStream is a ChannelClosed, and an EOFError: the other end has gone before all came.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class VchanError(OSError):
    """What failed, on what, and what to do. `errno` is what a C caller sees."""

    code = "internal"
    number = errno.EIO

    def __init__(self, sentence: str) -> None:
        super().__init__(self.number, sentence)

    @property
    def sentence(self) -> str:
        """Return the whole message, without the number."""
        return str(self.strerror)

    def __reduce__(self) -> tuple[Callable[..., VchanError], tuple[type[VchanError], int, str]]:
        # OSError's own would give its two arguments to our __init__, which takes one.
        return _again, (type(self), self.errno or self.number, self.sentence)


class InvalidArgument(VchanError, ValueError):
    """A path, domain, size or timeout is invalid."""

    code, number = "invalid", errno.EINVAL


class TooLong(VchanError, ValueError):
    """A path exceeds the limit."""

    code, number = "too-long", errno.E2BIG


class TooBig(VchanError, ValueError):
    """More bytes at once than the ring holds, or a message over the caller's limit."""

    code, number = "too-big", errno.EMSGSIZE


class AccessDenied(VchanError, PermissionError):
    """The caller may not use it: its path, its domain, or the daemon's socket."""

    code, number = "denied", errno.EACCES


class NotFound(VchanError, FileNotFoundError):
    """No such domain exists, or nothing is offered at the path."""

    code, number = "not-found", errno.ENOENT


class Busy(VchanError):
    """Another client is connected, or another thread is in such a call."""

    code, number = "busy", errno.EBUSY


class LimitReached(VchanError):
    """A limit of the settings is reached."""

    code, number = "limit", errno.ENOSPC


class OutOfResources(VchanError):
    """The machine lacks descriptors or memory."""

    code, number = "resources", errno.EMFILE


class ProtocolError(VchanError):
    """The peer's or the daemon's bytes break the protocol, or its version is another."""

    code, number = "protocol", errno.EPROTO


class Unreachable(VchanError, ConnectionRefusedError):
    """No daemon answers, or it has ended."""

    code, number = "unreachable", errno.ECONNREFUSED


class TimedOut(VchanError, TimeoutError):
    """A wait, for the peer or for the daemon, took too long."""

    code, number = "timeout", errno.ETIMEDOUT


class WouldBlock(VchanError, BlockingIOError):
    """The call would have to wait, and its timeout is 0."""

    code, number = "would-block", errno.EAGAIN


class ChannelClosed(VchanError, BrokenPipeError):
    """The other end has gone."""

    code, number = "closed", errno.EPIPE


class AlreadyClosed(VchanError, ValueError):
    """It was closed here, or it is the copy that a forked child has."""

    code, number = "already-closed", errno.EBADF


class InternalError(VchanError):
    """A bug of ours."""

    code, number = "internal", errno.EIO


_BY_CODE: dict[str, type[VchanError]] = {kind.code: kind for kind in VchanError.__subclasses__()}
_BY_NUMBER: dict[int, type[VchanError]] = {kind.number: kind for kind in VchanError.__subclasses__()}


def from_code(code: str, sentence: str) -> VchanError:
    """Return the exception for a received code; an unknown code becomes an InternalError."""
    return _BY_CODE.get(code, InternalError)(sentence)


def from_errno(number: int, sentence: str) -> VchanError:
    """Return the exception for an errno of the data plane; an unlisted one keeps its number."""
    return _again(_BY_NUMBER.get(number, VchanError), number, sentence)


def _again(kind: type[VchanError], number: int, sentence: str) -> VchanError:
    error = kind(sentence)
    error.errno = number
    error.args = (number, sentence)
    return error


class EndOfStream(ChannelClosed, EOFError):
    """The other end has gone, and left fewer bytes than were to be received."""
