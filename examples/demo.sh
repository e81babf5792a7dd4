#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# The main job: two programs written for Xen, in two domains of this machine, and a file through a
# vchan between them.
set -eu
here=$(dirname "$0")
work=$(mktemp -d)
daemon=
server=
clean_up() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || :
    [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null && wait "$daemon"; } || :
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 1' INT TERM
say() { printf '\n== %s\n' "$*"; }

# Waits for a line that a program will print, or for the program's end.
await() {
    until grep -q "$2" "$1"; do
        kill -0 "$3" 2>/dev/null || { cat "$1"; exit 1; }
        sleep 0.05
    done
}

export KVMCHAN_RUNTIME_DIR="$work/run"
program=$work/vchan-pipe

if [ -f "$KVMCHAN_REFERENCE/usr/include/libxenvchan.h" ]; then
    say "compiling vchan-pipe.c with Debian's Xen headers, linked against Debian's libxenvchan"
    gcc -O2 -isystem "$KVMCHAN_REFERENCE/usr/include" "$here/vchan-pipe.c" -o "$program" \
        -L"$KVMCHAN_REFERENCE/usr/lib/$(gcc -print-multiarch)" -lxenvchan -Wl,--allow-shlib-undefined
else
    say "compiling vchan-pipe.c with our own headers"
    eval gcc -O2 '"$here/vchan-pipe.c"' -o '"$program"' "$(pkg-config --cflags --libs xenvchan)"
fi
objdump -p "$program" | grep NEEDED

say "kvmchand host --local-domain 1 --local-domain 2"
kvmchand host --no-libvirt --local-domain 1 --local-domain 2 2>"$work/log" &
daemon=$!
await "$work/log" ready "$daemon"
cat "$work/log"

say "domain 1 listens, domain 2 sends 256 MiB"
head -c 268435456 /dev/urandom >"$work/sent"
KVMCHAN_DOMAIN=1 kvmchan exec -- "$program" listen 2 data/vchan/2/1 >"$work/received" 2>"$work/server" &
server=$!
await "$work/server" listening "$server"
{
    cat "$work/sent"
    say "kvmchan ls" >&2
    kvmchan ls >&2
    : # not the last command, which the shell would become, and so close the pipe
} | KVMCHAN_DOMAIN=2 kvmchan exec -- "$program" send 1 /local/domain/1/data/vchan/2/1
wait "$server"
server=

say "result"
cat "$work/server"
sent=$(sha256sum <"$work/sent")
received=$(sha256sum <"$work/received")
[ "$sent" = "$received" ] || { echo "the file has changed on its way"; exit 1; }
echo "sha256 of both ends: ${sent%% *}"
kvmchan ls
