# SPDX-License-Identifier: LGPL-2.1-or-later
"""Send back what each client sends, to many clients at once.

    python3 echo_server.py --peer 1                                       # in domain 0
    KVMCHAN_DOMAIN=1 python3 echo_server.py --client --peer host hello    # in domain 1

Press Ctrl-C to stop the server.
"""

from __future__ import annotations

import argparse
import threading

import kvmchan


def domain(text: str) -> int | str:
    """Return a domain as kvmchan takes it: a number, or a name."""
    return int(text) if text.isdecimal() else text


def echo(vchan: kvmchan.Vchan) -> None:
    with vchan:
        try:
            for data in vchan:
                vchan.sendall(data)
        except kvmchan.ChannelClosed:
            print("a client left before it had its answer", flush=True)


def serve(peer: int | str, path: str) -> None:
    with kvmchan.listen(peer, path) as listener:
        print(f"listening at {listener.path}", flush=True)
        for vchan in listener:
            threading.Thread(target=echo, args=(vchan,), daemon=True).start()


def ask(peer: int | str, path: str, text: str) -> None:
    data = text.encode()
    with kvmchan.connect(peer, path, timeout=10) as vchan:
        vchan.sendall(data)
        print(vchan.take(len(data), timeout=10).decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", action="store_true", help="send TEXT, and print the answer")
    parser.add_argument("--peer", type=domain, default="host", help="the other program's domain: a number or a name")
    parser.add_argument("--path", default="data/echo")
    parser.add_argument("text", nargs="?", default="hello")
    arguments = parser.parse_args()
    if arguments.client:
        ask(arguments.peer, arguments.path, arguments.text)
        return
    try:
        serve(arguments.peer, arguments.path)
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
