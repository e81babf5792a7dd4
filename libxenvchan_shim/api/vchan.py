# SPDX-License-Identifier: LGPL-2.1-or-later
"""One end of a vchan, for Python programs: a stream socket's conventions on libxenvchan's rings."""

from __future__ import annotations

from enum import Enum

from kvmchand.wire import dataplane
from libxenvchan_shim.api import files, messages
from libxenvchan_shim.api.inplace import InPlace
from libxenvchan_shim.api.receiving import Receiving
from libxenvchan_shim.api.sending import Sending
from libxenvchan_shim.api.timeouts import OWN, Timeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, Literal

    from typing_extensions import Buffer


class State(Enum):
    """The state of a vchan's other end."""

    CLOSED = -1
    """This end was closed."""
    GONE = 0
    """It closed, or its process or domain ended. What it sent can still be received.

    Another client may come to an end that offer() made.
    """
    OPEN = 1
    """It is connected."""
    WAITING = 2
    """No client has come yet."""


class Vchan(Receiving, Sending, InPlace):
    """One end of a vchan, made by connect(), Listener.accept() or offer().

    It has the methods of a connected stream socket, and some that only vchans have: put(), take(),
    look() and consume(), reserve() and commit(), wait(). One thread may receive while another
    sends. Close it when you are done with it, best by `with`. In the examples of the methods,
    `client` and `server` are the two ends of one vchan.
    """

    _incoming: messages.Incoming | None = None

    @property
    def path(self) -> str:
        """The absolute path, such as "/local/domain/1/data/echo"."""
        return self._path

    @property
    def peer(self) -> int:
        """The number of the other end's domain."""
        return self._peer

    @property
    def is_server(self) -> bool:
        """Whether this end offered the vchan."""
        return self._is_server

    @property
    def read_ring(self) -> int:
        """Bytes that can wait to be received: the most that take() and look() may ask for."""
        return self._end.read_ring

    @property
    def write_ring(self) -> int:
        """Bytes that can wait at the peer: the most that put() and reserve() may ask for."""
        return self._end.write_ring

    @property
    def state(self) -> State:
        """The state of the other end."""
        ref = self._ref
        return State.CLOSED if ref is None else State(dataplane.is_open(ref))

    def __repr__(self) -> str:
        side = "server" if self._is_server else "client"
        rings = f"{self.read_ring}/{self.write_ring}"
        return f"<Vchan {side}, peer domain {self._peer}, {self._path}, {self.state.name.lower()}, rings {rings}>"

    # ---- messages ----

    def send_bytes(self, message: Buffer, timeout: Timeout = OWN) -> None:
        """Send a message, which recv_bytes() receives as a whole: as in multiprocessing.connection.

        One that fits into the ring, with the 4 bytes of its length, is sent at once or not at all.
        A longer one is sent as by sendall(). Waits for room, at most `timeout` seconds. Raises
        what put() and sendall() do.

        >>> client.send_bytes(b"first")
        >>> client.send_bytes(b"second")
        >>> server.recv_bytes(), server.recv_bytes()
        (b'first', b'second')
        """
        messages.send(self, message, timeout)

    def recv_bytes(self, maxlength: int | None = None, timeout: Timeout = OWN) -> bytes:
        """Receive a message. Waits until all of it is there, at most `timeout` seconds.

        Raises TooBig if it has more than `maxlength` bytes, and leaves it where it is; EndOfStream
        if the other end has gone and left no whole message; ProtocolError if what comes is no
        message; and otherwise what recv() does. What came before a timeout is kept for the next
        call.

        >>> client.send_bytes(bytes(100))
        >>> server.recv_bytes(maxlength=10)
        Traceback (most recent call last):
            ...
        kvmchand.errors.TooBig: [Errno 90] the message ... has 100 bytes, more than maxlength...
        >>> len(server.recv_bytes(maxlength=100))
        100
        """
        self._incoming = self._incoming or messages.Incoming()
        return self._incoming.receive(self, maxlength, timeout)

    def send_object(self, value: object, timeout: Timeout = OWN) -> None:
        """Send an object, pickled, as a message. Otherwise as send_bytes().

        Raises what pickle.dumps() does for an object that can't be pickled; nothing was sent then.

        >>> client.send_object({"job": 7})
        >>> server.recv_object(trust_peer=True)
        {'job': 7}
        """
        messages.send(self, messages.pickled(value), timeout)

    def recv_object(self, *, trust_peer: Literal[True], maxlength: int | None = None, timeout: Timeout = OWN) -> Any:
        """Receive a message, and unpickle it. Otherwise as recv_bytes().

        Unpickling runs whatever code the peer likes, in your process and with your rights. Say
        `trust_peer=True` only if the other domain may do anything here. Raises InvalidArgument
        without it, ProtocolError if the message is no pickle, and what unpickling raises, such as
        AttributeError for a class that this process lacks.

        >>> client.send_object([1, 2, 3])
        >>> server.recv_object(trust_peer=True)
        [1, 2, 3]
        """
        messages.require_trust(trust_peer)
        return messages.unpickled(self.recv_bytes(maxlength, timeout))

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        r"""Return a file on the vchan, by open()'s arguments. Modes: r, w, rw, with b or without.

        As with a socket, the vchan stays open until the last file is closed as well. The file's
        calls wait as the vchan's do: by settimeout(). Raises InvalidArgument for another mode, and
        AlreadyClosed.

        >>> with client.makefile("w") as file:
        ...     print("a line", file=file)
        >>> with server.makefile("r") as file:
        ...     file.readline()
        'a line\n'
        """
        return files.make(self, mode, buffering, encoding, errors, newline)
