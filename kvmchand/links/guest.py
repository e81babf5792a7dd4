# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest and its clients, as the host's main process has them. The guest is there from when it is found until it is gone, a
client from its first request until its end is released.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvmchand.channels.device import Device
from kvmchand.channels.requester import Requester
from kvmchand.ids import ClientId, DomainId
from kvmchand.runtime.loop import Timer
from kvmchand.services.control.sessions import SessionId
from kvmchand.wire import client, control


@dataclass(slots=True, eq=False)
class Remote(Requester):
    """A client in a guest. `remote`: what the guest's daemon calls it. `answer`: to the request numbered `serial`, once it is
    there; it may have to be said again."""

    guest: Guest
    remote: ClientId
    serial: int = 0
    answer: object = None

    def is_new(self, serial: int) -> bool:
        """Notes a request, unless it has come before."""
        if serial <= self.serial:
            return False
        self.serial, self.answer = serial, None
        return True


@dataclass(slots=True, eq=False)
class Guest:
    domain: DomainId
    name: str
    control: Device
    session: SessionId | None = None
    is_greeted: bool = False
    remotes: dict[ClientId, Remote] = field(default_factory=dict)
    numbers: int = 0
    """Where its clients' numbers start, in this session."""
    opened: float = 0.0
    """When its last session was, and when the next may be looked for: at the earliest a while after."""
    renewal: Timer | None = None
    """Looks for that session."""
    attachment: Timer | None = None
    """Plugs the control device again, which did not get into the guest."""
    patience: float = 1.0
    """Seconds until its control device is tried to be plugged again, and those of the next time but one."""


def reply_to(remote: ClientId, serial: int, content: client.Reply) -> control.Reply:
    """Return an answer that is no grant, for the guest's daemon to pass on."""
    return control.Reply(remote, serial, content)
