# SPDX-License-Identifier: LGPL-2.1-or-later
"""The messages between main and the libvirt process, over a socket pair of their own."""

from __future__ import annotations

from kvmchand.wire.codec import Codec
from kvmchand.wire.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmchand.ids import DeviceId, DomainId, Size


class Start(Record):
    """main → libvirt: connect to `uri`, and report its domains from now on.

    `folder`: where the sockets of our devices are. A domain's device whose socket was there and is
    no more was left by an earlier daemon, and is detached if the domain has KVM.
    """

    uri: str
    folder: str


class StaleDevice(Record):
    """A device that an earlier daemon left in a domain, as Found has them.

    `socket`: the path of its ivshmem server's socket. `peer`: its ivshmem id, or 0 if that is not
    known. `vectors`: that it has.
    """

    socket: str
    peer: int
    vectors: int


class Attach(Record):
    """main → libvirt: hot-plug a device.

    Reply: Attached, or AttachFailed. `uuid`: the domain's, whose number may be another's by now.
    `socket`: path of the ivshmem server's socket. `peer`: the device's ivshmem id in the domain.
    `bridge`: behind which it should be, as a guest says it in the control link's Room; or empty.
    """

    domain: DomainId
    uuid: str
    device: DeviceId
    socket: str
    vectors: int
    peer: int
    bridge: str


class Detach(Record):
    """main → libvirt: ask a domain's guest to eject a device, if the domain still has it.

    Never from a domain without KVM. Reply: Detached, when it is gone, however long that takes; or
    none. `uuid`: as in Attach.
    """

    domain: DomainId
    uuid: str
    socket: str


class Started(Record):
    """libvirt → main: serving. Connected or not: that is for Found and Gone to say."""


class Found(Record):
    """libvirt → main: a domain runs: it did at the start, or started now.

    Also again after a reconnect to libvirtd; main knows which it has. `kvm`: QEMU runs it with KVM.
    `stale`: the devices of an earlier daemon that it has. `obstacle`: why it can
    take no device. `lack`: why it is not prepared for vchans. Both are sentences that say what to
    do, or empty.
    """

    domain: DomainId
    name: str
    uuid: str
    kvm: bool
    stale: tuple[StaleDevice, ...]
    obstacle: str
    lack: str


class Prepared(Record):
    """libvirt → main: a domain's XML has a device of ours from its start, whether it runs or not.

    `socket`: the name of the ivshmem server's in our folder. `kvm`: QEMU runs it with KVM.
    """

    uuid: str
    socket: str
    size: Size
    vectors: int
    kvm: bool


class Unprepared(Record):
    """libvirt → main: a domain's XML has no such device any more."""

    uuid: str


class Undefined(Record):
    """libvirt → main: a domain has no configuration any more, and does not run."""

    uuid: str


class Listed(Record):
    """libvirt → main: all is reported since the last (re)connect.

    A domain that was not Found has ended, and one that was not Prepared is not prepared.
    """


class Gone(Record):
    """libvirt → main: a domain has ended, however it did."""

    domain: DomainId


class Rebooted(Record):
    """libvirt → main: a domain's machine was reset, by itself or its owner.

    It keeps its devices.
    """

    domain: DomainId


class Paused(Record):
    """libvirt → main: a domain was paused, or goes on.

    Also again after a reconnect, of every domain.
    """

    domain: DomainId
    paused: bool


class Attached(Record):
    """libvirt → main: QEMU has the device; the guest may not have noticed yet."""

    domain: DomainId
    device: DeviceId


class AttachFailed(Record):
    """libvirt → main: the domain has no such device.

    `sentence`: what failed, and what its XML lacks if it is that.
    """

    domain: DomainId
    device: DeviceId
    sentence: str


class Detached(Record):
    """libvirt → main: a domain does not have a device any more that it was asked for."""

    domain: DomainId
    socket: str


TO_LIBVIRT: dict[str, type] = {"start": Start, "attach": Attach, "detach": Detach}
TO_MAIN: dict[str, type] = {
    "started": Started,
    "found": Found,
    "prepared": Prepared,
    "unprepared": Unprepared,
    "undefined": Undefined,
    "listed": Listed,
    "gone": Gone,
    "rebooted": Rebooted,
    "paused": Paused,
    "attached": Attached,
    "attach-failed": AttachFailed,
    "detached": Detached,
}

to_libvirt = Codec(TO_LIBVIRT)
to_main = Codec(TO_MAIN, {StaleDevice.__name__: StaleDevice})
