#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# build.sh KERNEL-TREE OUTPUT [BUSYBOX]: a guest's kernel and initramfs, from an unpacked
# linux-image package. One of another architecture needs that one's busybox, and UEFI to start it.
set -eu
tree=$1 output=$2 busybox=${3-$(command -v busybox)} here=$(cd "$(dirname "$0")" && pwd)
# Debian 13's package has them there, where not every modprobe looks.
[ ! -d "$tree/usr/lib/modules" ] || ln -s usr/lib "$tree/lib"
release=$(ls "$tree/lib/modules")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

depmod -b "$tree" "$release"
mkdir -p "$work/bin" "$work/modules"
cp "$busybox" "$work/bin/busybox"
cp "$here/init" "$work/init"
for module in virtio_pci 9pnet_virtio 9p virtio_console vfio_iommu_type1 vfio-pci; do
    modprobe -d "$tree" -S "$release" --show-depends "$module"
done | sed -n 's/^insmod \(.*\.ko[.a-z]*\) .*/\1/p' | awk '!seen[$0]++' | while read -r path; do
    name=$(basename "$path" .xz)
    case $path in
    *.xz) busybox xzcat "$path" >"$work/modules/$name" ;;
    *) cp "$path" "$work/modules/$name" ;;
    esac
    echo "$name" >>"$work/modules/order"
done
mkdir -p "$output"
[ $# = 3 ] || python3 "$here/vmlinux.py" "$tree/boot/vmlinuz-$release" "$output/vmlinux"
cp "$tree/boot/vmlinuz-$release" "$output/vmlinuz" # UEFI starts no other
(cd "$work" && find . | cpio -o -H newc --quiet | gzip -1) >"$output/initrd"
