# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files on vchans: what Vchan.makefile() makes."""

from __future__ import annotations

import io

from kvmchand.errors import InvalidArgument, WouldBlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

    from typing_extensions import Buffer

    from libxenvchan_shim.api.vchan import Vchan


class RawFile(io.RawIOBase):
    """A vchan as an unbuffered file, which keeps it open."""

    def __init__(self, vchan: Vchan, reads: bool, writes: bool) -> None:
        self._is_counted = False
        vchan._add_file()
        self._is_counted = True
        self._vchan = vchan
        self._reads = reads
        self._writes = writes

    def readable(self) -> bool:
        """Return whether the file is for reading."""
        return self._reads and not self.closed

    def writable(self) -> bool:
        """Return whether the file is for writing."""
        return self._writes and not self.closed

    def readinto(self, buffer: Buffer) -> int | None:
        """Receive into a buffer. Returns 0 at the end, and None if it would have to wait."""
        if not self.readable():
            raise io.UnsupportedOperation("the file is not open for reading")
        try:
            return self._vchan.recv_into(buffer)
        except WouldBlock:
            return None

    def write(self, data: Buffer) -> int | None:
        """Send what there is room for. Returns None if it would have to wait."""
        if not self.writable():
            raise io.UnsupportedOperation("the file is not open for writing")
        try:
            return self._vchan.send(data)
        except WouldBlock:
            return None

    def fileno(self) -> int:
        """Return the vchan's descriptor for events."""
        return self._vchan.fileno()

    def close(self) -> None:
        """Close the file, and the vchan if that was closed and this is its last file."""
        super().close()
        if self._is_counted:
            self._is_counted = False
            self._vchan._drop_file()


def make(
    vchan: Vchan, mode: str, buffering: int | None, encoding: str | None, errors: str | None, newline: str | None
) -> IO[Any]:
    """Return a file on the vchan, as Vchan.makefile() describes."""
    if not isinstance(mode, str):
        raise TypeError(f"mode must be a str, not {type(mode).__name__}")
    if set(mode) - set("rwb") or not set(mode) & set("rw") or len(set(mode)) != len(mode):
        raise InvalidArgument(f"mode is {mode!r}: give r, w or rw, with or without b")
    is_binary, reads, writes = "b" in mode, "r" in mode, "w" in mode
    size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
    if size == 0 and not is_binary:
        raise InvalidArgument("buffering is 0: a text file needs a buffer, so give a size, or a mode with b")
    raw = RawFile(vchan, reads, writes)
    if size == 0:
        return raw  # type: ignore[return-value]
    binary: Any
    if reads and writes:
        binary = io.BufferedRWPair(raw, raw, size)
    elif reads:
        binary = io.BufferedReader(raw, size)
    else:
        binary = io.BufferedWriter(raw, size)
    if is_binary:
        return binary  # type: ignore[no-any-return]
    text = io.TextIOWrapper(binary, encoding, errors, newline)
    text.mode = mode  # type: ignore[misc]
    return text
