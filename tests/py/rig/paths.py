# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the tree, the build, and what tests compare with lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build"
C_BUILD = BUILD / "tests" / "c"
PREFIX = BUILD / "prefix"
SITE = PREFIX / "lib" / "kvmchan"
LIBDIR = SITE / "libxenvchan_shim" / "lib"
REFERENCE = BUILD / "reference" / "usr"
REFERENCE_LIBDIR = REFERENCE / "lib" / f"{os.uname().machine}-linux-gnu"
XEN_RELEASE = min(REFERENCE_LIBDIR.glob("libxenvchan.so.4.*")).name.removeprefix("libxenvchan.so.")
"""The Xen release of the reference, which is that of the machine's Debian."""
XEN_MINOR = int(XEN_RELEASE.split(".")[1])
REFERENCE_LIBXENVCHAN = REFERENCE_LIBDIR / f"libxenvchan.so.{XEN_RELEASE}"
REFERENCE_PROGRAMS = REFERENCE / "lib" / f"xen-{XEN_RELEASE}" / "bin"
"""Xen's programs that are in no PATH."""
XEN_LIBDIR = LIBDIR / f"xen-{XEN_RELEASE}"
"""Our libraries that programs of that release load in place of Xen's."""
KVMCHAND = PREFIX / "bin" / "kvmchand"
KVMCHAN = PREFIX / "bin" / "kvmchan"
PYTHON = sys.executable
PROGRAMS = ROOT / "tests" / "c" / "programs"
"""Sources of C programs that tests run."""
