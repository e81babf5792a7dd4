# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs in a test's guest as its first process: starts programs for the test, over a
virtio-serial port.

Lines of JSON. From the test: {"start": id, "argv", "env"}, {"input": id, "text"}, {"eof": id},
{"kill": id, "signal"}, and {"reboot": "reset" | "off" | "crash"}. To the test: {"ready": true},
{"line": text, "id"} for each line that a program writes to stdout or stderr, {"status": s, "id"}
when it has ended (negative: by that signal).
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import subprocess
import sys
from pathlib import Path

PORT = "kvmchan.agent"
REBOOT = {"reset": 0x01234567, "off": 0x4321FEDC}


class Agent:
    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._partial: dict[int, bytes] = {}
        self._heard = b""

    def say(self, **message: object) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._port, data) :]

    def run(self) -> None:
        self._selector.register(self._port, selectors.EVENT_READ, self._hear)
        self.say(ready=True)
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _hear(self) -> None:
        data = os.read(self._port, 65536)
        if not data:
            os._exit(0)  # the port is gone; the kernel panics, and with it the guest ends
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, order: dict[str, object]) -> None:
        match order:
            case {"start": int(number), "argv": list(argv), "env": dict(env)}:
                self._start(number, argv, env)
            case {"input": int(number), "text": str(text)}:
                stdin = self._processes[number].stdin
                assert stdin
                stdin.write(text.encode())
                stdin.flush()
            case {"eof": int(number)}:
                stdin = self._processes[number].stdin
                assert stdin
                stdin.close()
            case {"kill": int(number), "signal": int(signal)}:
                if number in self._processes:
                    self._processes[number].send_signal(signal)
            case {"reboot": "crash"}:
                Path("/proc/sys/kernel/sysrq").write_text("1")
                Path("/proc/sysrq-trigger").write_text("c")
            case {"reboot": str(how)}:
                ctypes.CDLL(None).reboot(REBOOT[how])

    def _start(self, number: int, argv: list[str], env: dict[str, str]) -> None:
        try:
            process = subprocess.Popen(
                argv, env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            self.say(id=number, line=str(error))
            self.say(id=number, status=127)
            return
        self._processes[number] = process
        assert process.stdout
        fd = process.stdout.fileno()
        os.set_blocking(fd, False)
        self._partial[number] = b""
        self._selector.register(fd, selectors.EVENT_READ, lambda: self._pass_on(number, fd))

    def _pass_on(self, number: int, fd: int) -> None:
        data = os.read(fd, 65536)
        *lines, self._partial[number] = (self._partial[number] + data).split(b"\n")
        if not data and self._partial[number]:
            lines.append(self._partial[number])
        for line in lines:
            self.say(id=number, line=line.decode(errors="replace"))
        if data:
            return
        self._selector.unregister(fd)
        process = self._processes.pop(number)
        process.stdin.close() if process.stdin else None
        process.stdout.close() if process.stdout else None
        self.say(id=number, status=process.wait())


def main() -> None:
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.environ["HOME"] = "/tmp"
    for folder in Path("/sys/class/virtio-ports").iterdir():
        if (folder / "name").read_text().strip() == PORT:
            Agent(os.open(f"/dev/{folder.name}", os.O_RDWR)).run()
    sys.exit(f"no port {PORT}")


if __name__ == "__main__":
    main()
