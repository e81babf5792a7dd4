# SPDX-License-Identifier: LGPL-2.1-or-later
"""Give tasks to a pool of processes over vchans, and gather the results.

    python3 worker_pool.py --workers 4 --tasks 20

Tasks and results are pickled, so a worker can run any code in the parent and the other way round.
Here both are this program. Do not do this between domains that do not trust each other.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import subprocess
import sys
import threading
from dataclasses import dataclass

import kvmchan

PATH = "data/pool"
TIMEOUT = 30.0
"""Seconds that a worker may take to connect."""


@dataclass
class Task:
    """Count the primes from `first` on, below `last`."""

    first: int
    last: int

    def run(self) -> int:
        return sum(
            all(number % each for each in range(2, int(number**0.5) + 1)) for number in range(max(2, self.first), self.last)
        )


def work(path: str) -> None:
    with kvmchan.connect("host", path, timeout=TIMEOUT) as vchan, contextlib.suppress(EOFError):
        while True:
            task: Task = vchan.recv_object(trust_peer=True)
            vchan.send_object(task.run())


class Pool:
    def __init__(self, tasks: list[Task]) -> None:
        self._left: queue.SimpleQueue[Task] = queue.SimpleQueue()
        for each in tasks:
            self._left.put(each)
        self.results: list[int] = []

    def serve(self, vchan: kvmchan.Vchan) -> None:
        """Give one worker tasks until none is left."""
        with vchan:
            while True:
                try:
                    task = self._left.get_nowait()
                except queue.Empty:
                    return
                try:
                    vchan.send_object(task)
                    self.results.append(vchan.recv_object(trust_peer=True))
                except kvmchan.ChannelClosed:
                    self._left.put(task)  # for another worker
                    return


def run(workers: int, tasks: list[Task]) -> list[int]:
    pool = Pool(tasks)
    with kvmchan.listen("host", PATH) as listener:
        command = [sys.executable, __file__, "--worker", listener.path]
        processes = [subprocess.Popen(command) for _ in range(workers)]
        threads = [threading.Thread(target=pool.serve, args=(listener.accept(timeout=TIMEOUT),)) for _ in processes]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    for process in processes:
        process.wait()
    return pool.results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--worker", metavar="PATH", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return
    tasks = [Task(1000 * number, 1000 * (number + 1)) for number in range(arguments.tasks)]
    results = run(arguments.workers, tasks)
    print(f"{len(results)} tasks by {arguments.workers} workers: {sum(results)} primes below {1000 * len(tasks)}")


if __name__ == "__main__":
    main()
