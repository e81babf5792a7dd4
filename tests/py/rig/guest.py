# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests without a virtual machine: a real host's daemon, whose libvirt process, QEMUs and guests'
daemons are the test's.

What a machine's QEMU would have of a device, the scripted guest has: its memory, the eventfds that
interrupt it, and those that its doorbell rings. So it can do what any guest can, and say anything.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import shutil
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, Self

from kvmchand.channels.page import LEFT_INDEXES, RIGHT_INDEXES
from kvmchand.ids import CONTROL_PEER, HOST_PEER, PAGE, Size
from kvmchand.linux.eventfd import share_event
from kvmchand.wire import client, control, dataplane, libvirt
from kvmchand.wire.codec import PACKET_MAX
from kvmchand.wire.packet import receive_packet, send_packet
from rig.daemon import Daemon
from rig.deadline import eventually
from rig.paths import SITE
from rig.processes import is_asleep, open_fds, services_of

RELAY = Path(__file__).with_name("relay.py")
CLIENT_LIVE, SERVER_LIVE = 20, 21
NONE_YET = 2
LEFT_CONS, LEFT_PROD = LEFT_INDEXES, LEFT_INDEXES + 4
RIGHT_CONS, RIGHT_PROD = RIGHT_INDEXES, RIGHT_INDEXES + 4
LEFT_RING = PAGE
"""Where the bytes are that the guest writes."""
LEFT_BYTES = 1 << control.LEFT_ORDER
STALE_PEER, STALE_VECTORS = 3, 64
"""Of the first device that an earlier daemon left; the next has the next id."""
ALICE, BOB = 11, 12
"""The guests' numbers."""


def stand_in(folder: Path, service: str) -> Path:
    """Make a kvmchand of which one service is the test, and return its program.

    $KVMCHAN_TEST_SERVICE: where it asks for the test.
    """
    packages = folder / "lib" / "kvmchan"
    packages.mkdir(parents=True)
    shutil.copytree(SITE / "kvmchand", packages / "kvmchand")
    (packages / "libxenvchan_shim").symlink_to(SITE / "libxenvchan_shim")
    shutil.copy(RELAY, packages / "kvmchand" / "services" / service / "process.py")
    (folder / "bin").mkdir()
    shutil.copy(SITE.parents[1] / "bin" / "kvmchand", folder / "bin")
    return folder / "bin" / "kvmchand"


class Plugged(ABC):
    """A device in a machine, as whoever acts in its guest has it."""

    path: str
    vectors: int
    peer: int
    memory: int

    @abstractmethod
    def event(self, peer: int, vector: int) -> int:
        """Return the eventfd that wakes a peer."""

    @abstractmethod
    def unplug(self) -> None:
        """Let go of all descriptors."""

    def read(self) -> None:
        """Read to the end of what the server says, which a real QEMU does by itself."""
        assert self.has_read()

    def has_read(self) -> bool:
        return True


class ScriptedPlugged(Plugged):
    """A device that the test has taken from its server, in place of a QEMU.

    `lazy`: its memory and events are not read before they are needed.
    """

    def __init__(self, path: str, vectors: int, *, lazy: bool = False) -> None:
        self.path = path
        self.vectors = vectors
        self._events: dict[int, list[int]] = {}
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.connect(path)
        self.memory = -1
        version, _ = self._hear()
        assert version == 0, f"the ivshmem server refuses this: {version}"
        self.peer, _ = self._hear()
        if not lazy:
            self.read()

    def read(self) -> None:
        """To the end of what the server says."""
        while not self.has_read():
            self._take()

    def _take(self) -> None:
        about, fd = self._hear()
        assert fd >= 0, f"peer {about} went"
        if about == -1:
            assert self.memory == -1
            self.memory = fd
        else:
            self._events.setdefault(about, []).append(fd)

    def _hear(self) -> tuple[int, int]:
        data, fds, _, _ = socket.recv_fds(self._sock, 8, 1, socket.MSG_WAITALL)
        assert len(data) == 8, f"the ivshmem server ended the connection after {data!r}"
        return struct.unpack("<q", data)[0], fds[0] if fds else -1

    def event(self, peer: int, vector: int) -> int:
        """Return what wakes a peer. If QEMU has not heard of it yet, it does now."""
        while len(self._events.get(peer, ())) <= vector:
            self._take()
        return self._events[peer][vector]

    def has_read(self) -> bool:
        return self.memory != -1 and len(self._events.get(self.peer, ())) == self.vectors

    def unplug(self) -> None:
        self._sock.close()
        for event in [each for events in self._events.values() for each in events]:
            os.close(event)
        self._events.clear()
        memory, self.memory = self.memory, -1
        if memory >= 0:
            os.close(memory)


class Machine:
    """A virtual machine, as the hypervisor has it.

    `left`: devices of an earlier daemon. `obstacle`, `lack`: why it can take no device, or is not
    prepared. `devices`: by their sockets' paths.
    """

    def __init__(
        self,
        number: int,
        *,
        name: str = "",
        uuid: str = "",
        kvm: bool = True,
        left: int = 0,
        obstacle: str = "",
        lack: str = "",
    ) -> None:
        self.number = number
        self.kvm = kvm
        self.stale = tuple(libvirt.StaleDevice(f"/earlier/{at}", STALE_PEER + at, STALE_VECTORS) for at in range(left))
        self.obstacle = obstacle
        self.lack = lack
        self.name = name or f"guest-{number}"
        self.uuid = uuid or f"uuid-{number}"
        self.devices: dict[str, Plugged] = {}
        self.bridges: list[str] = []
        """Behind which each device should have gone, in the order that they came."""
        self.refusal = ""
        """Why it takes no device any more."""
        self.refusals = 0
        """How often it has taken none for that."""
        self.is_stubborn = False
        """Its guest lets no device go."""
        self.is_lazy = False
        """Its QEMU does not read of more devices than it must."""
        self.is_late = False
        """Its QEMU has a device when it was given up already."""
        self.unplugging: list[str] = []
        """The devices that it should have let go."""

    def of_peer(self, peer: int) -> Plugged | None:
        return next((each for each in self.devices.values() if each.peer == peer), None)

    def stop(self) -> None:
        for each in self.devices.values():
            each.unplug()
        self.devices.clear()


class Hypervisor:
    """The libvirt process, and the machines. What main asks of it is done by a thread."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "hypervisor"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self.machines: dict[int, Machine] = {}
        self.changed = threading.Condition()
        """Held while machines and their devices change."""
        self._main: socket.socket | None = None
        self._is_ending = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    _, fds, _, _ = socket.recv_fds(connection, 1, 1)
                if self._is_ending:
                    return
                with socket.socket(fileno=fds[0]) as main:
                    self._serve(main)
        except BaseException as error:
            self.failure = error
            with self.changed:
                self.changed.notify_all()

    def _serve(self, main: socket.socket) -> None:
        while True:
            data, fds = receive_packet(main)
            fds.close()
            if not data:
                break
            with self.changed:
                self._main = main
                try:
                    for answer in self._obey(libvirt.to_libvirt.decode(data)):
                        send_packet(main, libvirt.to_main.encode(answer))
                except BrokenPipeError:
                    break
                self.changed.notify_all()
        with self.changed:
            self._main = None

    def _obey(self, message: object) -> Iterator[object]:
        match message:
            case libvirt.Start():
                yield libvirt.Started()
                for machine in self.machines.values():
                    yield self._found(machine)
                yield libvirt.Listed()
            case libvirt.Attach():
                taker = self.machines.get(message.domain)
                assert taker is None or taker.uuid == message.uuid
                if taker is None or taker.refusal:
                    sentence = taker.refusal if taker else "it is gone"
                    if taker is not None:
                        taker.refusals += 1
                    yield libvirt.AttachFailed(message.domain, message.device, sentence)
                else:
                    taker.bridges.append(message.bridge)
                    taker.devices[message.socket] = ScriptedPlugged(message.socket, message.vectors, lazy=taker.is_lazy)
                    if taker.is_late:
                        yield libvirt.AttachFailed(message.domain, message.device, "its QEMU has not taken it in time")
                    yield libvirt.Attached(message.domain, message.device)
            case libvirt.Detach():
                asked = self.machines.get(message.domain)
                assert asked is None or asked.uuid == message.uuid
                if asked is None:
                    return
                if any(each.socket == message.socket for each in asked.stale):
                    assert asked.kvm, "QEMU without KVM is to lose a device"
                    asked.unplugging.append(message.socket)
                    if not asked.is_stubborn:
                        yield from self._lose_stale(asked)
                elif message.socket in asked.devices:
                    assert asked.kvm, "QEMU without KVM is to lose a device"
                    assert asked.devices[message.socket].has_read(), "QEMU is to lose a device that it still reads of"
                    asked.unplugging.append(message.socket)
                    if not asked.is_stubborn:
                        self.let_go(asked)
                else:
                    yield libvirt.Detached(message.domain, message.socket)

    @staticmethod
    def _lose_stale(machine: Machine) -> Iterator[object]:
        gone = [each for each in machine.stale if each.socket in machine.unplugging]
        machine.stale = tuple(each for each in machine.stale if each not in gone)
        for each in gone:
            machine.unplugging.remove(each.socket)
            yield libvirt.Detached(machine.number, each.socket)  # type: ignore[arg-type]

    @staticmethod
    def _found(machine: Machine) -> object:
        return libvirt.Found(
            machine.number,  # type: ignore[arg-type]
            machine.name,
            machine.uuid,
            machine.kvm,
            machine.stale,
            machine.obstacle,
            machine.lack,
        )

    def _tell(self, message: object) -> None:
        assert self._main is not None
        send_packet(self._main, libvirt.to_main.encode(message))

    def wait(self, holds: Callable[[], Any], what: str) -> None:
        """Wait until something of the machines holds."""
        with self.changed:
            self.changed.wait_for(lambda: self.failure is not None or holds())
            assert self.failure is None, repr(self.failure)
            assert holds(), what

    def wait_started(self) -> None:
        self.wait(lambda: self._main is not None, "the daemon asks for no hypervisor")

    # ---- machines ----

    def start(self, number: int, **machine_is: Any) -> Machine:
        """Start a Machine."""
        with self.changed:
            machine = self.machines[number] = Machine(number, **machine_is)
            self._tell(self._found(machine))
        return machine

    def stop(self, machine: Machine) -> None:
        """Stop a machine that runs as `virsh destroy` does: QEMU ends, and libvirt says so."""
        if self.machines.get(machine.number) is not machine:
            return
        with self.changed:
            del self.machines[machine.number]
            machine.stop()
            self._tell(libvirt.Gone(machine.number))  # type: ignore[arg-type]

    def let_go(self, machine: Machine) -> None:
        """Let its guest do what it was asked to."""
        with self.changed:
            for gone in list(self._lose_stale(machine)):
                self._tell(gone)
            for path in machine.unplugging:
                machine.devices.pop(path).unplug()
                self._tell(libvirt.Detached(machine.number, path))  # type: ignore[arg-type]
            machine.unplugging.clear()
            self.changed.notify_all()

    def reboot(self, machine: Machine) -> None:
        with self.changed:
            self._tell(libvirt.Rebooted(machine.number))  # type: ignore[arg-type]

    def pause(self, machine: Machine, paused: bool = True) -> None:
        with self.changed:
            self._tell(libvirt.Paused(machine.number, paused))  # type: ignore[arg-type]

    def prepare(self, uuid: str, socket: str, size: int, vectors: int) -> None:
        """Give a domain that does not run a device from its next start on."""
        with self.changed:
            self._tell(libvirt.Prepared(uuid, socket, Size(size), vectors, True))

    def unprepare(self, uuid: str) -> None:
        """Take that device from a domain's XML."""
        with self.changed:
            self._tell(libvirt.Unprepared(uuid))

    def undefine(self, uuid: str) -> None:
        """Remove the configuration of a domain that does not run."""
        with self.changed:
            self._tell(libvirt.Undefined(uuid))

    def close(self) -> None:
        self._is_ending = True
        for machine in self.machines.values():
            machine.stop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(str(self.path))
            socket.send_fds(last, [b"\0"], [last.fileno()])
        self._thread.join()
        self._listener.close()
        self.path.unlink()


class ScriptedHost(Daemon):
    """`kvmchand host` with scripted guests.

    At its end no trace of them may be left in any of its processes.
    """

    def __init__(self, folder: Path, *options: str, program: Path, domains: tuple[int, ...] = ()) -> None:
        self.hypervisor = Hypervisor(folder)
        self.guests: list[Guest] = []
        before = os.environ.get("KVMCHAN_TEST_SERVICE")
        assert before is None
        os.environ["KVMCHAN_TEST_SERVICE"] = str(self.hypervisor.path)
        try:
            super().__init__(folder, *options, program=program, domains=domains, libvirt=f"scripted:{folder}")
        except BaseException:
            self.kill()
            raise
        finally:
            del os.environ["KVMCHAN_TEST_SERVICE"]

    def fds(self) -> dict[str, list[str]]:
        """Return the descriptors of the processes that are not the test's."""
        pids = {name: pid for name, pid in self.services().items() if name != "libvirt"}
        return {"main": open_fds(self.pid), **{name: open_fds(pid) for name, pid in sorted(pids.items())}}

    def _fds_at_rest(self) -> dict[str, list[str]]:
        self.hypervisor.wait_started()
        ours = {"local", "control", "ivshmem", "store"}
        eventually(lambda: ours <= self.services().keys() and all(is_asleep(pid) for pid in services_of(self.pid).values()))
        return super()._fds_at_rest()

    def guest(self, number: int, *, uuid: str = "", kvm: bool = True, left: int = 0) -> Guest:
        """Start a machine, with a control device that no daemon uses yet."""
        made = Guest(self, self.hypervisor.start(number, uuid=uuid, kvm=kvm, left=left))
        self.guests.append(made)
        return made

    def wait_log(self, part: str, times: int = 1) -> None:
        eventually(lambda: self.log().count(part) >= times, lambda: f"no {part!r} in {self.log()}")

    def devices_left(self) -> list[str]:
        return sorted(each.name for each in (self.runtime_dir / "ivshmem").iterdir())

    def assert_clean(self) -> None:
        """End all machines first."""
        for guest in self.guests:
            guest.stop()
        self.guests.clear()
        eventually(lambda: self.devices_left() == [], lambda: str(self.devices_left()))
        super().assert_clean()

    def kill(self) -> None:
        if hasattr(self, "process"):
            super().kill()
        for guest in self.guests:
            guest.part()
        self.hypervisor.close()


class End:
    """An end of a channel, in a scripted guest. Its calls block."""

    def __init__(self, device: Plugged, granted: control.Granted, *, is_server: bool) -> None:
        self.peer, self.vector = granted.peer, granted.vector
        self.grant = grant = granted.grant
        self.is_shared = grant.events == "shared doorbell"
        event = device.event(device.peer, granted.vector)
        if self.is_shared:
            with share_event(event) as shared:
                event_fd = os.dup(shared.fileno())
        else:
            event_fd = os.dup(event)
        self.ctrl = dataplane.attach(
            dataplane.Grant(
                region_fd=os.dup(device.memory),
                event_fd=event_fd,
                notify_fd=os.dup(device.event(grant.doorbell_value >> 16, grant.doorbell_value & 0xFFFF)),
                control_fd=-1,
                is_server=int(is_server),
                left_order=grant.left_order,
                right_order=grant.right_order,
                events=dataplane.SHARED_EVENTFD if self.is_shared else dataplane.EVENTFD,
                offset=grant.offset,
            )
        )
        self.ctrl.contents.blocking = -1

    def send(self, data: bytes) -> None:
        assert dataplane.send(self.ctrl, data, len(data)) == len(data)

    def recv(self, size: int) -> bytes:
        data = ctypes.create_string_buffer(size)
        assert dataplane.recv(self.ctrl, data, size) == size
        return data.raw

    def is_open(self) -> bool:
        return bool(dataplane.is_open(self.ctrl))

    def close(self, *, hangs_up: bool = True) -> None:
        ctrl, self.ctrl = self.ctrl, None
        if ctrl is not None:
            if hangs_up:
                dataplane.hang_up(ctrl)
            dataplane.detach(ctrl)


class RunsMachines(Protocol):
    """What a Guest needs of the hypervisor."""

    changed: threading.Condition

    def wait(self, holds: Callable[[], Any], what: str) -> None: ...

    def stop(self, machine: Machine) -> None: ...


class ServesGuests(Protocol):
    """What a Guest needs of the host's daemon."""

    @property
    def hypervisor(self) -> RunsMachines: ...

    def log(self) -> str: ...


class Guest:
    """A guest's daemon, and its clients."""

    def __init__(self, host: ServesGuests, machine: Machine) -> None:
        self.host = host
        self.machine = machine
        self.domain = machine.number
        self._ctrl: Any = None
        self._event = -1
        self._heard: list[Any] = []
        self._ready: set[str] = set()
        self._ends: list[End] = []
        self._serial = 0
        self.take_control()

    def take_control(self) -> Self:
        """Take the control device, the first one or another one."""
        self._ready.clear()
        self.control = self.wait_device(CONTROL_PEER)
        self.page = mmap.mmap(self.control.memory, control.DEVICE_BYTES)
        return self

    # ---- devices ----

    def wait_device(self, peer: int) -> Plugged:
        self.host.hypervisor.wait(lambda: self.machine.of_peer(peer), f"domain {self.domain} gets no device {peer}")
        found = self.machine.of_peer(peer)
        assert found is not None
        return found

    def new_devices(self) -> list[Plugged]:
        """Return the devices that have come, and that the host has not been told are ready."""
        return [each for each in self.machine.devices.values() if each.path not in self._ready and each.peer != CONTROL_PEER]

    def take_device(self, vectors: int | None = None) -> Plugged:
        """Wait for another device, and tell the host that it can be used."""
        self.host.hypervisor.wait(self.new_devices, f"domain {self.domain} gets no device: {self.host.log()}")
        device = self.new_devices()[0]
        self._ready.add(device.path)
        self.say(control.Ready(device.peer, device.vectors if vectors is None else vectors))
        return device

    def lose(self, device: Plugged) -> None:
        """Lose a device that somebody else takes away."""
        with self.host.hypervisor.changed:
            self.machine.devices.pop(device.path).unplug()

    # ---- the control link ----

    def ring(self) -> None:
        os.eventfd_write(self.control.event(HOST_PEER, 0), 1)

    def meet(self) -> Self:
        """Do what a daemon that starts does before it says anything."""
        self.part()
        event = self.control.event(CONTROL_PEER, 0)
        if self.page[CLIENT_LIVE] != NONE_YET:
            self.page[CLIENT_LIVE] = 0
            self.ring()
        while self.page[CLIENT_LIVE] != NONE_YET:
            self._wait(event, "makes no control page")
            os.eventfd_read(event)
        self._ctrl = dataplane.attach(
            dataplane.Grant(
                region_fd=os.dup(self.control.memory),
                event_fd=os.dup(event),
                notify_fd=os.dup(self.control.event(HOST_PEER, 0)),
                control_fd=-1,
                is_server=0,
                left_order=control.LEFT_ORDER,
                right_order=control.RIGHT_ORDER,
                events=dataplane.EVENTFD,
            )
        )
        self._event = int(dataplane.fd_for_select(self._ctrl))
        return self

    def _wait(self, event: int, what: str) -> None:
        assert select.select([event], [], [])[0], f"the host {what}: {self.host.log()}"

    def greet(self) -> Self:
        """Meet the host, say hello, hear welcome, and take the device of the link to the host."""
        self.meet()
        self.say(control.Hello(control.VERSION))
        assert self.hear() == control.Welcome(self.domain)  # type: ignore[arg-type]
        if not any(path in self._ready for path in self.machine.devices):
            self.take_device()
        else:
            for each in self.machine.devices.values():
                if each.path in self._ready:
                    self.say(control.Ready(each.peer, each.vectors))
        return self

    def say(self, message: Any) -> None:
        data = control.to_host.encode(message)
        self.put(control.LENGTH.pack(len(data)) + data)

    def put(self, data: bytes) -> None:
        """Put any bytes into the ring."""
        for first in range(0, len(data), LEFT_BYTES):
            part = data[first : first + LEFT_BYTES]
            while not dataplane.send(self._ctrl, part, len(part)):
                self._wait(self._event, "does not read")
                dataplane.wait(self._ctrl)

    def hear(self) -> Any:
        """Return the host's next message, of those that were not heard yet."""
        return self._heard.pop(0) if self._heard else self._hear()

    def _hear(self) -> Any:
        (size,) = control.LENGTH.unpack(self._take(control.LENGTH.size))
        assert 0 < size <= PACKET_MAX
        return control.to_guest.decode(self._take(size))

    def _take(self, size: int) -> bytes:
        data = ctypes.create_string_buffer(size)
        while dataplane.recv(self._ctrl, data, size) != size:
            self._wait(self._event, "says nothing")
            dataplane.wait(self._ctrl)
        return data.raw

    def hear_release(self, peer: int) -> None:
        """Assert that the host wants a device back, and pass over what it says before that."""
        while control.Release(peer) not in self._heard:
            self._heard.append(self._hear())
        self._heard.remove(control.Release(peer))

    def hear_end(self) -> list[Any]:
        """Assert that the host hangs up, and return what it said before that."""
        heard = self._heard
        self._heard = []
        try:
            while True:
                heard.append(self._hear())
        except OSError as error:
            assert error.errno == errno.EPIPE, error
        return heard

    def part(self) -> None:
        """End the daemon and the ends of its clients, without a word."""
        for end in self._ends:
            end.close(hangs_up=False)
        self._ends.clear()
        ctrl, self._ctrl = self._ctrl, None
        self._heard.clear()
        if ctrl is not None:
            dataplane.detach(ctrl)

    def stop(self) -> None:
        """End the machine, all of a sudden."""
        self.part()
        self.host.hypervisor.stop(self.machine)

    # ---- its clients ----

    def request(self, number: int, request: client.Request) -> None:
        self._serial += 1
        self.say(control.Ask(number, self._serial, 1000 + number, request))  # type: ignore[arg-type]

    def answer(self, number: int) -> Any:
        """Return what the host answers a client: a Granted, a Shared, a Closed, or what is in a
        Reply.
        """
        at = 0
        while True:
            if at == len(self._heard):
                self._heard.append(self._hear())
            if getattr(self._heard[at], "client", None) == number:
                message = self._heard.pop(at)
                return message.reply if isinstance(message, control.Reply) else message
            at += 1

    def ask(self, number: int, request: Any) -> Any:
        self.request(number, request)
        return self.answer(number)

    def refused(self, number: int, request: Any, code: str) -> str:
        """Assert that the answer is this error, and return its sentence."""
        answer = self.ask(number, request)
        assert isinstance(answer, client.Error), answer
        assert answer.code == code, answer
        assert len(answer.sentence) > 10
        assert answer.sentence.isprintable()
        return answer.sentence

    def end(self, grant: Any, *, is_server: bool) -> End:
        assert isinstance(grant, control.Granted), grant
        made = End(self.wait_device(grant.peer), grant, is_server=is_server)
        self._ends.append(made)
        return made

    def offer(self, number: int, peer: int = 0, path: str = "x", least: int = 1024, *, grows: bool = False) -> End:
        """`grows`: the host gives the guest another device for that."""
        self.request(number, offer(peer, path, least))
        if grows:
            self.take_device()
        return self.end(self.answer(number), is_server=True)

    def connect(self, number: int, domain: int = 0, path: str = "x", *, grows: bool = False) -> End:
        self.request(number, connect(domain, path))
        if grows:
            self.take_device()
        return self.end(self.answer(number), is_server=False)

    def close(self, number: int) -> None:
        """End a client, and wait until the host knows."""
        self.say(control.Close(number))  # type: ignore[arg-type]
        assert self.answer(number) == control.Closed(number)  # type: ignore[arg-type]

    def is_answered(self) -> bool:
        """Return whether the host answers."""
        return isinstance(self.ask(999_999, client.List(0)), client.Listing)  # type: ignore[arg-type]


def offer(peer: int = 0, path: str = "x", least: int = 1024) -> client.Offer:
    return client.Offer(peer, path, least, least, False)  # type: ignore[arg-type]


def connect(domain: int = 0, path: str = "x") -> client.Connect:
    return client.Connect(domain, path, False)
