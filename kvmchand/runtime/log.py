# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's log: lines on stderr, which the service manager keeps. One line is one write."""

from __future__ import annotations

import sys


def printable(text: str) -> str:
    """What came from outside must not make lines of its own, here or on anyone's terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _write(text: str) -> None:
    try:
        sys.stderr.write(f"kvmchand: {printable(text)}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody reads the log


def info(text: str) -> None:
    _write(text)


def warning(text: str) -> None:
    _write(f"warning: {text}")
