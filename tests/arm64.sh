# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=sh disable=SC2154,SC2086,SC2016 # a part of run, with its functions and variables
# arm64 [pytest's arguments]: guests of arm64, which QEMU emulates, beside this machine. Their root
# is kept in build/arm64/root: packages that are unpacked and not configured, and the tree's build,
# which is made in it by QEMU's emulator of processes. The build and the tests' files are where this
# machine has them, so that the tests need not know.
arm64=$build/arm64
guest_root=$arm64/root
arm64_packages="debootstrap qemu-system-arm qemu-efi-aarch64 qemu-user-static"
root_packages="gcc libc6-dev libpython3-dev python3 pkg-config busybox-static linux-image-arm64"
# Fetched for the Python of the root, and not built.
wheels="cffi pycparser meson ninja"
# shellcheck source=tests/roots.sh # checked by itself
. ./tests/roots.sh

[ "$(id -u)" = 0 ] || die "arm64 needs root, to make a root"
require $packages $test_packages $guest_packages
mkdir -p "$arm64"
exec 9>"$arm64/lock"
flock -n 9 || die "another ./run arm64 is running here"
setup
setup_guest
install $arm64_packages
qemu=$(qemu-system-aarch64 --version | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p')
[ "$qemu" -lt 9 ] || die "QEMU $qemu lets no guest of arm64 use a device's memory as programs do: see docs/guests.md"
use

make_guest_root() {
    mirror=$(this_mirror || :) release=$(suite 12)
    state="$release $mirror $root_packages $wheels"
    is_done arm64 "$state" && return 0
    say "making a root for arm64"
    rm -rf "$guest_root"
    debootstrap --foreign --arch=arm64 --variant=minbase --include="$(echo "$root_packages" | tr ' ' ,)" \
        "$release" "$guest_root" ${mirror:+"$mirror"} >"$arm64/debootstrap.log" 2>&1 ||
        die "debootstrap failed: see $arm64/debootstrap.log"
    for package in "$guest_root"/var/cache/apt/archives/*.deb; do
        dpkg --fsys-tarfile "$package" | tar -x -C "$guest_root" --keep-directory-symlink
        rm "$package"
    done
    for each in passwd group; do cp "$guest_root/usr/share/base-passwd/$each.master" "$guest_root/etc/$each"; done
    # It may have been a link to this machine's.
    rm -rf "$guest_root/proc"
    mkdir -p "$guest_root/proc" "$guest_root/source" "$guest_root$venv/bin"
    ln -s /usr/bin/python3 "$guest_root$venv/bin/python"
    "$venv/bin/pip" --disable-pip-version-check install -q --no-deps --only-binary=:all: --platform manylinux2014_aarch64 \
        --platform manylinux_2_17_aarch64 --implementation cp --python-version 311 --target "$guest_root/opt/wheels" $wheels \
        >"$arm64/pip.log" 2>&1 || die "pip failed: see $arm64/pip.log"
    sed -i '1s,.*,#!/usr/bin/python3,' "$guest_root/opt/wheels/bin/meson"
    sh tests/py/vm/guest/build.sh "$guest_root" "$arm64/guest" "$guest_root/bin/busybox" >"$arm64/guest.log" 2>&1 ||
        die "making the guest's initramfs failed: see $arm64/guest.log"
    mark_done arm64 "$state"
}

# Runs a shell script in the guests' root, with the tree in /source. What knows programs of arm64 is
# this user namespace's own (Linux 6.7).
emulate() {
    unshare --user --map-root-user --mount --pid --fork --kill-child --propagation private sh -c '
        set -eu
        mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
        printf %s "$4" >/proc/sys/fs/binfmt_misc/register
        mount --rbind /proc "$1/proc"
        mount --rbind /dev "$1/dev"
        mount -t tmpfs tmp "$1/tmp"
        mount --bind "$2" "$1/source"
        exec chroot "$1" /usr/bin/env -i PATH=/opt/wheels/bin:/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 PYTHONPATH=/opt/wheels \
            CC=gcc prefix="$5" site="$6" sh -euc "$3"
    ' sh "$guest_root" "$root" "$1" "$elf" "$prefix" "$site"
}
# An ELF file of 64 bits for the machine 183, and the emulator, which is opened at once.
elf=':arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:'
elf="$elf"'\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'
elf="$elf$(command -v qemu-aarch64-static):OCF"

build_for_arm64() {
    say "building for arm64, which takes some minutes the first time"
    emulate '
        [ -f /opt/build/build.ninja ] ||
            meson setup /opt/build /source --prefix="$prefix" -Dlibdir=lib -Dpython.platlibdir="$site" -Dpython.bytecompile=0
        ninja -C /opt/build all $(ninja -C /opt/build -t targets all | sed -n "s/^\\(tests\/c\/test_[a-z]*-plain\\):.*/\\1/p")
        meson install -C /opt/build --no-rebuild --only-changed --quiet
        mkdir -p "$prefix/../tests/vm"
        library=$site/libxenvchan_shim/lib
        gcc -D_GNU_SOURCE -O2 /source/tests/py/vm/programs/stream.c -o "$prefix/../tests/vm/stream" -I"$prefix/include" \
            -L"$library" -Wl,-rpath,"$library" -lxenvchan
    ' >"$arm64/build.log" 2>&1 || { tail -20 "$arm64/build.log" >&2; die "the build for arm64 failed"; }
    mkdir -p "$guest_root$root/tests/py/vm/guest"
    cp tests/py/vm/guest/agent.py "$guest_root$root/tests/py/vm/guest/"
}

make_guest_root
build_for_arm64
[ $# -gt 0 ] || set -- tests/py/vm/test_arm64.py
KVMCHAN_TEST_ARM64=1 KVMCHAN_TEST_VM=1 exec python -m pytest "$@"
