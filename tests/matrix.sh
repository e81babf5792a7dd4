# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=sh disable=SC2154 # a part of run, whose functions and variables it uses
# ./run matrix [RELEASE] [demo | test [pytest's arguments]]: the README's commands, on Debian
# releases as a machine has them that was just installed. A root of each is kept in
# build/matrix/RELEASE/bare; what a run does there happens in a copy, which a run that passes
# removes.
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
# shellcheck source=tests/roots.sh # checked by itself
. ./tests/roots.sh

# Says at the end of each command what became of it, into the file of the results.
tell() { echo "matrix: Debian $1, ./run $2: $3" >>"$results"; }

run_release() {
    release=$1 && shift
    folder=$matrix/$release
    # It need not survive, as it is made anew for each run.
    fresh=$folder/root
    mkdir -p "$folder"
    if ! make_root "$folder" "$release" "git python3 ca-certificates"; then
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
        enter "$fresh" "$folder/cache" kvmchan ./run "$command" "$@" >"$folder/output" 2>&1 9>&- &
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
