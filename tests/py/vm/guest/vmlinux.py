# SPDX-License-Identifier: LGPL-2.1-or-later
"""vmlinux.py BZIMAGE OUTPUT: unpack a kernel, which takes half of its boot where QEMU emulates the
processor.

QEMU starts an ELF file by its PVH entry. What can't be unpacked here is copied as it is. Where the
packed kernel lies: the kernel's Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import lzma
import struct
import sys
from pathlib import Path

_SECTOR = 512
_SETUP_SECTORS = 0x1F1
_PAYLOAD = 0x248
"""Where the header has the payload's offset behind the setup code, and its length."""


def unpacked(image: bytes) -> bytes:
    """Return the kernel within a bzImage, or the image itself."""
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = (image[_SETUP_SECTORS] + 1) * _SECTOR + offset
    try:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(image[start : start + length])
    except lzma.LZMAError:
        return image


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(unpacked(Path(sys.argv[1]).read_bytes()))
