# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a QEMU that connects is told of its device, or that it gets none.

In this protocol (QEMU's docs/specs/ivshmem-spec, version 0) only the server speaks. Each message is
an 8-byte number with at most one descriptor: the version, the QEMU's own id, -1 with the memory,
and each peer's id once for each vector, with the eventfd of that vector.

While QEMU reads these, its whole machine stands still, and the end of the connection would leave it
so for ever (see unread). A QEMU that gets no device is told a version that it does not speak. It
then fails the device, and nothing else.

QEMU is told of every peer that its device will ever have, and of nothing after that. A message that
it reads after it has lost the device is written into freed memory (its issue 3594). The protocol
also has a message for a peer that goes. It makes QEMU 7.2 free that peer's eventfds twice when the
device is unplugged later (close_peer_eventfds).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence

from kvmchand.linux.burst import Message

_VERSION = 0
_MEMORY = -1
_NO_VERSION = -1
_NUMBER = struct.Struct("<q")


def handshake(peer: int, memory: int, events: Mapping[int, Sequence[int]], *, has_kvm: bool) -> list[Message]:
    """Return what the QEMU that is `peer` is told.

    QEMU has plugged the device once it has the memory, and reads what follows later. With KVM the
    memory is last: QEMU ends if the guest unmasks a vector whose eventfd it has not read. Without
    KVM its own eventfds are last: QEMU 7.2 crashes if these come before the memory.
    """
    own = [(peer, event) for event in events[peer]]
    others = [(other, event) for other in events if other != peer for event in events[other]]
    plugs = (_MEMORY, memory)
    told = [*others, *own, plugs] if has_kvm else [*others, plugs, *own]
    return [(_NUMBER.pack(number), fd) for number, fd in [(_VERSION, None), (peer, None), *told]]


def refuse(connection: socket.socket) -> None:
    """Let the QEMU that has just connected fail its device, once it has read that (see unread)."""
    try:
        connection.send(_NUMBER.pack(_NO_VERSION), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        pass  # it has gone


def refuse_all(listener: socket.socket) -> list[socket.socket]:
    """Let nobody connect any more, and refuse those that have and wait. Returns these."""
    refused: list[socket.socket] = []
    try:
        listener.shutdown(socket.SHUT_RD)
        listener.setblocking(False)
        while True:
            refused.append(listener.accept()[0])
            refuse(refused[-1])
    except OSError:
        return refused  # there is no other
