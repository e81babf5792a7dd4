# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our libxenevtchn, libxengnttab and libxenctrl against Xen's: symbols, versions, sonames,
prototypes, layout.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rig.compiler import compile_c
from rig.libraries import COMMON, CONTROL, OUR_INCLUDE, VERSION_NODES, XEN_INCLUDE, dynamic, exported
from rig.paths import LIBDIR, PROGRAMS, REFERENCE_LIBDIR, ROOT, XEN_LIBDIR, XEN_MINOR, XEN_RELEASE
from rig.processes import run

CSRC = ROOT / "libxenvchan_shim" / "csrc"
LIBRARIES = sorted(COMMON | set(CONTROL))
XENS_CONTROL = REFERENCE_LIBDIR / f"libxenctrl.so.{XEN_RELEASE}"
OUR_CONTROL = XEN_LIBDIR / XENS_CONTROL.name
COMPAT = "".join(f"#define XC_WANT_COMPAT_{each}_API\n" for each in ("EVTCHN", "GNTTAB", "MAP_FOREIGN", "DEVICEMODEL"))
# Those whose structures have other names with us; test_structures_have_xens_layout is theirs.
OTHER_STRUCTURES = (
    "xc_evtchn_status",
    "xc_get_last_error",
    "xc_domain_getinfo",
    "xc_domain_getinfo_single",
    "xc_domain_getinfolist",
)


def xens(library: Path) -> dict[str, str | None]:
    """What a library exports of Xen's."""
    return {name: node for name, node in exported(library).items() if not name.startswith("kvmchan_")}


@pytest.mark.parametrize("name", [each.name for each in sorted(COMMON)])
def test_symbols_and_their_versions_are_xens(name: str) -> None:
    assert xens(LIBDIR / name) == xens(REFERENCE_LIBDIR / name)
    for library in (LIBDIR / name, REFERENCE_LIBDIR / name):
        assert dynamic(library, "SONAME") == [name]


@pytest.mark.parametrize(("library", "node"), CONTROL.items(), ids=[each.name for each in CONTROL])
def test_libxenctrl_has_its_releases_name_and_version(library: Path, node: str | None) -> None:
    assert dynamic(library, "SONAME") == [library.name]
    assert {version for name, version in exported(library).items() if name != node} == {node}


def test_nothing_of_xens_libxenctrl_is_missing() -> None:
    assert dynamic(XENS_CONTROL, "SONAME") == [XENS_CONTROL.name]
    missing = dict(xens(XENS_CONTROL).items() - xens(OUR_CONTROL).items())
    assert missing == {}
    assert len(xens(XENS_CONTROL)) > 390


def test_data_that_programs_copy_has_xens_size() -> None:
    """A program that uses HYPERCALL_BUFFER_NULL has room for the structure, and the loader copies
    ours there.
    """
    sizes = []
    for library in (XENS_CONTROL, OUR_CONTROL):
        lines = run("nm", "-D", "-S", "--defined-only", library).stdout.splitlines()
        data = [line.split() for line in lines if "kvmchan_" not in line and re.search(r" [BDR] ", line)]
        sizes.append([(fields[3].partition("@")[0], fields[1]) for fields in data])
    assert sizes[0] == sizes[1] != []


@pytest.mark.parametrize("library", LIBRARIES, ids=[each.name for each in LIBRARIES])
def test_no_library_needs_one_of_xens(library: Path) -> None:
    assert [name for name in dynamic(library, "NEEDED") if "xen" in name] == []


def declared(header: str) -> dict[str, str]:
    """What each function that a header of Xen's declares returns."""
    text = run("gcc", "-E", "-P", "-isystem", XEN_INCLUDE, "-", input=f"{COMPAT}#include <{header}>\n").stdout
    found = re.finditer(r"([^;{}#()]*?)\b(xc_\w+)\s*\([^;{}]*?\)\s*(?:__attribute__\s*\(\(.*?\)\))?\s*;", text)
    return {each.group(2): each.group(1).replace("extern", "").strip() for each in found}


def test_functions_we_do_not_have_return_what_their_callers_take_for_failure() -> None:
    lines = (CSRC / "xen" / "libxenctrl_unsupported.def").read_text().splitlines()
    pairs = [re.fullmatch(r"(INTEGER|POINTER)\((\w+)\)", line) for line in lines]
    kinds = {pair.group(2): pair.group(1) for pair in pairs if pair is not None}
    returned = {name: kind for name, kind in declared("xenctrl.h").items() if name in kinds}
    assert len(returned) > 300
    # Of these 0 is the failure.
    zero = {"xc_make_page_below_4G", "xc_translate_foreign_address"}
    typedefs = {"xc_cpumap_t", "xc_nodemap_t"}
    for name, kind in returned.items():
        pointer = "*" in kind or kind in typedefs or name in zero
        assert kinds[name] == ("POINTER" if pointer else "INTEGER"), f"{kind} {name}"


def check_prototypes(folder: Path, before: str, header: str) -> None:
    """C lets a function be declared twice only with compatible types."""
    source = folder / "prototypes.c"
    source.write_text(f'{before}#include "{header}"\n')
    flags = ["-Wall", "-Wextra", "-Werror", f"-I{CSRC}", f"-I{OUR_INCLUDE}", f"-DKVMCHAN_XEN_RELEASE={XEN_MINOR}"]
    run("gcc", "-c", *flags, "-isystem", XEN_INCLUDE, source, "-o", folder / "prototypes.o")


@pytest.mark.parametrize("name", ["evtchn", "gnttab"])
def test_prototypes_are_xens(tmp_path: Path, name: str) -> None:
    check_prototypes(tmp_path, f"#include <xen{name}.h>\n", f"xen/libxen{name}.h")
    ours = set(re.findall(r"\b(xen\w+)\(", (CSRC / f"xen/libxen{name}.h").read_text()))
    assert ours == set(xens(LIBDIR / f"libxen{name}.so.1")) - {"VERS_1.0", "VERS_1.1", "VERS_1.2"}


def test_prototypes_of_libxenctrl_are_xens(tmp_path: Path) -> None:
    structures = ("evtchn_status", "xc_error", "xc_dominfo", *OTHER_STRUCTURES)
    before = f"{COMPAT}#include <xenctrl.h>\n" + "".join(f"#define {each} our_{each}\n" for each in structures)
    defines = "#undef XEN_DOMINF_hvm_guest\n#undef XEN_DOMINF_running\n"
    check_prototypes(tmp_path, before + defines, "xen/libxenctrl.h")


def layout(folder: Path, *flags: str) -> list[str]:
    folder.mkdir()
    return run(compile_c(folder, PROGRAMS / "layout_xen.c", *flags)).stdout.splitlines()


def our_layout(folder: Path, release: int) -> list[str]:
    return layout(folder, "-DOURS", f"-DKVMCHAN_XEN_RELEASE={release}", f"-I{CSRC}", f"-I{OUR_INCLUDE}")


def test_structures_have_xens_layout(tmp_path: Path) -> None:
    ours = our_layout(tmp_path / "ours", XEN_MINOR)
    assert ours == layout(tmp_path / "xens", f"-DKVMCHAN_XEN_RELEASE={XEN_MINOR}", "-isystem", str(XEN_INCLUDE))
    assert len(ours) > (20 if XEN_MINOR >= 18 else 30)


@pytest.mark.skipif("x86_64" not in str(REFERENCE_LIBDIR), reason="the table is of x86_64")
@pytest.mark.parametrize(("release", "info", "list_info"), [(14, 104, 104), (15, 112, 104), (16, 112, 112), (17, 112, 112)])
def test_domains_have_the_sizes_of_their_release(tmp_path: Path, release: int, info: int, list_info: int) -> None:
    """Programs have arrays of them."""
    lines = our_layout(tmp_path / "ours", release)
    assert f"xc_dominfo_t size {info}" in lines
    assert f"xc_domaininfo_t size {list_info}" in lines


def test_program_of_a_later_release_finds_one_domain(tmp_path: Path) -> None:
    lines = our_layout(tmp_path / "ours", 18)
    assert "xc_domaininfo_t size 112" in lines
    for release in VERSION_NODES:
        symbols = set(exported(LIBDIR / f"xen-{release}" / f"libxenctrl.so.{release}"))
        later = int(release.split(".")[1]) >= 18
        assert ("xc_domain_getinfo_single" in symbols, "xc_domain_getinfo" in symbols) == (later, not later)
        assert "xc_domain_getinfolist" in symbols
