# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program on a kernel before 6.16: one that has no SO_PASSRIGHTS.

As a program: without_passrights.py PROGRAM [ARGUMENT ...]
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

_SETSOCKOPT = {"x86_64": 54, "aarch64": 208}
_SO_PASSRIGHTS = 83
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _THIRD = 0, 32
"""Offsets in struct seccomp_data: of the call's number, and of its third argument."""


def main(command: list[str]) -> None:
    steps = [
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF, 0, 3, _SETSOCKOPT[os.uname().machine]),
        (_LOAD, 0, 0, _THIRD),
        (_JUMP_IF, 0, 1, _SO_PASSRIGHTS),
        (_RETURN, 0, 0, _ERRNO | errno.ENOPROTOOPT),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for call in ((_PR_SET_NO_NEW_PRIVS, 1, 0), (_PR_SET_SECCOMP, _MODE_FILTER, program)):
        if prctl(*call, 0, 0):
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
