# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libxenvchan.so's embedded interpreter runs: the bodies of its Python functions.

Errors go back as an errno and a sentence; nothing raises into C, nothing is printed.
"""

from __future__ import annotations

import errno

from kvmchand.errors import KvmchanError
from libxenvchan_shim.control import Connection, socket_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def bind(ffi: Any) -> None:
    """Gives the bodies to one library; a process may have several of ours, and one interpreter."""

    def failed(error: Exception, sentence: Any, room: int) -> int:
        text = error.sentence if isinstance(error, KvmchanError) else f"unexpected {type(error).__name__}: {error}"
        data = text.encode(errors="replace")[: room - 1] + b"\0"
        ffi.memmove(sentence, data, len(data))
        number = getattr(error, "errno", None)
        return number if isinstance(number, int) and number > 0 else errno.EIO

    @ffi.def_extern(error=errno.EIO)  # type: ignore[untyped-decorator, unused-ignore]
    def kvmchan_python_open(request: Any, opened: Any, sentence: Any, room: int) -> int:
        try:
            text = [
                ffi.string(each).decode(errors="surrogateescape") for each in (request.runtime_dir, request.domain, request.path)
            ]
            connection = Connection(socket_path(text[0], text[1]))
            try:
                if request.is_server:
                    grant = connection.offer(request.peer, text[2], request.read_min, request.write_min)
                else:
                    grant = connection.connect(request.peer, text[2])
            except BaseException:
                connection.close()
                raise
            granted = grant.granted
            path = granted.path.encode()
            ffi.memmove(opened.path, path + b"\0", len(path) + 1)
            opened.left_order, opened.right_order = granted.left_order, granted.right_order
            opened.port = granted.channel & 0x7FFFFFFF
            opened.events, opened.doorbell_value = grant.events, granted.ring
            opened.region_offset, opened.doorbell_offset = granted.offset, granted.doorbell
            opened.notify_fd, opened.control_fd = grant.notify, connection.detach()
            opened.region_fd, opened.event_fd = grant.region, grant.event
            return 0
        except Exception as error:
            return failed(error, sentence, room)

    @ffi.def_extern()  # type: ignore[untyped-decorator, unused-ignore]
    def kvmchan_python_close(control_fd: int) -> None:
        try:
            Connection.adopt(control_fd).close_channel()
        except Exception:
            pass  # nothing that a close could tell
