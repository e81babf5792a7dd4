# SPDX-License-Identifier: LGPL-2.1-or-later
"""What guests' daemons say by their control sessions, and what follows from it.

A guest's daemon first says hello. Then it passes on what its clients ask, each request with a
number, and says which devices it can use.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvmchand.channels.device import Device
from kvmchand.channels.requester import RequesterEvents
from kvmchand.errors import LimitReached, ProtocolError
from kvmchand.ids import HOST, ClientId
from kvmchand.links.guest import Guest, GuestEvents, Remote, reply_to
from kvmchand.links.guests import Guests
from kvmchand.links.handshake import Handshakes
from kvmchand.links.links import Links
from kvmchand.links.plugs import Plugs
from kvmchand.links.pool import Pool
from kvmchand.runtime import log
from kvmchand.services.control.sessions import SessionEvents, SessionId, Sessions
from kvmchand.wire import client, control, store

_BRIDGE_MAX = 100
"""Characters of a bridge's place."""
_IDLE_CLIENTS = 1024
"""Clients that a guest may have beside those with a channel."""


class Messages(SessionEvents):
    """Does what guests' daemons say."""

    def __init__(
        self,
        links: Links,
        guests: Guests,
        pool: Pool,
        sessions: Sessions,
        handshakes: Handshakes,
        plugs: Plugs,
        requests: RequesterEvents,
        events: GuestEvents,
        guest_channels: int,
        pairs: Sequence[tuple[str, str]],
    ) -> None:
        """Hear nothing yet.

        `guest_channels` limits a guest's clients; `pairs` are the names of guests that are linked
        before their first channel.
        """
        self._links = links
        self._guests = guests
        self._pool = pool
        self._sessions = sessions
        self._handshakes = handshakes
        self._plugs = plugs
        self._requests = requests
        self._events = events
        self._max_clients = 2 * guest_channels + _IDLE_CLIENTS
        self._pairs = pairs

    def on_control_restarted(self) -> None:
        """Have all guests' daemons say again what is not answered."""
        for session in self._handshakes:
            guest = self._handshakes.get(session)
            if guest is not None:
                self._events.on_guest_messages_lost(guest.domain)
            self._sessions.send(session, control.Again())

    def on_session_lost(self, session: SessionId, sentence: str) -> None:
        """End the session, and open another if the guest's daemon asks for it."""
        guest = self._handshakes.get(session)
        if guest is not None:
            self._handshakes.hang_up(guest)  # the guest's daemon starts anew then
            self._lose(guest, sentence)

    def on_session_message(self, session: SessionId, message: object) -> None:
        """Do what a guest's daemon says, and end its session if that is against the protocol."""
        guest = self._handshakes.get(session)
        if guest is None:
            return
        try:
            self._obey(guest, session, message)
        except ProtocolError as error:
            self._lose(guest, error.sentence)  # the control process hangs up, after what it was told to say before

    def _lose(self, guest: Guest, sentence: str) -> None:
        if guest.note_unlinked(sentence):
            log.warning(f"the control link to domain {guest.domain} is lost: {sentence}")
        self._handshakes.end(guest, hangs_up=self._handshakes.is_there(guest))
        self._handshakes.renew_if_asked(guest)

    def _obey(self, guest: Guest, session: SessionId, message: object) -> None:
        match message:
            case control.Hello():
                self._greet(guest, session, message)
            case _ if not guest.is_greeted:
                raise ProtocolError("the guest's daemon said something before its hello")
            case control.Ask() if guest.is_detached:
                pass  # its session is about to end
            case control.Ask():
                self._on_ask(guest, session, message)
            case control.Close():
                remote = guest.remotes.get(message.client)
                if remote is None:
                    self._sessions.send(session, control.Closed(message.client))
                else:
                    self._requests.on_close(remote)
            case store.Request() | store.Taken() | store.Ended():
                self._events.on_guest_store(guest.domain, message)
            case control.Ready():
                changed = [each for each in self._devices_by_peer(guest, message.peer) if guest.domain not in each.ready]
                for device in changed:
                    self._pool.set_ready(device, guest.domain, max(message.vectors, 0))
                if changed:
                    self._events.on_devices_changed()
                elif all(device.peers[guest.domain] != message.peer for device in self._links.of(guest.domain)):
                    self._pool.stale.release(guest.domain, message.peer)
            case control.Released():
                self._on_released(guest, message.peer)
            case control.Room():
                self._on_room(guest, message)
            case control.Unusable():
                log.warning(
                    f"domain {guest.domain} can't use a device: {message.sentence}", whose=f"the devices of domain {guest.domain}"
                )
                for device in self._devices_by_peer(guest, message.peer):
                    self._plugs.fail(device, guest.domain, message.sentence)

    def _on_room(self, guest: Guest, room: control.Room) -> None:
        """Note for how large a device there is room, and give up what is not plugged and larger."""
        self._links.rooms[guest.domain] = room.size
        self._links.widest[guest.domain] = room.bridge[:_BRIDGE_MAX]
        for device in self._links.of(guest.domain):
            if guest.domain not in device.attached and not (device.is_control or device.is_closing):
                try:
                    self._links.require_window(device.pair, guest.domain, device.size)
                except LimitReached as error:
                    self._plugs.fail(device, guest.domain, error.sentence)

    def _on_released(self, guest: Guest, peer: int) -> None:
        for device in self._links.of(guest.domain):
            if device is guest.control or device.peers[guest.domain] != peer:
                continue
            if not self._pool.unplugger.note_released(device, guest.domain) and guest.domain in device.attached:
                self._plugs.fail(device, guest.domain, "it is not in the guest any more")

    def _devices_by_peer(self, guest: Guest, peer: int) -> list[Device]:
        return [
            device
            for device in self._links.of(guest.domain)
            if device is not guest.control
            and guest.domain in device.attached
            # A guest that can't tell which it is means one that it has not told of yet.
            and (device.peers[guest.domain] == peer or (peer == 0 and guest.domain not in device.ready))
        ]

    def _greet(self, guest: Guest, session: SessionId, hello: control.Hello) -> None:
        if guest.is_greeted:
            self._sessions.send(session, control.Welcome(guest.domain))  # it was lost with a control process
            return
        if hello.version != control.VERSION:
            sentence = (
                f"the host's kvmchand speaks version {control.VERSION}, and the guest's {hello.version}: use the same release"
            )
            self._sessions.send(session, control.Refused(sentence))
            self._handshakes.delay(guest)
            raise ProtocolError(sentence)
        guest.is_greeted = True
        guest.note_linked()
        log.info(f"domain {guest.domain} ({guest.name}): its kvmchand is here")
        self._sessions.send(session, control.Welcome(guest.domain))
        self._pool.stale.greet(guest.domain, lambda: self._prepare_links(guest, session))

    def _on_ask(self, guest: Guest, session: SessionId, ask: control.Ask) -> None:
        remote = guest.remotes.get(ask.client)
        if remote is None:
            if len(guest.remotes) >= self._max_clients:
                log.warning(
                    f"domain {guest.domain} is refused another client: it has {len(guest.remotes)}",
                    whose=f"the clients of domain {guest.domain}",
                )
                error = LimitReached(
                    f"domain {guest.domain} has {len(guest.remotes)} clients: guest_channels in the host's settings"
                )
                self._sessions.send(session, reply_to(ask.client, ask.serial, client.Error(error.code, error.sentence)))
                return
            guest.numbers += 1
            remote = Remote(self._sessions, ClientId(guest.numbers), ask.pid, guest, ask.client)
            guest.remotes[ask.client] = remote
        if not remote.is_new(ask.serial):
            return
        if isinstance(ask.request, client.Hello):
            raise ProtocolError("a client's hello is the guest's own to answer")
        self._requests.on_request(remote, ask.request)

    def _prepare_links(self, guest: Guest, session: SessionId) -> None:
        """Make the guest's links that exist before their first channel, if the session lasts."""
        if guest.session != session:
            return
        self._pool.prepare(HOST, guest.domain)
        names = {each.name: each.domain for each in self._guests if each.is_greeted}
        for one, other in self._pairs:
            if guest.name in (one, other) and one in names and other in names:
                self._pool.prepare(names[one], names[other])
