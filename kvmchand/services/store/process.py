# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store process of a host: xenstore's protocol for programs of this machine and of guests.

It has the tree (kvmchand.xenstore.store). It records each change where main keeps it before anyone
hears of the change, so programs and their watches outlive the process. It obeys everything that
main said before it looks at a program's later request. A program that removes a vchan's nodes is
answered when main has withdrawn the vchan.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial

from kvmchand.errors import LimitReached, ProtocolError
from kvmchand.ids import ChannelId, ClientId, DomainId
from kvmchand.runtime import log
from kvmchand.runtime.marker import Marker
from kvmchand.runtime.worker import serve
from kvmchand.services.store.journal import Found, Journal
from kvmchand.services.store.streams import Stream, Streams, Taken
from kvmchand.wire import local, store
from kvmchand.wire.packet import Fds
from kvmchand.xenstore import protocol
from kvmchand.xenstore.store import Quotas
from kvmchand.xenstore.store import Store as Tree

_QUOTAS = Quotas()
_NOT_SHOWN = {
    errno.ENOSPC: f"its quota of {_QUOTAS.nodes} nodes has no room: let it remove some",
    errno.ENOMEM: f"its quota of {_QUOTAS.bytes} bytes has no room: let it remove nodes",
    errno.EACCES: "it may not write there: offer the vchan elsewhere, or let it",
}
"""Why the store does not show a domain's vchan."""


class RemoteStream(Stream):
    """A connection of a guest's daemon to the store. One Output at a time is under way."""

    def __init__(self, number: ClientId, domain: DomainId, waiting: Counter[DomainId], say: Callable[[object], None]) -> None:
        super().__init__(number, domain, waiting)
        self._say = say
        self._request: bytes | None = None
        self._is_sent = False

    def feed(self, data: bytes) -> None:
        """Take a request that the guest's daemon passed on.

        Raises ProtocolError if one is pending.
        """
        if self._request is not None:
            raise ProtocolError("its daemon passed on a request before the answer to the one before")
        self._request = data

    def note_taken(self) -> None:
        """Send the next Output, now that the guest has taken the last one."""
        self._is_sent = False
        self.flush()

    def flush(self) -> None:
        """Send the next Output, unless one is under way."""
        if self._queue and not self._is_sent:
            self._is_sent = True
            self._say(store.Output(self.number, *self._next(store.OUTPUT_BYTES)))

    def take(self) -> Taken | None:
        """Return the request, if there is one.

        Raises ProtocolError if it is not exactly one request.
        """
        data, self._request = self._request, None
        if data is None:
            return None
        found = protocol.take(data)
        if found is None or found[1] != len(data):
            raise ProtocolError("its daemon passed on what is no whole request")
        return Taken(found[0], data, is_last=True)

    def close(self) -> None:
        """Do nothing: the connection is the guest's."""


class Store(Streams):
    """The process's whole state."""

    def __init__(self, main: socket.socket, marker: Marker) -> None:
        super().__init__(main, marker, store.to_store, store.from_store)
        self._journal: Journal
        self._found = Found()
        self._records: list[bytes] = []
        """Not yet written to the journal."""
        self._events: list[tuple[ClientId, bytes]] = []
        """Not yet sent."""
        self._removed: set[ChannelId] = set()
        """Vchans whose nodes a program removed, until main confirms."""
        self._is_lost = False
        """The journal could not be read."""
        self._tree = self._new_tree()

    def _new_tree(self) -> Tree:
        return Tree(_QUOTAS, self._expect, self._removed.add, self._records.append)

    def _expect(self, client: ClientId, packet: bytes) -> None:
        """Queue an event until it is recorded.

        A client for which too much waits is dropped here: one change may cause more events than
        there is memory for.
        """
        stream = self._streams.get(client)
        if stream is None:
            return
        try:
            if stream.expect_event(packet):
                self._events.append((client, packet))
        except LimitReached as error:
            self._fail(stream, error)

    # ---- main ----

    def _on_main(self, events: int) -> None:
        super()._on_main(events)
        self._commit()

    def _obey(self, message: object, fds: Fds) -> None:
        match message:
            case store.Journal():
                (fd,) = fds.steal()
                self._journal = Journal(fd)
                self._replay()
            case store.Domain():
                self._tree.introduce(message.domain, message.name, message.uuid)
            case store.Gone():
                self._tree.release(message.domain)
            case store.Offered():
                self._offer(message)
            case store.Withdrawn():
                self._removed.discard(message.channel)
                self._tree.withdraw(message.channel)
            case store.Remote():
                self._add(RemoteStream(message.client, message.domain, self._waiting, self._say))
            case store.Request():
                self._with_remote(message.client, lambda remote: remote.feed(message.data))
            case store.Taken():
                self._with_remote(message.client, RemoteStream.note_taken)
            case local.Start():
                self._settle()
                super()._obey(message, fds)
            case _:
                super()._obey(message, fds)

    def _offer(self, offered: store.Offered) -> None:
        refused = self._tree.offer(offered.channel, offered.path, offered.server, offered.client, offered.ref, offered.port)
        if refused is not None:
            why = _NOT_SHOWN[refused.number]
            log.warning(
                f"domain {offered.server}'s vchan at {offered.path} is not shown in the store, for {why}",
                whose=f"domain {offered.server}",
            )

    def _with_remote(self, client: ClientId, action: Callable[[RemoteStream], None]) -> None:
        stream = self._streams.get(client)
        if isinstance(stream, RemoteStream):  # else it has ended
            self._wake(stream)
            self._guard(stream, lambda _stream: action(stream))

    def _replay(self) -> None:
        found = self._journal.read()
        try:
            if found is None:
                raise ValueError("reading it has ended this process")
            self._tree.replay(found.records)
            self._found = found
        except Exception as error:
            log.warning(f"what programs wrote into the store is lost, and so are its connections: {error!r}")
            self._journal.clear()
            self._tree = self._new_tree()
            self._is_lost = True

    def _settle(self) -> None:
        """End what the journal contains and main has not mentioned: main has said everything."""
        for stream in list(self._streams.values()):
            if self._is_lost or stream.number in self._found.owed:
                self._end(stream)
        for client, packet in self._found.events:
            self._expect(client, packet)  # some for the second time, as a watch may
        self._tree.settle()
        self._journal.start()
        self._commit()

    # ---- connections ----

    def _add(self, stream: Stream) -> None:
        super()._add(stream)
        self._tree.connect(stream.number, stream.domain)

    def _on_gone(self, gone: Stream) -> None:
        self._tree.disconnect(gone.number)

    def _on_output(self, stream: Stream) -> None:
        self._journal.owe(stream.number, stream.is_waiting)

    def _on_request(self, sender: Stream, taken: Taken) -> None:
        before = self._heard
        self._require_main(self._catch_up())
        if self._heard != before:
            self._commit()  # it is told of to those who watch by now
        if sender.number not in self._streams:
            return
        self._commit(sender, self._tree.execute(sender.number, taken.request))

    def _require_main(self, is_there: bool) -> None:
        if not is_there:
            raise SystemExit

    def _commit(self, asked: Stream | None = None, reply: bytes = b"") -> None:
        """Record what was done and let main know, then notify everyone, the asking client first."""
        told: set[ChannelId] = set()
        while self._removed:
            # What main says meanwhile may remove nodes of other vchans.
            for channel in self._removed - told:
                self._say(store.Withdraw(channel))
            told |= self._removed
            self._require_main(self._hear_main())
        self._tree.flush_events()
        events = self._events.copy()
        if self._records or events:
            self._journal.append(self._records, events)
            self._records.clear()
            self._events.clear()
        if asked is not None:
            if asked.number in self._streams:
                self._guard(asked, lambda stream: stream.put(reply))
            self._marker.clear()  # it has its answer, and may outlive us
        for client, packet in events:
            stream = self._streams.get(client)
            if stream is not None:
                self._guard(stream, partial(Stream.put_event, packet=packet))
        if events:
            self._journal.told()
        if self._journal.is_large():
            self._journal.compact(self._tree.dump(), [each.number for each in self._streams.values() if each.is_waiting])


def main(socket_fd: int, marker_fd: int) -> None:
    """Run the process."""
    serve("kvmchand-store", Store, socket_fd, marker_fd)
