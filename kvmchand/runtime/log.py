# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's log: lines on stderr, which the service manager keeps. Each line is one write."""

from __future__ import annotations

import sys


def printable(text: str) -> str:
    """Return outside text without its control characters.

    They could make lines of their own in the log, or act on a terminal.
    """
    return "".join(each if each.isprintable() else "?" for each in text)


def _write(text: str) -> None:
    if sys.stderr is None:
        return  # it was closed when we started
    try:
        sys.stderr.write(f"kvmchand: {printable(text)}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody reads the log


def info(text: str) -> None:
    """Log what happened."""
    _write(text)


def warning(text: str) -> None:
    """Log what went wrong."""
    _write(f"warning: {text}")
