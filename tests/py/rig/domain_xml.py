# SPDX-License-Identifier: LGPL-2.1-or-later
"""XML of domains, as libvirt keeps it."""

from __future__ import annotations

HOST_CPU = "<cpu mode='host-passthrough'><feature policy='disable' name='arch-capabilities'/></cpu>"
"""A KVM within a virtual machine may offer that feature and refuse its register, and QEMU ends."""
Q35 = """\
<domain type='kvm'>
  <name>plain</name>
  <uuid>6d1a5a4e-6b3c-4a1c-9d53-0f8b7a4c1e11</uuid>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
      <libosinfo:os id="http://debian.org/debian/12"/>
    </libosinfo:libosinfo>
  </metadata>
  <memory unit='KiB'>2097152</memory>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <boot dev='hd'/>
  </os>
  <features>
    <acpi/>
    <apic/>
  </features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'>
      <model name='pcie-root-port'/>
      <target chassis='1' port='0x10'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0' multifunction='on'/>
    </controller>
    <interface type='network'>
      <source network='default'/>
      <model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
  </devices>
</domain>
"""
"""As virt-install makes one."""


READY = """\
<domain type='kvm'>
  <name>ready</name>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/><ioapic driver='qemu'/></features>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'/>
    <controller type='pci' index='2' model='pcie-to-pci-bridge'/>
    <controller type='pci' index='3' model='pcie-root-port'/>
    <controller type='pci' index='4' model='pcie-to-pci-bridge'/>
    <iommu model='intel'><driver intremap='on' caching_mode='on'/></iommu>
  </devices>
</domain>
"""

VIRT = """\
<domain type='kvm'>
  <name>arm</name>
  <os firmware='efi'><type arch='aarch64' machine='virt-7.2'>hvm</type></os>
  <features><acpi/><gic version='2'/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-aarch64</emulator>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x0' multifunction='on'/>
    </controller>
    <interface type='network'><address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></interface>
  </devices>
</domain>
"""
"""One for arm64."""


def direct(command_line: str | None, xml: str = READY) -> str:
    """Return the same domain, with its kernel given by the host."""
    shown = "" if command_line is None else f"<cmdline>{command_line}</cmdline>"
    return xml.replace("</type>", f"</type><kernel>/vmlinuz</kernel>{shown}")
