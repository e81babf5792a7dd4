# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kvmchan command: runs programs on our libraries, and shows what the daemon knows."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from kvmchand.errors import InvalidArgument, KvmchanError, NotFound
from libxenvchan_shim import control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmchand.wire.client import ChannelInfo, DomainInfo


def library_dir() -> Path:
    """KVMCHAN_LIBDIR, or the libraries installed with this package."""
    folder = Path(os.environ.get("KVMCHAN_LIBDIR") or Path(__file__).parent / "lib")
    if not (folder / "libxenvchan.so").exists():
        raise NotFound(f"{folder} has no libxenvchan.so: set KVMCHAN_LIBDIR to the folder that has")
    return folder


def run(program: list[str]) -> None:
    """Becomes `program`, with the loader finding our libraries in place of Xen's."""
    folder = library_dir()
    folders = [str(folder), *sorted(str(each) for each in folder.glob("xen-*"))]
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = ":".join([*folders, before] if before else folders)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and an ignored signal stays so
    try:
        os.execvp(program[0], program)
    except OSError as error:
        raise InvalidArgument(f"{program[0]} can't be run: {error.strerror}") from error


def listing() -> tuple[list[DomainInfo], list[ChannelInfo]]:
    """Everything the daemon shows us."""
    connection = control.Connection.from_environment()
    channels: list[ChannelInfo] = []
    try:
        while True:
            page = connection.list(channels[-1].channel if channels else 0)  # type: ignore[arg-type]
            channels += page.channels
            if not page.more:
                return list(page.domains), channels
    finally:
        connection.close()


def show(domains: list[DomainInfo], channels: list[ChannelInfo]) -> str:
    """The listing as a table."""

    def end(domain: int, pid: int) -> str:
        return f"{domain}:{pid or '-'}"

    heads = ("CHANNEL", "SERVER", "CLIENT", "STATE", "RINGS", "READY", "PATH")
    rows = [
        (
            str(each.channel),
            end(each.server, each.server_pid),
            end(each.client, each.client_pid),
            each.state,
            f"{each.server_ring}/{each.client_ring}",
            f"{each.server_ready}/{each.client_ready}",
            each.path,
        )
        for each in channels
    ]
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in (heads, *rows)]
    names = ", ".join(f"{each.domain} ({each.kind})" for each in domains)
    return "\n".join([f"domains: {names}", *(lines if rows else ["no channels"])])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kvmchan", description="Runs programs on kvmchan's vchans, and shows them.")
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("exec", help="run a program, compiled against Xen's libxenvchan, on ours")
    runs.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ...")
    lists = commands.add_parser(
        "ls",
        help="show domains and channels",
        description="Ends are domain:pid. Rings and ready bytes are server's/client's, each what that end reads.",
    )
    lists.add_argument("--json", action="store_true", help="as JSON")
    return parser


def main() -> None:
    arguments = _parser().parse_args()
    try:
        if arguments.command == "exec":
            program = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
            if not program:
                raise InvalidArgument("no program to run: kvmchan exec -- PROGRAM ...")
            run(program)
        domains, channels = listing()
        if arguments.json:
            print(
                json.dumps({"domains": [each.as_dict() for each in domains], "channels": [each.as_dict() for each in channels]})
            )
        else:
            print(show(domains, channels))
        sys.stdout.flush()
    except KvmchanError as error:
        sys.exit(f"kvmchan: {error.sentence}")
    except BrokenPipeError:
        # Nobody reads on. What is left in the buffer goes nowhere, without a complaint at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
