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


def domain_number(value: object) -> DomainId:
    """A local domain's number; InvalidArgument if it can't be one."""
    if type(value) is not int or not 1 <= value <= DOMAIN_MAX:
        raise InvalidArgument(f"{value!r} is no local domain's number: give one from 1 to {DOMAIN_MAX}")
    return DomainId(value)


def _section(cls: type[Any], table: object, where: str) -> Any:
    if type(table) is not dict:
        raise InvalidArgument(f"{where} is a table of settings")
    known = {each.name: each for each in fields(cls)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise InvalidArgument(f"{where} has no setting {name!r}: it has {', '.join(known)}")
        wanted = type(getattr(cls(), name))
        if type(value) is not wanted or (wanted is int and value < 0):
            raise InvalidArgument(f"{where}.{name} takes {'a number' if wanted is int else 'a string'}, not {value!r}")
        values[name] = value
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
        if name == "socket":
            settings = replace(settings, socket=_section(SocketSettings, value, name))
        elif name == "limits":
            limits = _section(Limits, value, name)
            if limits.max_ring > rings.RING_MAX:
                raise InvalidArgument(f"limits.max_ring is {limits.max_ring} bytes, and {rings.RING_MAX} are the most")
            settings = replace(settings, limits=limits)
        elif name == "local_domains":
            if type(value) is not list:
                raise InvalidArgument("local_domains takes a list of numbers")
            settings = replace(settings, local_domains=tuple(domain_number(each) for each in value))
        elif name in ("runtime_dir", "service_user"):
            if type(value) is not str or not value:
                raise InvalidArgument(f"{name} takes a string, not {value!r}")
            settings = replace(settings, **{name: Path(value) if name == "runtime_dir" else value})
        else:
            raise InvalidArgument(f"there is no setting {name!r}: there are {', '.join(each.name for each in fields(Settings))}")
    return settings
