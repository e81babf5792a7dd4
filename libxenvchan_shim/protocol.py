# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client's side of the protocol (kvmchand/wire/client.py).

Where the daemon is, what can be asked, what may be answered, and the sentence for each failure.

The Python API uses it, and libxenvchan.so's embedded interpreter, which must start fast. So it
imports little: posix, of which os is made, is there anyway.
"""

from __future__ import annotations

from errno import EACCES, EAGAIN, EMFILE, EMSGSIZE, ENFILE, ENOBUFS, ENOMEM, EPERM
from posix import listdir

from kvmchand.errors import (
    AccessDenied,
    InvalidArgument,
    OutOfResources,
    ProtocolError,
    TimedOut,
    TooLong,
    Unreachable,
    VchanError,
    from_code,
    from_errno,
)
from kvmchand.wire import client
from kvmchand.wire.codec import FDS_LOST, PACKET_TOO_LONG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

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
_DOMAIN_DIGITS = 5
_SAME_RELEASE = "use the same release"

# ---- where the daemon is ----


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


# ---- what can be asked ----


def carried(path: str) -> str:
    """Return the path. Raises TooLong or InvalidArgument if the protocol can't carry it."""
    if len(path) > PATH_MAX:
        raise TooLong(f"the path has {len(path)} characters: too many")
    if not path.isascii():
        raise InvalidArgument(f"the path {path[:80]!r} has characters that no path may have: letters, digits and -/_@")
    return path


# ---- what may be answered ----


def answer_of(data: bytes, path: str, *wanted: type[Reply]) -> Reply:
    """Return the reply in a packet of the daemon at `path`, if it is one of those.

    Raises what the daemon says instead, Unreachable for no packet, or ProtocolError.
    """
    if not data:
        raise Unreachable(f"kvmchand at {path} ended the connection")
    try:
        reply = client.replies.decode(data)
    except ProtocolError as error:
        raise ProtocolError(f"kvmchand at {path} can't be understood: {error.sentence}: {_SAME_RELEASE}") from error
    if type(reply) is client.Error:
        raise from_code(reply.code, reply.sentence)
    if type(reply) not in wanted:
        raise ProtocolError(f"kvmchand at {path} answered with {type(reply).__name__}, not {wanted[0].__name__}")
    answer: Reply = reply
    return answer


def check_grant(grant: client.Grant, fds: int, path: str) -> None:
    """Raise ProtocolError unless the grant, with so many descriptors, can be."""
    if grant.events not in client.EVENTS:
        raise ProtocolError(f"kvmchand at {path} granted a channel with {grant.events[:40]!r} for events: {_SAME_RELEASE}")
    wanted = 3 if grant.events.endswith("eventfd") else 2
    if fds != wanted:
        raise ProtocolError(f"kvmchand at {path} granted a channel with {fds} descriptors, not {wanted}")
    if (
        not grant.path.isascii()
        or min(grant.left_order, grant.right_order) < 0
        or grant.offset % _PAGE
        or grant.doorbell % _PAGE
        or grant.doorbell_value > _DOORBELL_VALUE_MAX
    ):
        raise ProtocolError(f"kvmchand at {path} granted an invalid channel: {_SAME_RELEASE}")


def check_pages(pages: client.Pages, fds: int, path: str) -> None:
    """Raise ProtocolError unless the pages, with so many descriptors, can be."""
    if fds != 1 or pages.pages < 1 or pages.offset % _PAGE or pages.ref + pages.pages > _REF_END:
        raise ProtocolError(f"kvmchand at {path} gave pages that can't be: {_SAME_RELEASE}")


def check_port(port: client.Port, path: str) -> None:
    """Raise ProtocolError unless the state of the event channel can be."""
    if port.state not in client.PORT_STATES:
        raise ProtocolError(f"kvmchand at {path} says {port.state[:40]!r} of an event channel: {_SAME_RELEASE}")


# ---- failures ----


def receive_failure(path: str, error: OSError) -> VchanError:
    """Return what to raise where no answer came from the daemon at `path`."""
    if isinstance(error, VchanError):
        return error
    if isinstance(error, BlockingIOError | TimeoutError):
        return TimedOut(f"kvmchand at {path} did not answer within {DEADLINE:.0f} s")
    if error.errno == EMSGSIZE:
        return ProtocolError(PACKET_TOO_LONG)
    if error.errno == EMFILE:
        return OutOfResources(FDS_LOST)
    return Unreachable(f"kvmchand at {path} ended the connection: {error.strerror}")


def connect_failure(path: str, error: OSError) -> VchanError:
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


def _unknown_domain(path: str) -> VchanError | None:
    """Return what to raise if a daemon is there, but KVMCHAN_DOMAIN is none that it serves."""
    folder, _, name = path.rpartition("/")
    try:
        there = listdir(folder)
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
