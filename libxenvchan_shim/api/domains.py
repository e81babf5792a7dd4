# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains, and how a caller may name one: by its number, libvirt's name or uuid, or "host"."""

from __future__ import annotations

from kvmchand.errors import InvalidArgument, NotFound
from kvmchand.wire import client
from kvmchand.wire.record import Record
from libxenvchan_shim.api.steps import Step, run
from libxenvchan_shim.connection import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

_NUMBER_MAX = 2**31 - 1
"""The largest C int."""
_HOST = 0


class Domain(Record):
    """A domain that can have vchans."""

    number: int
    """0 is the host's. A guest's is its libvirt id, which changes when it starts again."""
    kind: str
    """host, guest, or local: processes of this machine that act as a domain of their own."""
    name: str
    """libvirt's name of a guest, "host", or "". Only the host knows its guests' names."""
    uuid: str
    """libvirt's uuid of a guest, or ""."""


def domains() -> list[Domain]:
    """Return the domains that there are, by their numbers.

    Raises Unreachable if no daemon answers, AccessDenied if it does not serve this user, and
    ProtocolError if it is of another release.

    >>> domains()[0]
    Domain(number=0, kind='host', name='host', uuid='')
    """
    with Connection.from_environment() as connection:
        return run(connection, listing())


def listing() -> Generator[Step, Any, list[Domain]]:
    """Ask for all domains."""
    found: list[Domain] = []
    while True:
        first = found[-1].number + 1 if found else 0
        page = yield Step(client.GetDomains(first), Connection.take_domains)
        found += [Domain(int(each.domain), each.kind, each.name, each.uuid) for each in page.domains]
        if not page.more or not page.domains:
            return found


def resolved(domain: int | str, name: str) -> Generator[Step, Any, int]:
    """Ask, if need be, for the number of the domain that the argument called `name` means.

    Raises TypeError, InvalidArgument, and NotFound if no domain is called so.
    """
    if isinstance(domain, bool) or not isinstance(domain, int | str):
        raise TypeError(f"{name} must be a domain's number or name, not {type(domain).__name__}")
    if isinstance(domain, int):
        if not 0 <= domain <= _NUMBER_MAX:
            raise InvalidArgument(f"{name} is {domain}: give 0 for the host, or a guest's number")
        return domain
    if domain == "host":
        return _HOST
    all_domains = yield from listing()
    for each in all_domains:
        if domain and domain in (each.name, each.uuid):
            return each.number
    if domain.isdecimal() and domain.isascii():
        return (yield from resolved(int(domain), name))
    raise NotFound(
        f"no domain that is served is called {domain!r}: kvmchan ls shows those that are, kvmchan doctor on the host says why "
        "others are not, and only the host knows names"
    )
