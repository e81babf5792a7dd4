# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the libvirt process asks libvirt about domains: those that run, and those that may start.

Each call blocks until libvirtd answers. A domain that ends meanwhile is no error.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from kvmchand.ids import DomainId
from kvmchand.runtime import log
from kvmchand.services.libvirt import coldplug_xml, hotplug_xml, machine_xml
from kvmchand.wire import libvirt as wire

try:
    import libvirt
except ImportError:
    libvirt = None  # the process then says so, and asks nothing

SENTENCE_MAX = 1000
"""Characters of a sentence for main."""


def running(connection: Any, folder: Path) -> list[tuple[wire.Found, bool]]:
    """Return the domains that run, and of each whether it is paused."""
    found = []
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            state, reason = domain.state()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            continue  # it has ended meanwhile
        look = look_at(domain, folder)
        if look is not None:
            paused = state == libvirt.VIR_DOMAIN_PAUSED and reason != libvirt.VIR_DOMAIN_PAUSED_STARTING_UP
            found.append((look, paused))
    return found


def look_at(domain: Any, folder: Path) -> wire.Found | None:
    """Ask what a running domain is like. Returns None if the domain or the connection has ended."""
    number = domain.ID()
    if number <= 0:
        return None
    kvm, stale = False, list[wire.StaleDevice]()
    try:
        tree = ElementTree.fromstring(domain.XMLDesc())
        if tree.get("id") != str(number):
            return None  # it has ended, and may have started again
        kvm = coldplug_xml.has_kvm(tree)
        stale = hotplug_xml.stale_devices(tree, folder)
        fitness = machine_xml.fitness(tree, is_persistent=bool(domain.isPersistent()))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN or not domain.connect().isAlive():
            return None
        fitness = _unknown(f"libvirt does not say what its machine is like: {error.get_error_message()}")
    except ElementTree.ParseError as error:
        fitness = _unknown(f"what libvirt says of it is no XML: {error}")
    sentences = (each[:SENTENCE_MAX] for each in (fitness.obstacle, fitness.lack))
    return wire.Found(DomainId(number), domain.name(), domain.UUIDString(), kvm, tuple(stale), *sentences)


def _unknown(sentence: str) -> machine_xml.Fitness:
    """Return the fitness of a machine of which nothing is known."""
    return machine_xml.Fitness(*[f"{sentence}: start kvmchand host again, or the domain"] * 2)


def persistent(connection: Any, folder: Path) -> list[object]:
    """Return what main is told of each domain that has a configuration."""
    domains = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)
    return [message for each in domains if (message := prepared(each, folder)) is not None]


def prepared(domain: Any, folder: Path) -> wire.Prepared | wire.Unprepared | None:
    """Return what main is told of a domain's configuration, or None if the domain is no more."""
    uuid = domain.UUIDString()
    try:
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        found = coldplug_xml.find(ElementTree.fromstring(xml), folder)
    except libvirt.libvirtError:
        return None  # it is no more, as an event says
    except ElementTree.ParseError as error:
        log.warning(f"what libvirt says of domain {uuid} is no XML: {error}")
        found = None
    return wire.Unprepared(uuid) if found is None else wire.Prepared(uuid, found.socket, found.size, found.vectors, found.has_kvm)
