# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a virtual machine needs for vchans, put into its libvirt XML.

It needs a place to plug ivshmem devices into, and a vIOMMU so that its guest may use them through
VFIO. What cannot be put into the XML is reported.
"""

from __future__ import annotations

import difflib
import errno
import re
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kvmchand.errors import AccessDenied, InvalidArgument, NotFound, Unreachable, VchanError
from kvmchand.ids import Size
from kvmchand.services.libvirt import architectures, coldplug_xml, machine_xml
from kvmchand.services.libvirt.architectures import Architecture

try:
    import libvirt as libvirt
except ImportError:
    libvirt = None  # said when it is needed

_COMMAND_LINE = "intel_iommu=on"


@dataclass(slots=True)
class Prepared:
    """A domain's XML as it was and as it should be, in the same layout."""

    before: str
    after: str
    changes: list[str] = field(default_factory=list)
    """What differs in `after`, each a sentence."""
    hints: list[str] = field(default_factory=list)
    """What remains to be done in the guest, unless it has been done."""
    obstacles: list[str] = field(default_factory=list)
    """Why the domain cannot be prepared; `after` is then `before`."""

    def diff(self) -> str:
        """Return the difference of both as a unified diff."""
        lines = difflib.unified_diff(
            self.before.splitlines(keepends=True), self.after.splitlines(keepends=True), "as it is", "prepared"
        )
        return "".join(lines)


@dataclass(frozen=True, slots=True)
class StartLink:
    """A device of the link to the host, present from the domain's start.

    `folder`: the directory of the daemon's sockets. `socket`: its own there, if it gets a new one.
    """

    size: Size
    folder: Path
    socket: str = field(default_factory=coldplug_xml.new_socket)


def prepare(xml: str, start: StartLink | None = None) -> Prepared:
    """Prepare a domain's XML, its inactive configuration from libvirt.

    A domain that is prepared already gets no changes.
    """
    root = parse(xml)
    before = _show(root)
    made = Prepared(before, before, obstacles=machine_xml.why_not_preparable(root))
    if not made.obstacles:
        architecture = architectures.of(root)
        if architecture is architectures.X86:
            _add_ioapic(root, made)
            _see_to_command_line(root, made)
        if machine_xml.lacks_gic(root):
            _within(_within(root, "features"), "gic").set("version", "3")
            made.changes.append(machine_xml.GIC)
        _add_iommu(root, architecture, made)
        _add_places(root, architecture, made)
        if start is not None:
            made.changes += coldplug_xml.put(root, start.size, start.folder, start.socket)
        made.after = _show(root)
    return made


def parse(xml: str) -> ElementTree.Element:
    """Parse a domain's XML with comments, and with such prefixes as the serializer keeps.

    It would put a namespace without a prefix at the root, and so everything into that namespace.
    Raises InvalidArgument if it is no XML.
    """
    keeping = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True, insert_pis=True))
    try:
        for _, (prefix, address) in ElementTree.iterparse(StringIO(xml), ["start-ns"]):
            if prefix and not re.fullmatch(r"ns\d+", prefix):  # those it makes itself
                ElementTree.register_namespace(prefix, address)
        return ElementTree.fromstring(xml, keeping)
    except ElementTree.ParseError as error:
        raise InvalidArgument(f"what libvirt says of the domain is no XML: {error}") from error


def _show(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add_ioapic(root: ElementTree.Element, made: Prepared) -> None:
    ioapic = _within(_within(root, "features"), "ioapic")
    if ioapic.get("driver") != "qemu":
        ioapic.set("driver", "qemu")
        made.changes.append("an I/O APIC of QEMU's, as interrupt remapping needs")


def _add_iommu(root: ElementTree.Element, architecture: Architecture, made: Prepared) -> None:
    iommu = root.find("devices/iommu")
    if iommu is None:
        iommu = ElementTree.SubElement(_within(root, "devices"), "iommu", model=architecture.iommu)
        made.changes.append("a vIOMMU, without which the guest can't use devices by VFIO")
    for name in architecture.iommu_needs:
        driver = _within(iommu, "driver")
        if driver.get(name) != "on":
            driver.set(name, "on")
            made.changes.append(f"{name} of the vIOMMU")


def _add_places(root: ElementTree.Element, architecture: Architecture, made: Prepared) -> None:
    devices = _within(root, "devices")
    have = len(architectures.places(root))
    for _ in range(have, architecture.made if have < architecture.needed else have):
        for model in architecture.made_of:
            ElementTree.SubElement(devices, "controller", type="pci", model=model)
        made.changes.append(f"{architecture.place}, behind which ivshmem devices are plugged")


def _see_to_command_line(root: ElementTree.Element, made: Prepared) -> None:
    command_line = root.find("os/cmdline")
    if root.find("os/kernel") is None:
        made.hints.append(
            f"the guest's kernel needs {_COMMAND_LINE} on its command line: in Debian, put it into GRUB_CMDLINE_LINUX in "
            "/etc/default/grub and run update-grub"
        )
    elif command_line is None or not uses_iommu(command_line.text or ""):
        command_line = _within(_within(root, "os"), "cmdline")
        command_line.text = f"{command_line.text or ''} {_COMMAND_LINE}".strip()
        made.changes.append(f"{_COMMAND_LINE} on the kernel's command line")


def uses_iommu(command_line: str) -> bool:
    """Return whether a kernel command line turns on an Intel vIOMMU.

    The last word about it counts.
    """
    words = [word.removeprefix("intel_iommu=").split(",") for word in command_line.split() if word.startswith("intel_iommu=")]
    said = [each for word in words for each in word if each in ("on", "off")]
    return said[-1:] == ["on"]


def _within(parent: ElementTree.Element, tag: str) -> ElementTree.Element:
    found = parent.find(tag)
    return ElementTree.SubElement(parent, tag) if found is None else found


# ---- with libvirt ----


def connect(uri: str, *, to_write: bool = False) -> Any:
    """Return a connection to libvirt. Raises VchanError if there is none."""
    if libvirt is None:
        raise NotFound("its Python module is not there: install python3-libvirt, or libvirt-python from PyPI")
    libvirt.registerErrorHandler(lambda *_error: None, None)  # it would print what we get as exceptions
    try:
        return libvirt.open(uri) if to_write else libvirt.openReadOnly(uri)
    except libvirt.libvirtError as error:
        if _is_denied(error):
            raise AccessDenied(f"{uri} may not be used: {error}: do it as root, or as a member of the group libvirt") from error
        raise Unreachable(f"{uri} can't be reached: {error}: start libvirtd, or say with --uri where it is") from error


def prepare_domain(name: str, uri: str, start: StartLink | None, *, apply: bool) -> list[str]:
    """Prepare a domain, or show how it would be prepared. Returns the lines to print.

    Raises VchanError if it cannot be prepared.
    """
    try:
        connection = connect(uri, to_write=apply)
    except VchanError as error:
        raise type(error)(f"libvirt: {error.sentence}") from error
    try:
        return _prepare_by(connection, name, start, apply=apply)
    except libvirt.libvirtError as error:
        raise _translated(error, name) from error
    finally:
        connection.close()


def _prepare_by(connection: Any, name: str, start: StartLink | None, *, apply: bool) -> list[str]:
    domain = connection.lookupByName(name)
    if not domain.isPersistent():
        raise InvalidArgument(
            f"domain {name} is transient, so nothing can be kept: put what is needed into the XML it is made from"
        )
    made = prepare(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), start)
    if made.obstacles:
        raise InvalidArgument(f"domain {name} can't be prepared: {'; '.join(made.obstacles)}")
    hints = [f"in the guest: {each}" for each in made.hints]
    if not made.changes:
        return [f"domain {name} is prepared: nothing to do", *hints]
    if domain.hasManagedSaveImage():
        hints.append(f"it has a saved state, which would go on as it was: virsh managedsave-remove {name}")
    if start is not None and start.size:
        hints.append(
            "from now on it starts only where kvmchand host runs, which serves it: kvmchan prepare-domain --link-size 0 undoes it"
        )
    lines = [made.diff(), *(f"change: {each}" for each in made.changes), *hints]
    if not apply:
        return [*lines, f"nothing is changed yet: kvmchan prepare-domain {name} --apply"]
    # With what libvirt does not show by default, or it would be lost: passwords.
    secret = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    connection.defineXML(prepare(secret, start).after)
    return [*lines, f"domain {name} is prepared: it takes effect when the domain is started next; a reboot inside it is no start"]


def _is_denied(error: Any) -> bool:
    code = error.get_error_code()
    # The socket may refuse us by itself, too.
    return code in (
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_CANCELLED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_ACCESS_DENIED,
        libvirt.VIR_ERR_OPERATION_DENIED,
    ) or (code == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in (errno.EACCES, errno.EPERM))


def _translated(error: Any, name: str) -> VchanError:
    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
        return NotFound(f"libvirt has no domain {name}: virsh list --all shows those it has")
    if _is_denied(error):
        return AccessDenied(f"domain {name} may not be changed: {error}: do it as root, or as a member of the group libvirt")
    return InvalidArgument(f"libvirt refuses the change of domain {name}: {error}")
