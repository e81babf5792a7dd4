# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=sh disable=SC2154 # a part of run, whose functions and variables it uses
# The disk of a guest as an administrator makes one: Debian 13 with its own kernel, systemd and
# Python, and kvmchan in it as docs/guests.md says. Everything that does not depend on kvmchan is
# kept in ~/.cache/kvmchan, for all clones.
installed=$build/installed
installed_cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvmchan
installed_packages="linux-image-amd64 systemd-sysv udev kmod zstd python3-venv libpython3.13"
compilers="gcc libc6-dev libpython3-dev pkg-config ca-certificates"
disk_sources="kvmchan kvmchand libxenvchan_shim include bin meson.build meson.options pyproject.toml docs/guests.md tests/roots.sh tests/py/vm/guest"
# shellcheck source=tests/roots.sh # checked by itself
. ./tests/roots.sh

# Each of these is a chain by &&, as what runs before || does not heed set -e.
enter_and_wait() {
    enter "$@" 9>&- &
    wait $!
}

# The same root with what the wheel is built with: a guest has no compiler.
make_builder() {
    builder=$installed_cache/builder
    state="$(cat "$installed_cache/made") $compilers"
    [ "$(cat "$installed_cache/builder-made" 2>/dev/null)" != "$state" ] || return 0
    rm -rf "$builder" "$installed_cache/builder-made"
    cp -a "$installed_cache/bare" "$builder" &&
        hand_on "$builder" &&
        enter_and_wait "$builder" "$installed_cache" . sh -euc "
            export DEBIAN_FRONTEND=noninteractive
            apt-get update -qq
            apt-get install -qq --no-install-recommends $compilers
            python3 -m venv venv" &&
        printf '%s' "$state" >"$installed_cache/builder-made"
}

# The wheels of kvmchan and of what it needs, in the builder's ~/wheels.
build_wheels() {
    rm -rf "$builder/root/kvmchan" "$builder/root/wheels"
    mkdir "$builder/root/kvmchan" &&
        git ls-files -z | xargs -0 cp --parents -t "$builder/root/kvmchan" &&
        enter_and_wait "$builder" "$installed_cache" . \
            venv/bin/pip --disable-pip-version-check wheel -q -w wheels ./kvmchan
}

make_disk() {
    disk_root=$installed/root
    cp -a "$installed_cache/bare" "$disk_root" &&
        cp -r "$builder/root/wheels" "$disk_root/root/wheels" &&
        cp tests/py/vm/guest/agent.py "$disk_root/usr/local/lib/" &&
        cp tests/py/vm/guest/agent.service "$disk_root/etc/systemd/system/" &&
        sed -n '/^    \[Unit\]/,/^    WantedBy/s/^    //p' docs/guests.md >"$disk_root/etc/systemd/system/kvmchand.service" &&
        printf 'vfio-pci\nvfio_iommu_type1\n' >"$disk_root/etc/modules-load.d/kvmchan.conf" &&
        mkdir "$disk_root/programs" &&
        echo "programs /programs 9p trans=virtio,version=9p2000.L,ro 0 0" >"$disk_root/etc/fstab" &&
        : >"$disk_root/etc/machine-id" &&
        echo MODULES=list >"$disk_root/etc/initramfs-tools/conf.d/small" && # as QEMU unpacks it slowly
        printf 'virtio_pci\nvirtio_blk\next4\n' >"$disk_root/etc/initramfs-tools/modules" &&
        enter_and_wait "$disk_root" "$installed_cache" . sh -euc "
            python3 -m venv /opt/kvmchan
            /opt/kvmchan/bin/pip --disable-pip-version-check install -q --no-index --find-links ~/wheels kvmchan
            systemctl enable -q kvmchand agent
            update-initramfs -u" &&
        mke2fs -q -t ext4 -d "$disk_root" "$installed/disk" 2G &&
        cp "$disk_root"/boot/vmlinuz-* "$installed/vmlinuz" &&
        cp "$disk_root"/boot/initrd.img-* "$installed/initrd" &&
        python3 tests/py/vm/guest/vmlinux.py "$installed/vmlinuz" "$installed/vmlinux" &&
        rm -rf "$disk_root"
}

make_installed() {
    flock 9 &&
        make_root "$installed_cache" 13 "$installed_packages" && make_builder && build_wheels && make_disk
}

is_installed_done() {
    sources=$(git ls-files -z $disk_sources | xargs -0 cat | sha256sum | cut -d' ' -f1)
    is_done installed "$sources"
}

# So that no test takes a disk with an old kvmchan.
forget_installed() { is_installed_done || rm -rf "$installed" "$build/.installed"; }

setup_installed() {
    is_installed_done && return 0
    install debootstrap qemu-utils zstd
    say "making a guest's disk of Debian 13"
    mirror=$(this_mirror || :)
    rm -rf "$installed"
    mkdir -p "$installed" "$installed_cache"
    (make_installed) 9>"$installed_cache/lock" >"$build/installed.log" 2>&1 ||
        die "making a guest's disk failed: see $build/installed.log"
    mark_done installed "$sources"
}
