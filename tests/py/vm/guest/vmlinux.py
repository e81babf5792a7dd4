# SPDX-License-Identifier: LGPL-2.1-or-later
"""vmlinux.py BZIMAGE OUTPUT: unpack a kernel, which takes half of its boot where QEMU emulates the
processor.

QEMU starts an ELF file by its PVH entry. What can't be unpacked here is copied as it is. Where the
packed kernel lies: the kernel's Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
import sys
from pathlib import Path

_SECTOR = 512
_SETUP_SECTORS = 0x1F1
_PAYLOAD = 0x248
"""Where the header has the payload's offset behind the setup code, and its length."""
_ZSTD = bytes.fromhex("28b52ffd")
_ELF = b"\x7fELF"


def unpacked(image: bytes) -> bytes:
    """Return the kernel within a bzImage, or the image itself."""
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = (image[_SETUP_SECTORS] + 1) * _SECTOR + offset
    packed = image[start : start + length]
    if packed.startswith(_ZSTD) and shutil.which("zstd"):
        # It complains of the kernel's length, which follows.
        kernel = subprocess.run(["zstd", "-dc"], input=packed, capture_output=True, check=False).stdout
        return kernel if kernel.startswith(_ELF) else image
    try:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(packed)
    except lzma.LZMAError:
        return image


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(unpacked(Path(sys.argv[1]).read_bytes()))
