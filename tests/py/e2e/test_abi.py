# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our headers and libraries against Xen's, Qubes' and libkvmchan's: layout, prototypes, symbols,
sonames and versions.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from rig.compiler import compile_c, xen_flags
from rig.libraries import COMMON, CONTROL, OUR_INCLUDE, VERSION_NODES, XEN_INCLUDE, dynamic, exported
from rig.paths import LIBDIR, PROGRAMS, REFERENCE_LIBXENVCHAN, XEN_MINOR, XEN_RELEASE
from rig.processes import run

FUNCTIONS = {
    f"libxenvchan_{name}"
    for name in (
        "server_init",
        "client_init",
        "close",
        "recv",
        "read",
        "send",
        "write",
        "wait",
        "fd_for_select",
        "is_open",
        "data_ready",
        "buffer_space",
    )
}

# As Qubes' header and libkvmchan's declare them.
OTHERS = {
    "vchan-kvm/libvchan.h": """
        libvchan_t *libvchan_server_init(int domain, int port, size_t read_min, size_t write_min);
        libvchan_t *libvchan_client_init(int domain, int port);
        libvchan_t *libvchan_client_init_async(int domain, int port, EVTCHN *watch_fd);
        int libvchan_client_init_async_finish(libvchan_t *ctrl, bool blocking);
        int libvchan_write(libvchan_t *ctrl, const void *data, size_t size);
        int libvchan_send(libvchan_t *ctrl, const void *data, size_t size);
        int libvchan_read(libvchan_t *ctrl, void *data, size_t size);
        int libvchan_recv(libvchan_t *ctrl, void *data, size_t size);
        int libvchan_wait(libvchan_t *ctrl);
        void libvchan_close(libvchan_t *ctrl);
        EVTCHN libvchan_fd_for_select(libvchan_t *ctrl);
        int libvchan_is_open(libvchan_t *ctrl);
        int libvchan_data_ready(libvchan_t *ctrl);
        int libvchan_buffer_space(libvchan_t *ctrl);
        void libvchan_set_blocking(libvchan_t *ctrl, bool blocking);
    """,
    "libkvmchan.h": """
        struct libkvmchan *libkvmchan_server_init(uint32_t domain, uint32_t port, size_t read_min, size_t write_min);
        struct libkvmchan *libkvmchan_client_init(uint32_t domain, uint32_t port);
        int libkvmchan_recv(struct libkvmchan *chan, void *data, size_t size);
        int libkvmchan_send(struct libkvmchan *chan, void *data, size_t size);
        int libkvmchan_read(struct libkvmchan *chan, void *data, size_t size);
        int libkvmchan_write(struct libkvmchan *chan, void *data, size_t size);
        int libkvmchan_get_eventfd(struct libkvmchan *chan);
        void libkvmchan_clear_eventfd(struct libkvmchan *chan);
        bool libkvmchan_close(struct libkvmchan *chan);
        size_t libkvmchan_data_ready(struct libkvmchan *chan);
        size_t libkvmchan_buffer_space(struct libkvmchan *chan);
        int libkvmchan_get_state(struct libkvmchan *chan);
        struct libkvmchan_shmem *libkvmchan_shmem_start(void);
        void libkvmchan_shmem_end(struct libkvmchan_shmem *handle);
        void *libkvmchan_shmem_region_create(struct libkvmchan_shmem *handle, uint32_t client, uint32_t pages, uint32_t *id);
        void *libkvmchan_shmem_region_connect(struct libkvmchan_shmem *handle, uint32_t server_dom, uint32_t region_id);
        int libkvmchan_shmem_region_close(struct libkvmchan_shmem *handle, void *ptr);
        int libkvmchan_shmem_region_close_by_id(struct libkvmchan_shmem *handle, uint32_t peer_dom, uint32_t region_id);
    """,
}
OTHER_LIBRARIES = {
    LIBDIR / "libvchan-kvm.so": "vchan-kvm/libvchan.h",
    LIBDIR / "qubes" / "libvchan-xen.so.1": "vchan-kvm/libvchan.h",
    LIBDIR / "libkvmchan.so": "libkvmchan.h",
}

LIBRARIES = {
    LIBDIR / "libxenvchan.so": None,
    LIBDIR / "libxenvchan-preload.so": None,
    **{LIBDIR / f"xen-{release}" / f"libxenvchan.so.{release}": node for release, node in VERSION_NODES.items()},
}
each_library = pytest.mark.parametrize(("library", "node"), LIBRARIES.items(), ids=[each.name for each in LIBRARIES])


def layout(folder: Path, *flags: str) -> list[str]:
    folder.mkdir()
    return run(compile_c(folder, PROGRAMS / "layout.c", *flags)).stdout.splitlines()


def test_structures_have_xens_layout(tmp_path: Path) -> None:
    """Of a bit-field also the sign, which no compiled program can tell: it is that of releases
    before 4.18.
    """
    ours = layout(tmp_path / "ours", f"-I{OUR_INCLUDE}")
    if XEN_MINOR >= 18:
        ours = [line.replace(" signed ", " unsigned ") for line in ours]
    assert ours == layout(tmp_path / "xens", "-isystem", str(XEN_INCLUDE))
    assert len(ours) == 31


def test_control_structure_has_the_offsets_that_programs_rely_on(tmp_path: Path) -> None:
    lines = layout(tmp_path / "ours", f"-I{OUR_INCLUDE}")
    for expected in (
        "struct libxenvchan size 88",
        "struct libxenvchan gntshr at 0 size 8",
        "struct libxenvchan gnttab at 0 size 8",
        "struct libxenvchan ring at 8 size 8",
        "struct libxenvchan event at 16 size 8",
        "struct libxenvchan event_port at 24 size 4",
        "struct libxenvchan is_server signed at 28 mask 0x01",
        "struct libxenvchan server_persist signed at 28 mask 0x02",
        "struct libxenvchan blocking signed at 28 mask 0x04",
        "struct libxenvchan read at 32 size 24",
        "struct libxenvchan write at 56 size 24",
        "struct libxenvchan xs_path at 80 size 8",
        "VCHAN_NOTIFY_WRITE 1",
        "VCHAN_NOTIFY_READ 2",
    ):
        assert expected in lines


def prototypes(include: Path, header: str = "libxenvchan.h") -> dict[str, str]:
    """The declarations of a header, by name, as the preprocessor leaves them."""
    return declarations(run("gcc", "-E", "-P", "-isystem", include, include / header).stdout, Path(header).stem)


def declarations(text: str, prefix: str) -> dict[str, str]:
    found = re.finditer(rf"[^;{{}}#]*?\b({prefix}_\w+)\s*\([^;{{}}]*\)\s*;", text)
    return {each.group(1): each.group(0).strip() for each in found}


@pytest.mark.parametrize(("header", "other"), [(OUR_INCLUDE, XEN_INCLUDE), (XEN_INCLUDE, OUR_INCLUDE)], ids=["ours", "xens"])
def test_prototypes_of_one_header_fit_the_other(tmp_path: Path, header: Path, other: Path) -> None:
    """C lets a function be declared twice only with compatible types; and pointers to it go either
    way.
    """
    declared = prototypes(other)
    assert set(declared) == FUNCTIONS
    declare_again(tmp_path, header, "libxenvchan.h", declared)


@pytest.mark.parametrize("header", OTHERS)
def test_prototypes_are_those_of_qubes_and_of_libkvmchan(tmp_path: Path, header: str) -> None:
    declared = declarations(OTHERS[header], Path(header).stem)
    assert set(prototypes(OUR_INCLUDE, header)) == set(declared)
    declare_again(tmp_path, OUR_INCLUDE, header, declared)


def declare_again(folder: Path, include: Path, header: str, declared: dict[str, str]) -> None:
    pointers = [f"__typeof__({name}) *pointer_to_{name} = {name};" for name in sorted(declared)]
    source = folder / "prototypes.c"
    lines = [f"#include <{header}>", *pointers, *declared.values()]
    source.write_text("\n".join(lines) + "\n")
    run("gcc", "-c", "-Wall", "-Wextra", "-Werror", "-isystem", include, source, "-o", folder / "prototypes.o")


@pytest.mark.parametrize("standard", ["c99", "c11", "gnu11", "c++11", "c++20"])
@pytest.mark.parametrize("header", ["libxenvchan.h", "xen/io/libxenvchan.h", "vchan-kvm/libvchan.h", "libkvmchan.h", "kvmchan.h"])
def test_headers_stand_alone_and_compile_without_a_warning(tmp_path: Path, header: str, standard: str) -> None:
    plus = standard.startswith("c++")
    compiler = "g++" if plus else "gcc"
    if shutil.which(compiler) is None:
        pytest.skip("g++ is not installed, so nothing can be said of our headers in C++")
    source = tmp_path / ("program.cc" if plus else "program.c")
    # Twice: the guards work. The flexible array and the union without a name are Xen's, and no C++
    # of the standard's.
    source.write_text(f"#include <{header}>\n#include <{header}>\nint main(void) {{ return 0; }}\n")
    pedantic = [] if plus or standard == "c99" else ["-pedantic"]
    flags = [f"-std={standard}", "-Wall", "-Wextra", "-Werror", *pedantic, f"-I{OUR_INCLUDE}"]
    run(compiler, *flags, "-fsyntax-only", source)


def test_our_headers_names_are_those_of_xens_libraries(tmp_path: Path) -> None:
    """Qubes' libvchan-xen includes libxenevtchn's and libxengnttab's headers beside ours."""
    source = tmp_path / "program.c"
    source.write_text(
        "#include <libxenvchan.h>\n#include <xenevtchn.h>\n#include <xengnttab.h>\n#include <xentoollog.h>\n"
        "xenevtchn_handle *event(struct libxenvchan *v) { return v->event; }\n"
        "xengnttab_handle *table(struct libxenvchan *v) { return v->gnttab; }\n"
    )
    run("gcc", "-c", "-Wall", "-Wextra", "-Werror", f"-I{OUR_INCLUDE}", "-isystem", XEN_INCLUDE, source, "-o", tmp_path / "o")


@each_library
def test_exports_are_xens_functions_and_ours(library: Path, node: str | None) -> None:
    symbols = set(exported(library)) - {node}
    assert symbols >= FUNCTIONS
    assert [name for name in sorted(symbols - FUNCTIONS) if not name.startswith("kvmchan_")] == []


@each_library
def test_every_symbol_has_the_releases_version(library: Path, node: str | None) -> None:
    symbols = exported(library)
    # The node's own symbol has no version.
    assert {symbols[name] for name in symbols if name != node} == {node}


@each_library
def test_version_definitions_are_the_releases(library: Path, node: str | None) -> None:
    text = run("readelf", "--version-info", "--wide", library).stdout
    definitions = text.partition("Version definition section")[2].partition("Version needs section")[0]
    names = re.findall(r"Name: (\S+)", definitions)
    assert names == ([library.name, node] if node else [])


@pytest.mark.parametrize(("library", "header"), OTHER_LIBRARIES.items(), ids=[each.name for each in OTHER_LIBRARIES])
def test_exports_are_what_the_header_declares(library: Path, header: str) -> None:
    symbols = exported(library)
    functions = set(prototypes(OUR_INCLUDE, header))
    assert set(symbols) - functions == {"kvmchan_last_error", "kvmchan_ends"}
    assert functions <= set(symbols)
    assert set(symbols.values()) == {None}
    assert dynamic(library, "SONAME") == [library.name]


def test_the_headers_of_qubes_and_of_libkvmchan_may_be_included_together(tmp_path: Path) -> None:
    """As a libvchan that is made on libkvmchan includes them, and programs that use both."""
    source = tmp_path / "program.c"
    includes = "#include <libkvmchan.h>\n#include <vchan-kvm/libvchan.h>\n"
    source.write_text(f"{includes}LIBKVMCHAN_EXPORTED int state = VCHAN_WAITING;\n")
    run("gcc", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{OUR_INCLUDE}", source)


@each_library
def test_soname_is_what_the_loader_looks_for(library: Path, node: str | None) -> None:
    assert dynamic(library, "SONAME") == [library.name]


def test_reference_is_what_we_say_of_its_release() -> None:
    """The table above against the one library of Xen's that we have."""
    assert dynamic(REFERENCE_LIBXENVCHAN, "SONAME") == [REFERENCE_LIBXENVCHAN.name]
    symbols = exported(REFERENCE_LIBXENVCHAN)
    node = VERSION_NODES[XEN_RELEASE]
    # close_xs_srv: an internal function that it leaks.
    assert set(symbols) - {node} == FUNCTIONS | {"close_xs_srv"}
    assert {symbols[name] for name in FUNCTIONS} == {node}


def test_every_library_that_is_built_is_checked_here() -> None:
    built = {each.resolve() for each in LIBDIR.glob("**/lib*.so*")} - {LIBDIR / "libkvmchan-dataplane.so"}
    assert built == set(LIBRARIES) | set(OTHER_LIBRARIES) | COMMON | set(CONTROL)


@pytest.mark.parametrize("release", VERSION_NODES)
def test_each_releases_folder_has_all_that_its_programs_link(release: str) -> None:
    folder = LIBDIR / f"xen-{release}"
    for name in (f"libxenvchan.so.{release}", f"libxenctrl.so.{release}", "libxenevtchn.so.1", "libxengnttab.so.1"):
        assert dynamic(folder / name, "SONAME") == [name]


def test_no_library_needs_python_before_its_first_call() -> None:
    needed = {name for each in LIBDIR.glob("**/lib*.so*") for name in dynamic(each, "NEEDED")}
    assert {name for name in needed if not name.startswith(("libc.so.", "ld-linux"))} == set()


def test_the_runtime_exports_one_name_and_has_that_of_its_python() -> None:
    (runtime,) = LIBDIR.glob("kvmchan-python*.so")
    assert runtime.name == f"kvmchan-python{sys.version_info.major}.{sys.version_info.minor}.so"
    assert set(exported(runtime)) == {"kvmchan_runtime"}


def test_data_plane_knows_no_python() -> None:
    library = LIBDIR / "libkvmchan-dataplane.so"
    symbols = exported(library)
    assert [name for name in symbols if not name.startswith(("libxenvchan_", "kvmchan_"))] == []
    undefined = run("nm", "-D", "--undefined-only", library).stdout
    assert re.findall(r"\bPy\w+|\b_cffi\w*", undefined) == []


def test_program_compiled_with_xens_headers_links_with_ours(tmp_path: Path) -> None:
    """What a distribution's build does: Xen's headers, -lxenvchan from our folder."""
    program = compile_c(tmp_path, PROGRAMS / "loopback.c", *xen_flags()[:2], f"-L{LIBDIR}", "-lxenvchan")
    assert "libxenvchan.so" in dynamic(program, "NEEDED")
