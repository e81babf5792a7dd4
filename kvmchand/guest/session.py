# SPDX-License-Identifier: LGPL-2.1-or-later
"""The session with the host's daemon: how it begins and ends, what it says, and who has to know.

The host is not believed: a slice that it names must lie within a device that is here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from kvmchand.config import Settings
from kvmchand.errors import VchanError
from kvmchand.guest.devices import Devices
from kvmchand.guest.handshake import Handshake
from kvmchand.guest.requests import Requests
from kvmchand.ids import CONTROL_PEER
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop
from kvmchand.runtime.sockets import Sockets
from kvmchand.services.control.sessions import ControlEnd, SessionEvents, SessionId, Sessions
from kvmchand.services.store.forwarding import Forward
from kvmchand.services.vfio.functions import Function, Functions
from kvmchand.wire import control, store


class Session(SessionEvents):
    """The session with the host, and what stands on it: requests and connections to the store."""

    def __init__(
        self,
        loop: Loop,
        sockets: Sockets,
        devices: Devices,
        functions: Functions,
        settings: Settings,
        fail: Callable[[VchanError], None],
    ) -> None:
        """Make no session yet. `fail` is called when a service has ended for good."""
        user = settings.service_user
        self._devices = devices
        self._functions = functions
        self._room: control.Room | None = None
        """What the host is told of it, once it is known."""
        self._control: Function | None = None
        self._session: SessionId | None = None
        self._is_welcome = False
        self._refusal = ""
        """What the host said last in place of a welcome."""
        self.requests = Requests(loop, devices, self.tell)
        self._forward = Forward(loop, sockets, user, count(1).__next__, self.tell_if_linked, fail)
        self._sessions = Sessions(loop, user, fail, is_host=False, rate=settings.limits.guest_requests)
        self._handshake = Handshake(loop, self._on_met)

    def start(self) -> None:
        """Start the control process and the forwarding process."""
        self._sessions.start(self)
        self._forward.start()

    def close(self) -> None:
        """End both processes. The host hears that the session is over."""
        self._sessions.close()
        self._forward.close()

    # ---- the host ----

    def meet(self, function: Function) -> None:
        """Begin on a control device that has come."""
        self._control = function
        self._handshake.start(function)

    def leave(self) -> None:
        """Let the control device go."""
        self._part()
        self._handshake.stop()
        self._control = None

    def _on_met(self, end: ControlEnd) -> None:
        self._session = self._sessions.open(end)
        self.tell(control.Hello(control.VERSION))

    def tell(self, message: object) -> None:
        """Send a message to the host, if there is a session."""
        if self._session is not None:
            self._sessions.send(self._session, message)

    def tell_if_linked(self, message: object) -> bool:
        """Send a message to the host. Returns False if it has not welcomed us yet."""
        if self._is_welcome:
            self.tell(message)
        return self._is_welcome

    def _part(self) -> None:
        """End the session, and what stood on it."""
        if self._session is not None:
            self._sessions.close_session(self._session)
        self._session = None
        self._is_welcome = False
        self.requests.part()
        self._forward.end_known()

    # ---- the session: SessionEvents ----

    def on_session_lost(self, session: SessionId, sentence: str) -> None:
        """End what stood on the session, for the host is gone or broke the rules."""
        if session != self._session:
            return
        if self._is_welcome or not self._refusal:
            log.warning(f"the link to the host is lost: {sentence}")
        self._part()
        if self._control is not None:
            self._handshake.start_anew(self._control)

    def on_session_message(self, session: SessionId, message: object) -> None:
        """Do what the host says."""
        if session != self._session:
            return
        match message:
            case control.Welcome():
                self._on_welcome(message)
            case control.Refused():
                self._on_refused(message.sentence)
            case control.Reply() | control.Granted() | control.Shared():
                self.requests.take_answer(message)
            case control.Closed():
                self.requests.finish_close(message.client)
            case control.Detached():
                self.requests.part()
            case control.Release():
                self._release(message.peer)
            case control.Again():
                self._say_again()
            case store.Output() | store.Ended():
                self._forward.take_host_message(message)

    def _release(self, peer: int) -> None:
        """Let go of a device. The host hears so when it is done, or at once if there is none."""
        function = self._devices.of_peer(peer)
        if function is None or peer == CONTROL_PEER:
            self.tell(control.Released(peer))
        else:
            self.requests.cut_on(function)
            self._functions.release(function)

    def note_room(self, room: control.Room) -> None:
        """Let the host know for how large a device there is room, and where."""
        self._room = room
        self.tell_if_linked(room)

    def on_control_restarted(self) -> None:
        """Say all again that may be lost."""
        self._say_again()

    def _say_again(self) -> None:
        """Say all again: a control process has died, here or on the host."""
        self._forward.end_known()
        if self._is_welcome:
            self._tell_devices()
            self.requests.ask_again()
        else:
            self.tell(control.Hello(control.VERSION))

    def _on_refused(self, sentence: str) -> None:
        """Tell clients, and the log once: a host that refuses does so again and again."""
        self.requests.refusal = sentence
        if sentence != self._refusal:
            self._refusal = sentence
            log.warning(f"the host's kvmchand refuses this one: {sentence}")

    def _on_welcome(self, welcome: control.Welcome) -> None:
        if self._is_welcome:
            return
        log.info(f"linked to the host: this is domain {welcome.domain}")
        self._is_welcome = True
        self._refusal = ""
        self._tell_devices()
        self.requests.ask_waiting()
        self._forward.pass_on_waiting()

    def _tell_devices(self) -> None:
        if self._room is not None:
            self.tell(self._room)
        for function in self._devices:
            self.tell(control.Ready(function.peer, len(function.events)))
