# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kvmchand command."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from kvmchand import config
from kvmchand.config import Settings
from kvmchand.errors import InvalidArgument, VchanError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kvmchand", description="Sets up vchans between domains.")
    roles = parser.add_subparsers(dest="role", required=True)
    hosts = roles.add_parser("host", help="serve the host, domain 0, its guests and its local domains")
    guests = roles.add_parser("guest", help="serve a guest, whose host has a kvmchand too")
    for role in (hosts, guests):
        role.add_argument("--config", type=Path, metavar="FILE", help="settings, in TOML; options given here go over them")
        role.add_argument(
            "--runtime-dir",
            type=Path,
            metavar="DIR",
            help=f"where the sockets are; else $KVMCHAN_RUNTIME_DIR, {config.RUNTIME_DIR}",
        )
    hosts.add_argument(
        "--local-domain", type=int, action="append", default=[], metavar="N", help="also serve processes as domain N (repeatable)"
    )
    which = hosts.add_mutually_exclusive_group()
    which.add_argument(
        "--libvirt", metavar="URI", help=f"serve this hypervisor's guests; else the settings', {Settings().libvirt}"
    )
    which.add_argument("--no-libvirt", action="store_const", dest="libvirt", const="", help="serve no virtual machines")
    return parser


def settings(arguments: argparse.Namespace) -> Settings:
    """Return the file's settings, overridden by the environment and by the command line."""
    made = config.load(arguments.config) if arguments.config else Settings()
    runtime_dir = arguments.runtime_dir or os.environ.get("KVMCHAN_RUNTIME_DIR")
    made = replace(made, runtime_dir=Path(runtime_dir or made.runtime_dir).absolute())
    if arguments.role == "guest":
        return made
    if arguments.libvirt is not None:
        made = replace(made, libvirt=arguments.libvirt)
    domains = [*made.local_domains, *(config.domain_number(each, "--local-domain") for each in arguments.local_domain)]
    if len(set(domains)) != len(domains):
        raise InvalidArgument("a local domain is given twice")
    if len(domains) > config.LOCAL_DOMAINS_MAX:
        raise InvalidArgument(f"{len(domains)} local domains are given, and {config.LOCAL_DOMAINS_MAX} are the most")
    return replace(made, local_domains=tuple(domains))


def main() -> None:
    """Run the kvmchand command."""
    arguments = _parser().parse_args()
    try:
        role: Any = import_module(f"kvmchand.{arguments.role}.main")  # the other one's needs are not this machine's
        role.serve(settings(arguments))
    except VchanError as error:
        sys.exit(f"kvmchand: {error.sentence}")


if __name__ == "__main__":
    main()
