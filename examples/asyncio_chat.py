# SPDX-License-Identifier: LGPL-2.1-or-later
"""A chat for many clients, with asyncio.

    python3 asyncio_chat.py --serve --peer 1                           # in domain 0
    KVMCHAN_DOMAIN=1 python3 asyncio_chat.py --peer host --name Ada    # in domain 1

Each line of input goes to all other clients. The end of the input, Ctrl-D, leaves the chat.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys

import kvmchan


def domain(text: str) -> int | str:
    """Return a domain as kvmchan takes it: a number, or a name."""
    return int(text) if text.isdecimal() else text


class Room:
    def __init__(self) -> None:
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = (await reader.readline()).decode().strip() or "nobody"
        self._writers.add(writer)
        try:
            await self._tell_all(f"* {name} has come\n")
            async for line in reader:
                await self._tell_all(f"{name}: {line.decode(errors='replace')}", writer)
        except ConnectionError:
            pass  # the client is gone, as at the end of its lines
        finally:
            self._writers.discard(writer)
            writer.close()
        await self._tell_all(f"* {name} has gone\n")

    async def _tell_all(self, text: str, sender: asyncio.StreamWriter | None = None) -> None:
        others = [each for each in self._writers if each is not sender]
        for each in others:
            each.write(text.encode())
        await asyncio.gather(*(each.drain() for each in others), return_exceptions=True)


async def serve(peer: int | str, path: str) -> None:
    async with await kvmchan.start_server(Room().serve, peer, path) as server:
        print(f"serving at {server.path}", flush=True)
        await server.serve_forever()


async def show_lines(reader: asyncio.StreamReader) -> None:
    async for line in reader:
        print(line.decode(), end="", flush=True)


async def chat(peer: int | str, path: str, name: str) -> None:
    reader, writer = await kvmchan.open_vchan(peer, path, timeout=10)
    writer.write(f"{name}\n".encode())
    showing = asyncio.create_task(show_lines(reader))
    while line := await asyncio.to_thread(sys.stdin.readline):
        writer.write(line.encode())
        await writer.drain()
    writer.close()
    await writer.wait_closed()
    await showing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="serve the chat, instead of joining it")
    parser.add_argument("--peer", type=domain, default="host", help="the other program's domain: a number or a name")
    parser.add_argument("--path", default="data/chat")
    parser.add_argument("--name", default="nobody")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        if arguments.serve:
            asyncio.run(serve(arguments.peer, arguments.path))
        else:
            asyncio.run(chat(arguments.peer, arguments.path, arguments.name))


if __name__ == "__main__":
    main()
