# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our libraries and Xen's as the linker sees them."""

from __future__ import annotations

import re
from pathlib import Path

from rig.paths import LIBDIR, REFERENCE, ROOT
from rig.processes import run

OUR_INCLUDE = ROOT / "include"


XEN_INCLUDE = REFERENCE / "include"


# Every release that Xen's users have, its library's version node as `readelf` shows it in that
# release's packages.
VERSION_NODES = {
    "4.14": None,
    "4.15": "VERS_4.15.0",
    "4.16": "VERS_4.16.0",
    "4.17": "VERS_4.17.0",
    "4.18": "libxenvchan_4.18.0",
    "4.19": "libxenvchan_4.19.0",
    "4.20": "libxenvchan_4.20.0",
    "4.21": "libxenvchan_4.21.0",
    "4.22": "libxenvchan_4.22.0",
}


# test_xen_abi.py's.
COMMON = {LIBDIR / "libxenevtchn.so.1", LIBDIR / "libxengnttab.so.1"}


CONTROL = {
    LIBDIR / f"xen-{release}" / f"libxenctrl.so.{release}": node and node.replace("xenvchan", "xenctrl")
    for release, node in VERSION_NODES.items()
}


def exported(library: Path) -> dict[str, str | None]:
    """Return the symbols that a library defines, and the version of each."""
    names = [line.split()[-1] for line in run("nm", "-D", "--defined-only", library).stdout.splitlines()]
    pairs = [name.partition("@@") for name in names]
    assert not any("@" in name for name, _, _ in pairs), "a hidden version"
    return {name: version or None for name, _, version in pairs}


def dynamic(library: Path, tag: str) -> list[str]:
    text = run("readelf", "--dynamic", "--wide", library).stdout
    return re.findall(rf"\({tag}\).*\[(.*)\]", text)
