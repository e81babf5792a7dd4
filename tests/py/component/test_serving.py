# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which of libvirt's domains a real host's daemon serves, and what is said of the others: with
guests that the test makes up, and with domains without an OS on a libvirtd of the tests' own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kvmchan
from kvmchand.errors import NotFound
from rig.clients import StoreClient
from rig.daemon import Daemon, acting_as
from rig.deadline import eventually
from rig.domains import Host
from rig.fixtures import Run
from rig.guest import ALICE, BOB, Guest, ScriptedHost, connect, offer
from rig.libvirtd import require_kvm
from rig.network import Host as GuestsDaemon
from rig.processes import is_running

LACK, OBSTACLE = "it lacks a thing: add it", "it has no place: make one"
LOCAL = 1
STARTS = 10


# ---- the settings, and guests that the test makes up ----


def is_served(host: ScriptedHost, number: int) -> bool:
    """Once the daemon has said either, as it does once."""
    said = {f"domain {number} (guest-{number}) is {what}": what == "here" for what in ("here", "not served: ")}
    eventually(lambda: any(each in host.log() for each in said), host.log)
    ((sentence, served),) = [each for each in said.items() if each[0] in host.log()]
    assert host.log().count(sentence) == 1
    return served


@pytest.mark.parametrize(
    ("settings", "served"),
    [
        ("", ["well"]),
        ('[guests]\nserve = "prepared"', ["well"]),
        ('[guests]\nserve = "all"', ["well", "plain"]),
        (f'[guests]\nserve = ["guest-{BOB}", "guest-{BOB + 1}"]', ["plain"]),
        ("[guests]\nserve = []", []),
    ],
)
def test_the_settings_say_which_domains_are_served(run: Run, settings: str, served: list[str]) -> None:
    host = run(settings)
    lacks = {"well": ("", ""), "plain": ("", LACK), "none": (OBSTACLE, LACK)}
    numbers = dict(zip(lacks, range(ALICE, ALICE + 3), strict=True))
    machines = [host.hypervisor.start(number, obstacle=lacks[each][0], lack=lacks[each][1]) for each, number in numbers.items()]
    assert [each for each in lacks if is_served(host, numbers[each])] == served
    listed = host.listing()
    assert {each["domain"] for each in listed["domains"]} == {0, *(numbers[each] for each in served)}
    assert {each["domain"] for each in listed["guests"]} == {numbers[each] for each in served}
    for machine, each in zip(machines, lacks, strict=True):
        if each in served:
            host.hypervisor.wait(lambda machine=machine: machine.devices, f"{each} gets no device")  # type: ignore[misc]
        else:
            assert machine.devices == {}
        host.hypervisor.stop(machine)


@pytest.fixture
def unserved(host: ScriptedHost) -> Iterator[ScriptedHost]:
    """A host beside Alice's domain, which is not prepared."""
    machine = host.hypervisor.start(ALICE, lack=LACK)
    assert not is_served(host, ALICE)
    yield host
    assert machine.devices == {}
    host.hypervisor.stop(machine)
    with acting_as(host):
        eventually(lambda: refusal(ALICE) == f"there is no domain {ALICE}: kvmchan ls shows those there are")


def refusal(domain: int | str) -> str:
    with pytest.raises(NotFound) as caught:
        kvmchan.connect(domain, f"/local/domain/{ALICE}/data/x")
    return caught.value.sentence


REASON = f"domain {ALICE} is not served: {LACK}; or have it served as it is: name it in the settings (serve in [guests])"


def test_a_program_on_the_host_is_told_why_a_domain_is_not_served(unserved: ScriptedHost) -> None:
    with acting_as(unserved):
        assert refusal(ALICE) == REASON
        with pytest.raises(NotFound) as caught:
            kvmchan.listen(ALICE, "data/x")
        assert caught.value.sentence == REASON
        with pytest.raises(NotFound) as caught:
            kvmchan.share(ALICE, 1)
        assert caught.value.sentence == REASON
        with pytest.raises(NotFound) as caught:  # and it waits in vain no longer than that
            kvmchan.connect(ALICE, f"/local/domain/{ALICE}/data/x", timeout=None)
        assert caught.value.sentence == REASON


def test_a_domain_that_is_not_served_has_no_name_and_who_looks_for_it_learns_where_the_reason_is(unserved: ScriptedHost) -> None:
    with acting_as(unserved):
        assert [each.number for each in kvmchan.domains()] == [0]
        assert refusal(f"guest-{ALICE}").startswith(f"no domain that is served is called 'guest-{ALICE}': ")


def test_a_domain_that_is_not_served_is_not_in_the_store(unserved: ScriptedHost) -> None:
    with StoreClient(unserved.store_path()) as store:
        assert str(ALICE) not in store.children("/local/domain")


def test_a_guest_is_not_told_what_another_domain_is_like(unserved: ScriptedHost) -> None:
    bob = unserved.guest(BOB).greet()
    for request in (connect(ALICE), offer(ALICE)):
        assert bob.refused(1, request, "not-found") == f"domain {ALICE} is not served: the host's log says why"
    bob.stop()


def test_a_local_domain_is_not_told_what_another_domain_is_like(run: Run) -> None:
    host = run("", domains=(LOCAL,))
    machine = host.hypervisor.start(ALICE, lack=LACK)
    assert not is_served(host, ALICE)
    with acting_as(host, LOCAL):
        assert refusal(ALICE) == f"domain {ALICE} is not served: the host's log says why"
    host.hypervisor.stop(machine)


def test_a_reset_or_a_pause_of_a_domain_that_is_not_served_is_not_ours_to_tell(unserved: ScriptedHost) -> None:
    unserved.hypervisor.reboot(unserved.hypervisor.machines[ALICE])
    unserved.hypervisor.pause(unserved.hypervisor.machines[ALICE])
    bob = Guest(unserved, unserved.hypervisor.start(BOB))  # which comes after that
    assert f"domain {ALICE} is paused" not in unserved.log()
    assert f"domain {ALICE} (guest-{ALICE}) starts anew" not in unserved.log()
    bob.stop()


def test_a_domain_that_could_not_be_given_its_control_device_is_told_of_as_one_that_is_not_served(run: Run) -> None:
    host = run("[limits]\nguest_devices = 0")
    machine = host.hypervisor.start(ALICE)
    host.wait_log(f"domain {ALICE} (guest-{ALICE}) gets no control device")
    with acting_as(host):
        assert refusal(ALICE).startswith(f"domain {ALICE} is not served: domain {ALICE} has 0 devices: guest_devices")
    host.hypervisor.stop(machine)


def test_why_a_domain_does_not_get_its_control_device_is_said_once(host: ScriptedHost) -> None:
    hypervisor = host.hypervisor
    with hypervisor.changed:
        machine = hypervisor.start(ALICE)
        machine.refusal = "its QEMU has no such device"
    hypervisor.wait(lambda: machine.refusals == 2, "it is not tried again")
    with hypervisor.changed:
        machine.refusal = "its bridges have no free slot"
    host.wait_log("its bridges have no free slot")
    assert host.log().count("its QEMU has no such device") == 1
    hypervisor.stop(machine)


def test_a_local_domain_whose_number_a_domain_of_libvirts_has_is_there(run: Run) -> None:
    host = run("", domains=(ALICE,))
    machine = host.hypervisor.start(ALICE, lack=LACK)
    assert not is_served(host, ALICE)
    with acting_as(host):
        assert "offers no vchan" in refusal(ALICE)
    host.hypervisor.stop(machine)
    with acting_as(host, ALICE):
        assert kvmchan.domains()[1].number == ALICE


# ---- real machines ----


@pytest.fixture
def daemon(machines: Host, tmp_path: Path) -> Iterator[Daemon]:
    made = GuestsDaemon(tmp_path, libvirt=machines.libvirtd.uri, domains=())
    try:
        yield made
        machines.clear()
        eventually(lambda: made.listing()["guests"] == [], made.log)
        made.stop()
    finally:
        made.kill()


@pytest.mark.parametrize("type", ["qemu", "kvm"])
def test_only_a_prepared_domain_gets_a_device_and_no_qemu_ends(machines: Host, daemon: Daemon, type: str) -> None:
    if type == "kvm":
        require_kvm()
    for _ in range(STARTS):
        numbers = {
            "pc": machines.create_pc("pc", type=type),
            "plain": machines.create("plain", type=type),
            "prepared": machines.create_prepared("prepared", type=type),
        }
        pids = [machines.pid(name) for name in numbers]
        eventually(lambda: len(machines.shmems("prepared")) == 1, daemon.log)
        eventually(lambda numbers=numbers: all(map(machines.has_firmware_run, numbers)), daemon.log)  # type: ignore[misc]
        assert [each["domain"] for each in daemon.listing()["guests"]] == [numbers["prepared"]]
        assert machines.shmems("pc") == machines.shmems("plain") == []
        assert all(map(is_running, pids))
        for name in ("pc", "plain"):
            assert daemon.log().count(f"domain {numbers[name]} ({name}) is not served: its machine ") == 1
        machines.clear()


@pytest.mark.parametrize("type", ["qemu", "kvm"])
def test_a_pc_gets_its_devices_behind_a_bridge_or_not_at_all(machines: Host, tmp_path: Path, type: str) -> None:
    if type == "kvm":
        require_kvm()
    settings = tmp_path / "settings.toml"
    settings.write_text('[guests]\nserve = "all"\n')
    daemon = GuestsDaemon(tmp_path, "--config", str(settings), libvirt=machines.libvirtd.uri, domains=())
    try:
        for _ in range(3):
            bare = machines.create_pc("bare", type=type)
            machines.create_pc("bridged", "<controller type='pci' index='1' model='pci-bridge'/>\n", type=type)
            eventually(lambda: len(machines.shmems("bridged")) == 1, daemon.log)
            eventually(lambda: all(map(machines.has_firmware_run, ("bare", "bridged"))), daemon.log)
            assert machines.shmems("bare") == []
            assert f"domain {bare} (bare) is not served: its machine has only a root bus" in daemon.log()
            assert is_running(machines.pid("bridged"))
            machines.clear()
        eventually(lambda: daemon.listing()["guests"] == [], daemon.log)
        daemon.stop()
    finally:
        daemon.kill()


def test_why_a_domain_is_not_served_is_logged_once_whatever_starts_again(machines: Host, daemon: Daemon) -> None:
    plain = machines.create("plain")
    said = f"domain {plain} (plain) is not served: its machine lacks a vIOMMU"
    eventually(lambda: said in daemon.log(), daemon.log)
    machines.libvirtd.kill()
    eventually(lambda: "is lost" in daemon.log(), daemon.log)
    machines.libvirtd.start()
    eventually(lambda: "connected to libvirt again" in daemon.log(), daemon.log)
    daemon.kill_service("libvirt")
    eventually(lambda: daemon.log().count("connected to libvirt: ") == 2, daemon.log)
    again = machines.create_prepared("prepared")
    eventually(lambda: f"domain {again} (prepared) is here" in daemon.log(), daemon.log)
    assert daemon.log().count(said) == 1
