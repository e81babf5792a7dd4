# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our numbers and structures of VFIO are those of the kernel's header."""

from __future__ import annotations

import struct
from pathlib import Path

from kvmchand.linux import vfio
from rig.compiler import compile_c
from rig.processes import run

NUMBERS = {
    "VFIO_GET_API_VERSION": vfio.GET_API_VERSION,
    "VFIO_CHECK_EXTENSION": vfio.CHECK_EXTENSION,
    "VFIO_SET_IOMMU": vfio.SET_IOMMU,
    "VFIO_GROUP_GET_STATUS": vfio.GROUP_GET_STATUS,
    "VFIO_GROUP_SET_CONTAINER": vfio.GROUP_SET_CONTAINER,
    "VFIO_GROUP_GET_DEVICE_FD": vfio.GROUP_GET_DEVICE_FD,
    "VFIO_DEVICE_GET_INFO": vfio.DEVICE_GET_INFO,
    "VFIO_DEVICE_GET_REGION_INFO": vfio.DEVICE_GET_REGION_INFO,
    "VFIO_DEVICE_GET_IRQ_INFO": vfio.DEVICE_GET_IRQ_INFO,
    "VFIO_DEVICE_SET_IRQS": vfio.DEVICE_SET_IRQS,
    "VFIO_API_VERSION": vfio.API_VERSION,
    "VFIO_TYPE1_IOMMU": vfio.TYPE1_IOMMU,
    "VFIO_TYPE1v2_IOMMU": vfio.TYPE1V2_IOMMU,
    "VFIO_NOIOMMU_IOMMU": vfio.NOIOMMU_IOMMU,
    "VFIO_GROUP_FLAGS_VIABLE": vfio.GROUP_VIABLE,
    "VFIO_REGION_INFO_FLAG_MMAP": vfio.REGION_MMAP,
    "VFIO_PCI_BAR0_REGION_INDEX": vfio.BAR0,
    "VFIO_PCI_BAR2_REGION_INDEX": vfio.BAR2,
    "VFIO_PCI_CONFIG_REGION_INDEX": vfio.CONFIG,
    "VFIO_PCI_MSIX_IRQ_INDEX": vfio.MSIX_IRQ,
    "VFIO_PCI_REQ_IRQ_INDEX": vfio.REQ_IRQ,
    "VFIO_IRQ_SET_DATA_NONE": vfio._IRQ_DATA_NONE,
    "VFIO_IRQ_SET_DATA_EVENTFD": vfio._IRQ_DATA_EVENTFD,
    "VFIO_IRQ_SET_ACTION_TRIGGER": vfio._IRQ_ACTION_TRIGGER,
}
STRUCTURES = {
    "vfio_group_status": (vfio.GROUP_STATUS, ("argsz", "flags")),
    "vfio_region_info": (vfio.REGION_INFO, ("argsz", "flags", "index", "cap_offset", "size", "offset")),
    "vfio_irq_info": (vfio.IRQ_INFO, ("argsz", "flags", "index", "count")),
    "vfio_irq_set": (vfio.IRQ_SET, ("argsz", "flags", "index", "start", "count")),
}


def offsets(layout: struct.Struct) -> list[int]:
    """Where each field of a layout without padding starts, and where it ends."""
    order, fields = layout.format[0], layout.format[1:]
    return [struct.calcsize(order + fields[:count]) for count in range(len(fields) + 1)]


def test_numbers_and_layouts_are_the_kernels(tmp_path: Path) -> None:
    lines = [f'    printf("{name} %llu\\n", (unsigned long long){name});' for name in NUMBERS]
    for name, (_, fields) in STRUCTURES.items():
        lines += [f'    printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));' for field in fields]
        lines.append(f'    printf("{name} %zu\\n", sizeof(struct {name}));')
    body = "\n".join(lines)
    source = tmp_path / "numbers.c"
    source.write_text(
        f"#include <linux/vfio.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void)\n{{\n{body}\n    return 0;\n}}\n"
    )
    printed = dict(line.split() for line in run(compile_c(tmp_path, source)).stdout.splitlines())
    expected = dict(NUMBERS)
    for name, (layout, fields) in STRUCTURES.items():
        *starts, end = offsets(layout)
        expected |= {f"{name}.{field}": start for field, start in zip(fields, starts, strict=True)}
        expected[name] = end
    assert {name: int(value) for name, value in printed.items()} == expected
