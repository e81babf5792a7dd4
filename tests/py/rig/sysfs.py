# SPDX-License-Identifier: LGPL-2.1-or-later
"""A sysfs on disk, with the PCI functions that a test puts there."""

from __future__ import annotations

from pathlib import Path

ADDRESS = "0000:04:01.0"
RESOURCES = (
    "0x00000000fe800000 0x00000000fe8000ff 0x0000000000040200\n"
    "0x00000000fe801000 0x00000000fe801fff 0x0000000000040200\n"
    "0x000000fc00000000 0x000000fc000fffff 0x000000000014220c\n"
    + 10
    * "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
)


class Sysfs:
    """One on disk, with functions in it. What is written to it stays there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bus/pci/devices").mkdir(parents=True)

    def folder(self, address: str = ADDRESS) -> Path:
        return self.root / "bus/pci/devices" / address

    def add(self, address: str = ADDRESS, *, behind: str = "", group: str = "", driver: str = "") -> Path:
        folder = self.folder(address)
        if behind:
            folder.symlink_to(self.folder(behind) / address)
        folder.resolve().mkdir()
        for name, text in (("vendor", "0x1af4\n"), ("device", "0x1110\n"), ("revision", "0x01\n"), ("resource", RESOURCES)):
            (folder / name).write_text(text)
        if group:
            (self.root / "kernel/iommu_groups" / group / "devices" / address).mkdir(parents=True)
            (folder / "iommu_group").symlink_to(self.root / "kernel/iommu_groups" / group)
        if driver:
            self.give(address, driver)
        return folder

    def add_bridge(
        self, address: str, windows: list[tuple[int, int]], *, behind: str = "", express_type: int | None = None, driver: str = ""
    ) -> Path:
        """Add a bridge, with the start and the size of each window.

        `express_type`: of its PCI Express capability, if it has one.
        """
        folder = self.add(address, behind=behind, driver=driver)
        (folder / "class").write_text("0x060400\n")
        lines = ["0x0 0x0 0x0"] * 13
        for at, (start, size) in enumerate(windows):
            lines[10 + at] = f"{start:#x} {start + size - 1:#x} 0x200"
        (folder / "resource").write_text("\n".join(lines) + "\n")
        config = bytearray(256)
        if express_type is not None:
            config[6], config[0x34] = 0x10, 0x40
            config[0x40:0x44] = bytes((0x10, 0, express_type << 4 | 2, 0))
        (folder / "config").write_bytes(config)
        return folder

    def add_device(self, address: str, start: int, size: int, *, behind: str = "", driver: str = "") -> Path:
        """Add a function that is no bridge, with a BAR."""
        folder = self.add(address, behind=behind, driver=driver)
        (folder / "class").write_text("0x050000\n")
        (folder / "resource").write_text(f"{start:#x} {start + size - 1:#x} 0x200\n")
        (folder / "config").write_bytes(bytes(256))
        return folder

    def give(self, address: str, driver: str) -> None:
        target = self.root / "bus/pci/drivers" / driver
        target.mkdir(parents=True, exist_ok=True)
        (self.folder(address) / "driver").symlink_to(target)
