# SPDX-License-Identifier: LGPL-2.1-or-later
"""Control sessions, as main has them, and the control process that reads their rings.

A control process that dies is started again and given the sessions back, except the one whose bytes
it was reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvmchand.errors import OutOfResources, ProtocolError, VchanError
from kvmchand.ids import HOST, DomainId, Size
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.supervisor import ServiceEvents, SupervisedService
from kvmchand.wire import client, control
from kvmchand.wire.codec import Codec
from kvmchand.wire.packet import Fds

SessionId = int
"""Counts up from 1; a guest whose daemon starts again gets another."""


class SessionEvents(Protocol):
    """Hears what comes through control sessions."""

    def on_control_restarted(self) -> None:
        """React when a control process has died: what was under way on any session may be lost."""

    def on_session_message(self, session: SessionId, message: object) -> None:
        """React to what the other end says."""

    def on_session_lost(self, session: SessionId, sentence: str) -> None:
        """React when the other end is gone, or broke the rules. The session is closed already."""


@dataclass(frozen=True, slots=True)
class ControlEnd:
    """What an end of a control vchan is made of.

    The descriptors stay the caller's; open() duplicates them.
    """

    grant: client.Grant
    fds: tuple[int, ...]


class Sessions(ServiceEvents):
    """The control sessions, and the control process that reads their rings."""

    _events: SessionEvents
    """The object that start() was given."""

    def __init__(self, loop: Loop, user: str, fail: Callable[[VchanError], None], *, is_host: bool, rate: int) -> None:
        """Have no session yet. `fail` is called when the control process has ended for good."""
        self._user = user
        self._is_host = is_host
        self._rate = rate
        self._incoming: Codec = control.to_host if is_host else control.to_guest
        self._outgoing: Codec = control.to_guest if is_host else control.to_host
        self._sessions: dict[SessionId, tuple[ControlEnd, DomainId, Fds]] = {}
        self._last: SessionId = 0
        self._is_restarted = False
        """Whether the control process that starts is not the first."""
        self._service = SupervisedService(loop, "control", fail)

    def start(self, events: SessionEvents) -> None:
        """Serve sessions. From now on `events` hears what comes through them."""
        self._events = events
        self._service.start(self)

    def open(self, end: ControlEnd, domain: DomainId = HOST) -> SessionId:
        """Open a session: with a guest, or in a guest with the host.

        Raises OutOfResources if no descriptors are left.
        """
        try:
            fds = Fds.duplicates(end.fds)
        except OSError as error:
            raise OutOfResources(f"there can be no control session with domain {domain}: {error.strerror}") from error
        self._last += 1
        self._sessions[self._last] = (end, domain, fds)
        self._service.send(*self._attach(self._last))
        return self._last

    def _attach(self, session: SessionId) -> tuple[bytes, Sequence[int]]:
        end, domain, fds = self._sessions[session]
        message = control.Attach(Size(session), domain, self._is_host, self._rate, end.grant)
        return control.to_control.encode(message), fds.borrow()

    def send(self, session: SessionId, message: object) -> None:
        """Send a message to the other end, unless the session is over."""
        if session in self._sessions:
            packet = self._outgoing.encode(message)
            self._service.send(control.to_control.encode(control.Send(Size(session), packet)))

    def close_session(self, session: SessionId, *, hangs_up: bool = True) -> None:
        """Close a session.

        `hangs_up`: tell the other end, after what it was sent before. Otherwise nothing more is
        written to its page.
        """
        if session in self._sessions:
            self._service.send(control.to_control.encode(control.Detach(Size(session), hangs_up)))
            self._forget(session)

    def _forget(self, session: SessionId) -> None:
        self._sessions.pop(session)[2].close()

    # ---- the control process: ServiceEvents ----

    def first_messages(self) -> list[tuple[bytes, Sequence[int]]]:
        """Return what a new control process is told."""
        start: tuple[bytes, Sequence[int]] = (control.to_control.encode(control.Start(self._user)), ())
        return [*(self._attach(session) for session in self._sessions), start]

    def decode(self, data: bytes, _fds: Fds) -> tuple[SessionId, object] | control.Started:
        """Return the session and the message of a packet."""
        message = control.to_main.decode(data)
        if isinstance(message, control.Started):
            return message
        if message.session > self._last:
            raise ProtocolError(f"there is no session {message.session}")
        if isinstance(message, control.Received):
            return message.session, self._incoming.decode(message.packet)
        return message.session, message

    def on_message(self, message: object) -> None:
        """React to what the control process said."""
        if not isinstance(message, tuple):
            if self._is_restarted:
                self._events.on_control_restarted()
            self._is_restarted = True
            return
        session, content = message
        if session not in self._sessions:
            return  # closed meanwhile
        if isinstance(content, control.Lost):
            self._forget(session)
            self._events.on_session_lost(session, content.sentence)
            return
        self._service.reset_failures()
        self._events.on_session_message(session, content)

    def on_death(self, culprit: int | None) -> None:
        """End the session whose bytes ended the control process."""
        if culprit is not None and culprit in self._sessions:
            log.warning(f"control session {culprit} is ended, for its bytes ended the control process")
            self._forget(culprit)
            self._events.on_session_lost(culprit, "its bytes ended the control process")

    def close(self) -> None:
        """End the control process and all sessions."""
        self._service.stop()
        for session in list(self._sessions):
            self._forget(session)
