# SPDX-License-Identifier: LGPL-2.1-or-later
"""32-bit words of a page that another process reads and writes meanwhile.

Not by struct.pack_into(), which clears the word first and then writes byte by byte: whoever looks
in between finds an index that can't be, and may end the connection for it.
"""

from __future__ import annotations

import ctypes
import mmap


def word(page: mmap.mmap, offset: int) -> int:
    return ctypes.c_uint32.from_buffer(page, offset).value


def set_word(page: mmap.mmap, offset: int, value: int) -> None:
    ctypes.c_uint32.from_buffer(page, offset).value = value  # of which it takes the low 32 bits
