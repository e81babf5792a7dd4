# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs made for Xen, run on our libraries in each way in which a program gets them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from rig.compiler import compile_c, our_flags, xen_flags
from rig.daemon import Daemon
from rig.paths import (
    C_BUILD,
    KVMCHAN,
    LIBDIR,
    PREFIX,
    PROGRAMS,
    REFERENCE,
    REFERENCE_LIBDIR,
    REFERENCE_LIBXENVCHAN,
    ROOT,
    XEN_RELEASE,
)
from rig.processes import run
from rig.program import Program

RELEASES = ("4.14", "4.15", "4.16", "4.17", "4.18", "4.19", "4.20", "4.21", "4.22")
BYTES = 300_000
EXEC = (str(KVMCHAN), "exec", "--")


def release_library(release: str) -> Path:
    return LIBDIR / f"xen-{release}" / f"libxenvchan.so.{release}"


@pytest.fixture(scope="module")
def xen_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled once, with Xen's headers and library, like any program in a distribution."""
    return compile_c(tmp_path_factory.mktemp("xen"), PROGRAMS / "both_ways.c", *xen_flags())


def by_preload(environment: dict[str, str]) -> dict[str, str]:
    """Debian's own library is found and loaded, and ours comes before it."""
    return {
        **environment,
        "LD_PRELOAD": "libxenvchan-preload.so",  # by its name alone: the path may have a space
        "LD_LIBRARY_PATH": f"{C_BUILD}:{REFERENCE_LIBDIR}:{LIBDIR}",
    }


def libraries_of(pid: int) -> set[str]:
    """The libxenvchans that a process has loaded."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if re.search(r"/libxenvchan[^/]*$", line)}


# The server's and the client's domain: the host with another, two others, one with itself.
PAIRS = [(0, 1), (1, 0), (1, 2), (0, 0), (1, 1)]


def converse(
    daemon: Daemon, server_domain: int, client_domain: int, program: Path, way: tuple[str, ...], preload: bool, loaded: set[str]
) -> None:
    """A server and a client exchange and check their streams; while they are connected the daemon
    lists just them.
    """

    def start(role: str, own: int, peer: int, path: str) -> Program:
        environment = daemon.environment(own)
        return Program(*way, program, role, str(peer), path, str(BYTES), env=by_preload(environment) if preload else environment)

    relative = f"data/vchan/{client_domain}/7"
    absolute = f"/local/domain/{server_domain}/{relative}"
    with start("server", server_domain, client_domain, relative) as server:
        server.expect("offered")
        with start("client", client_domain, server_domain, absolute) as client:
            client.expect("open")
            server.expect("open")
            (channel,) = daemon.channels()
            wanted = {
                "path": absolute,
                "state": "connected",
                "server": server_domain,
                "client": client_domain,
                "server_pid": server.pid,
                "client_pid": client.pid,
            }
            assert {name: channel[name] for name in wanted} == wanted
            assert libraries_of(server.pid) == libraries_of(client.pid) == loaded
            server.tell()
            client.tell()
            server.expect("done")
            client.expect("done")


@pytest.mark.parametrize(("server", "client"), PAIRS)
def test_xen_program_runs_unchanged_by_kvmchan_exec(daemon: Daemon, xen_program: Path, server: int, client: int) -> None:
    converse(daemon, server, client, xen_program, EXEC, preload=False, loaded={str(release_library(XEN_RELEASE))})


@pytest.mark.parametrize(("server", "client"), PAIRS)
def test_xen_program_runs_unchanged_by_preloading(daemon: Daemon, xen_program: Path, server: int, client: int) -> None:
    loaded = {str(LIBDIR / "libxenvchan-preload.so"), str(REFERENCE_LIBXENVCHAN.resolve())}
    converse(daemon, server, client, xen_program, (), preload=True, loaded=loaded)


def test_same_source_compiles_and_runs_by_pkg_config(daemon: Daemon, tmp_path: Path) -> None:
    program = compile_c(tmp_path, PROGRAMS / "both_ways.c", *our_flags())
    assert "/xen/" not in run("ldd", program).stdout
    converse(daemon, 1, 2, program, (), preload=False, loaded={str(LIBDIR / "libxenvchan.so")})


def test_program_of_ours_and_one_of_xens_talk_to_each_other(daemon: Daemon, tmp_path: Path, xen_program: Path) -> None:
    ours = compile_c(tmp_path, PROGRAMS / "both_ways.c", *our_flags())
    path = "/local/domain/1/data/vchan/2/1"
    with Program(ours, "server", "2", path, str(BYTES), env=daemon.environment(1)) as server:
        server.expect("offered")
        with Program(*EXEC, xen_program, "client", "1", path, str(BYTES), env=daemon.environment(2)) as client:
            for each in (server, client):
                each.expect("open")
                each.tell()
            server.expect("done")
            client.expect("done")


def test_programs_linked_with_every_release_run(daemon: Daemon, tmp_path: Path) -> None:
    """The loader finds the library by the program's own soname, and its symbols by the release's
    version.
    """
    for release in RELEASES:
        folder = tmp_path / release
        folder.mkdir()
        library = release_library(release)
        program = compile_c(folder, PROGRAMS / "loopback.c", "-isystem", str(REFERENCE / "include"), str(library))
        assert f"[libxenvchan.so.{release}]" in run("readelf", "--dynamic", program).stdout
        done = run(*EXEC, program, "0", "data/" + release.replace(".", "-"), env=daemon.environment())
        assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.usefixtures("runtime")
def test_several_releases_in_one_process_share_an_interpreter(daemon: Daemon, tmp_path: Path) -> None:
    """As a program and its plugins may bring them: one linked, two more loaded where nobody else
    sees their symbols.
    """
    program = compile_c(tmp_path, PROGRAMS / "several_libraries.c", "-DLINKED", *our_flags())
    loaded = [str(release_library(release)) for release in ("4.14", "4.18")]
    done = run(program, "data/several", *loaded, env=daemon.environment())
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.usefixtures("runtime")
def test_library_loaded_by_a_plugin_finds_its_python(daemon: Daemon, tmp_path: Path) -> None:
    """Nothing of ours is linked: neither the library's symbols nor libpython's are global."""
    program = compile_c(tmp_path, PROGRAMS / "several_libraries.c", f"-I{PREFIX / 'include'}")
    loaded = [str(release_library(release)) for release in ("4.17", "4.22")]
    done = run(program, "data/several", *loaded, env=daemon.environment())
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.parametrize(("prefix", "is_private"), [("/usr", False), ("/opt/kvmchan", True)])
def test_only_a_private_prefix_tells_programs_where_to_find_it(tmp_path: Path, prefix: str, is_private: bool) -> None:
    options = ["-Dpython.install_env=prefix", f"--prefix={prefix}"]
    run("meson", "setup", *options, tmp_path / "build", ROOT)
    for name in ("xenvchan", "vchan", "vchan-kvm", "kvmchan"):
        text = (tmp_path / "build" / "meson-private" / f"{name}.pc").read_text()
        assert ("-rpath" in text) == is_private, text


def test_failure_is_told_by_errno_by_a_sentence_and_to_the_callers_logger(daemon: Daemon, tmp_path: Path) -> None:
    # Xen's headers second, for the logger's.
    program = compile_c(tmp_path, PROGRAMS / "logger.c", *our_flags(), "-isystem", str(REFERENCE / "include"))
    done = run(program, env=daemon.environment())
    nobody = "domain 0 offers no vchan at /local/domain/0/data/nobody: start its server first"
    bad = "the path 'data/bad path' has ' ' in it: only letters, digits and -/_@ may be"
    unknown = "there is no domain 99: kvmchan ls shows those there are"
    assert done.stdout.splitlines() == [
        f"log 8 -1 kvmchan: libxenvchan_client_init: {nobody}",
        f"last {nobody}",
        f"log 8 -1 kvmchan: libxenvchan_server_init: {bad}",
        f"last {bad}",
        f"last {unknown}",
    ]
    assert done.stderr == "", "without KVMCHAN_DEBUG nothing is printed"
    debugged = run(program, env=daemon.environment(KVMCHAN_DEBUG="1"))
    assert debugged.stdout == done.stdout
    assert debugged.stderr.splitlines() == [f"kvmchan: {each}" for each in (nobody, bad, unknown)]
    for other in ("0", ""):
        assert run(program, env=daemon.environment(KVMCHAN_DEBUG=other)).stderr == ""


def test_compiled_program_needs_no_environment_but_the_daemons(daemon: Daemon, tmp_path: Path) -> None:
    program = compile_c(tmp_path, PROGRAMS / "loopback.c", *our_flags())
    environment = {"KVMCHAN_RUNTIME_DIR": str(daemon.runtime_dir)}
    assert run(program, "0", "data/bare", env=environment, cwd="/").stdout == "ok\n"
    assert "PYTHONPATH" in os.environ, "or this shows less than it says"
