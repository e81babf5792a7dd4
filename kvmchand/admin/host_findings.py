# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the doctor finds on a host: at libvirt, its emulators, and each running domain's machine."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from xml.etree import ElementTree

from kvmchand.admin import emulators, prepare
from kvmchand.admin.findings import Finding, Grade, Kind
from kvmchand.admin.prepare import libvirt
from kvmchand.config import Serve
from kvmchand.errors import VchanError
from kvmchand.services.libvirt import architectures, machine_xml
from kvmchand.wire.client import GuestInfo, Listing

PATIENCE = emulators.DEADLINE + 5
"""Seconds from one finding to the next. An emulator is one, and may have its own deadline."""
_PREFIX = "kvmchan-"
"""Begins the names of our devices in a domain's XML."""


def host(listed: Listing | VchanError, uri: str, serve: Serve) -> Iterator[Finding]:
    """Yield the findings about a host, until libvirt does not answer.

    Its calls have no deadline, so a thread makes them, which is left alone then.
    """
    found: SimpleQueue[Finding | BaseException | None] = SimpleQueue()

    def find() -> None:
        try:
            for each in _at_libvirt(listed, uri, serve):
                found.put(each)
            found.put(None)
        except BaseException as error:
            found.put(error)

    Thread(target=find, daemon=True).start()
    while True:
        try:
            each = found.get(timeout=PATIENCE)
        except Empty:
            sentence = f"{uri} has not answered in {PATIENCE:.0f} s: is libvirtd stopped? its log may say more"
            yield Finding(Grade.BAD, Kind.LIBVIRT, "libvirt", sentence)
            return
        if isinstance(each, BaseException):
            raise each
        if each is None:
            return
        yield each


def _at_libvirt(listed: Listing | VchanError, uri: str, serve: Serve) -> Iterator[Finding]:
    """Yield what libvirt shows, which blocks while it does not answer."""
    try:
        connection = prepare.connect(uri)
    except VchanError as error:
        yield Finding(Grade.BAD, Kind.LIBVIRT, "libvirt", error.sentence)
        return
    try:
        yield Finding(
            Grade.OK,
            Kind.LIBVIRT,
            "libvirt",
            f"version {_version(connection.getLibVersion())}, QEMU {_version(connection.getVersion())}",
        )
        yield from _emulators(connection, serve)
        guests = None if isinstance(listed, VchanError) else {int(each.domain): each for each in listed.guests}
        running = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        if not running:
            yield Finding(Grade.NOTE, Kind.LIBVIRT, "libvirt", "no domain runs there")
        for domain in running:
            yield from _domain(domain, guests, serve)
    except libvirt.libvirtError as error:
        yield Finding(Grade.BAD, Kind.LIBVIRT, "libvirt", f"{uri} does not answer: {error}")
    finally:
        connection.close()


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _emulators(connection: Any, serve: Serve) -> Iterator[Finding]:
    """Yield the findings about the emulators of the domains that may be served, or of libvirt's."""
    wanted = [each for each in connection.listAllDomains() if machine_xml.is_wanted(each.name(), serve)]
    xmls = [each[0] for each in map(_xmls, wanted) if each is not None]
    paths = emulators.of_domains(xmls) or emulators.of_libvirt(connection.getCapabilities())
    if not paths:
        yield Finding(
            Grade.BAD,
            Kind.EMULATOR,
            "libvirt",
            "it knows no emulator for x86_64: install QEMU (qemu-system-x86), and start it again",
        )
    for path in sorted(paths):
        yield emulators.finding(path)


def _xmls(domain: Any) -> tuple[str, str] | None:
    """Return a domain's XML, and that of its next start, or "" if it has none.

    Returns None if the domain has ended meanwhile.
    """
    try:
        return domain.XMLDesc(), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if domain.isPersistent() else ""
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
            raise
        return None


def _domain(domain: Any, guests: dict[int, GuestInfo] | None, serve: Serve) -> Iterator[Finding]:
    """Yield the findings about a domain.

    `guests`: those that the daemon knows, by number; None if it does not say.
    """
    number, name, xmls = domain.ID(), domain.name(), _xmls(domain)
    if xmls is None:
        return
    live, kept = xmls
    subject = f"domain {number} ({name})"
    known = guests.get(number) if guests is not None else None
    try:
        refused = None if known is not None else refusal(subject, name, live, serve, is_persistent=bool(kept))
        if refused is None or refused.is_bad:
            yield from machine(subject, name, live, kept, is_linked=known is not None and known.ready)
    except VchanError as error:
        yield Finding(Grade.BAD, Kind.MACHINE, subject, error.sentence)
        return
    if refused is not None:
        yield refused
    elif guests is not None:
        yield _link(subject, known)


def refusal(subject: str, name: str, live: str, serve: Serve, *, is_persistent: bool) -> Finding | None:
    """Return the finding that a running domain is not served, or None if it is to be.

    It is only a note if the settings do not want it to be. Raises InvalidArgument if `live` is no
    XML.
    """
    sentence = machine_xml.refusal(name, machine_xml.fitness(prepare.parse(live), is_persistent=is_persistent), serve)
    grade = Grade.BAD if machine_xml.is_wanted(name, serve) else Grade.NOTE
    return Finding(grade, Kind.UNSERVED, subject, f"it is not served: {sentence}") if sentence else None


def machine(subject: str, name: str, live: str, kept: str, *, is_linked: bool) -> Iterator[Finding]:
    """Yield the findings about a running domain's machine.

    `live`: its XML. `kept`: the XML of its next start, or "" if it has none. What a linked domain
    lacks is only a note, since it works without.
    """
    made = prepare.prepare(live)
    grade = Grade.NOTE if is_linked else Grade.BAD
    for obstacle in made.obstacles:
        yield Finding(grade, Kind.MACHINE, subject, obstacle)
    if made.changes:
        yield Finding(grade, Kind.MACHINE, subject, f"its machine lacks {'; '.join(made.changes)}: {_remedy(name, kept)}")
    if not is_linked:
        for hint in made.hints:
            yield Finding(Grade.NOTE, Kind.KERNEL, subject, hint)
    tree = ElementTree.fromstring(live)
    if tree.get("type") == "qemu":
        yield Finding(
            Grade.NOTE,
            Kind.KVM,
            subject,
            "it runs without KVM, so that it is slow, and keeps each device that it was given until it ends: where the host has "
            "/dev/kvm, put type='kvm' into its XML (virsh edit), shut it down and start it",
        )
    devices = [each for each in tree.iterfind("devices/shmem") if each.get("name", "").startswith(_PREFIX)]
    free = free_slots(tree)
    if free == 0:
        yield Finding(
            Grade.BAD,
            Kind.SLOTS,
            subject,
            f"it gets no more devices: {architectures.of(tree).no_slot}",
        )
    elif not made.obstacles and not made.changes:
        room = "" if free is None else f" and {free} free slots for more"
        yield Finding(
            Grade.OK, Kind.MACHINE, subject, f"its machine has all that vchans need, {len(devices)} devices of ours{room}"
        )


def _remedy(name: str, kept: str) -> str:
    if not kept:
        return "put that into the XML that it is made from"
    if prepare.prepare(kept).changes:
        return f"kvmchan prepare-domain {name} --apply, then shut it down and start it"
    return "it is prepared, and has that once it is shut down and started; a reboot inside it does not do"


def free_slots(tree: ElementTree.Element) -> int | None:
    """Return how many more devices fit, or None if the domain has no bridges for them."""
    slots = architectures.of(tree).slots
    free = {each.get("index", ""): set(slots) for each in architectures.places(tree)}
    for address in tree.iterfind("devices/*/address[@type='pci']"):
        try:
            bus, slot = str(int(address.get("bus", ""), 0)), int(address.get("slot", ""), 0)
        except ValueError:
            continue
        free.get(bus, set()).discard(slot)
    return sum(map(len, free.values())) if free else None


def _link(subject: str, known: GuestInfo | None) -> Finding:
    if known is None:
        return Finding(
            Grade.BAD,
            Kind.UNSERVED,
            subject,
            "kvmchand host does not serve it: is it one of another libvirt (--libvirt), or has kvmchand host other settings than "
            "kvmchan doctor was given (--config)?",
        )
    if known.ready:
        return Finding(Grade.OK, Kind.LINK, subject, "its kvmchand is linked to this host's")
    if not known.devices:
        return Finding(Grade.BAD, Kind.LINK, subject, "it has no device of ours, and so no link: kvmchand host's log says why")
    return Finding(
        Grade.BAD,
        Kind.LINK,
        subject,
        "no kvmchand in it is linked to this host's: start kvmchand guest there; kvmchan doctor there says more",
    )
