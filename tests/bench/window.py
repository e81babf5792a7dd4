# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measures for how long a QEMU that connects depends on main alone: from its connecting until it
has been told everything. docs/guests.md, "Failure behaviour", has the figures.

Run it with the environment of `./run env` and PYTHONPATH=. : python tests/bench/window.py
"""

from __future__ import annotations

import fcntl
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "py"))

from kvmchand.channels.device import Device
from kvmchand.ids import DeviceId, DomainId, Size
from kvmchand.runtime.loop import Loop
from kvmchand.services.ivshmem.devices import Devices

TIMES = 200
ALICE, BOB = DomainId(11), DomainId(12)
MESSAGE = 8
"""Bytes."""


class Main:
    """A main that has devices, and serves them in another process than the one that measures."""

    def on_served(self, _device: Device, _domain: DomainId) -> None:
        pass

    on_unplugged = on_cut_off = on_served


def serve(folder: Path, domains: list[DomainId], vectors: int, out: int) -> None:
    loop = Loop()

    def fail(error: Exception) -> None:
        raise error

    devices = Devices(loop, folder / "devices", "nobody", fail)
    devices.start(Main())
    device = Device(
        DeviceId(1), (domains[0], domains[-1]), Size(1 << 20), vectors, {each: 2 + at for at, each in enumerate(domains)}
    )
    devices.create(device)
    os.write(out, os.fsencode(devices.socket_path(device, ALICE)))
    loop.run()


def unread(sock: socket.socket) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))
    return int(count)


def measure(path: str, expected: int) -> float:
    """Return the seconds until everything is there."""
    with socket.socket(socket.AF_UNIX) as sock:
        began = time.perf_counter()
        sock.connect(path)
        while unread(sock) < expected:
            os.sched_yield()
        took = time.perf_counter() - began
        while expected > 0:
            data, fds, _, _ = socket.recv_fds(sock, MESSAGE, 1)
            expected -= len(data)
            for fd in fds:
                os.close(fd)
    return took


def row(domains: list[DomainId], vectors: int) -> str:
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            try:
                serve(Path(folder), domains, vectors, writing)
            finally:
                os._exit(1)
        path = os.read(reading, 4096).decode()
        took = sorted(1e3 * measure(path, MESSAGE * (3 + vectors * (1 + len(domains)))) for _ in range(TIMES))
        os.kill(child, 9)
        os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    return f"median {statistics.median(took):.2f} ms, worst {took[-1]:.2f} ms"


def main() -> None:
    for busy in (0, 2):
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for domains in ([ALICE], [ALICE, BOB]):
                for vectors in (64, 255):
                    print(f"{busy} busy loops, {len(domains)} guests, {vectors} vectors: {row(domains, vectors)}", flush=True)
        finally:
            for each in loops:
                each.kill()
                each.wait()


if __name__ == "__main__":
    main()
