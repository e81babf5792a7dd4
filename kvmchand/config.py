# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's settings: defaults, a TOML file over them, the command line over that.

Each field says what it takes: its default, its kind and its bounds stand in one place.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
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
"""Size of a link's device. Two fit into the window that firmware leaves to a bridge, beside the
control device."""
XEN_RING_MAX = 1 << 20
"""Bytes of a ring, as Xen limits them."""
RING_MAX = 1 << 30
"""The largest ring that the settings may allow: indexes are 32 bits, and a call answers with an
int."""
PREPARED, ALL = "prepared", "all"
Serve = str | tuple[str, ...]
"""Which of libvirt's domains are served: PREPARED, ALL that can take a device, or some by name."""
VECTORS_MAX = 2048
"""The most vectors that MSI-X has."""
CHANNELS_MAX = 1 << 20
"""The most channels that the settings may allow a domain: the kernel's default for the descriptors
of a process (fs.nr_open)."""


# ---- kinds of settings, each as the metadata of a field ----


def _kind(read: Callable[[object, str], Any]) -> dict[str, Any]:
    """Make a field's metadata of what takes a value of the file and the setting's full name.

    `read` raises InvalidArgument if the value is invalid.
    """
    return {"read": read}


def _read_text(value: object, name: str, *, may_be_empty: bool = False) -> str:
    if type(value) is not str or not (value or may_be_empty) or "\0" in value:
        raise InvalidArgument(f"{name} takes a string, not {value!r}")
    return value


def _read_flag(value: object, name: str) -> bool:
    if type(value) is not bool:
        raise InvalidArgument(f"{name} takes true or false, not {value!r}")
    return value


def _read_pairs(value: object, name: str) -> tuple[tuple[str, str], ...]:
    if type(value) is not list or not all(type(each) is list and len(each) == 2 for each in value):
        raise InvalidArgument(f'{name} takes a list of pairs of names, as [["web", "database"]]')
    return tuple((_read_text(one, name), _read_text(other, name)) for one, other in value)


def _read_serve(value: object, name: str) -> Serve:
    if type(value) is list:
        return tuple(_read_text(each, name) for each in value)
    if value not in (PREPARED, ALL):
        raise InvalidArgument(f'{name} takes "{PREPARED}", "{ALL}", or domains\' names, as ["web", "database"], not {value!r}')
    return str(value)


def _read_domains(value: object, name: str) -> tuple[DomainId, ...]:
    if type(value) is not list:
        raise InvalidArgument(f"{name} takes a list of numbers")
    return tuple(domain_number(each, name) for each in value)


def number(least: int, most: int, shown: Callable[[int], str] = str) -> dict[str, Any]:
    """Take an integer from `least` to `most`. `shown`: how messages spell it."""

    def read(value: object, name: str) -> int:
        if type(value) is not int:
            raise InvalidArgument(f"{name} takes a number, not {value!r}")
        if not least <= value <= most:
            raise InvalidArgument(f"{name} is {shown(value)[:40]}, and may be from {shown(least)} to {shown(most)}")
        return value

    return _kind(read)


_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _bytes(value: object, name: str) -> object:
    """Return the number that text like 256K stands for, and anything else as it is."""
    if type(value) is not str:
        return value
    digits, unit = (value[:-1], value[-1:]) if value[-1:] in _UNITS else (value, "")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
        raise InvalidArgument(f'{name} takes a number of bytes, as 262144 or "256K", not {value[:40]!r}')
    return int(digits) * _UNITS.get(unit, 1)


def size(least: int, most: int) -> dict[str, Any]:
    """Take bytes from `least` to `most`, as a number or as text like 256K."""
    in_range = number(least, most)["read"]
    return _kind(lambda value, name: in_range(_bytes(value, name), name))


def power_of_two(least: int, most: int) -> dict[str, Any]:
    """Take bytes as size(), if they are a power of two."""
    in_range = size(least, most)["read"]

    def read(value: object, name: str) -> int:
        found: int = in_range(value, name)
        if found & (found - 1):
            raise InvalidArgument(f"{name} is {found}, and must be a power of two")
        return found

    return _kind(read)


def sizes_by_pattern(most: int) -> dict[str, Any]:
    """Take a table of bytes by patterns of paths."""
    one = size(1, most)["read"]

    def read(value: object, name: str) -> tuple[tuple[str, int], ...]:
        if type(value) is not dict:
            raise InvalidArgument(f'{name} is a table, as {{"data/vchan/*/7" = "64K"}}')
        return tuple((pattern, one(least, f"{name}.{pattern[:40]}")) for pattern, least in value.items())

    return _kind(read)


TEXT = _kind(_read_text)
MAYBE_TEXT = _kind(lambda value, name: _read_text(value, name, may_be_empty=True))
FLAG = _kind(_read_flag)
FOLDER = _kind(lambda value, name: Path(_read_text(value, name)))
PAIRS = _kind(_read_pairs)
DOMAINS = _kind(_read_domains)
SERVE = _kind(_read_serve)


def section(cls: type[Any]) -> dict[str, Any]:
    """Take a table of the settings of `cls`."""
    return _kind(lambda value, name: _read_section(cls, value, name))


def _read_section(cls: type[Any], table: object, where: str) -> Any:
    """Make a `cls` of a table's values. `where`: the table's name, or "" for the whole file."""
    if type(table) is not dict:
        raise InvalidArgument(f"{where} is a table of settings")
    known = {each.name: each for each in fields(cls)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            place = f"{where} has no setting" if where else "there is no setting"
            raise InvalidArgument(f"{place} {name!r}: there are {', '.join(known)}")
        values[name] = known[name].metadata["read"](value, f"{where}.{name}" if where else name)
    return cls(**values)


def domain_number(value: object, setting: str) -> DomainId:
    """Return a local domain's number, as `setting` gives it.

    Raises InvalidArgument if it is invalid.
    """
    if type(value) is not int or not 1 <= value <= DOMAIN_MAX:
        raise InvalidArgument(f"{setting}: {value!r} is no local domain's number: give one from 1 to {DOMAIN_MAX}")
    return DomainId(value)


# ---- the settings ----


@dataclass(frozen=True, slots=True)
class SocketSettings:
    """Who may connect to the local sockets."""

    mode: int = field(default=0o600, metadata=number(0, 0o777, oct))
    """Mode of the socket files. A group's or others' write bit lets them connect."""
    group: str = field(default="", metadata=MAYBE_TEXT)
    """The socket files' group; empty: the daemon's own."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one domain may use, so that none starves another."""

    max_ring: int = field(default=XEN_RING_MAX, metadata=size(0, RING_MAX))
    """Bytes, for each direction of a channel."""
    max_channels: int = field(default=65536, metadata=number(0, CHANNELS_MAX))
    """Channels that a domain may offer at once."""
    max_bytes: int = field(default=4 << 30, metadata=size(0, 1 << 40))
    """Bytes of these channels' rings and pages, of a domain that is no guest."""
    max_shared: int = field(default=1 << 30, metadata=size(0, 1 << 40))
    """Bytes of pages that a domain may share."""
    guest_channels: int = field(default=4096, metadata=number(0, CHANNELS_MAX))
    """Channels that a guest may offer; it may be the client of as many more."""
    guest_devices: int = field(default=16, metadata=number(0, 255))
    """ivshmem devices that a guest may have."""
    guest_bytes: int = field(default=256 << 20, metadata=size(0, 1 << 40))
    """Bytes of these devices' memory."""
    guest_requests: int = field(default=1000, metadata=number(0, 1 << 20))
    """Requests that a guest may make in a second."""


@dataclass(frozen=True, slots=True)
class RingSettings:
    """How large a channel's rings are, beyond what its server asks for."""

    unasked: int = field(default=256 << 10, metadata=size(0, RING_MAX))
    """Bytes of a ring for which the server asks 0; less if its domain or link can't spare them.

    0: Xen's rule.
    """
    minimum: tuple[tuple[str, int], ...] = field(default=(), metadata=sizes_by_pattern(RING_MAX))
    """Bytes of both rings at the least, by pattern of the path: some programs ask for too little.

    A pattern is as the shell's, of the whole path or of what is below the server's own node.
    """


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """The devices that channels with an end in a guest share."""

    size: Size = field(default=LINK_BYTES, metadata=power_of_two(PAGE, 1 << 34))
    """Bytes of one device."""
    vectors: int = field(default=64, metadata=number(2, VECTORS_MAX))
    """Channels of a link that have an interrupt vector of their own. Any more share some."""
    dedicated: bool = field(default=False, metadata=FLAG)
    """A device for each channel, so that no process of a domain reaches another's memory."""
    pairs: tuple[tuple[str, str], ...] = field(default=(), metadata=PAIRS)
    """Names of guests whose link is made when both run, and not with their first channel."""


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """The domains of libvirt's that become guests."""

    serve: Serve = field(default=PREPARED, metadata=SERVE)
    """Which of them do, if their machines can take a device.

    The names are libvirt's.
    """


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of `kvmchand host` and of `kvmchand guest`."""

    runtime_dir: Path = field(default=RUNTIME_DIR, metadata=FOLDER)
    local_domains: tuple[DomainId, ...] = field(default=(), metadata=DOMAINS)
    service_user: str = field(default="nobody", metadata=TEXT)
    """The user that the parts that read outside bytes run as, if the daemon is started as root."""
    socket: SocketSettings = field(default_factory=SocketSettings, metadata=section(SocketSettings))
    limits: Limits = field(default_factory=Limits, metadata=section(Limits))
    rings: RingSettings = field(default_factory=RingSettings, metadata=section(RingSettings))
    links: LinkSettings = field(default_factory=LinkSettings, metadata=section(LinkSettings))
    guests: GuestSettings = field(default_factory=GuestSettings, metadata=section(GuestSettings))
    libvirt: str = field(default="qemu:///system", metadata=MAYBE_TEXT)
    """URI of the hypervisor whose guests are served; empty: none."""
    noiommu: bool = field(default=False, metadata=FLAG)
    """In a guest without a vIOMMU: drive devices that nothing confines."""


def load(path: Path) -> Settings:
    """Read the settings in a TOML file.

    Raises InvalidArgument, which names the file and the line or the setting.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"the settings file {path} can not be read: {error}") from error
    try:
        return parse(table)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.sentence}") from error


def parse(table: dict[str, Any]) -> Settings:
    """Return the settings in a decoded TOML document."""
    settings: Settings = _read_section(Settings, table, "")
    return settings
