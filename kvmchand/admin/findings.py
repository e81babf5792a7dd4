# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Grade(Enum):
    """How bad a finding is."""

    OK = "ok"
    """As it should be."""
    NOTE = "note"
    """Worth knowing; vchans work."""
    BAD = "bad"
    """Something does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    grade: Grade
    subject: str
    sentence: str

    @property
    def is_bad(self) -> bool:
        """Return whether something does not work."""
        return self.grade is Grade.BAD

    def __str__(self) -> str:
        return f"{self.grade.value:4}  {self.subject}: {self.sentence}"
