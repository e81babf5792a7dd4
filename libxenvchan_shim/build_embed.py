# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes the C of the embedded module (cffi's embedding mode), at build time: build_embed.py INTERFACE OUTPUT."""

from __future__ import annotations

import sys
from pathlib import Path

import cffi

_START = """
from kvmchan_embed import ffi
from libxenvchan_shim.embed import bind
bind(ffi)
"""


def main(interface: str, output: str) -> None:
    ffi = cffi.FFI()
    # The header between its two marker lines, less what is the preprocessor's.
    text = Path(interface).read_text(encoding="utf-8")
    types, functions = text.split("/* cffi: types */")[1].split("/* cffi: functions */")
    ffi.cdef(types)
    ffi.embedding_api(functions.split("/* cffi: end */")[0])
    ffi.embedding_init_code(_START)
    ffi.set_source("kvmchan_embed", '#include "setup/embed.h"')
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
