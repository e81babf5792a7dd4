# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages between main and the closer process."""

from __future__ import annotations

from kvmchand.wire.codec import Codec
from kvmchand.wire.record import Record


class Start(Record):
    """main → closer: drop privileges, and close what comes over the socket beside this message."""

    user: str


class Started(Record):
    """closer → main: serving."""


to_closer = Codec({"start": Start})
to_main = Codec({"started": Started})
