# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a test detaches a guest, whose daemon it is, by the command."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from kvmchand.ids import CONTROL_PEER
from kvmchand.wire import control
from rig.daemon import Daemon
from rig.guest import Guest
from rig.paths import KVMCHAN


def kvmchan(host: Daemon, *words: str, domain: int = 0) -> str:
    """Run the command. Returns its sentence if it fails, or ""."""
    done = subprocess.run([KVMCHAN, *words], env=host.environment(domain), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1 if done.stderr else 0, ""), done
    return done.stderr


@contextmanager
def detaching(host: Daemon, name: str) -> Iterator[None]:
    """Run `kvmchan detach` beside what the guest does meanwhile, and assert that it succeeds."""
    with subprocess.Popen([KVMCHAN, "detach", name], env=host.environment(), stderr=subprocess.PIPE, text=True) as asking:
        yield
        _, said = asking.communicate()
        assert (asking.returncode, said) == (0, "")


def release(guest: Guest) -> None:
    """Let go of the devices that the host wants back, as a guest's daemon does."""
    for device in [each for each in guest.machine.devices.values() if each.peer != CONTROL_PEER]:
        guest.hear_release(device.peer)
        guest.say(control.Released(device.peer))


def detach(host: Daemon, guest: Guest) -> None:
    """Detach a guest whose daemon does its part."""
    with detaching(host, guest.machine.name):
        release(guest)
        heard = guest.hear_end()
        assert isinstance(heard[-1], control.Refused)
        assert "kvmchan attach" in heard[-1].sentence
    guest.part()
    assert guest.machine.devices == {}


def attach(host: Daemon, guest: Guest) -> None:
    """Attach it again, and greet the host."""
    assert kvmchan(host, "attach", guest.machine.name) == ""
    guest.take_control().greet()
