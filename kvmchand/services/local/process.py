# SPDX-License-Identifier: LGPL-2.1-or-later
"""The local process: reads what the clients of the local sockets say.

It passes valid requests to main. It has no region, and decides only who may connect. Main answers a
client on the client's own connection. A client lives until its connection ends or its bytes break
the protocol.
"""

from __future__ import annotations

import socket
import time
from enum import Enum

from kvmchand.errors import LimitReached, ProtocolError, TimedOut, VchanError
from kvmchand.ids import ClientId
from kvmchand.linux import libc
from kvmchand.runtime import closer, log, passrights
from kvmchand.runtime.acceptor import Acceptor
from kvmchand.runtime.listener import Listener
from kvmchand.runtime.loop import HALF_CLOSED, READABLE, Timer
from kvmchand.runtime.marker import Marker
from kvmchand.runtime.worker import serve
from kvmchand.wire import client, local
from kvmchand.wire.codec import PACKET_MAX
from kvmchand.wire.packet import AT_ONCE, send_packet

HELLO_DEADLINE = 5.0
"""Seconds that a new connection has for its hello and its first request."""
HALF_OPEN_MAX = 256
"""Connections that may be without a request.

Our library makes one at once, so the oldest is dropped.
"""


class Phase(Enum):
    """How far a client has come."""

    NEW = "new"
    """Its hello is due."""
    GREETED = "greeted"
    """Main does not know it yet."""
    KNOWN = "known"
    """Main has a duplicate of its connection."""


class Client:
    """A client."""

    def __init__(self, number: ClientId, sock: socket.socket, listener: Listener, phase: Phase) -> None:
        self.number = number
        self.sock = sock
        self.listener = listener
        self.phase = phase
        self.patience: Timer | None = None
        """Drops the client if its first request does not come in time."""


class Local(Acceptor):
    """The process's whole state."""

    def __init__(self, main: socket.socket, marker: Marker) -> None:
        super().__init__(main, marker, local.to_local, local.to_main)
        self._half_open: dict[ClientId, Client] = {}  # oldest first

    def run(self) -> None:
        """Serve until main ends."""
        if self._wait_for_start():
            self._loop.run()

    # ---- connections ----

    def _on_restored(self, number: ClientId, listener: Listener, sock: socket.socket) -> None:
        self._serve(number, sock, listener, Phase.KNOWN)

    def _on_refused(self, _listener: Listener, sock: socket.socket, error: VchanError) -> None:
        _say(sock, error)

    def _on_accepted(self, number: ClientId, listener: Listener, sock: socket.socket) -> None:
        new = self._serve(number, sock, listener, Phase.NEW)
        new.patience = self._loop.call_at(time.monotonic() + HELLO_DEADLINE, lambda: self._give_up(new))
        self._half_open[number] = new
        if len(self._half_open) > HALF_OPEN_MAX:
            oldest = next(iter(self._half_open.values()))
            self._drop(oldest, LimitReached(f"over {HALF_OPEN_MAX} connections have asked nothing: this is the oldest"))

    def _serve(self, number: ClientId, sock: socket.socket, listener: Listener, phase: Phase) -> Client:
        sock.setblocking(False)
        served = Client(number, sock, listener, phase)
        listener.clients += 1
        self._loop.add(sock.fileno(), lambda events: self._on_client(served, events), READABLE | HALF_CLOSED)
        return served

    def _drop(self, dropped: Client, error: VchanError) -> None:
        """End a connection for what it did. Main's duplicate then hangs up."""
        whose = dropped.listener.settings.whose
        _, user, _ = libc.peer_credentials(dropped.sock)
        log.warning(f"{whose}, client {dropped.number}: {error.sentence}", whose=f"{whose}, user {user}")
        _say(dropped.sock, error)
        try:
            dropped.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # gone already
        self._forget(dropped)

    def _forget(self, gone: Client) -> None:
        """Close our side of a connection. If main knows the client, main ends it."""
        self._stop_waiting(gone)
        gone.listener.clients -= 1
        self._loop.remove(gone.sock.fileno())
        closer.close(gone.sock)

    def _stop_waiting(self, served: Client) -> None:
        """Stop the client's deadline: it has made its first request, or is gone."""
        if self._half_open.pop(served.number, None) is not None and served.patience is not None:
            served.patience.cancel()

    def _give_up(self, overdue: Client) -> None:
        self._drop(overdue, TimedOut(f"no request came within {HELLO_DEADLINE:.0f} s"))

    # ---- clients ----

    def _on_client(self, sender: Client, events: int) -> None:
        self._marker.set(sender.number)
        try:
            # Behind a hello its request is there already, mostly.
            while self._take_packet(sender, events) is Phase.GREETED:
                pass
        except BlockingIOError:
            pass
        except VchanError as error:
            self._drop(sender, error)
        except OSError:
            self._forget(sender)  # it went in the midst
        self._marker.clear()

    def _take_packet(self, sender: Client, events: int) -> Phase | None:
        """Return how far the client is after its next packet, or None if that was its end."""
        data = passrights.receive(sender.sock, PACKET_MAX)
        if data or not events & HALF_CLOSED:
            self._on_request(sender, data)
            return sender.phase
        self._forget(sender)
        return None

    def _on_request(self, sender: Client, data: bytes) -> None:
        request = client.requests.decode(data)
        if sender.phase is Phase.NEW:
            self._greet(sender, request)
        elif isinstance(request, client.Hello):
            raise ProtocolError("a second hello came")
        else:
            ask = local.to_main.encode(local.Ask(sender.number, request))
            self._marker.clear()  # main may answer, and the client go on, before we get any further
            send_packet(self._main, ask, () if sender.phase is Phase.KNOWN else (sender.sock.fileno(),))
            sender.phase = Phase.KNOWN
            self._stop_waiting(sender)

    def _greet(self, sender: Client, request: object) -> None:
        if not isinstance(request, client.Hello):
            raise ProtocolError("a request came before the hello")
        if request.version != client.VERSION:
            versions = f"the client speaks version {request.version}, and kvmchand version {client.VERSION}"
            raise ProtocolError(f"{versions}: use the same release")
        sender.phase = Phase.GREETED


def _say(sock: socket.socket, error: VchanError) -> None:
    try:
        send_packet(sock, client.replies.encode(client.Error(error.code, error.sentence)), flags=AT_ONCE)
    except OSError:
        pass  # it does not listen


def main(socket_fd: int, marker_fd: int) -> None:
    """Run the process."""
    serve("kvmchand-local", Local, socket_fd, marker_fd)
