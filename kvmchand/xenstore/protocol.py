# SPDX-License-Identifier: LGPL-2.1-or-later
"""The xenstore wire format of xen/io/xs_wire.h.

A message is a header of four 32-bit words in the machine's byte order, then the payload. A reply
repeats the request's header except for the length, and for the kind if it is an error. The numbers
and names here are the ABI's.
"""

from __future__ import annotations

import errno
import struct
from enum import IntEnum
from typing import NamedTuple

from kvmchand.errors import InvalidArgument, ProtocolError

HEADER = struct.Struct("=IIII")
"""Kind, request id, transaction, length of the payload."""
PAYLOAD_MAX = 4096

OK = b"OK\0"
"""The payload of a reply that has nothing else to say."""

_ERRORS = (
    errno.EINVAL,
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EIO,
    errno.ENOTEMPTY,
    errno.ENOSYS,
    errno.EROFS,
    errno.EBUSY,
    errno.EAGAIN,
    errno.EISCONN,
    errno.E2BIG,
    errno.EPERM,
)
_ERROR_NAMES = {number: errno.errorcode[number].encode() + b"\0" for number in _ERRORS}


class Kind(IntEnum):
    """The kinds of messages."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


class Request(NamedTuple):
    """One request."""

    kind: int
    """A Kind, or any other number: the code that executes it decides."""
    request_id: int
    transaction: int
    payload: bytes


def take(buffer: bytes | bytearray) -> tuple[Request, int] | None:
    """Return the first request in a buffer and its length in bytes.

    Returns None if it is not complete yet. Raises ProtocolError if it is longer than allowed: the
    start of the next request is then unknown, so the connection must end.
    """
    if len(buffer) < HEADER.size:
        return None
    kind, request_id, transaction, length = HEADER.unpack_from(buffer)
    if length > PAYLOAD_MAX:
        raise ProtocolError(f"a xenstore request of {length} bytes, and {PAYLOAD_MAX} are the most")
    end = HEADER.size + length
    if len(buffer) < end:
        return None
    return Request(kind, request_id, transaction, bytes(buffer[HEADER.size : end])), end


def reply(request: Request, payload: bytes, kind: int | None = None) -> bytes:
    """Encode the answer to a request.

    As in xenstored, one that is too long becomes the error E2BIG.
    """
    if len(payload) > PAYLOAD_MAX:
        return error_reply(request, errno.E2BIG)
    kind = request.kind if kind is None else kind
    return HEADER.pack(kind, request.request_id, request.transaction, len(payload)) + payload


def error_reply(request: Request, number: int) -> bytes:
    """Encode the answer to a request that failed.

    An errno without a name in the format becomes EINVAL.
    """
    return reply(request, _ERROR_NAMES.get(number, _ERROR_NAMES[errno.EINVAL]), Kind.ERROR)


def event(path: str, token: bytes) -> bytes | None:
    """Encode a watch's event, or return None if it is too long.

    xenstored does not send events that are too long, either.
    """
    payload = path.encode("ascii") + b"\0" + token + b"\0"
    if len(payload) > PAYLOAD_MAX:
        return None
    return HEADER.pack(Kind.WATCH_EVENT, 0, 0, len(payload)) + payload


def strings(payload: bytes, least: int, most: int | None = None) -> list[bytes]:
    """Split a payload that consists of strings, each with its NUL.

    Raises InvalidArgument unless it has from `least` to `most` strings (exactly `least` by
    default).
    """
    parts = payload.split(b"\0")
    if parts.pop() or not least <= len(parts) <= (least if most is None else most):
        raise InvalidArgument("the payload has another number of strings than this request has, or no NUL at its end")
    return parts


def text(string: bytes) -> str:
    """Decode a string that names something. Raises InvalidArgument if it is not ASCII."""
    try:
        return string.decode("ascii")
    except UnicodeDecodeError:
        raise InvalidArgument("a name of the store that is not ASCII") from None
