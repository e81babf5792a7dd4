# SPDX-License-Identifier: LGPL-2.1-or-later
"""What clients are told of domains: a real host's daemon, with guests that the test makes up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvmchan
from kvmchand.ids import DomainId, Size
from kvmchand.wire import client
from libxenvchan_shim.tool import listing
from rig.connection import Connection
from rig.daemon import acting_as
from rig.fixtures import Run
from rig.guest import ALICE, BOB, Guest, ScriptedHost

LOCAL = 1


@pytest.fixture
def mixed(run: Run) -> ScriptedHost:
    """A host with a local domain."""
    return run("", domains=(LOCAL,))


def info(domain: int, kind: str, name: str = "", uuid: str = "") -> client.DomainInfo:
    return client.DomainInfo(DomainId(domain), kind, name, uuid)


NAMELESS = (info(0, "host", "host"), info(LOCAL, "local"), info(ALICE, "guest"), info(BOB, "guest"))


def told(host: ScriptedHost, domain: int = 0) -> tuple[client.Domains, tuple[client.DomainInfo, ...]]:
    """What a client is told that asks for domains, and one that asks for a listing."""
    with acting_as(host, domain), Connection.from_environment() as connection:
        return connection.domains(0), listing().domains


def asked_for_all(host: ScriptedHost) -> Iterator[client.Domains]:
    """The answers that have domains, to one client of domain 0."""
    with acting_as(host), Connection.from_environment() as connection:
        answer = connection.domains(0)
        while answer.domains:
            yield answer
            answer = connection.domains(answer.domains[-1].domain + 1)


def test_a_client_in_domain_0_sees_libvirts_names_and_uuids_of_guests(mixed: ScriptedHost) -> None:
    mixed.guest(ALICE).greet()
    mixed.guest(BOB)  # whose daemon is not there
    guests = (info(ALICE, "guest", "guest-11", "uuid-11"), info(BOB, "guest", "guest-12", "uuid-12"))
    everything = (*NAMELESS[:2], *guests)
    assert told(mixed) == (client.Domains(DomainId(0), everything, more=False), everything)


def test_a_client_in_another_domain_does_not_see_what_guests_are_called(mixed: ScriptedHost) -> None:
    alice = mixed.guest(ALICE).greet()
    mixed.guest(BOB)
    assert told(mixed, LOCAL) == (client.Domains(DomainId(LOCAL), NAMELESS, more=False), NAMELESS)
    assert alice.ask(1, client.GetDomains(0)) == client.Domains(DomainId(ALICE), NAMELESS, more=False)
    assert alice.ask(1, client.List(Size(0))).domains == NAMELESS


def test_a_guest_that_ends_is_told_of_no_more_and_another_of_its_name_is(host: ScriptedHost) -> None:
    first = host.guest(ALICE)
    first.stop()
    host.wait_log(f"domain {ALICE} (guest-11) is gone")
    again = Guest(host, host.hypervisor.start(BOB, name="guest-11"))
    host.guests.append(again)
    guest = info(BOB, "guest", "guest-11", "uuid-12")
    assert told(host)[0].domains == (NAMELESS[0], guest)


def test_python_programs_on_the_host_name_guests(host: ScriptedHost, alice: Guest) -> None:
    far = alice.offer(1, path="data/x")
    with acting_as(host):
        found = kvmchan.domains()[1]
        assert (found.number, found.kind, found.name, found.uuid) == (ALICE, "guest", "guest-11", "uuid-11")
        for name in (ALICE, "guest-11", "uuid-11"):
            with kvmchan.connect(name, "data/x") as near:
                assert (near.peer, near.path) == (ALICE, f"/local/domain/{ALICE}/data/x")
                near.sendall(b"to the guest")
                assert far.recv(12) == b"to the guest"
        with kvmchan.listen("guest-11", "data/y") as listener:
            assert listener.peer == ALICE
            end = alice.connect(2, 0, "/local/domain/0/data/y")
            with listener.accept() as vchan:
                end.send(b"to the host")
                assert vchan.recv(100) == b"to the host"
                vchan.sendall(b"and back")
                assert end.recv(8) == b"and back"
    end.close()
    alice.close(2)
    far.close()
    alice.close(1)


def test_600_guests_with_long_names_come_in_several_answers(host: ScriptedHost) -> None:
    numbers = range(11, 611)
    name = "Gäste “im Keller”, \\x01 😀" * 8
    machines = [host.hypervisor.start(number, name=f"{number} {name}") for number in numbers]
    host.wait_log("is here", len(machines))
    answers = list(asked_for_all(host))
    found = [each for answer in answers for each in answer.domains]
    assert found == [NAMELESS[0], *(info(each, "guest", f"{each} {name}", f"uuid-{each}") for each in numbers)]
    assert len(answers) > len(numbers) / client.DOMAINS_MAX + 1, "its names are no longer than others"
    with acting_as(host):
        assert [*listing().domains] == found
    for machine in machines:
        host.hypervisor.stop(machine)
