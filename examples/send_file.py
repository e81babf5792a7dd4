# SPDX-License-Identifier: LGPL-2.1-or-later
"""Send a file to another domain, with progress, and check its sha256 there.

    KVMCHAN_DOMAIN=1 python3 send_file.py receive --peer host FOLDER    # in domain 1
    python3 send_file.py send --peer 1 FILE                             # in domain 0

The receiver listens, so either may start first. The name that comes from the peer is not trusted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import kvmchan

CHUNK = 1 << 18
HEAD_MAX = 4096
"""Bytes that the receiver accepts for the file's name and size."""
TIMEOUT = 30.0
"""Seconds after which a peer that does nothing is given up."""


def domain(text: str) -> int | str:
    """Return a domain as kvmchan takes it: a number, or a name."""
    return int(text) if text.isdecimal() else text


def show(done: int, size: int) -> None:
    if sys.stderr.isatty():
        percent = 100 * done // size if size else 100
        print(f"\r{done} of {size} bytes, {percent} %", end="" if done < size else "\n", file=sys.stderr)


def send(peer: int | str, path: str, file_path: Path) -> None:
    size, done, digest = file_path.stat().st_size, 0, hashlib.sha256()
    with file_path.open("rb") as file, kvmchan.connect(peer, path, timeout=TIMEOUT) as vchan:
        vchan.settimeout(TIMEOUT)
        vchan.send_bytes(json.dumps({"name": file_path.name, "size": size}).encode())
        while done < size:
            data = file.read(min(CHUNK, size - done))
            if not data:
                raise SystemExit(f"{file_path} became shorter while it was sent")
            digest.update(data)
            vchan.sendall(data)
            done += len(data)
            show(done, size)
        vchan.send_bytes(digest.digest())
        if vchan.recv_bytes(maxlength=100) != b"ok":
            raise SystemExit("the receiver got another content")
    print(f"sent {size} bytes, sha256 {digest.hexdigest()}")


def receive(peer: int | str, path: str, folder: Path) -> None:
    with kvmchan.listen(peer, path, read_min=1 << 20) as listener, listener.accept() as vchan:
        vchan.settimeout(TIMEOUT)
        head = json.loads(vchan.recv_bytes(maxlength=HEAD_MAX))
        name, size = Path(str(head["name"])).name, int(head["size"])
        if not name or size < 0:
            raise SystemExit(f"the sender gave an invalid name or size: {head}")
        digest, done, buffer = hashlib.sha256(), 0, bytearray(CHUNK)
        view = memoryview(buffer)
        part = folder / f"{name}.part"
        with part.open("wb") as file:
            while done < size:
                count = vchan.recv_into(buffer, min(CHUNK, size - done))
                if not count:
                    raise SystemExit(f"the sender has gone after {done} of {size} bytes")
                digest.update(view[:count])
                file.write(view[:count])
                done += count
                show(done, size)
        is_right = vchan.recv_bytes(maxlength=100) == digest.digest()
        vchan.send_bytes(b"ok" if is_right else b"wrong")
    if not is_right:
        part.unlink()
        raise SystemExit(f"{name}: the sha256 is wrong, so the file was removed")
    part.rename(folder / name)
    print(f"received {name}, {size} bytes, sha256 {digest.hexdigest()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("send", "receive"))
    parser.add_argument("--peer", type=domain, default="host", help="the other program's domain: a number or a name")
    parser.add_argument("--path", default="data/file")
    parser.add_argument("file", type=Path, help="the file to send, or the folder to receive it in")
    arguments = parser.parse_args()
    (send if arguments.verb == "send" else receive)(arguments.peer, arguments.path, arguments.file)


if __name__ == "__main__":
    main()
