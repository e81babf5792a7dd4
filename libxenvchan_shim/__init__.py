# SPDX-License-Identifier: LGPL-2.1-or-later
"""vchans: fast streams of bytes in shared memory, between domains and between processes.

    import kvmchan

    with kvmchan.listen("web", "data/echo") as listener:      # on the host, for the guest "web"
        for vchan in listener:
            with vchan:
                for data in vchan:
                    vchan.sendall(data)

    with kvmchan.connect("host", "data/echo", timeout=None) as vchan:      # in the guest
        vchan.sendall(b"hello")
        print(vchan.recv(100))

A Vchan has the methods of a connected socket, and a Listener those of a listening one. open_vchan()
and start_server() are asyncio's. Every error is a VchanError: an OSError whose strerror is a
sentence, and Python's own exception that fits. docs/python.md is a tutorial.

The package has the names kvmchan and libxenvchan_shim. What it exports loads at its first use.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmchand.errors import AccessDenied as AccessDenied
    from kvmchand.errors import AlreadyClosed as AlreadyClosed
    from kvmchand.errors import Busy as Busy
    from kvmchand.errors import ChannelClosed as ChannelClosed
    from kvmchand.errors import EndOfStream as EndOfStream
    from kvmchand.errors import InternalError as InternalError
    from kvmchand.errors import InvalidArgument as InvalidArgument
    from kvmchand.errors import LimitReached as LimitReached
    from kvmchand.errors import NotFound as NotFound
    from kvmchand.errors import OutOfResources as OutOfResources
    from kvmchand.errors import ProtocolError as ProtocolError
    from kvmchand.errors import TimedOut as TimedOut
    from kvmchand.errors import TooBig as TooBig
    from kvmchand.errors import TooLong as TooLong
    from kvmchand.errors import Unreachable as Unreachable
    from kvmchand.errors import VchanError as VchanError
    from kvmchand.errors import WouldBlock as WouldBlock
    from libxenvchan_shim.api.domains import Domain as Domain
    from libxenvchan_shim.api.domains import domains as domains
    from libxenvchan_shim.api.listener import Listener as Listener
    from libxenvchan_shim.api.listener import listen as listen
    from libxenvchan_shim.api.opening import connect as connect
    from libxenvchan_shim.api.opening import offer as offer
    from libxenvchan_shim.api.pages import MappedPages as MappedPages
    from libxenvchan_shim.api.pages import SharedPages as SharedPages
    from libxenvchan_shim.api.pages import map as map
    from libxenvchan_shim.api.pages import share as share
    from libxenvchan_shim.api.spans import Span as Span
    from libxenvchan_shim.api.streams import VchanServer as VchanServer
    from libxenvchan_shim.api.streams import open_vchan as open_vchan
    from libxenvchan_shim.api.streams import start_server as start_server
    from libxenvchan_shim.api.transport import VchanTransport as VchanTransport
    from libxenvchan_shim.api.vchan import State as State
    from libxenvchan_shim.api.vchan import Vchan as Vchan

__version__ = "0.1.0"

_MODULES = {
    "kvmchand.errors": (
        "AccessDenied",
        "AlreadyClosed",
        "Busy",
        "ChannelClosed",
        "EndOfStream",
        "InternalError",
        "InvalidArgument",
        "LimitReached",
        "NotFound",
        "OutOfResources",
        "ProtocolError",
        "TimedOut",
        "TooBig",
        "TooLong",
        "Unreachable",
        "VchanError",
        "WouldBlock",
    ),
    "libxenvchan_shim.api.domains": ("Domain", "domains"),
    "libxenvchan_shim.api.listener": ("Listener", "listen"),
    "libxenvchan_shim.api.opening": ("connect", "offer"),
    "libxenvchan_shim.api.pages": ("MappedPages", "SharedPages", "map", "share"),
    "libxenvchan_shim.api.spans": ("Span",),
    "libxenvchan_shim.api.streams": ("VchanServer", "open_vchan", "start_server"),
    "libxenvchan_shim.api.transport": ("VchanTransport",),
    "libxenvchan_shim.api.vchan": ("State", "Vchan"),
}
"""Where each name is. libxenvchan.so's interpreter needs the package, and none of these."""
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AccessDenied",
    "AlreadyClosed",
    "Busy",
    "ChannelClosed",
    "Domain",
    "EndOfStream",
    "InternalError",
    "InvalidArgument",
    "LimitReached",
    "Listener",
    "MappedPages",
    "NotFound",
    "OutOfResources",
    "ProtocolError",
    "SharedPages",
    "Span",
    "State",
    "TimedOut",
    "TooBig",
    "TooLong",
    "Unreachable",
    "Vchan",
    "VchanError",
    "VchanServer",
    "VchanTransport",
    "WouldBlock",
    "__version__",
    "connect",
    "domains",
    "listen",
    "map",
    "offer",
    "open_vchan",
    "share",
    "start_server",
]

if not TYPE_CHECKING:  # else checkers would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(_WHERE[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
