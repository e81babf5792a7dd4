# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's settings: defaults, a TOML file over them, the command line over that."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kvmchand.core import rings
from kvmchand.errors import InvalidArgument
from kvmchand.ids import DomainId

RUNTIME_DIR = Path("/run/kvmchand")
DOMAIN_MAX = 0x7FEF
"""The largest domain number: Xen keeps 0x7ff0 and above for itself."""
LOCAL_DOMAINS_MAX = 512
"""As many as a listing has room for, beside a channel."""
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

    max_ring: int = rings.XEN_RING_MAX
    """Bytes, for each direction of a channel."""
    max_channels: int = 65536
    """Channels a domain offers at once."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`kvmchand host`'s."""

    runtime_dir: Path = RUNTIME_DIR
    local_domains: tuple[DomainId, ...] = ()
    service_user: str = "nobody"
    """Whom the parts that read outside bytes run as, when the daemon is started as root."""
    socket: SocketSettings = field(default_factory=SocketSettings)
    limits: Limits = field(default_factory=Limits)


def domain_number(value: object, setting: str) -> DomainId:
    """A local domain's number, as `setting` gives it; InvalidArgument if it can't be one."""
    if type(value) is not int or not 1 <= value <= DOMAIN_MAX:
        raise InvalidArgument(f"{setting}: {value!r} is no local domain's number: give one from 1 to {DOMAIN_MAX}")
    return DomainId(value)


# The largest number that each setting may be.
_MOST = {"mode": 0o777, "max_ring": rings.RING_MAX, "max_channels": CHANNELS_MAX}


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


def _section(cls: type[Any], table: object, where: str) -> Any:
    if type(table) is not dict:
        raise InvalidArgument(f"{where} is a table of settings")
    known = [each.name for each in fields(cls)]
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise InvalidArgument(f"{where} has no setting {name!r}: it has {', '.join(known)}")
        values[name] = _number(value, name, where) if name in _MOST else _text(value, f"{where}.{name}", empty=name == "group")
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
