# SPDX-License-Identifier: LGPL-2.1-or-later
"""C programs made for a test, with our headers and libraries or Xen's."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from rig.paths import PREFIX, REFERENCE, REFERENCE_LIBDIR
from rig.processes import run


def compile_c(folder: Path, source: Path, *flags: str) -> Path:
    """Compile a program from one C source, beside nothing else."""
    program = folder / source.stem
    run("gcc", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror", source, "-o", program, *flags)
    return program


def pkg_config(*arguments: str) -> list[str]:
    """Return what pkg-config says of the build."""
    environment = {**os.environ, "PKG_CONFIG_PATH": str(PREFIX / "lib" / "pkgconfig")}
    # It escapes each byte of a letter that ASCII has not, and only a shell puts these together.
    words = shlex.split(run("pkg-config", *arguments, env=environment, errors="surrogateescape").stdout)
    return [os.fsdecode(os.fsencode(word)) for word in words]


def our_flags(package: str = "xenvchan") -> list[str]:
    return pkg_config("--cflags", "--libs", package)


def xen_flags() -> list[str]:
    """Return the flags for Debian's own headers and library."""
    return ["-isystem", str(REFERENCE / "include"), f"-L{REFERENCE_LIBDIR}", "-lxenvchan", "-Wl,--allow-shlib-undefined"]


def alone(library: Path, folder: Path) -> str:
    """Make a folder with no library but that one, for LD_LIBRARY_PATH: LD_PRELOAD can't name what
    has a space in its path.
    """
    made = folder / f"only-{library.name}"
    made.mkdir(exist_ok=True)
    (made / library.name).unlink(missing_ok=True)
    (made / library.name).symlink_to(library)
    return str(made)
