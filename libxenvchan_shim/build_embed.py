# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write the C of the embedded module (cffi's embedding mode): build_embed.py HEADER... OUTPUT.

Runs when kvmchan is built.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cffi

_START = """
from kvmchan_embed import ffi
from libxenvchan_shim.embed import bind
bind(ffi)
"""


def parts(header: str) -> tuple[str, str]:
    """Return the types and the functions between the header's marker lines.

    No line there is the preprocessor's.
    """
    text = Path(header).read_text(encoding="utf-8").split("/* cffi: end */")[0]
    types, _, functions = text.split("/* cffi: types */")[1].partition("/* cffi: functions */")
    return types, functions


def main(headers: list[str], output: str) -> None:
    """Write `output`. A header comes after those that it needs."""
    ffi = cffi.FFI()
    found = [parts(each) for each in headers]
    ffi.cdef("".join(types for types, _ in found))
    ffi.embedding_api("".join(functions for _, functions in found))
    ffi.embedding_init_code(_START)
    ffi.set_source("kvmchan_embed", '#include "runtime/call.h"')
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(sys.argv[1:-1], sys.argv[-1])
