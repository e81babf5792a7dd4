# SPDX-License-Identifier: LGPL-2.1-or-later
"""The requests of clients: the rules of each kind, from Xen's docs/misc/xenstore.txt."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from kvmchand.errors import InvalidArgument
from kvmchand.ids import HOST, ClientId, DomainId
from kvmchand.xenstore import access, paths, protocol, records
from kvmchand.xenstore.access import View
from kvmchand.xenstore.nodes import OWNER, WRITE, Permissions, Tree, format_permissions, parse_permissions, rights, void
from kvmchand.xenstore.protocol import Kind
from kvmchand.xenstore.quotas import Ledger, Refused
from kvmchand.xenstore.transactions import Transaction
from kvmchand.xenstore.watches import Watch, Watches

_DOMAIN = re.compile(rb"[0-9]{1,9}")
_OFFSET = re.compile(rb"[0-9]{1,10}")
_STARTS = 1 << 12
_TRANSACTIONS = 1 << 20
"""A transaction's id combines two numbers: which start of the store made it, and which of that
start's transactions it is.
"""
_PRIVILEGED = frozenset({Kind.CONTROL, Kind.INTRODUCE, Kind.RELEASE, Kind.IS_DOMAIN_INTRODUCED, Kind.RESUME, Kind.SET_TARGET})
"""Requests that only domain 0 may make."""
_WITHOUT_TRANSACTION = frozenset({Kind.WATCH, Kind.UNWATCH})
"""Requests that ignore the header's transaction."""


@dataclass(slots=True)
class Client:
    """A client and its open transactions."""

    number: ClientId
    domain: DomainId
    transactions: dict[int, Transaction] = field(default_factory=dict)


class Requests:
    """Answers the requests of all clients."""

    def __init__(
        self,
        tree: Tree,
        ledger: Ledger,
        watches: Watches,
        domains: Container[DomainId],
        keep: Callable[[bytes], None],
        tell: Callable[[Watch, str], None],
    ) -> None:
        self.starts = 0
        self._tree = tree
        self._ledger = ledger
        self._watches = watches
        self._domains = domains
        self._keep = keep
        """Takes the items to be recorded."""
        self._tell = tell
        """Takes a watch's first event."""
        self._last = 0
        self._handlers: dict[int, Callable[[Client, View, protocol.Request], bytes]] = {
            Kind.CONTROL: self._control,
            Kind.DIRECTORY: _directory,
            Kind.READ: _read,
            Kind.GET_PERMS: _get_perms,
            Kind.WATCH: self._watch,
            Kind.UNWATCH: self._unwatch,
            Kind.TRANSACTION_START: self._transaction_start,
            Kind.TRANSACTION_END: self._transaction_end,
            Kind.INTRODUCE: _not_here,
            Kind.RELEASE: _not_here,
            Kind.GET_DOMAIN_PATH: _get_domain_path,
            Kind.WRITE: _write,
            Kind.MKDIR: _mkdir,
            Kind.RM: _rm,
            Kind.SET_PERMS: self._set_perms,
            Kind.IS_DOMAIN_INTRODUCED: self._is_domain_introduced,
            Kind.RESUME: _not_here,
            Kind.SET_TARGET: _not_here,
            Kind.RESET_WATCHES: self._reset_watches,
            Kind.DIRECTORY_PART: _directory_part,
        }

    def answer(self, client: Client, request: protocol.Request) -> bytes:
        """Return the reply. A request that fails changes nothing."""
        try:
            handler = self._handlers.get(request.kind)
            if handler is None:
                raise Refused(errno.ENOSYS)
            if client.domain != HOST and request.kind in _PRIVILEGED:
                raise Refused(errno.EACCES)
            view: View = self._tree
            if request.transaction and request.kind not in _WITHOUT_TRANSACTION:
                view = self._transaction(client, request.transaction)
            return protocol.reply(request, handler(client, view, request))
        except Refused as error:
            return protocol.error_reply(request, error.number)
        except InvalidArgument:
            return protocol.error_reply(request, errno.EINVAL)

    def end_all(self, client: Client) -> None:
        """End the client's transactions and watches."""
        for transaction in client.transactions.values():
            self._ledger.remove_transaction(client.domain, transaction.held)
        client.transactions.clear()
        for watch in self._watches.of(client.number):
            self._watches.remove(client.number, watch.path, watch.token)

    # ---- domains and permissions ----

    def _is_domain_introduced(self, client: Client, view: View, request: protocol.Request) -> bytes:
        return b"T\0" if _domain(request) in self._domains else b"F\0"

    def _set_perms(self, client: Client, view: View, request: protocol.Request) -> bytes:
        name, *strings = protocol.strings(request.payload, 2, protocol.PAYLOAD_MAX)
        if client.domain != HOST and len(strings) > self._ledger.quotas.permissions:
            raise Refused(errno.ENOSPC)
        permissions = parse_permissions([protocol.text(each) for each in strings])
        if permissions[0][1] not in self._domains:
            raise Refused(errno.ENOENT)
        permissions = void(permissions, lambda domain: domain not in self._domains)
        path = protocol.text(name)
        if path.startswith("@"):
            self._set_special(client, path, permissions)
        else:
            access.set_permissions(view, client.domain, paths.node(path, client.domain), permissions)
        return protocol.OK

    def _set_special(self, client: Client, name: str, permissions: Permissions) -> None:
        """Say who is told that domains come and go: domain 0's right, which it may pass on."""
        known = self._tree.special.get(name)
        if known is None:
            raise Refused(errno.EINVAL)
        if rights(known, client.domain) & (WRITE | OWNER) != WRITE | OWNER:
            raise Refused(errno.EACCES)
        self._tree.special[name] = permissions
        self._keep(records.special_item(name, permissions))

    # ---- transactions ----

    def _transaction(self, client: Client, number: int) -> Transaction:
        transaction = client.transactions.get(number)
        if transaction is not None:
            return transaction
        # One that a restart has ended may be tried again.
        raise Refused(errno.EAGAIN if number // _TRANSACTIONS < self.starts % _STARTS else errno.ENOENT)

    def _transaction_start(self, client: Client, view: View, request: protocol.Request) -> bytes:
        if request.transaction:
            raise Refused(errno.EBUSY)
        self._ledger.add_transaction(client.domain)
        number = self._next_number()
        while number in client.transactions:
            number = self._next_number()
        client.transactions[number] = Transaction(self._tree, client.domain)
        return b"%d\0" % number

    def _next_number(self) -> int:
        self._last = self._last % (_TRANSACTIONS - 1) + 1
        return self.starts % _STARTS * _TRANSACTIONS + self._last

    def _transaction_end(self, client: Client, view: View, request: protocol.Request) -> bytes:
        (how,) = protocol.strings(request.payload, 1)
        if how not in (b"T", b"F"):
            raise Refused(errno.EINVAL)
        if not request.transaction:
            raise Refused(errno.ENOENT)
        transaction = client.transactions.pop(request.transaction)
        try:
            if how == b"T":
                if not transaction.is_current():
                    raise Refused(errno.EAGAIN)
                transaction.commit()
        finally:
            self._ledger.remove_transaction(client.domain, transaction.held)
        return protocol.OK

    # ---- watches ----

    def _watch(self, client: Client, view: View, request: protocol.Request) -> bytes:
        name, token = protocol.strings(request.payload, 2)
        path, relative = _watched(client, name)
        watch = Watch(client.number, client.domain, path, token, relative)
        if not self._watches.has(watch):
            self._ledger.require_watch(client.domain, watch.size)
        self._watches.add(watch)
        self._keep(records.watch_item(watch))
        self._tell(watch, path)
        return protocol.OK

    def _unwatch(self, client: Client, view: View, request: protocol.Request) -> bytes:
        name, token = protocol.strings(request.payload, 2)
        try:
            path, _ = _watched(client, name)
        except InvalidArgument:
            raise Refused(errno.ENOENT) from None
        self._watches.remove(client.number, path, token)
        self._keep(records.item(records.NO_WATCH, client.number, path, token))
        return protocol.OK

    def _reset_watches(self, client: Client, view: View, request: protocol.Request) -> bytes:
        self.end_all(client)
        self._keep(records.item(records.NO_CLIENT, client.number))
        return protocol.OK

    # ---- for administrators ----

    def _control(self, client: Client, view: View, request: protocol.Request) -> bytes:
        command, *arguments = protocol.strings(request.payload, 1, protocol.PAYLOAD_MAX)
        if command == b"help" and not arguments:
            return b"check\nhelp\n\0"
        if command == b"check" and not arguments:
            wrong = self._tree.errors()
            return "\n".join(wrong)[: protocol.PAYLOAD_MAX - 1].encode() + b"\0" if wrong else protocol.OK
        raise Refused(errno.EINVAL)


def _path(client: Client, request: protocol.Request) -> str:
    """Return the path of a request that has nothing else."""
    (name,) = protocol.strings(request.payload, 1)
    return paths.node(protocol.text(name), client.domain)


def _watched(client: Client, name: bytes) -> tuple[str, bool]:
    """Return the path, and whether it was given relative to the client's own node."""
    path = protocol.text(name)
    if path.startswith("@") and len(path) <= paths.RELATIVE_MAX:
        return path, False  # whether or not it ever has an event
    return paths.node(path, client.domain), not path.startswith("/")


def _domain(request: protocol.Request) -> DomainId:
    """Return the domain of a request that has nothing else."""
    (string,) = protocol.strings(request.payload, 1)
    return DomainId(_number(_DOMAIN, string))


def _number(form: re.Pattern[bytes], string: bytes) -> int:
    if not form.fullmatch(string):
        raise Refused(errno.EINVAL)
    return int(string)


# ---- requests that need nothing but the view ----


def _read(client: Client, view: View, request: protocol.Request) -> bytes:
    return access.find(view, client.domain, _path(client, request)).value


def _directory(client: Client, view: View, request: protocol.Request) -> bytes:
    node = access.find(view, client.domain, _path(client, request))
    if node.names > protocol.PAYLOAD_MAX:
        raise Refused(errno.E2BIG)
    return node.listing()


def _directory_part(client: Client, view: View, request: protocol.Request) -> bytes:
    """Return the generation, then whole names of children from an offset on.

    An empty name follows the last child.
    """
    name, offset = protocol.strings(request.payload, 2)
    node = access.find(view, client.domain, paths.node(protocol.text(name), client.domain))
    start = b"%d\0" % node.generation
    rest = node.listing()[_number(_OFFSET, offset) :]
    if len(start) + len(rest) + 1 <= protocol.PAYLOAD_MAX:
        return start + rest + b"\0"
    return start + rest[: rest.rfind(b"\0", 0, protocol.PAYLOAD_MAX - len(start)) + 1]


def _get_perms(client: Client, view: View, request: protocol.Request) -> bytes:
    node = access.find(view, client.domain, _path(client, request))
    return "".join(f"{each}\0" for each in format_permissions(node.permissions)).encode()


def _get_domain_path(client: Client, view: View, request: protocol.Request) -> bytes:
    return paths.home(_domain(request)).encode() + b"\0"


def _write(client: Client, view: View, request: protocol.Request) -> bytes:
    name, nul, value = request.payload.partition(b"\0")
    if not nul:
        raise Refused(errno.EINVAL)
    access.write(view, client.domain, paths.node(protocol.text(name), client.domain), value)
    return protocol.OK


def _mkdir(client: Client, view: View, request: protocol.Request) -> bytes:
    access.mkdir(view, client.domain, _path(client, request))
    return protocol.OK


def _rm(client: Client, view: View, request: protocol.Request) -> bytes:
    access.remove(view, client.domain, _path(client, request))
    return protocol.OK


def _not_here(client: Client, view: View, request: protocol.Request) -> bytes:
    # Domains come and go by the daemon, which hears of them from the hypervisor.
    raise Refused(errno.ENOSYS)
