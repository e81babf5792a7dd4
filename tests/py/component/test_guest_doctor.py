# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmchan doctor beside a real guest's daemon, whose host is scripted.

The machine that this runs on is the test's, and not a guest's: what the doctor finds of that is
left out here.
"""

from __future__ import annotations

import re
import signal

import pytest

from kvmchand.ids import DomainId, Size
from kvmchand.wire import client, control
from rig.host import DOMAIN, GuestDaemon
from rig.paths import KVMCHAN
from rig.program import Program

OF_THE_HOST = client.Listing(
    (client.DomainInfo(DomainId(0), "host", "host", ""), client.DomainInfo(DOMAIN, "guest", "", "")),
    (),
    (),
    (),
    (),
    Size(0),
)


@pytest.fixture
def guest(fresh: GuestDaemon) -> GuestDaemon:
    """Linked to its host."""
    return fresh.greet()


class Doctor(Program):
    """That finds out itself which side this is, and finds something bad, as this is no guest."""

    def __init__(self, guest: GuestDaemon, *arguments: str) -> None:
        super().__init__(KVMCHAN, "doctor", *arguments, env=guest.environment())
        self.status = 1

    def finding(self, subject: str) -> str:
        """The next that is about this, without what only this machine is bad at."""
        while line := self.line():
            grade, about, sentence = re.fullmatch("(ok|note|bad) +(.*?): (.*)", line).groups()  # type: ignore[union-attr]
            if about == subject:
                return f"{grade} {sentence}"
        raise AssertionError(f"it says nothing of {subject}")

    def hear_end(self) -> None:
        while self.line():
            pass


def test_the_doctor_finds_out_by_the_daemon_that_this_is_a_guest(guest: GuestDaemon) -> None:
    with Doctor(guest) as doctor:
        ask = guest.hear_ask()
        guest.say(control.Reply(ask.client, ask.serial, OF_THE_HOST))
        assert doctor.finding("kvmchand guest") == "ok it answers"
        doctor.hear_end()


def test_the_doctor_says_what_it_has_found_while_the_host_does_not_answer(guest: GuestDaemon) -> None:
    with Doctor(guest) as doctor:
        assert doctor.finding("kvmchand guest") == "ok it answers"
        assert doctor.finding("VFIO").startswith("bad ")
        ask = guest.hear_ask()
        guest.say(control.Reply(ask.client, ask.serial, OF_THE_HOST))
        doctor.hear_end()


@pytest.mark.parametrize("has_device", [True, False])
def test_the_doctor_finds_a_link_in_order_only_with_a_device_for_channels(guest: GuestDaemon, has_device: bool) -> None:
    if has_device:
        guest.plug(5, 65536, 4)
        assert guest.hear() == control.Ready(5, 4)
    with Doctor(guest) as doctor:
        ask = guest.hear_ask()
        guest.say(control.Reply(ask.client, ask.serial, OF_THE_HOST))
        said = doctor.finding("link")
        assert said.startswith(f"{'ok' if has_device else 'bad'} the host's kvmchand answers, ")
        doctor.hear_end()


def test_the_doctor_does_not_wait_for_a_host_without_a_daemon(fresh: GuestDaemon) -> None:
    with Doctor(fresh) as doctor:
        said = doctor.finding("link")
        assert said.startswith("bad the host's kvmchand has not answered in 5 s: is kvmchand host running there")
        doctor.hear_end()


def test_the_doctor_does_not_wait_for_a_daemon_that_is_stopped(guest: GuestDaemon) -> None:
    guest.process.send_signal(signal.SIGSTOP)
    try:
        with Doctor(guest, "--as", "guest") as doctor:
            said = doctor.finding("kvmchand guest")
            assert said == "bad it has not answered in 5 s: is it stopped, or is the machine very busy?"
            doctor.hear_end()
    finally:
        guest.process.send_signal(signal.SIGCONT)
