# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kvmchand command."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from kvmchand import config, host
from kvmchand.errors import InvalidArgument, KvmchanError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kvmchand", description="Sets up vchans between domains.")
    roles = parser.add_subparsers(dest="role", required=True)
    hosts = roles.add_parser("host", help="serve the host, domain 0, and its local domains")
    hosts.add_argument("--config", type=Path, metavar="FILE", help="settings, in TOML; options given here go over them")
    hosts.add_argument(
        "--runtime-dir", type=Path, metavar="DIR", help=f"where the sockets are; else $KVMCHAN_RUNTIME_DIR, {config.RUNTIME_DIR}"
    )
    hosts.add_argument(
        "--local-domain", type=int, action="append", default=[], metavar="N", help="also serve processes as domain N (repeatable)"
    )
    hosts.add_argument("--no-libvirt", action="store_true", help="serve no virtual machines")
    return parser


def settings(arguments: argparse.Namespace) -> config.Settings:
    """The file's settings with the environment's and the command line's over them."""
    made = config.load(arguments.config) if arguments.config else config.Settings()
    runtime_dir = arguments.runtime_dir or os.environ.get("KVMCHAN_RUNTIME_DIR")
    made = replace(made, runtime_dir=Path(runtime_dir or made.runtime_dir).absolute())
    domains = [*made.local_domains, *(config.domain_number(each, "--local-domain") for each in arguments.local_domain)]
    if len(set(domains)) != len(domains):
        raise InvalidArgument("a local domain is given twice")
    if len(domains) > config.LOCAL_DOMAINS_MAX:
        raise InvalidArgument(f"{len(domains)} local domains are given, and {config.LOCAL_DOMAINS_MAX} are the most")
    return replace(made, local_domains=tuple(domains))


def main() -> None:
    arguments = _parser().parse_args()
    try:
        host.serve(settings(arguments))
    except KvmchanError as error:
        sys.exit(f"kvmchand: {error.sentence}")


if __name__ == "__main__":
    main()
