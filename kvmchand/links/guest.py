# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest and its clients, as the host's main process knows them.

A guest exists from when it is found until it is gone, and a client from its first request until its
end is released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvmchand.channels.device import Device
from kvmchand.channels.grants import Share
from kvmchand.channels.region import Region, SharedMemory
from kvmchand.channels.registry import Channel, Side
from kvmchand.channels.requester import Requester
from kvmchand.errors import InternalError, OutOfResources, VchanError
from kvmchand.ids import ClientId, DomainId, Size
from kvmchand.links.slices import SliceRegion
from kvmchand.runtime import log
from kvmchand.runtime.loop import Timer
from kvmchand.services.control.sessions import SessionId, Sessions
from kvmchand.wire import client, control


class GuestEvents(Protocol):
    """Hears of guests, and of what they can use."""

    def on_guest(self, domain: DomainId, name: str, uuid: str) -> None:
        """React when a guest runs."""

    def on_guest_store(self, domain: DomainId, message: object) -> None:
        """React to what a guest's daemon says of the store. Raises ProtocolError."""

    def on_guest_messages_lost(self, domain: DomainId) -> None:
        """React when messages of a guest's connections to the store may be lost.

        Its daemon asks again what its clients asked.
        """

    def on_guest_reset(self, domain: DomainId) -> None:
        """React when every end that a guest has is dead: its daemon, or all of it, is gone."""

    def on_guest_gone(self, domain: DomainId) -> None:
        """React when a guest runs no more."""

    def on_guest_leaving(self, domain: DomainId) -> None:
        """React when a guest is being detached: every end that it has is dead."""

    def on_guest_left(self, domain: DomainId) -> None:
        """React when a guest that is detached has no device any more."""

    def on_guest_attached(self, domain: DomainId) -> None:
        """React when a guest is detached no more."""

    def on_device_spoiled(self, domain: DomainId, device: Device) -> None:
        """React when a guest will not get a device again: what is offered to it there is lost."""

    def on_guest_away(self, domain: DomainId, kept: DomainId) -> None:
        """React when a detached guest runs no more: what is offered to it is `kept`'s."""

    def on_guest_returned(self, domain: DomainId, kept: DomainId) -> None:
        """React when such a guest runs again: what is `kept`'s is offered to it."""

    def on_guest_given_up(self, kept: DomainId) -> None:
        """React when such a guest will not run again."""

    def on_unserved(self, domain: DomainId, sentence: str) -> None:
        """React when a domain runs that is no guest. `sentence`: why, and what to do."""

    def on_unserved_gone(self, domain: DomainId) -> None:
        """React when such a domain runs no more."""

    def on_device_lost(self, domain: DomainId, device: Device) -> None:
        """React when a guest cannot use a device any more: its ends there are dead."""

    def on_devices_changed(self) -> None:
        """React when a device became usable: retry requests that raised NotYet."""

    def on_device_failed(self, domain: DomainId, device: Device, error: VchanError) -> None:
        """React when a guest can't have a device: nothing may wait for it, or for the guest."""


class Remote(Requester):
    """A client in a guest."""

    __slots__ = ("_answer", "_guest", "_remote", "_serial", "_sessions")

    def __init__(self, sessions: Sessions, number: ClientId, pid: int, guest: Guest, remote: ClientId) -> None:
        """Name a client that its guest's daemon calls `remote`."""
        super().__init__(number, guest.domain, pid)
        self._sessions = sessions
        self._guest = guest
        self._remote = remote
        self._serial = 0
        self._answer: object = None
        """The answer to the request numbered `_serial`, once there is one."""

    def is_new(self, serial: int) -> bool:
        """Note a request. Returns False if it came before; its answer, if any, is sent again."""
        if serial > self._serial:
            self._serial, self._answer = serial, None
            return True
        if serial == self._serial and self._answer is not None and self._session is not None:
            self._sessions.send(self._session, self._answer)  # what the guest was told may be lost
        return False

    @property
    def _session(self) -> SessionId | None:
        """The guest's session, or None if the client is of a session before."""
        is_here = self._guest.remotes.get(self._remote) is self
        return self._guest.session if is_here else None

    def _send(self, answer: object) -> bool:
        session = self._session
        if session is not None:
            self._answer = answer
            self._sessions.send(session, answer)
        return session is not None

    def answer(self, reply: client.Reply, fds: Sequence[int] = ()) -> bool:
        """Send a reply to the guest's daemon. No descriptor gets there."""
        if fds:
            raise InternalError(f"{len(fds)} descriptors can't get into domain {self.domain}")
        if isinstance(reply, client.Error):
            log.info(
                f"domain {self.domain}, client {self.number}: refused: {reply.sentence}", whose=f"domain {self.domain}'s requests"
            )
        return self._send(reply_to(self._remote, self._serial, reply))

    def grant(self, channel: Channel, region: Region, side: Side) -> bool:
        """Answer with an end of a channel on a device of the guest's."""
        if not isinstance(region, SliceRegion):
            raise InternalError(f"channel {channel.number} has no slice that a guest could use")
        if self._session is None:
            return False
        place = region.slice
        vector = place.vectors[side]
        if vector >= place.device.usable:
            raise OutOfResources(f"domain {self.domain} has too few interrupt vectors for this channel: offer it anew")
        if side is Side.CLIENT:
            region.signal(Side.CLIENT)
        place.given = True
        rings = channel.rings
        value = Size(region.bell(side))
        kind = "shared doorbell" if place.is_shared else "doorbell"
        grant = client.Grant(channel.number, channel.path, rings.left, rings.right, kind, place.offset, Size(0), value)
        return self._send(control.Granted(self._remote, self._serial, place.device.peers[self.domain], vector, grant))

    def give(self, share: Share, memory: SharedMemory, *, writable: bool) -> bool:
        """Answer with shared pages on a device of the guest's, where all are writable."""
        if memory.slice is None:
            raise InternalError(f"the pages from {share.ref} on have no slice that a guest could use")
        if self._session is None:
            return False
        memory.slice.given = True
        peer = memory.slice.device.peers[self.domain]
        pages = client.Pages(Size(share.ref), share.pages, memory.offset)
        return self._send(control.Shared(self._remote, self._serial, peer, pages))

    def forget(self) -> None:
        """Tell the guest's daemon that the client's end is released."""
        session = self._session
        if session is not None:
            del self._guest.remotes[self._remote]
            self._sessions.send(session, control.Closed(self._remote))

    def drop(self) -> None:
        """Do nothing: the guest's daemon has been told why, and ends the client itself."""

    def pause(self) -> None:
        """Do nothing: the connection is the guest's daemon's to watch."""

    def mark_busy(self) -> None:
        """Do nothing: only how many clients a guest has is limited."""

    def mark_idle(self) -> None:
        """Do nothing, as mark_busy()."""


@dataclass(slots=True, eq=False)
class Guest:
    """A guest that runs."""

    domain: DomainId
    name: str
    uuid: str
    control: Device
    session: SessionId | None = None
    is_greeted: bool = False
    remotes: dict[ClientId, Remote] = field(default_factory=dict)
    numbers: int = 0
    """Where its clients' numbers start, in this session."""
    opened: float = 0.0
    """When its last session was opened: the next comes a while later at the earliest."""
    renewal: Timer | None = None
    """Opens that session, if it is asked for."""
    attachment: Timer | None = None
    """Plugs the control device again, which did not get into the guest."""
    patience: float = 1.0
    """Delay before the next attempt to plug the control device; doubles each time."""
    is_detached: bool = False
    leaving: set[str] = field(default_factory=set)
    """The sockets of the devices that it still has to let go of, as it is detached."""
    spoiled: set[Device] = field(default_factory=set)
    """Devices of which its QEMU may never let go wholly, as its daemon has not said that their
    interrupts are off. They are of no use in the same QEMU.
    """
    _reason: str = ""
    """Why it has no link."""

    def note_unlinked(self, reason: str) -> bool:
        """Note why it has no link. Returns whether that is to be said.

        It is not if the reason was the same before: most can't change while the domain runs, and
        are found again with each attempt.
        """
        is_new, self._reason = reason != self._reason, reason
        return is_new

    def note_linked(self) -> None:
        """Note that it has a link."""
        self._reason = ""


def reply_to(remote: ClientId, serial: int, content: client.Reply) -> control.Reply:
    """Return an answer that is no grant, for the guest's daemon to pass on."""
    return control.Reply(remote, serial, content)
