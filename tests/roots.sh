# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=sh disable=SC2154 # a part of run, whose functions and variables it uses
# Roots of Debian releases, made by debootstrap, and commands in them. How this machine reaches
# package lists and registries is handed on.

suite() {
    case $1 in
    12) echo bookworm ;;
    13) echo trixie ;;
    esac
}

# The mirror of this machine's own packages, which may be the only one that it reaches. Without one,
# debootstrap takes its own.
this_mirror() {
    # shellcheck disable=SC2016 # apt-get's variables
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 2>/dev/null | grep . | head -n 1
}

# Becomes a program whose mounts and processes are in namespaces, which end with it or with us. It
# is started by `&`, not in a pipeline, whose shell would outlive this one.
confine() { exec setpriv --pdeathsig KILL unshare --mount --pid --ipc --fork --kill-child --propagation private "$@"; }

# make_root FOLDER RELEASE PACKAGES: FOLDER/bare, a root with what debootstrap makes of a release,
# and these packages. It is made once.
make_root() {
    made=$1 packages=$3
    state="$(suite "$2") $packages $mirror"
    [ "$(cat "$made/made" 2>/dev/null)" != "$state" ] || return 0
    say "making a root of Debian $2 in $made"
    rm -rf "$made/bare" "$made/made"
    confine debootstrap --variant=minbase --include="$(echo "$packages" | tr ' ' ,)" "$(suite "$2")" "$made/bare" \
        ${mirror:+"$mirror"} >"$made/debootstrap.log" 2>&1 9>&- &
    wait $! || { say "debootstrap failed: see $made/debootstrap.log"; return 1; }
    printf '%s' "$state" >"$made/made"
}

# What this machine has set for apt, pip, names and certificates.
hand_on() {
    cp -L /etc/resolv.conf /etc/hosts "$1/etc/"
    apt-config dump --format '%F "%v";%n' Acquire | grep -v -e '^Acquire::IndexTargets' -e '^Acquire::Changelogs' -e ' "";$' \
        >"$1/etc/apt/apt.conf.d/90this-machine"
    for each in /etc/apt/auth.conf /etc/apt/auth.conf.d /etc/pip.conf /etc/xdg/pip /root/.config/pip /root/.pip \
        /etc/ssl/certs/ca-certificates.crt; do
        [ -e "$each" ] || continue
        rm -rf "${1:?}$each"
        mkdir -p "$1$(dirname "$each")"
        cp -RL "$each" "$1$each"
    done
}

# Of the environment, what those settings may be in, and the tests' own.
clean_environment() {
    for name in $(env | sed -n 's/^\([A-Za-z_][A-Za-z_0-9]*\)=.*/\1/p'); do
        case $name in
        PIP_* | SSL_CERT_* | REQUESTS_CA_BUNDLE | *_proxy | *_PROXY | KVMCHAN_TEST_* | CI) ;;
        *) unset "$name" ;;
        esac
    done
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
}

# enter ROOT CACHE FOLDER COMMAND: becomes a command in a folder below the root's home. CACHE
# keeps what apt fetches, and is the root's ~/.cache.
enter() {
    clean_environment
    # shellcheck disable=SC2016 # the inner shell's variables
    confine sh -c '
        set -eu
        root=$1 cache=$2 folder=$3
        shift 3
        mkdir -p "$cache/archives/partial" "$root/root/.cache"
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount --rbind /sys "$root/sys"
        mount --rbind /dev "$root/dev"
        mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
        mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
        mount -t tmpfs -o mode=755 run "$root/run"
        mount --bind "$cache/archives" "$root/var/cache/apt/archives"
        mount --bind "$cache" "$root/root/.cache"
        # A real root: in a chroot nobody can have a mount namespace of their own.
        cd "$root"
        pivot_root . .
        umount -l .
        cd
        cd "$folder"
        exec "$@"
    ' sh "$@"
}

