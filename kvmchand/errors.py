# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every error that crosses a process boundary: one code, one errno, one exception.

KvmchanError (an OSError: errno, and the sentence as strerror)
├── InvalidArgument   EINVAL        an invalid path, domain or size
├── TooLong           E2BIG         a path over the limit
├── AccessDenied      EACCES        not the caller's to use
├── NotFound          ENOENT        no such domain, or nothing offered at the path
├── Busy              EBUSY         another client is connected
├── LimitReached      ENOSPC        a limit in the settings
├── OutOfResources    EMFILE        the machine's descriptors or memory
├── ProtocolError     EPROTO        the peer's bytes break the protocol, or its version is another
├── Unreachable       ECONNREFUSED  no daemon answers
├── TimedOut          ETIMEDOUT     the daemon took too long
├── ChannelClosed     EPIPE         the other end has gone
└── InternalError     EIO           a bug of ours
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class KvmchanError(OSError):
    """What failed, on what, and what to do. `errno` is what a C caller sees."""

    code = "internal"
    number = errno.EIO

    def __init__(self, sentence: str) -> None:
        super().__init__(self.number, sentence)

    @property
    def sentence(self) -> str:
        """Return the whole message, without the number."""
        return str(self.strerror)

    def __reduce__(self) -> tuple[Callable[[int, str], KvmchanError], tuple[int, str]]:
        # OSError's own would give its two arguments to our __init__, which takes one.
        return from_errno, (self.errno or self.number, self.sentence)


class InvalidArgument(KvmchanError):
    """A path, domain or size is invalid."""

    code, number = "invalid", errno.EINVAL


class TooLong(KvmchanError):
    """A path exceeds the limit."""

    code, number = "too-long", errno.E2BIG


class AccessDenied(KvmchanError):
    """The caller may not use it."""

    code, number = "denied", errno.EACCES


class NotFound(KvmchanError):
    """No such domain exists, or nothing is offered at the path."""

    code, number = "not-found", errno.ENOENT


class Busy(KvmchanError):
    """Another client is connected."""

    code, number = "busy", errno.EBUSY


class LimitReached(KvmchanError):
    """A limit of the settings is reached."""

    code, number = "limit", errno.ENOSPC


class OutOfResources(KvmchanError):
    """The machine lacks descriptors or memory."""

    code, number = "resources", errno.EMFILE


class ProtocolError(KvmchanError):
    """The peer's bytes break the protocol, or its version is another."""

    code, number = "protocol", errno.EPROTO


class Unreachable(KvmchanError):
    """No daemon answers."""

    code, number = "unreachable", errno.ECONNREFUSED


class TimedOut(KvmchanError):
    """The daemon took too long."""

    code, number = "timeout", errno.ETIMEDOUT


class ChannelClosed(KvmchanError):
    """The other end has gone."""

    code, number = "closed", errno.EPIPE


class InternalError(KvmchanError):
    """A bug of ours."""

    code, number = "internal", errno.EIO


_BY_CODE: dict[str, type[KvmchanError]] = {kind.code: kind for kind in KvmchanError.__subclasses__()}
_BY_NUMBER: dict[int, type[KvmchanError]] = {kind.number: kind for kind in KvmchanError.__subclasses__()}


def from_code(code: str, sentence: str) -> KvmchanError:
    """Return the exception for a received code; an unknown code becomes an InternalError."""
    return _BY_CODE.get(code, InternalError)(sentence)


def from_errno(number: int, sentence: str) -> KvmchanError:
    """Return the exception for an errno of the data plane; an unlisted one keeps its number."""
    error = _BY_NUMBER.get(number, KvmchanError)(sentence)
    error.errno = number
    error.args = (number, sentence)
    return error
