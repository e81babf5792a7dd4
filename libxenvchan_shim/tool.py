# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kvmchan command: runs programs on our libraries, and shows what the daemon knows."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from kvmchand.errors import InvalidArgument, NotFound, ProtocolError, VchanError
from kvmchand.wire import client
from libxenvchan_shim.api.domains import resolved
from libxenvchan_shim.api.steps import Step
from libxenvchan_shim.api.steps import run as run_steps
from libxenvchan_shim.connection import Connection
from libxenvchan_shim.protocol import DEADLINE, RUNTIME_DIR, store_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from typing import Any

    from kvmchand.wire.client import GuestInfo, Listing


def library_dir() -> Path:
    """Return KVMCHAN_LIBDIR, or the folder of the libraries installed with this package."""
    folder = Path(os.environ.get("KVMCHAN_LIBDIR") or Path(__file__).parent / "lib")
    if not (folder / "libxenvchan.so").exists():
        raise NotFound(f"{folder} has no libxenvchan.so: set KVMCHAN_LIBDIR to the folder that has")
    return folder


def run(program: list[str]) -> None:
    """Become `program`.

    Its loader finds our libraries in place of Xen's and Qubes', and libxenstore finds our store.
    """
    folder = library_dir()
    folders = [str(folder), str(folder / "qubes"), *sorted(str(each) for each in folder.glob("xen-*"))]
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = ":".join([*folders, before] if before else folders)
    runtime_dir, domain = os.environ.get("KVMCHAN_RUNTIME_DIR", ""), os.environ.get("KVMCHAN_DOMAIN", "")
    os.environ.setdefault("XENSTORED_PATH", store_path(runtime_dir, domain))
    for name in ("KVMCHAN_RUNTIME_DIR", "XENSTORED_PATH"):
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).absolute())  # the program may change its folder
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and an ignored signal stays so
    try:
        os.execvp(program[0], program)
    except OSError as error:
        raise InvalidArgument(f"{program[0]} can't be run: {error.strerror}") from error


def pages(patience: float = DEADLINE) -> Iterator[Listing]:
    """Ask the daemon for all that it shows us, a page at a time.

    Raises TimedOut if a page takes longer than `patience`, in seconds.
    """
    with Connection.from_environment() as connection:
        connection.settimeout(patience)
        after = client.FIRST
        while True:
            page = connection.list(after)
            yield page
            if not page.following:
                return
            if page.following <= after:
                raise ProtocolError("the daemon's listing goes back, and so would not end: use the same release")
            after = page.following


def listing() -> Listing:
    """Return everything that the daemon shows us, as one listing."""
    return client.joined(pages())


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in (heads, *rows)]


def show(listed: Listing) -> str:
    """Return the listing as tables."""

    def end(domain: int, pid: int) -> str:
        return f"{domain}:{pid or '-'}"

    def daemon(guest: GuestInfo) -> str:
        return "detached" if guest.detached else "yes" if guest.ready else "no"

    lines = [f"domains: {', '.join(f'{each.domain} ({each.kind})' for each in listed.domains)}"]
    if listed.guests:
        rows = [(str(each.domain), each.name, daemon(each), str(each.devices)) for each in listed.guests]
        lines += _table(("GUEST", "NAME", "KVMCHAND", "DEVICES"), rows)
    if listed.links:
        links = [(f"{each.domain}-{each.other}", str(each.devices), str(each.size), str(each.channels)) for each in listed.links]
        lines += _table(("LINK", "DEVICES", "BYTES", "CHANNELS"), links)
    if listed.devices:
        devices = [(each.address, str(each.size), str(each.vectors), f"{each.speed} MB/s") for each in listed.devices]
        lines += _table(("DEVICE", "BYTES", "VECTORS", "READ"), devices)
    channels = [
        (
            str(each.channel),
            end(each.server, each.server_pid),
            end(each.client, each.client_pid),
            each.state,
            f"{each.server_ring}/{each.client_ring}",
            f"{each.server_ready}/{each.client_ready}",
            each.path,
        )
        for each in listed.channels
    ]
    heads = ("CHANNEL", "SERVER", "CLIENT", "STATE", "RINGS", "READY", "PATH")
    return "\n".join(lines + (_table(heads, channels) if channels else ["no channels"]))


def as_json(listed: Listing) -> str:
    """Return the listing as JSON. What guests are called is said in `guests`, and not twice."""
    parts = ("guests", "links", "devices", "channels")
    domains = [{"domain": each.domain, "kind": each.kind} for each in listed.domains]
    return json.dumps({"domains": domains, **{name: [each.as_dict() for each in getattr(listed, name)] for name in parts}})


def _ask_for_domain(name: str, request: type[client.Detach | client.Attach]) -> None:
    def steps() -> Generator[Step, Any, None]:
        number = yield from resolved(name, "NAME")
        yield Step(request(number), Connection.take_done)

    with Connection.from_environment() as connection:
        run_steps(connection, steps())


def detach(arguments: argparse.Namespace) -> None:
    """Run `kvmchan detach`."""
    _ask_for_domain(arguments.name, client.Detach)


def attach(arguments: argparse.Namespace) -> None:
    """Run `kvmchan attach`."""
    _ask_for_domain(arguments.name, client.Attach)


def prepare_domain(arguments: argparse.Namespace) -> None:
    """Run `kvmchan prepare-domain`."""
    from kvmchand.admin import prepare
    from kvmchand.services.libvirt import coldplug_xml  # with libvirt, which nothing else here needs

    start = None
    if arguments.link_size is not None:
        folder = Path(os.environ.get("KVMCHAN_RUNTIME_DIR") or RUNTIME_DIR) / "ivshmem"
        start = prepare.StartLink(coldplug_xml.parse_size(arguments.link_size), folder)
    print("\n".join(prepare.prepare_domain(arguments.name, arguments.uri, start, apply=arguments.apply)), flush=True)


def diagnose(arguments: argparse.Namespace) -> None:
    """Run `kvmchan doctor`. Exits with 1 if something is wrong."""
    from kvmchand import config
    from kvmchand.admin import doctor, shown

    settings = config.load(arguments.config) if arguments.config else config.Settings()
    if arguments.config and not os.environ.get("KVMCHAN_RUNTIME_DIR"):
        os.environ["KVMCHAN_RUNTIME_DIR"] = str(settings.runtime_dir)
    daemon = shown.Shown(pages(shown.PATIENCE))
    role = doctor.Role(arguments.side) if arguments.side else doctor.role_of(daemon.first)
    uri = arguments.uri or settings.libvirt or config.Settings().libvirt
    findings = []
    for each in doctor.examine(daemon, settings, uri, role):
        findings.append(each)
        if not arguments.json:
            print(each, flush=True)
    if arguments.json:
        print(json.dumps({"role": role.value, "findings": [each.as_dict() for each in findings]}), flush=True)
    if any(each.is_bad for each in findings):
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kvmchan", description="Runs programs on kvmchan's vchans, and shows them.")
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("exec", help="run a program, compiled for Xen, Qubes or libkvmchan, on our libraries and store")
    runs.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ...")
    lists = commands.add_parser(
        "ls",
        help="show domains, guests, links and channels",
        description="Ends are domain:pid. Rings and ready bytes are server's/client's, each what that end reads.",
    )
    lists.add_argument("--json", action="store_true", help="as JSON")
    doctors = commands.add_parser(
        "doctor",
        help="look for what keeps vchans from working, on a host or in a guest",
        description="Each line is a finding, with what to do. The exit status is 1 if something is wrong.",
        epilog='--json prints {"role": "host" or "guest", "findings": [...]}. Each finding has "grade" (ok, note or bad), "kind" '
        '(what it is about, a name for scripts), "subject" (which one) and "sentence" (as it is printed without --json).',
    )
    doctors.add_argument("--json", action="store_true", help="as JSON, once all is found")
    doctors.add_argument("--as", dest="side", choices=("host", "guest"), help="which side this machine is; else it is found out")
    prepares = commands.add_parser(
        "prepare-domain",
        help="give a libvirt domain what vchans need",
        description="Shows, as a diff of its XML, what a libvirt domain lacks for vchans: a vIOMMU, bridges to plug into.",
    )
    prepares.add_argument("name", metavar="NAME", help="the domain's name in libvirt")
    prepares.add_argument("--apply", action="store_true", help="make the change; it takes effect at the domain's next start")
    prepares.add_argument(
        "--link-size",
        metavar="SIZE",
        help="have the link to the host from the start, with this much memory, as 64M; 0: no more",
    )
    for command, does, description in (
        (
            "detach",
            "end a guest's channels and take its devices out, so that libvirt can save or migrate it",
            "Ends all channels of a running guest, takes kvmchan's devices out of it, and returns when libvirt says that they "
            "are gone. Then virsh can save, snapshot or migrate the guest. What is offered to it waits until it is attached, or "
            "runs again. A domain without KVM keeps its devices, so it is refused, and nothing changes.",
        ),
        (
            "attach",
            "give a detached guest its devices again",
            "Undoes kvmchan detach. Not needed for a guest that starts, or that libvirt restores or migrates.",
        ),
    ):
        subparser = commands.add_parser(command, help=does, description=description)
        subparser.add_argument("name", metavar="NAME", help="the guest's name or uuid in libvirt, or its number")
    doctors.add_argument("--config", type=Path, metavar="FILE", help="the daemon's settings")
    doctors.add_argument("--uri", help="libvirt's; default: the settings', or qemu:///system")
    prepares.add_argument("--uri", default="qemu:///system", help="libvirt's; default %(default)s")
    return parser


_OTHERS = {"doctor": diagnose, "prepare-domain": prepare_domain, "detach": detach, "attach": attach}


def main() -> None:
    """Run the command that the arguments name."""
    arguments = _parser().parse_args()
    try:
        if arguments.command == "exec":
            program = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
            if not program:
                raise InvalidArgument("no program to run: kvmchan exec -- PROGRAM ...")
            run(program)
        if arguments.command in _OTHERS:
            _OTHERS[arguments.command](arguments)
            return
        listed = listing()
        print(as_json(listed) if arguments.json else show(listed))
        sys.stdout.flush()
    except VchanError as error:
        sys.exit(f"kvmchan: {error.sentence}")
    except BrokenPipeError:
        # Nobody reads any more. Drop what is left in the buffer, so that exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
