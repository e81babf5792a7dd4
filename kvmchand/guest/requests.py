# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the clients in this guest ask for.

Requests wait for the link to the host or are under way there; ends are on a device, or parked until
they are offered again.

No channel is known here. A message may be lost with a control process, so what has no answer is
kept, to be said again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvmchand.channels.requester import Requester, RequesterEvents
from kvmchand.errors import OutOfResources, ProtocolError, Unreachable
from kvmchand.guest.devices import Devices
from kvmchand.guest.offers import Offers
from kvmchand.ids import ClientId, Size
from kvmchand.linux.eventfd import share_event, signal_event
from kvmchand.runtime import log
from kvmchand.runtime.loop import Loop, Timer
from kvmchand.services.vfio.functions import Function
from kvmchand.wire import client, control

_HOST_DEADLINE = 20.0
"""Seconds that a request waits for the link to the host."""
_HOST_PAGES = Size(1 << 62)
"""Where the host's pages of a listing begin. The first page is this guest's own: its devices, of
which the host knows less."""


@dataclass(slots=True)
class Waiting:
    """A request that came before the link to the host."""

    requester: Requester
    request: client.Request
    patience: Timer
    """Refuses the request if the link does not come up in time."""


class Requests(RequesterEvents):
    """The requests of this guest's clients, and the ends that they have."""

    def __init__(
        self,
        loop: Loop,
        devices: Devices,
        tell: Callable[[object], None],
    ) -> None:
        """Have no request yet. `tell` sends a message to the host."""
        self._loop = loop
        self._devices = devices
        self._offers = Offers()
        self._tell = tell
        self.refusal = "no kvmchand answers on the host: is it running there, and does it serve this guest?"
        """Why there is no link to the host, as far as is known."""
        self._is_linked = False
        self._waiting: dict[ClientId, Waiting] = {}
        self._asked: dict[ClientId, Requester] = {}
        """The clients that the host knows of."""
        self._unanswered: dict[ClientId, control.Ask] = {}
        self._serial = 0
        """The number of the last request."""
        self._closing: set[ClientId] = set()
        """The clients whose end the host was asked to release."""
        self._ends: dict[ClientId, tuple[Function, int]] = {}
        """The device that a client's end is on, and the eventfd that wakes it, or -1."""

    # ---- clients: RequesterEvents ----

    def on_request(self, requester: Requester, request: client.Request) -> None:
        """Ask the host, now or once there is a link to it."""
        if isinstance(request, client.List):
            if request.after < _HOST_PAGES:
                requester.answer(client.Listing((), (), (), self._devices.infos(), (), _HOST_PAGES))
                return
            request = client.List(Size(request.after - _HOST_PAGES))
        if self._is_linked:
            self._ask(requester, request)
        else:
            patience = self._loop.call_at(time.monotonic() + _HOST_DEADLINE, lambda: self._give_up(requester))
            self._waiting[requester.number] = Waiting(requester, request, patience)

    def on_close(self, closing: Requester) -> None:
        """Have the host release a client's end; the client waits for that."""
        self._offers.remove(closing.number)
        if closing.number not in self._asked:
            self._forget(closing)
        elif closing.number not in self._closing:
            self._closing.add(closing.number)
            closing.pause()
            self._tell(control.Close(closing.number))

    def on_loss(self, number: ClientId) -> None:
        """Tell the host that a client is gone without a close."""
        must_close = number in self._asked
        self._drop_state(number)
        if must_close:
            self._closing.add(number)
            self._tell(control.Close(number))

    on_drop = on_loss

    # ---- requests ----

    def _ask(self, requester: Requester, request: client.Request) -> None:
        self._asked[requester.number] = requester
        self._serial += 1
        ask = self._unanswered[requester.number] = control.Ask(requester.number, self._serial, requester.pid, request)
        self._tell(ask)

    def _give_up(self, requester: Requester) -> None:
        del self._waiting[requester.number]
        self._reply(requester, client.Error(Unreachable.code, self.refusal))

    def _forget(self, gone: Requester) -> None:
        """Let a client go whose end is released."""
        self._drop_state(gone.number)
        gone.forget()

    def _drop_state(self, number: ClientId) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.patience.cancel()
        self._unanswered.pop(number, None)
        self._asked.pop(number, None)
        self._closing.discard(number)
        self._ends.pop(number, None)
        self._offers.remove(number)

    def _cut(self, number: ClientId) -> None:
        """End a client whose peer is out of reach. Its waits end with its connection."""
        requester = self._asked[number]
        _, event = self._ends.get(number, (None, -1))
        requester.drop()  # the host hears of it by on_drop(), if it is there
        if event >= 0:
            signal_event(event)

    # ---- the link to the host ----

    def ask_waiting(self) -> None:
        """Ask the host what waits, for its daemon has welcomed this one."""
        self._is_linked = True
        for requester, offer in self._offers.parked():
            self._ask(requester, offer)
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            each.patience.cancel()
            self._ask(each.requester, each.request)

    def ask_again(self) -> None:
        """Say all again that has no answer, for messages may be lost.

        The host does nothing twice, but answers twice.
        """
        for message in (*self._unanswered.values(), *(control.Close(number) for number in self._closing)):
            self._tell(message)

    def part(self) -> None:
        """End every client that the host knows of, for the link to it is gone.

        What is offered and has had no client stays. The host is asked for it again.
        """
        self._is_linked = False
        for number in list(self._asked):
            if self._offers.park(number):
                del self._asked[number]
                self._unanswered.pop(number, None)
                self._ends.pop(number, None)
            elif number in self._asked:  # else it has just gone
                self._cut(number)
        self._closing.clear()

    def cut_on(self, function: Function) -> None:
        """End the channels on a device that is to go: an unplug waits for all."""
        for number in [number for number, (on, _) in self._ends.items() if on is function]:
            self._cut(number)

    # ---- the host's answers ----

    def finish_close(self, number: ClientId) -> None:
        """Let a client go whose end the host has released."""
        if number not in self._closing:
            return
        requester = self._asked.get(number)
        if requester is not None:
            self._forget(requester)
        self._closing.discard(number)

    def take_answer(self, answer: control.Reply | control.Granted | control.Shared) -> None:
        """Answer a client as the host says.

        The client may be gone, as the host was told, or have its answer.
        """
        ask = self._unanswered.get(answer.client)
        if ask is None or ask.serial != answer.serial:
            return
        del self._unanswered[answer.client]
        requester = self._asked[answer.client]
        try:
            match answer:
                case control.Reply() if self._offers.is_parked(answer.client):
                    reply = answer.reply
                    sentence = reply.sentence if isinstance(reply, client.Error) else "the host's answer is invalid"
                    self._end_offer(answer.client, sentence)
                case control.Reply():
                    self._reply(requester, _believed(answer.reply))
                case control.Granted():
                    function = self._devices.of_grant(answer)
                    event, grant = function.events[answer.vector], function.place(answer.grant)
                    if self._offers.is_parked(answer.client):
                        self._unpark(answer.client, function, event, grant)
                    else:
                        self._grant(requester, ask.request, function, event, grant)
                case control.Shared():
                    function = self._devices.of_pages(answer)
                    pages = client.Pages(answer.pages.ref, answer.pages.pages, Size(function.memory + answer.pages.offset))
                    self._give(requester, function, -1, pages, (function.fd,))
        except ProtocolError as error:
            if self._offers.is_parked(answer.client):
                self._end_offer(answer.client, error.sentence)
                return
            log.warning(f"the host's answer to client {requester.number} is invalid: {error.sentence}")
            self._reply(requester, client.Error(error.code, f"the host's answer is invalid: {error.sentence}"))

    def _unpark(self, number: ClientId, function: Function, event: int, grant: client.Grant) -> None:
        """Let an end go on that the host has offered again."""
        try:
            self._offers.unpark(number, function, event, grant)
        except (OSError, ProtocolError) as error:
            self._end_offer(number, str(error))
            return
        if number in self._asked:  # it may have just gone
            self._ends[number] = (function, event)

    def _end_offer(self, number: ClientId, why: str) -> None:
        log.warning(f"what client {number} offers ends, since it can't be offered again: {why}")
        self._cut(number)

    def _grant(self, requester: Requester, request: client.Request, function: Function, event: int, grant: client.Grant) -> None:
        """Answer with an end of a channel.

        It waits for an event of its own, or for a shared one. A server's end always does the
        latter, since it may get another vector.
        """
        if grant.events == "doorbell" and not isinstance(request, client.Offer):
            self._give(requester, function, event, grant, (function.fd, event))
            return
        try:
            shared = share_event(event)
        except OSError as error:
            sentence = f"this guest's kvmchand can't share an event: {error.strerror}"
            self._reply(requester, client.Error(OutOfResources.code, sentence))
            return
        grant = client.Grant(**grant.as_dict() | {"events": "shared doorbell"})
        fds = (function.fd, shared.fileno())
        if isinstance(request, client.Offer):
            self._offers.add(requester, request, function, event, grant, shared)
            self._give(requester, function, event, grant, fds)
        else:
            with shared:
                self._give(requester, function, event, grant, fds)

    def _give(self, requester: Requester, function: Function, event: int, reply: client.Reply, fds: Sequence[int]) -> None:
        """Answer with an end that is on `function`."""
        self._ends[requester.number] = (function, event)
        requester.mark_busy()
        requester.answer(reply, fds)

    def _reply(self, requester: Requester, reply: client.Reply) -> None:
        """Answer without an end.

        After some errors the connection ends, as one to the host's daemon does.
        """
        code = reply.code if isinstance(reply, client.Error) else ""
        ends = code == ProtocolError.code or (code == OutOfResources.code and requester.number not in self._ends)
        if requester.answer(reply) and ends:
            requester.drop()


def _believed(reply: client.Reply) -> client.Reply:
    """Return a reply as this guest's client gets it.

    Raises ProtocolError if the host can not mean it.
    """
    if isinstance(reply, client.Grant | client.Pages):
        raise ProtocolError("it grants memory as to a client on the host")
    if not isinstance(reply, client.Listing) or not reply.following:
        return reply
    if reply.following >= _HOST_PAGES:
        raise ProtocolError("its listing goes on beyond its end")
    following = Size(_HOST_PAGES + reply.following)
    return client.Listing(reply.domains, reply.guests, reply.links, reply.devices, reply.channels, following)
