# SPDX-License-Identifier: LGPL-2.1-or-later
"""The emulators that libvirt's domains run on, and whether they have the device that guests get.

Some distributions build QEMU without it. An emulator is asked itself, and need not answer.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable
from xml.etree import ElementTree

from kvmchand.admin.findings import Finding, Grade, Kind

_DEVICE = b'name "ivshmem-doorbell"'
_ANY_DEVICE = b'name "'
_ARCHITECTURE = "x86_64"
DEADLINE = 10.0
"""Seconds in which an emulator has to say what devices it has. QEMU takes less than one."""
_BYTES_MAX = 1 << 20
"""Of what it says. QEMU's list has 16 KiB."""


class NotTold(Exception):
    """A sentence that says why an emulator's devices are not known."""


def of_domains(domains: Iterable[str]) -> set[str]:
    """Return the paths of the emulators that domains' XML names. What is no XML is left out."""
    found = set()
    for xml in domains:
        try:
            found.add(ElementTree.fromstring(xml).findtext("devices/emulator", ""))
        except ElementTree.ParseError:
            continue  # as the domain's own findings say
    return found - {""}


def of_libvirt(capabilities: str) -> set[str]:
    """Return the path of the emulator that libvirt gives new domains by its capabilities' XML.

    The set is empty if it knows of none.
    """
    tree = ElementTree.fromstring(capabilities)
    architectures = [each for each in tree.iterfind("guest/arch") if each.get("name") == _ARCHITECTURE]
    return {each.findtext("emulator", "") for each in architectures} - {""}


def finding(path: str) -> Finding:
    """Return the finding about an emulator, which is run to be asked."""
    subject = f"emulator {path}"
    try:
        has_device = _DEVICE in _devices(path)
    except NotTold as error:
        return Finding(Grade.NOTE, Kind.EMULATOR, subject, str(error))
    if has_device:
        return Finding(Grade.OK, Kind.EMULATOR, subject, "it has ivshmem-doorbell")
    return Finding(
        Grade.BAD,
        Kind.EMULATOR,
        subject,
        "it is built without ivshmem-doorbell, the device that guests get: install a QEMU that has it, as Debian's has, let "
        "the domains' XML name that (<emulator>), then shut them down and start them",
    )


def _devices(path: str) -> bytes:
    """Return the list of an emulator's devices. Raises NotTold."""
    try:
        asked = subprocess.Popen(
            [path, "-device", "help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise NotTold(f"it can't be asked for its devices: {error.strerror}: is it installed?") from error
    with asked:
        assert asked.stdout is not None
        try:
            said = _read(asked.stdout.fileno())
        finally:
            os.killpg(asked.pid, signal.SIGKILL)  # and what a script may have started
    if _ANY_DEVICE not in said:
        raise NotTold(f"it names no devices when it is asked (status {asked.returncode}): try {path} -device help")
    return said


def _read(fd: int) -> bytes:
    """Return all that can be read. Raises NotTold if that is too much, or takes too long."""
    said = bytearray()
    due = time.monotonic() + DEADLINE
    while select.select([fd], [], [], max(0.0, due - time.monotonic()))[0]:
        read = os.read(fd, _BYTES_MAX)
        if not read:
            return bytes(said)
        said += read
        if len(said) > _BYTES_MAX:
            raise NotTold(f"it does not end to say what devices it has (more than {_BYTES_MAX} bytes): is it QEMU?")
    raise NotTold(f"it has not said in {DEADLINE:.0f} s what devices it has: is it QEMU?")
