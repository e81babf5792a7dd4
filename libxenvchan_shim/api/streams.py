# SPDX-License-Identifier: LGPL-2.1-or-later
"""asyncio's streams on vchans."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from errno import EAGAIN, EPIPE
from types import TracebackType
from typing import Any

from kvmchand.errors import TimedOut, Unreachable, VchanError
from kvmchand.wire import dataplane
from libxenvchan_shim.api.opening import connecting, made, offering
from libxenvchan_shim.api.timeouts import Deadline, nanoseconds
from libxenvchan_shim.api.transport import Leaving, VchanTransport
from libxenvchan_shim.api.vchan import State, Vchan
from libxenvchan_shim.connection import Connection
from libxenvchan_shim.protocol import DEADLINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from libxenvchan_shim.api.opening import Opening

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]
"""What start_server() calls for each client."""

_LIMIT = 1 << 16
"""The default of asyncio's streams."""


async def open_vchan(
    domain: int | str, path: str, *, timeout: float | None = 0, limit: int = _LIMIT
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the vchan that `domain` offers at `path`, as connect() does.

    Returns a reader and a writer, as asyncio.open_connection() does. `limit` is how many bytes the
    reader buffers before it leaves the rest to the ring. writer.get_extra_info("vchan") is the
    Vchan, which the transport owns: do not receive from it or send to it. `timeout` is in seconds,
    as for connect(), and errors are, too. May be cancelled.

    >>> import asyncio
    >>> async def main():
    ...     with listen("host", "data/example") as listener:
    ...         reader, writer = await open_vchan("host", "data/example")
    ...         with listener.accept() as server:
    ...             server.sendall(b"hello")
    ...             print(await reader.read(100))
    ...         writer.close()
    ...         await writer.wait_closed()
    >>> asyncio.run(main())
    b'hello'
    """
    deadline = Deadline(nanoseconds(timeout))
    vchan = await _opened(connecting(domain, path, waits=deadline.timeout != 0), is_server=False, deadline=deadline)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = VchanTransport(loop, vchan, protocol)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def start_server(
    handler: Handler, peer: int | str, path: str, *, read_min: int = 0, write_min: int = 0, limit: int = _LIMIT
) -> VchanServer:
    r"""Listen for clients of `peer` at `path`, as listen() does, and serve each by `handler`.

    `handler` is called with a reader and a writer for each client; if it is a coroutine function,
    it runs as a task. Sizes are in bytes. Errors are as for listen(). May be cancelled.

    >>> import asyncio
    >>> async def shout(reader, writer):
    ...     writer.write((await reader.readline()).upper())
    ...     writer.close()
    >>> async def main():
    ...     async with await start_server(shout, "host", "data/example"):
    ...         reader, writer = await open_vchan("host", "data/example")
    ...         writer.write(b"hello\n")
    ...         print(await reader.read())
    ...         writer.close()
    ...         await writer.wait_closed()
    >>> asyncio.run(main())
    b'HELLO\n'
    """
    server = VchanServer(handler, (peer, path, read_min, write_min), limit)
    await server._offer()
    return server


class VchanServer:
    """Serves clients until it is closed. Made by start_server().

    Closing it stops listening. The clients that it serves stay connected.
    """

    def __init__(self, handler: Handler, asked: tuple[int | str, str, int, int], limit: int) -> None:
        self._handler = handler
        self._asked = asked
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._offered: Vchan | None = None
        self._fd = -1
        self._offering: asyncio.Task[None] | None = None
        self._is_over = False
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._path = asked[1]

    @property
    def path(self) -> str:
        """The absolute path at which clients find it."""
        return self._path

    def __repr__(self) -> str:
        return f"<VchanServer {self._path}{'' if self.is_serving() else ', closed'}>"

    def is_serving(self) -> bool:
        """Return whether it listens."""
        return not self._is_over

    async def serve_forever(self) -> None:
        """Wait until the server is closed; close it if this is cancelled.

        Raises what made listening impossible, such as Unreachable when the daemon has ended.
        """
        try:
            await asyncio.shield(self._over)
        finally:
            self.close()

    def close(self) -> None:
        """Stop listening."""
        self._finish(None)

    async def wait_closed(self) -> None:
        """Wait until the server is closed."""
        await asyncio.wait([self._over])

    async def __aenter__(self) -> VchanServer:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        await self.wait_closed()

    async def _offer(self) -> None:
        """Offer a vchan to the next client."""
        peer, path, read_min, write_min = self._asked
        vchan = await _opened(offering(peer, path, read_min, write_min, once=True), is_server=True)
        self._path = vchan.path
        self._offered, self._fd = vchan, vchan._event_fd()
        self._loop.add_reader(self._fd, self._on_event)
        self._loop.call_soon(self._on_event)

    async def _offer_again(self) -> None:
        try:
            await self._offer()
        except VchanError as error:
            self._finish(error)

    def _on_event(self) -> None:
        vchan = self._offered
        if vchan is None:
            return
        result = dataplane.try_await(vchan._ref, dataplane.EVENT, 0, 0)
        if result == -EPIPE:
            self._finish(Unreachable(f"kvmchand has ended, and with it what was offered at {self._path}: listen again"))
        elif result < 0 and result != -EAGAIN:
            self._finish(vchan._error(result))
        elif vchan.state is not State.WAITING:
            self._accept(vchan)

    def _accept(self, vchan: Vchan) -> None:
        self._loop.remove_reader(self._fd)
        self._offered = None
        self._offering = self._loop.create_task(self._offer_again())
        reader = asyncio.StreamReader(limit=self._limit, loop=self._loop)
        VchanTransport(self._loop, vchan, asyncio.StreamReaderProtocol(reader, self._handler, loop=self._loop))

    def _finish(self, error: VchanError | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._offering is not None:
            self._offering.cancel()
        vchan, self._offered = self._offered, None
        if vchan is not None:
            self._loop.remove_reader(self._fd)
            self._leaving = Leaving(self._loop, vchan, self._end, error)
        else:
            self._end(error)

    def _end(self, error: VchanError | None) -> None:
        if error is None:
            self._over.set_result(None)
        else:
            self._loop.call_exception_handler({"message": f"{self!r} serves no more clients", "exception": error})
            self._over.set_exception(error)
            self._over.exception()  # it was told


async def _opened(steps: Opening, *, is_server: bool, deadline: Deadline | None = None) -> Vchan:
    """Take the steps to an end, and let the loop wait for the answers."""
    loop = asyncio.get_running_loop()
    connection = Connection.from_environment()
    try:
        try:
            step = next(steps)
            while True:
                connection.send(step.request)
                patience = deadline.seconds() if step.waits and deadline else DEADLINE
                if not await _readable(loop, connection.fileno(), patience):
                    raise TimedOut(_late(step.waits, deadline))
                step = steps.send(step.take(connection))
        except StopIteration as done:
            granted, peer = done.value
        return made(connection, granted, peer, is_server=is_server)
    except BaseException:
        connection.close()
        raise


def _late(waits: bool, deadline: Deadline | None) -> str:
    if waits:
        return f"no vchan that the domain offers there was free within {deadline}"
    return f"kvmchand did not answer within {DEADLINE:.0f} s"


async def _readable(loop: asyncio.AbstractEventLoop, fd: int, timeout: float | None) -> bool:
    """Wait until a descriptor is readable. Returns False if that takes too long."""
    ready: asyncio.Future[Any] = loop.create_future()
    loop.add_reader(fd, _set, ready)
    try:
        done, _ = await asyncio.wait([ready], timeout=timeout)
        return bool(done)
    finally:
        loop.remove_reader(fd)


def _set(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)
