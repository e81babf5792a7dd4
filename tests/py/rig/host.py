# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host without a virtual machine: a real guest's daemon, whose vfio process and host are the
test's.

A device is a memory file, with BAR 2 at its start and BAR 0 after that. Its doorbell is memory
only, so that the host looks at what the guest wrote again and again, where a real one would be
woken.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from kvmchand.channels.page import Page
from kvmchand.channels.rings import Rings
from kvmchand.ids import CONTROL_PEER, DomainId, Size
from kvmchand.wire import control, dataplane, vfio
from kvmchand.wire.packet import receive_packet, send_packet
from rig.clients import RawClient
from rig.daemon import Daemon
from rig.deadline import eventually
from rig.processes import is_asleep, open_fds

DOMAIN = DomainId(7)
"""What the host calls the guest."""
CLIENT_LIVE, SERVER_LIVE = 20, 21
ATTACHED, NONE_YET, STALE = 1, 2, 3
"""What the client's live byte may be. STALE: of no daemon that is here."""


class Device:
    """A device that the vfio process has made usable."""

    def __init__(self, peer: int, size: int, vectors: int) -> None:
        self.peer = peer
        self.size = size
        self.vectors = vectors
        self.address = f"0000:06:{peer:02x}.0"
        self.memory = os.memfd_create(f"device-{peer}")
        os.ftruncate(self.memory, size + mmap.PAGESIZE)
        self.events = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(vectors)]

    def close(self) -> None:
        for fd in (self.memory, *self.events):
            os.close(fd)


class GuestDaemon(Daemon):
    """`kvmchand guest`, its vfio process and its host. `program`: as stand_in() makes it.

    It has the control device, and its page, from begin() on.
    """

    def __init__(self, folder: Path, program: Path) -> None:
        self.runtime_dir = folder / "run"
        self.log_path = folder / "kvmchand.log"
        self.devices: list[Device] = []
        self._service: socket.socket | None = None
        self._ctrl: Any = None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked, self.log_path.open("ab") as log:
            asked.bind(str(folder / "vfio"))
            asked.listen(1)
            environment = {**os.environ, "KVMCHAN_TEST_SERVICE": str(folder / "vfio")}
            command = [str(program), "guest", "--runtime-dir", str(self.runtime_dir)]
            self.process = subprocess.Popen(command, stderr=log, env=environment)
            try:
                connection, _ = asked.accept()
                with connection:
                    _, fds, _, _ = socket.recv_fds(connection, 1, 1)
                self._service = socket.socket(fileno=fds[0])
                data, _ = receive_packet(self._service)
                assert isinstance(vfio.to_vfio.decode(data), vfio.Start)
                self.tell(vfio.Started())
                eventually(lambda: "ready: " in self.log(), self.log)
                ours = {"local", "control", "forward"}
                eventually(lambda: ours <= self.services().keys() and all(is_asleep(each) for each in self.services().values()))
                self.baseline = self.fds()
            except BaseException:
                self.kill()
                raise

    def fds(self) -> dict[str, list[str]]:
        services = {name: open_fds(pid) for name, pid in sorted(self.services().items()) if name != "vfio"}
        return {"main": open_fds(self.pid), **services}

    # ---- the vfio process ----

    def tell(self, message: object, *fds: int) -> None:
        assert self._service is not None
        send_packet(self._service, vfio.to_main.encode(message), fds)

    def plug(self, peer: int, size: int, vectors: int) -> Device:
        return self.add(Device(peer, size, vectors))

    def add(self, device: Device) -> Device:
        self.devices.append(device)
        said = vfio.Device(
            device.address, "3", device.peer, Size(device.size), device.vectors, Size(0), Size(device.size), Size(100)
        )
        self.tell(said, device.memory)
        self.tell(vfio.Events(device.address), *device.events)
        return device

    def hear_vfio(self) -> Any:
        """Return what the vfio process is told next."""
        assert self._service is not None
        data, fds = receive_packet(self._service)
        fds.close()
        return vfio.to_vfio.decode(data)

    def unplug(self, device: Device) -> None:
        self.tell(vfio.Removed(device.address))

    # ---- the host ----

    def until(self, holds: Callable[[], Any], what: str) -> None:
        eventually(holds, lambda: f"{what}: {self.log()}")

    def wait_log(self, part: str) -> None:
        self.until(lambda: part in self.log(), f"no {part!r} in the log")

    def wake(self) -> None:
        os.eventfd_write(self.control.events[0], 1)

    def wait_started(self) -> None:
        self.until(lambda: self.page[CLIENT_LIVE] == 0, "the guest's daemon does not start")

    def meet(self) -> Self:
        """Make the control page, and attach to it, when the guest starts or has hung up."""
        while self.page[CLIENT_LIVE] != ATTACHED:
            self.wait_started()
            self.make_page()
            # The guest's main may say only now that it starts, when its control process has said so
            # before.
            self.until(lambda: self.page[CLIENT_LIVE] != NONE_YET, "the guest's daemon does not come")
        return self

    def make_page(self) -> None:
        self._part()
        os.pwrite(self.control.memory, bytes(4096), 0)
        Page(self.control.memory).initialize(Rings(control.LEFT_ORDER, control.RIGHT_ORDER))
        idle = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ctrl = dataplane.attach(
            dataplane.Grant(
                region_fd=os.dup(self.control.memory),
                event_fd=idle,
                notify_fd=os.dup(self.control.events[0]),
                control_fd=-1,
                is_server=1,
                left_order=control.LEFT_ORDER,
                right_order=control.RIGHT_ORDER,
                events=dataplane.EVENTFD,
            )
        )
        self.wake()

    def greet(self, domain: DomainId = DOMAIN) -> Self:
        """Meet the guest's daemon, hear hello, and say welcome."""
        self.meet()
        assert self.hear() == control.Hello(control.VERSION)
        self.say(control.Welcome(domain))
        return self

    def say(self, message: Any) -> None:
        data = control.to_guest.encode(message)
        self.put(control.LENGTH.pack(len(data)) + data)

    def put(self, data: bytes) -> None:
        """Put any bytes into the ring."""
        self.until(lambda: dataplane.send(self._ctrl, data, len(data)), "the guest does not read")

    def _take(self, size: int) -> bytes:
        data = ctypes.create_string_buffer(size)
        self.until(lambda: dataplane.recv(self._ctrl, data, size) == size, "the guest says nothing")
        return data.raw

    def hear(self) -> Any:
        """Return the guest's next message that does not say for what it has room."""
        while isinstance(message := self.hear_any(), control.Room):
            pass
        return message

    def hear_any(self) -> Any:
        (size,) = control.LENGTH.unpack(self._take(control.LENGTH.size))
        return control.to_host.decode(self._take(size))

    def hear_ask(self) -> control.Ask:
        """Return the next message, which is a client's request."""
        ask = self.hear()
        assert isinstance(ask, control.Ask), ask
        return ask

    def hang_up(self) -> None:
        """End the session, and return when the guest knows."""
        self.page[SERVER_LIVE] = 0
        self.wake()
        self.wait_started()
        self._part()

    def _part(self) -> None:
        ctrl, self._ctrl = self._ctrl, None
        if ctrl is not None:
            dataplane.detach(ctrl)

    # ---- life ----

    def begin(self) -> None:
        super().begin()
        self.control = Device(CONTROL_PEER, control.DEVICE_BYTES, 1)
        self.page = mmap.mmap(self.control.memory, control.DEVICE_BYTES)
        self.page[CLIENT_LIVE] = STALE
        self.add(self.control)

    def tidy(self, _when_new: dict[str, Any]) -> None:
        """Take away what is left of the host."""
        self._part()
        self.page.close()
        for device in self.devices:
            device.close()
        self.devices.clear()

    def state(self) -> dict[str, Any]:
        services = {name: pid for name, pid in self.services().items() if name != "vfio"}
        return {"services": services}

    def assert_clean(self) -> None:
        for device in self.devices:
            self.unplug(device)
        eventually(lambda: self.fds() == self.baseline, lambda: f"{self.fds()} {self.baseline}")
        assert "Traceback" not in self.log(), self.log()

    def stop(self) -> None:
        if not self.is_running():
            return  # the test has killed it
        self.assert_clean()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait() == 0, self.log()
        assert list(self.runtime_dir.iterdir()) == [], "sockets are left"
        assert "Traceback" not in self.log(), self.log()

    def kill(self) -> None:
        super().kill()
        self._part()
        if self._service is not None:
            self._service.close()
        for device in self.devices:
            device.close()
        self.devices.clear()


class Client(RawClient):
    """A client in the guest, that has asked to connect to something on the host."""

    def __init__(self, daemon: GuestDaemon) -> None:
        super().__init__(daemon)
        self.hello()
        self.say({"type": "connect", "domain": 0, "path": "/x", "waits": False})
        self.ask = daemon.hear_ask()
        self.number = self.ask.client
