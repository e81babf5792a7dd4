# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's settings: defaults, a TOML file over them, the command line over that."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kvmchand.errors import InvalidArgument
from kvmchand.ids import PAGE, DomainId, Size

RUNTIME_DIR = Path("/run/kvmchand")
DOMAIN_MAX = 0x7FEF
"""The largest domain number: Xen keeps 0x7ff0 and above for itself."""
LOCAL_DOMAINS_MAX = 512
"""As many as a listing has room for, beside a channel."""
LINK_BYTES = Size(1 << 20)
"""Of a link's device. Two fit into the window that firmware leaves to a bridge, beside the control device."""
XEN_RING_MAX = 1 << 20
"""Bytes of a ring, as Xen limits them."""
RING_MAX = 1 << 30
"""What the settings may allow at the most: indexes are 32 bits, and a call answers with an int."""
VECTORS_MAX = 2048
"""What MSI-X has at the most."""
CHANNELS_MAX = 1 << 20
"""What the settings may allow a domain at the most: the kernel's default for the descriptors of a process (fs.nr_open)."""


@dataclass(frozen=True, slots=True)
class SocketSettings:
    """Who may connect to the local sockets."""

    mode: int = 0o600
    """Of the socket files. A group's or others' write bit lets them connect."""
    group: str = ""
    """The socket files' group; empty: the daemon's own."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one domain may use, so that none starves another."""

    max_ring: int = XEN_RING_MAX
    """Bytes, for each direction of a channel."""
    max_channels: int = 65536
    """Channels a domain offers at once."""
    max_shared: int = 1 << 30
    """Bytes of pages that a domain shares."""
    guest_channels: int = 1024
    """The same of a guest, and as many that it is a client of."""
    guest_devices: int = 16
    """ivshmem devices that a guest may have."""
    guest_bytes: int = 256 << 20
    """Of these devices' memory."""
    guest_requests: int = 1000
    """Requests a second that a guest may make."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """The devices that channels with an end in a guest share."""

    size: Size = LINK_BYTES
    """Bytes of one, a power of two."""
    vectors: int = 64
    """Channels that one may have at once."""
    dedicated: bool = False
    """A device for each channel, so that processes of one domain can't reach each other's memory."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Names of guests whose link is made when both are there, and not with their first channel."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`kvmchand host`'s, and `kvmchand guest`'s."""

    runtime_dir: Path = RUNTIME_DIR
    local_domains: tuple[DomainId, ...] = ()
    service_user: str = "nobody"
    """Whom the parts that read outside bytes run as, when the daemon is started as root."""
    socket: SocketSettings = field(default_factory=SocketSettings)
    limits: Limits = field(default_factory=Limits)
    links: LinkSettings = field(default_factory=LinkSettings)
    libvirt: str = "qemu:///system"
    """Of the hypervisor whose guests are served; empty: none."""
    noiommu: bool = False
    """In a guest without a vIOMMU: drive devices that nothing confines."""


def domain_number(value: object, setting: str) -> DomainId:
    """A local domain's number, as `setting` gives it; InvalidArgument if it can't be one."""
    if type(value) is not int or not 1 <= value <= DOMAIN_MAX:
        raise InvalidArgument(f"{setting}: {value!r} is no local domain's number: give one from 1 to {DOMAIN_MAX}")
    return DomainId(value)


# The largest number that each setting may be.
_MOST = {
    "mode": 0o777,
    "max_ring": RING_MAX,
    "max_channels": CHANNELS_MAX,
    "max_shared": 1 << 40,
    "guest_channels": CHANNELS_MAX,
    "guest_devices": 255,
    "guest_bytes": 1 << 40,
    "guest_requests": 1 << 20,
    "size": 1 << 34,
    "vectors": VECTORS_MAX,
}


def _number(value: object, name: str, where: str) -> int:
    if type(value) is not int:
        raise InvalidArgument(f"{where}.{name} takes a number, not {value!r}")
    if not 0 <= value <= _MOST[name]:
        shown = oct if name == "mode" else str
        raise InvalidArgument(f"{where}.{name} is {shown(value)[:40]}, and may be from 0 to {shown(_MOST[name])}")
    return value


def _text(value: object, name: str, *, empty: bool = False) -> str:
    if type(value) is not str or not (value or empty) or "\0" in value:
        raise InvalidArgument(f"{name} takes a string, not {value!r}")
    return value


def _flag(value: object, name: str) -> bool:
    if type(value) is not bool:
        raise InvalidArgument(f"{name} takes true or false, not {value!r}")
    return value


def _pairs(value: object, name: str) -> tuple[tuple[str, str], ...]:
    if type(value) is not list or not all(type(each) is list and len(each) == 2 for each in value):
        raise InvalidArgument(f'{name} takes a list of pairs of names, as [["web", "database"]]')
    return tuple((_text(one, name), _text(other, name)) for one, other in value)


def _value(value: object, name: str, where: str) -> Any:
    full = f"{where}.{name}"
    if name in _MOST:
        return _number(value, name, where)
    if name == "dedicated":
        return _flag(value, full)
    if name == "pairs":
        return _pairs(value, full)
    return _text(value, full, empty=name == "group")


def _links(table: object, where: str) -> LinkSettings:
    made: LinkSettings = _section(LinkSettings, table, where)
    if made.size < PAGE or made.size & (made.size - 1):
        raise InvalidArgument(f"{where}.size is {made.size}, and must be a power of two from {PAGE} on")
    if made.vectors < 2:
        raise InvalidArgument(f"{where}.vectors is {made.vectors}, and must be 2 at the least")
    return made


def _section(cls: type[Any], table: object, where: str) -> Any:
    if type(table) is not dict:
        raise InvalidArgument(f"{where} is a table of settings")
    known = [each.name for each in fields(cls)]
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise InvalidArgument(f"{where} has no setting {name!r}: it has {', '.join(known)}")
        values[name] = _value(value, name, where)
    return cls(**values)


def load(path: Path) -> Settings:
    """The settings in a TOML file; InvalidArgument names the file and the line or the setting that is wrong."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"the settings file {path} can't be read: {error}") from error
    try:
        return parse(table)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.sentence}") from error


def parse(table: dict[str, Any]) -> Settings:
    """The settings in a decoded TOML document."""
    settings = Settings()
    for name, value in table.items():
        match name:
            case "socket":
                settings = replace(settings, socket=_section(SocketSettings, value, name))
            case "limits":
                settings = replace(settings, limits=_section(Limits, value, name))
            case "links":
                settings = replace(settings, links=_links(value, name))
            case "libvirt":
                settings = replace(settings, libvirt=_text(value, name, empty=True))
            case "noiommu":
                settings = replace(settings, noiommu=_flag(value, name))
            case "local_domains":
                if type(value) is not list:
                    raise InvalidArgument("local_domains takes a list of numbers")
                settings = replace(settings, local_domains=tuple(domain_number(each, name) for each in value))
            case "runtime_dir":
                settings = replace(settings, runtime_dir=Path(_text(value, name)))
            case "service_user":
                settings = replace(settings, service_user=_text(value, name))
            case _:
                known = ", ".join(each.name for each in fields(Settings))
                raise InvalidArgument(f"there is no setting {name!r}: there are {known}")
    return settings
