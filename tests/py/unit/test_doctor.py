# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is found in a guest, by its sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmchand import doctor
from kvmchand.doctor import Grade
from kvmchand.errors import Unreachable


@pytest.mark.parametrize(
    ("groups", "grade", "part"),
    [
        pytest.param({}, Grade.BAD, "intel_iommu=on", id="none"),
        pytest.param({"0": "", "1": ""}, Grade.OK, "IOMMU groups", id="a vIOMMU"),
        pytest.param({"0": "vfio-noiommu\n"}, Grade.NOTE, "noiommu in the settings", id="none, which is allowed"),
        pytest.param({"0": "", "1": "vfio-noiommu\n"}, Grade.OK, "IOMMU groups", id="one that leaves a device out"),
    ],
)
def test_a_guests_viommu_is_found_or_why_it_need_not_be(tmp_path: Path, groups: dict[str, str], grade: Grade, part: str) -> None:
    for group, name in groups.items():
        folder = tmp_path / "kernel/iommu_groups" / group
        folder.mkdir(parents=True)
        if name:
            (folder / "name").write_text(name)
    (found,) = [each for each in doctor.guest(Unreachable("nobody"), [], tmp_path) if each.subject == "vIOMMU"]
    assert (found.grade, part in found.sentence) == (grade, True), found
