# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's main process in a guest: forwards what local clients ask to the host's daemon, and hands them their ends.

It knows no channels, only which client waits for what. It believes neither the host nor its own services: a slice that the host
names must lie within a device that is here.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

from kvmchand.channels.device import CONTROL_PEER
from kvmchand.channels.requester import Requester
from kvmchand.config import Settings
from kvmchand.errors import KvmchanError, OutOfResources, ProtocolError, Unreachable
from kvmchand.guest.handshake import Handshake
from kvmchand.ids import HOST, PAGE, ClientId, Size
from kvmchand.linux import libc
from kvmchand.linux.eventfd import signal_event
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop, Timer
from kvmchand.runtime.privileges import raise_descriptor_limit, require_user
from kvmchand.runtime.signals import notify, stopped_by_signals
from kvmchand.runtime.sockets import Sockets
from kvmchand.services.control.sessions import ControlEnd, SessionId, Sessions
from kvmchand.services.local.clients import Clients
from kvmchand.services.store.forwarding import Forward
from kvmchand.services.vfio.functions import Function, Functions
from kvmchand.wire import client, control, store

_HOST_DEADLINE = 20.0
"""Seconds a request waits for the link to the host to come up."""


@dataclass(slots=True)
class Waiting:
    """A request that came before the link to the host."""

    requester: Requester
    request: client.Request
    patience: Timer
    """Refuses the request if the link does not come up in time."""


class Guest:
    """The process's whole state."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = Loop()
        self._devices: dict[str, Function] = {}
        """By PCI address."""
        self._control: Function | None = None
        self._had_control = False
        self._session: SessionId | None = None
        self._refusal = "no kvmchand answers on the host: is it running there, and does it serve this guest?"
        self._is_welcome = False
        self._waiting: dict[ClientId, Waiting] = {}
        self._asked: set[ClientId] = set()
        """Clients that the host knows of."""
        self._unanswered: dict[ClientId, control.Ask] = {}
        self._serial = 0
        """Of the last of them."""
        self._closing: set[ClientId] = set()
        """Clients whose end the host is asked to release."""
        self._ends: dict[ClientId, tuple[Function, int]] = {}
        """The device that a client's channel is on, and what wakes it."""
        self._handshake = Handshake(self._loop, self._on_met)
        self._failure: KvmchanError | None = None
        self._undo = ExitStack()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        settings = self._settings
        raise_descriptor_limit()
        require_user(settings.service_user)
        self._sockets = Sockets(settings.runtime_dir, settings.socket)
        self._undo.callback(self._sockets.close)
        self._undo.enter_context(stopped_by_signals(self._loop))
        self._sockets.listen(HOST, client.SOCKET_NAME, client.STORE_SOCKET_NAME)  # the number that this guest has, the host knows
        self._clients = Clients(self._loop, self._sockets, self, settings.service_user, settings.limits.max_channels)
        self._undo.callback(self._clients.close)
        self._forward = Forward(self._loop, self._sockets, self, settings.service_user, self._clients.next_generation)
        self._undo.callback(self._forward.close)
        self._sessions = Sessions(self._loop, self, settings.service_user, is_host=False, rate=settings.limits.guest_requests)
        self._undo.callback(self._sessions.close)
        self._functions = Functions(self._loop, self, noiommu=settings.noiommu)
        self._undo.callback(self._functions.close)
        self._sessions.start()
        self._functions.start()
        self._forward.start()
        self._clients.start()

    def run(self) -> None:
        self._loop.run()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        self._undo.close()
        for function in self._devices.values():
            function.close()
        self._loop.close()

    def on_failure(self, error: KvmchanError) -> None:
        self._failure = error
        self._loop.stop()

    # ---- devices: FunctionEvents ----

    def on_device(self, function: Function) -> None:
        self._forget_device(function.address)
        if function.peer == CONTROL_PEER and self._had_control:
            for address in list(self._devices):
                self._forget_device(address)  # of the host's daemon before: it is another one now
        self._devices[function.address] = function
        if function.peer == CONTROL_PEER:
            self._had_control = True
            self._control = function
            self._handshake.start(function)
        elif self._is_welcome:
            self._tell(control.Ready(function.peer, len(function.events)))

    def on_removed(self, address: str) -> None:
        log.info(f"device {address} is unplugged")
        gone = self._devices.get(address)
        self._forget_device(address)
        if gone is not None and self._is_welcome:
            self._tell(control.Unusable(gone.peer, "it is not in the guest any more"))

    def on_unusable(self, address: str, sentence: str) -> None:
        log.warning(f"device {address}: {sentence}" if address else sentence)
        self._refusal = sentence
        if self._is_welcome:
            self._tell(control.Unusable(0, sentence[:1000]))

    def _forget_device(self, address: str) -> None:
        """Lets go of a device, and ends the channels on it: an unplug waits for all."""
        gone = self._devices.pop(address, None)
        if gone is None:
            return
        if gone is self._control:
            self._part_from_host()
            self._handshake.stop()
            self._control = None
        for number in [number for number, (function, _) in self._ends.items() if function is gone]:
            self._cut(number)
        gone.close()

    def _device(self, peer: int) -> Function | None:
        """The newest that has this ivshmem id: one that a daemon before made may still be on its way out."""
        return next((each for each in reversed(self._devices.values()) if each.peer == peer), None)

    # ---- the control vchan ----

    def _on_met(self, end: ControlEnd) -> None:
        self._session = self._sessions.open(end)
        self._tell(control.Hello(control.VERSION))

    def _tell(self, message: object) -> None:
        if self._session is not None:
            self._sessions.send(self._session, message)

    def _part_from_host(self) -> None:
        """Whatever stood on the session is over."""
        if self._session is not None:
            self._sessions.close_session(self._session)
        self._session = None
        self._is_welcome = False
        for number in list(self._asked):
            self._cut(number)
        self._asked.clear()
        self._closing.clear()
        self._forward.on_parted()

    # ---- the session: SessionEvents ----

    def on_session_lost(self, session: SessionId, sentence: str) -> None:
        if session != self._session:
            return
        log.warning(f"the link to the host is lost: {sentence}")
        self._part_from_host()
        if self._control is not None:
            self._handshake.start_anew(self._control)

    def on_session_message(self, session: SessionId, message: object) -> None:
        if session != self._session:
            return
        match message:
            case control.Welcome():
                self._on_welcome(message)
            case control.Refused():
                self._refusal = message.sentence
                log.warning(f"the host's kvmchand refuses this one: {message.sentence}")
            case control.Reply():
                self._on_reply(message)
            case control.Granted():
                self._on_grant(message)
            case control.Shared():
                self._on_pages(message)
            case control.Closed():
                if message.client in self._closing:
                    self._forget(message.client)
            case control.Again():
                self.on_control_restarted()
            case store.Output() | store.Ended():
                self._forward.on_host_message(message)

    def on_control_restarted(self) -> None:
        """Says all again that is not answered: the host does nothing twice, but answers twice."""
        self._forward.on_parted()
        if self._is_welcome:
            self._tell_devices()
            for message in (*self._unanswered.values(), *(control.Close(number) for number in self._closing)):
                self._tell(message)
        else:
            self._tell(control.Hello(control.VERSION))

    def _tell_devices(self) -> None:
        for function in self._devices.values():
            if function is not self._control:
                self._tell(control.Ready(function.peer, len(function.events)))

    def _on_welcome(self, welcome: control.Welcome) -> None:
        if self._is_welcome:
            return
        log.info(f"linked to the host: this is domain {welcome.domain}")
        self._is_welcome = True
        self._tell_devices()
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            each.patience.cancel()
            self._ask(each.requester, each.request)
        self._forward.on_welcome()

    def tell_store(self, message: object) -> bool:
        """ForwardingEvents."""
        if self._is_welcome:
            self._tell(message)
        return self._is_welcome

    def _answered(self, answer: control.Reply | control.Granted | control.Shared) -> Requester | None:
        """Who is being answered; None where nobody waits for that: it has gone, and the host been told, or was answered."""
        ask = self._unanswered.get(answer.client)
        if ask is None or ask.serial != answer.serial:
            return None
        del self._unanswered[answer.client]
        return self._clients.get(answer.client)

    def _on_reply(self, reply: control.Reply) -> None:
        requester = self._answered(reply)
        if requester is None:
            return
        content = reply.reply
        if isinstance(content, client.Grant | client.Pages):
            content = client.Error(ProtocolError.code, "the host granted memory as to a client of its own")
        if isinstance(content, client.Listing) and any(each.domain == HOST for each in content.domains):
            content = self._with_devices(content)
        code = content.code if isinstance(content, client.Error) else ""
        ends = code == ProtocolError.code or (code == OutOfResources.code and reply.client not in self._ends)
        if self._clients.answer(requester, content) and ends:
            self._clients.drop(requester)

    def _with_devices(self, listing: client.Listing) -> client.Listing:
        """What the host lists on the first page, and what only we know."""
        devices = tuple(each.info for each in self._devices.values())
        return client.Listing(listing.domains, listing.guests, listing.links, devices, listing.channels, listing.following)

    def _on_grant(self, granted: control.Granted) -> None:
        requester = self._answered(granted)
        if requester is None:
            return
        try:
            function = self._channel_device(granted.peer)
            function.require(granted)
        except ProtocolError as error:
            self._distrust(requester, error)
            return
        event = function.events[granted.vector]
        self._ends[granted.client] = (function, event)
        self._clients.mark_busy(requester)
        self._clients.answer(requester, function.place(granted.grant), (function.fd, event))

    def _on_pages(self, shared: control.Shared) -> None:
        requester = self._answered(shared)
        if requester is None:
            return
        pages = shared.pages
        try:
            function = self._channel_device(shared.peer)
            function.require_within(pages.offset, pages.pages * PAGE)
        except ProtocolError as error:
            self._distrust(requester, error)
            return
        self._ends[shared.client] = (function, -1)
        self._clients.mark_busy(requester)
        placed = client.Pages(pages.ref, pages.pages, Size(function.memory + pages.offset))
        self._clients.answer(requester, placed, (function.fd,))

    def _distrust(self, requester: Requester, error: ProtocolError) -> None:
        log.warning(f"the host granted client {requester.number} what can't be: {error.sentence}")
        self._refuse(requester, error)

    def _channel_device(self, peer: int) -> Function:
        """The device that a grant is of; ProtocolError where there is none."""
        function = self._device(peer)
        if function is None or function is self._control:
            raise ProtocolError(f"there is no device {peer} here")
        return function

    # ---- clients: ClientEvents ----

    def on_ready(self) -> None:
        log.info(f"ready: {self._sockets}")
        notify("READY=1")

    def on_request(self, requester: Requester, request: client.Request) -> None:
        if self._is_welcome:
            self._ask(requester, request)
        else:
            patience = self._loop.call_at(time.monotonic() + _HOST_DEADLINE, lambda: self._give_up(requester))
            self._waiting[requester.number] = Waiting(requester, request, patience)

    def _give_up(self, requester: Requester) -> None:
        del self._waiting[requester.number]
        self._refuse(requester, Unreachable(self._refusal))

    def _ask(self, requester: Requester, request: client.Request) -> None:
        self._asked.add(requester.number)
        self._serial += 1
        ask = self._unanswered[requester.number] = control.Ask(requester.number, self._serial, requester.pid, request)
        self._tell(ask)

    def _refuse(self, requester: Requester, error: KvmchanError) -> None:
        self._clients.answer(requester, client.Error(error.code, error.sentence))

    def on_close(self, closing: Requester) -> None:
        if closing.number not in self._asked:
            self._forget(closing.number)
        elif closing.number not in self._closing:
            self._closing.add(closing.number)
            self._clients.pause(closing)
            self._tell(control.Close(closing.number))

    def _forget(self, number: ClientId) -> None:
        requester = self._clients.get(number)
        if requester is not None:
            self._clients.forget(requester)
        self._drop_state(number)

    def _drop_state(self, number: ClientId) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.patience.cancel()
        self._unanswered.pop(number, None)
        self._asked.discard(number)
        self._closing.discard(number)
        self._ends.pop(number, None)

    def on_loss(self, number: ClientId) -> None:
        must_close = number in self._asked
        self._drop_state(number)
        if must_close:
            self._closing.add(number)
            self._tell(control.Close(number))

    on_drop = on_loss

    def _cut(self, number: ClientId) -> None:
        """Ends a client whose channel's other end can't be reached any more: its waits end with its connection."""
        requester = self._clients.get(number)
        _, event = self._ends.get(number, (None, -1))
        if requester is not None:
            self._clients.drop(requester)  # of which the host hears by on_drop(), if it is there
        else:
            self._drop_state(number)
        if event >= 0:
            signal_event(event)


def serve(settings: Settings) -> None:
    """Runs a guest's daemon until it is told to stop."""
    libc.set_process_name("kvmchand")
    guest = Guest(settings)
    try:
        guest.run()
    finally:
        guest.close()
