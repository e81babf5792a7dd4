# SPDX-License-Identifier: LGPL-2.1-or-later
"""The C data plane by ctypes: libkvmchan-dataplane.so.

It has the same objects as libxenvchan.so, without the interpreter.

Used by the Python API, and by the daemon for its own ends. Prototypes are those of
include/libxenvchan.h and libxenvchan_shim/csrc/dataplane/vchan.h and grant.h.
"""

from __future__ import annotations

import ctypes
import os

from kvmchand.errors import from_errno
from kvmchand.wire import client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_NAME = "libkvmchan-dataplane.so"


SOCKET, EVENTFD, DOORBELL, SHARED_EVENTFD, SHARED_DOORBELL = range(5)
"""enum kvmchan_events."""


class Grant(ctypes.Structure):
    """struct kvmchan_grant. Give all the descriptors: 0 is one, and -1 is none."""

    _fields_ = [
        ("region_fd", ctypes.c_int32),
        ("event_fd", ctypes.c_int32),
        ("notify_fd", ctypes.c_int32),
        ("control_fd", ctypes.c_int32),
        ("is_server", ctypes.c_int32),
        ("left_order", ctypes.c_uint32),
        ("right_order", ctypes.c_uint32),
        ("events", ctypes.c_uint32),
        ("doorbell_value", ctypes.c_uint32),
        ("channel", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("doorbell", ctypes.c_uint64),
        ("path", ctypes.c_char * 4352),
    ]


class _Ring(ctypes.Structure):
    _fields_ = [("shr", ctypes.c_void_p), ("buffer", ctypes.c_void_p), ("order", ctypes.c_int)]


class Control(ctypes.Structure):
    """struct libxenvchan."""

    _fields_ = [
        ("handle", ctypes.c_void_p),
        ("ring", ctypes.c_void_p),
        ("event", ctypes.c_void_p),
        ("event_port", ctypes.c_uint32),
        ("is_server", ctypes.c_int, 1),
        ("server_persist", ctypes.c_int, 1),
        ("blocking", ctypes.c_int, 1),
        ("read", _Ring),
        ("write", _Ring),
        ("xs_path", ctypes.c_void_p),
    ]


def _library() -> str:
    """KVMCHAN_LIBDIR's, or where it is installed beside the package that this module is of."""
    packages = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120 # pathlib takes 4 ms
    return f"{os.environ.get('KVMCHAN_LIBDIR') or f'{packages}/libxenvchan_shim/lib'}/{_NAME}"


_lib = ctypes.CDLL(_library(), use_errno=True)
_lib.kvmchan_last_error.restype = ctypes.c_char_p
_lib.kvmchan_last_error.argtypes = ()
_quick = ctypes.PyDLL(_library())
_waiting = ctypes.CDLL(_library())


def attach_end(grant: client.Grant, fds: Sequence[int], *, is_server: bool, control_fd: int = -1) -> Any:
    """Attach to an end as it was granted, with the descriptors that came beside the grant.

    Takes ownership of all of them.
    """
    region, event, notify = [*fds, -1][:3]
    return attach(
        Grant(
            region_fd=region,
            event_fd=event,
            notify_fd=notify,
            control_fd=control_fd,
            is_server=int(is_server),
            channel=grant.channel,
            left_order=grant.left_order,
            right_order=grant.right_order,
            events=client.EVENTS.index(grant.events),
            doorbell_value=grant.doorbell_value,
            offset=grant.offset,
            doorbell=grant.doorbell,
        )
    )


def last_error() -> OSError:
    """Return the exception for this thread's last failed call, with its sentence."""
    return from_errno(ctypes.get_errno(), sentence())


def _not_negative(result: int, _function: Any, _arguments: Any) -> int:
    if result < 0:
        raise last_error()
    return result


def _not_null(result: Any, _function: Any, _arguments: Any) -> Any:
    if not result:
        raise last_error()
    return result


def _declare(name: str, restype: Any, *argtypes: Any, errcheck: Any = None) -> Callable[..., Any]:
    function = getattr(_lib, name)
    function.restype = restype
    function.argtypes = argtypes
    if errcheck is not None:
        function.errcheck = errcheck
    return function  # type: ignore[no-any-return]


def _declare_quick(name: str, restype: Any, *, waits: bool = False) -> Callable[..., Any]:
    """Return a function for calls that must cost little. It keeps the GIL unless it `waits`.

    It takes what ctypes passes by itself: byref() of an end or a buffer, bytes,
    an int for a C int; None for no end. Where it fails it returns a negative errno.
    """
    function = getattr(_waiting if waits else _quick, name)
    function.restype = restype
    return function  # type: ignore[no-any-return]


_CONTROL = ctypes.POINTER(Control)
_BYTES = (_CONTROL, ctypes.c_void_p, ctypes.c_size_t)

attach = _declare("kvmchan_attach", _CONTROL, ctypes.POINTER(Grant), errcheck=_not_null)
hang_up = _declare("kvmchan_hang_up", None, _CONTROL)
make_wakeable = _declare("kvmchan_make_wakeable", ctypes.c_int, _CONTROL)
forget = _declare("kvmchan_forget", None, _CONTROL)
shut = _declare("kvmchan_shut", None, _CONTROL)
close_descriptors = _declare("kvmchan_close_descriptors", None, _CONTROL)
steal_control = _declare("kvmchan_steal_control", ctypes.c_int, _CONTROL)
detach = _declare("kvmchan_detach", None, _CONTROL)
peek = _declare("kvmchan_peek", ctypes.c_int, *_BYTES, errcheck=_not_negative)
recv = _declare("libxenvchan_recv", ctypes.c_int, *_BYTES, errcheck=_not_negative)
read = _declare("libxenvchan_read", ctypes.c_int, *_BYTES, errcheck=_not_negative)
send = _declare("libxenvchan_send", ctypes.c_int, *_BYTES, errcheck=_not_negative)
write = _declare("libxenvchan_write", ctypes.c_int, *_BYTES, errcheck=_not_negative)
wait = _declare("libxenvchan_wait", ctypes.c_int, _CONTROL, errcheck=_not_negative)
fd_for_select = _declare("libxenvchan_fd_for_select", ctypes.c_int, _CONTROL)
is_open = _declare("libxenvchan_is_open", ctypes.c_int, _CONTROL)
data_ready = _declare("libxenvchan_data_ready", ctypes.c_int, _CONTROL)
buffer_space = _declare("libxenvchan_buffer_space", ctypes.c_int, _CONTROL)

glance = _declare("kvmchan_glance", ctypes.c_int, _CONTROL, ctypes.c_int)

# Where these fail they return a negative errno, because a signal handler may come before Python
# looks at errno.
DATA, ROOM, EVENT = range(3)
"""enum kvmchan_awaited."""

try_recv = _declare_quick("kvmchan_try_recv", ctypes.c_int)
try_read = _declare_quick("kvmchan_try_read", ctypes.c_int)
try_send = _declare_quick("kvmchan_try_send", ctypes.c_int)
try_write = _declare_quick("kvmchan_try_write", ctypes.c_int)
try_look = _declare_quick("kvmchan_try_look", ctypes.c_int64)
try_reserve = _declare_quick("kvmchan_try_reserve", ctypes.c_int64)
try_await = _declare_quick("kvmchan_await", ctypes.c_int)
"""With a timeout of 0 only."""
wait_for = _declare_quick("kvmchan_await", ctypes.c_int, waits=True)
try_ask = _declare_quick("kvmchan_try_ask", ctypes.c_int)
try_consume = _declare_quick("kvmchan_try_consume", ctypes.c_int)
try_commit = _declare_quick("kvmchan_try_commit", ctypes.c_int)


INT_MAX = 2**31 - 1
"""The largest C int: ctypes cuts a larger one off."""
PLACE_COUNT = 0xFFFFFFFF
"""The half of what try_look() and try_reserve() return that is the number of bytes."""


def sentence() -> str:
    """Return the sentence about this thread's last failed call."""
    return str(_lib.kvmchan_last_error().decode(errors="replace"))
