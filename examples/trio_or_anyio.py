# SPDX-License-Identifier: LGPL-2.1-or-later
"""An echo server and a client in one event loop: trio's, or anyio's if trio is not installed.

    python3 trio_or_anyio.py

Both loops wait for a vchan by its descriptor, for reading only: it is readable when something may
have changed, data or room.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import kvmchan

PATH = "data/loop"


class Loop:
    """What the example needs of trio or anyio."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._module: Any = importlib.import_module(name)
        self.run: Callable[..., Any] = self._module.run
        self.wait_readable: Callable[..., Any] = (
            self._module.lowlevel.wait_readable if name == "trio" else self._module.wait_readable
        )

    def tasks(self) -> Any:
        """Return a context whose start_soon() starts tasks, and which waits for them."""
        return self._module.open_nursery() if self.name == "trio" else self._module.create_task_group()


async def accept(loop: Loop, listener: kvmchan.Listener) -> kvmchan.Vchan:
    while True:
        try:
            return listener.accept(timeout=0)
        except kvmchan.WouldBlock:
            await loop.wait_readable(listener)


async def receive(loop: Loop, vchan: kvmchan.Vchan) -> bytes:
    while True:
        try:
            return vchan.recv(65536, timeout=0)
        except kvmchan.WouldBlock:
            await loop.wait_readable(vchan)


async def send(loop: Loop, vchan: kvmchan.Vchan, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[vchan.send(view, timeout=0) :]
        except kvmchan.WouldBlock:
            await loop.wait_readable(vchan)


async def echo(loop: Loop, listener: kvmchan.Listener) -> None:
    with await accept(loop, listener) as vchan:
        while data := await receive(loop, vchan):
            await send(loop, vchan, data)


async def ask(loop: Loop, path: str, size: int) -> None:
    """Send blocks, and check that each comes back."""
    sent, received = hashlib.sha256(), hashlib.sha256()
    with kvmchan.connect("host", path) as vchan:
        for _ in range(size >> 16):
            block = os.urandom(1 << 16)
            sent.update(block)
            await send(loop, vchan, block)
            left = len(block)
            while left:
                data = await receive(loop, vchan)
                received.update(data)
                left -= len(data)
    print(f"{loop.name}: {size >> 10} KiB came back {'as they were' if sent.digest() == received.digest() else 'changed'}")


async def main(loop: Loop, size: int) -> None:
    with kvmchan.listen("host", PATH) as listener:
        async with loop.tasks() as tasks:
            tasks.start_soon(echo, loop, listener)
            tasks.start_soon(ask, loop, listener.path, size)


def installed() -> str:
    for name in ("trio", "anyio"):
        if importlib.util.find_spec(name):
            return name
    raise SystemExit("install trio or anyio")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=("trio", "anyio"), default=None, help="by default the one that is installed")
    parser.add_argument("--size", type=int, default=1 << 20, help="bytes to send: a multiple of 65536")
    arguments = parser.parse_args()
    loop = Loop(arguments.loop or installed())
    loop.run(main, loop, arguments.size)
