# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=sh disable=SC2154 # a part of run, whose functions and variables it uses ./run
# matrix [RELEASE] [demo | test [pytest's arguments]]: the README's commands, on Debian releases as
# a machine has them that was just installed. A root of each is kept in build/matrix/RELEASE/bare;
# what a run does there happens in a copy, which a run that passes removes. How this machine reaches
# package lists and registries is handed on.
matrix=$build/matrix

case ${1-} in
12 | 13) releases=$1 && shift ;;
"" | demo | test) releases="12 13" ;;
*) die "'$1' is no release that kvmchan is for: 12 or 13" ;;
esac
case ${1-} in
"") commands="demo test" ;;
demo | test) commands=$1 && shift ;;
*) die "'$1' is no command of the matrix: demo or test" ;;
esac
[ "$(id -u)" = 0 ] || die "the matrix needs root, to make roots and to enter them"
require debootstrap

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

# A root with what debootstrap makes of a release, git, and a Python.
make_bare() {
    bare=$matrix/$1/bare
    state="$(suite "$1") $mirror"
    [ "$(cat "$matrix/$1/made" 2>/dev/null)" != "$state" ] || return 0
    say "making a bare Debian $1"
    rm -rf "$bare" "$matrix/$1/made"
    confine debootstrap --variant=minbase --include=git,python3,ca-certificates "$(suite "$1")" "$bare" ${mirror:+"$mirror"} \
        >"$matrix/$1/debootstrap.log" 2>&1 9>&- &
    wait $! || { say "debootstrap failed: see $matrix/$1/debootstrap.log"; return 1; }
    printf '%s' "$state" >"$matrix/$1/made"
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

# Runs a command in the root's clone.
enter() {
    entered=$1 && shift
    clean_environment
    # shellcheck disable=SC2016 # the inner shell's variables
    confine sh -c '
        set -eu
        root=$1 cache=$2
        shift 2
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount --rbind /sys "$root/sys"
        mount --rbind /dev "$root/dev"
        mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
        mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
        mount -t tmpfs -o mode=755 run "$root/run"
        mount --bind "$cache/archives" "$root/var/cache/apt/archives"
        mkdir -p "$root/root/.cache/pip"
        mount --bind "$cache/pip" "$root/root/.cache/pip"
        # A real root: in a chroot nobody can have a mount namespace of their own.
        cd "$root"
        pivot_root . .
        umount -l .
        cd
        cd kvmchan
        exec "$@"
    ' sh "$entered" "$(dirname "$entered")/cache" "$@"
}

# Says at the end of each command what became of it, into the file of the results.
tell() { echo "matrix: Debian $1, ./run $2: $3" >>"$results"; }

run_release() {
    release=$1 && shift
    folder=$matrix/$release
    # It need not survive, as it is made anew for each run.
    fresh=$folder/root
    mkdir -p "$folder/cache/archives/partial" "$folder/cache/pip"
    if ! make_bare "$release"; then
        for command in $commands; do tell "$release" "$command" "FAILED: there is no root"; done
        return 0
    fi
    rm -rf "$fresh"
    cp -a "$folder/bare" "$fresh"
    hand_on "$fresh"
    rm -f "$folder/output"
    mkfifo "$folder/output"
    git clone -q --no-hardlinks . "$fresh/root/kvmchan"
    passed=yes
    for command in $commands; do
        say "Debian $release: ./run $command${*:+ $*}"
        log=$folder/$command.log
        tee "$log" <"$folder/output" &
        teeing=$!
        enter "$fresh" ./run "$command" "$@" >"$folder/output" 2>&1 9>&- &
        status=0
        wait $! || status=$?
        wait "$teeing"
        # pytest's own last line, without its colours and its frame.
        counted=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | sed -nE 's/^=* *([0-9]+ [a-z].* in [0-9.]+s( \([0-9:]+\))?) *=*$/\1/p' | tail -n 1)
        if [ "$status" = 0 ]; then
            tell "$release" "$command${*:+ $*}" "passed${counted:+, $counted}"
        else
            passed=
            tell "$release" "$command${*:+ $*}" "FAILED with status $status${counted:+, $counted}; see $log"
        fi
    done
    # What failed can be looked at until the next run.
    [ -z "$passed" ] || rm -rf "$fresh"
}

trap 'exit 1' HUP INT TERM
mkdir -p "$matrix"
install debootstrap
exec 9>"$matrix/lock"
flock -n 9 || die "another ./run matrix is running here"
mirror=$(this_mirror || :)
[ -z "$(git status --porcelain)" ] || say "what is not committed is not tested: the roots get a clone of HEAD"
results=$matrix/results
: >"$results"
for each in $releases; do run_release "$each" "$@"; done
cat "$results"
grep -q ': FAILED' "$results" && exit 1
exit 0
