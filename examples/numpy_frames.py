# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stream frames as numpy arrays that are made, and read, in the ring itself.

    python3 numpy_frames.py --serve --peer 1 --frames 1000         # in domain 0
    KVMCHAN_DOMAIN=1 python3 numpy_frames.py --peer host           # in domain 1

A frame's size is a power of two and divides the ring's, so no frame goes over the ring's end. The
reader computes with bytes that the sender could change meanwhile: here that makes a mean wrong, and
nothing worse.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import kvmchan

HEIGHT, WIDTH = 256, 256
FRAME = HEIGHT * WIDTH
"""Bytes of a frame: a pixel is one byte."""


def domain(text: str) -> int | str:
    """Return a domain as kvmchan takes it: a number, or a name."""
    return int(text) if text.isdecimal() else text


def send_frames(vchan: kvmchan.Vchan, frames: int) -> None:
    for number in range(frames):
        room = vchan.reserve(FRAME)
        frame = np.frombuffer(room.pieces[0], np.uint8, FRAME).reshape(HEIGHT, WIDTH)
        frame[:] = number % 256
        del frame  # it would show other bytes from now on
        vchan.commit(FRAME)


def receive_frames(vchan: kvmchan.Vchan) -> tuple[int, float]:
    """Return the number of frames, and the mean of all their pixels."""
    count, total = 0, 0.0
    while vchan.look():  # empty at the end of the stream
        seen = vchan.look(FRAME)
        total += float(np.frombuffer(seen.pieces[0], np.uint8, FRAME).mean())
        vchan.consume(FRAME)
        count += 1
    return count, total / max(count, 1)


def serve(peer: int | str, path: str, frames: int) -> None:
    with kvmchan.listen(peer, path, write_min=4 * FRAME) as listener, listener.accept() as vchan:
        send_frames(vchan, frames)
    print(f"sent {frames} frames")


def watch(peer: int | str, path: str) -> None:
    with kvmchan.connect(peer, path, timeout=10) as vchan:
        began = time.perf_counter()
        count, mean = receive_frames(vchan)
        seconds = time.perf_counter() - began
    print(f"received {count} frames, mean {mean:.2f}, {count * FRAME / seconds / 1e6:.0f} MB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="send frames to the first client")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--peer", type=domain, default="host", help="the other program's domain: a number or a name")
    parser.add_argument("--path", default="data/frames")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.peer, arguments.path, arguments.frames)
    else:
        watch(arguments.peer, arguments.path)


if __name__ == "__main__":
    main()
