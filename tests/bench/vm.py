# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measures vchans across a guest's border beside a virtio-serial port of the same guest, and writes
docs/benchmarks-vm.md.

Guests run by TCG, as in the tests. Each figure is of one machine's clock: the receiver's of a
stream, that of the end which asks of round trips, the server's of how long a channel takes from
server_init to the first byte that comes over it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "py"))

from report import KIB, Report, private, pss, ratio, spread
from rig.deadline import eventually, in_time
from rig.libvirtd import PrivateLibvirtd, lacking
from rig.machine import Machine, Program
from rig.network import HostProgram, Network
from rig.paths import C_BUILD, ROOT
from rig.processes import children

PROGRAM = C_BUILD / "benchvm"
RING = 1 << 19
CALL = 64 * KIB
STREAM = {"vchan": 8192, "port": 256}
"""Calls of each run: what takes a good part of a second."""
TRIPS = 300
DEADLINE = 600.0
"""Seconds for a run of each, not counting those in which it waits for a processor."""
CHANNELS, TENTH = 2000, 10
"""How many channels a link gets, and with which of them the last is compared."""
AROUND = 9
"""Channels whose median stands for one."""
FIRSTS = 3
LEAST_RATE, MOST_TRIP, MOST_NEXT_MS, MOST_GROWTH, MOST_FIRST_MS, MOST_GUEST_KIB = 5.0, 0.1, 15.0, 1.5, 1500.0, 4 * KIB
WHY = {
    "guest → host, 64 KiB calls": (
        "a guest without KVM copies by emulated SSE instructions, and the memcpy beside it is the limit of what a program there "
        "can put into any memory; the port's copy is the kernel's, by rep movsq, which is emulated twice as fast."
    ),
}


class End:
    """One end of benchvm, on the host or in a guest."""

    def __init__(self, network: Network, machine: Machine | None, other: Machine | None, port: str = "", *, serves: bool) -> None:
        self.where = "host" if machine is None else "guest"
        words = ["server" if serves else "client", str(network.domain_of(machine)), str(network.domain_of(other)), str(RING)]
        self._program: HostProgram | Program = network.run_on(machine, PROGRAM, *words, *([port] if port else []))
        self._program.wait_line("ready")

    def tell(self, line: str) -> None:
        self._program.write(line + "\n")

    def answer(self, to: str) -> list[int]:
        """The numbers in the line that begins so."""
        line = self._program.wait_line(to)
        return [int(word) for word in line.removeprefix(to).split() if word.isdecimal()]

    def end(self) -> None:
        self._program.end_input()
        self._program.wait()


Measures = dict[str, tuple[tuple[End, str], tuple[End, str]]]
"""By what carries the bytes: who is asked for a figure, and what the other end does."""


class Pair:
    """Two ends with a vchan between them, and a port where one is a guest's.

    `took`: nanoseconds from before server_init to the first byte.
    """

    _orders = 0

    def __init__(
        self, network: Network, server: Machine | None, client: Machine | None, ports: tuple[str, str] = ("", "")
    ) -> None:
        self.server = End(network, server, client, ports[0], serves=True)
        self.client = End(network, client, server, ports[1], serves=False)
        self.server.tell("")
        self.server.answer("offered")
        self.client.tell("")
        (self.took,) = self.server.answer("open")
        self.client.answer("open")

    def run(self, asked: tuple[End, str], other: tuple[End, str]) -> list[int]:
        """What `asked` answers, while `other` does its part."""
        Pair._orders += 1
        for end, order in (other, asked):
            end.tell(f"{Pair._orders} {order}")
        figures = asked[0].answer(f"#{Pair._orders} ")
        other[0].answer(f"#{Pair._orders} ")
        return figures

    def end(self) -> None:
        for each in (self.client, self.server):
            each.end()


@dataclass(frozen=True, slots=True)
class Memory:
    """KiB that the host's daemon uses. `devices`: of the memory that it shares with guests."""

    pss: int
    private: int
    devices: int

    def __str__(self) -> str:
        return f"{self.pss} PSS, {self.private} private, {self.devices} of devices"


class Bench:
    def __init__(self, network: Network, report: Report, pairs: int) -> None:
        self._network = network
        self._report = report
        self._pairs = pairs

    def _alternate(self, measure: Measures, pair: Pair) -> dict[str, list[float]]:
        taken: dict[str, list[float]] = {by: [] for by in measure}
        for turn in range(self._pairs):
            for by in list(measure) if turn % 2 == 0 else reversed(list(measure)):
                (figure,) = pair.run(*measure[by])
                taken[by].append(float(figure))
        return taken

    def stream(self, pair: Pair, sender: End, receiver: End) -> None:
        measures: Measures = {}
        for by, count in STREAM.items():
            rest = f"{by} {CALL} {count}"
            measures[by] = (receiver, f"receive {rest}"), (sender, f"send {rest}")
        rates = self._alternate(measures, pair)
        got = ratio(rates["vchan"], rates["port"])
        rates["memcpy in the guest"] = self._copies(pair)
        figures = ", ".join(f"{by} {spread([each / 1e6 for each in rates[by]])}" for by in rates)
        self._report.add(
            f"{sender.where} → {receiver.where}, 64 KiB calls",
            f"≥ {LEAST_RATE:.0f} × virtio-serial's rate",
            f"{got:.1f} ×",
            got >= LEAST_RATE,
            f"MB/s: {figures}",
        )

    def _copies(self, pair: Pair) -> list[float]:
        """What a program in the guest does with a call at the least."""
        order = f"copy {CALL} {STREAM['vchan']}"
        return [float(pair.run((pair.client, order), (pair.server, order))[0]) for _ in range(self._pairs)]

    def round_trip(self, pair: Pair, asking: End, answering: End) -> None:
        times = self._alternate(
            {by: ((asking, f"ping {by} 64 {TRIPS}"), (answering, f"echo {by} 64 {TRIPS}")) for by in STREAM}, pair
        )
        got = ratio(times["vchan"], times["port"])
        figures = ", ".join(f"{by} {spread([each / 1e3 for each in times[by]])}" for by in times)
        self._report.add(
            f"round trip 64 B, asked by the {asking.where}",
            f"≤ {MOST_TRIP} × virtio-serial's time",
            f"{got:.2f} ×",
            got <= MOST_TRIP,
            f"µs: {figures}",
        )

    def next_channels(self, pair: Pair, server: End, client: End) -> None:
        figures = [each / 1e6 for each in pair.run((server, f"offer {CHANNELS}"), (client, f"join {CHANNELS}"))]
        first, last = figures[TENTH - 1 :][:AROUND], figures[-AROUND:]
        got = statistics.median(figures)
        self._report.add(
            f"next channel of a link, the {server.where} its server",
            f"≤ {MOST_NEXT_MS:.0f} ms",
            f"{got:.1f} ms",
            got <= MOST_NEXT_MS,
            f"ms: {spread(figures)}",
        )
        growth = statistics.median(last) / statistics.median(first)
        self._report.add(
            f"the {CHANNELS}th channel of a link at once, the {server.where} its server",
            f"≤ {MOST_GROWTH} × the {TENTH}th's time",
            f"{growth:.2f} ×",
            growth <= MOST_GROWTH,
            f"ms: {spread(last)}, the {TENTH}th {spread(first)}",
        )

    def first_channels(self, figures: list[float]) -> None:
        got = statistics.median(figures)
        self._report.add(
            "first channel of two guests",
            f"≤ {MOST_FIRST_MS / 1e3:.1f} s",
            f"{got / 1e3:.2f} s",
            got <= MOST_FIRST_MS,
            f"ms: {spread(figures)}",
        )

    def memory(self, without: Memory, with_guests: Memory, guests: int) -> None:
        # The more other Pythons run, the less of what they share is ours in PSS: that is no guest's
        # doing.
        grown = max(with_guests.pss - without.pss, with_guests.private - without.private)
        each = (grown + with_guests.devices - without.devices) / guests
        self._report.add(
            "the host daemon's memory (PSS) for an idle guest",
            f"≤ {MOST_GUEST_KIB / KIB:.0f} MiB",
            f"{each / KIB:.2f} MiB",
            each <= MOST_GUEST_KIB,
            f"KiB of all its processes: {without} without a guest, {with_guests} with {guests}; counted is what grew more of the "
            "first two, and the devices'",
        )


def daemon_memory(network: Network) -> Memory:
    """Of all the host's daemon's processes, which are at rest: they have answered a request, and
    found libvirt.
    """
    network.guests()
    eventually(lambda: "connected to libvirt" in network.daemon.log(), network.daemon.log)
    main = network.daemon.pid
    pids = [main, *children(main)]
    return Memory(sum(map(pss, pids)), sum(map(private, pids)), devices_memory(main))


def devices_memory(main: int) -> int:
    """KiB of the devices that are in use.

    The daemon maps none of it, so it is in nobody's PSS but QEMU's.
    """
    held = [each for each in Path(f"/proc/{main}/fd").iterdir() if str(each.readlink()).startswith("/memfd:kvmchan ")]
    return sum(each.stat().st_blocks * 512 for each in held) // KIB


def measure(network: Network, folder: Path, report: Report, pairs: int) -> None:
    bench = Bench(network, report, pairs)
    one, two = network.machines
    network.start_host()
    without = daemon_memory(network)
    network.start_guests(one, two)
    bench.memory(without, daemon_memory(network), 2)
    firsts = []
    for turn in range(FIRSTS):
        if turn:  # their link went with the second guest
            two.destroy()
            network.start_guests(two)
        pair = Pair(network, one, two)
        firsts.append(pair.took / 1e6)
        pair.end()
    bench.first_channels(firsts)
    two.destroy()  # what it would do costs the others processor time
    pair = Pair(network, None, one, (str(folder / "one.port"), "kvmchan.bench"))
    host, guest = pair.server, pair.client
    bench.stream(pair, host, guest)
    bench.stream(pair, guest, host)
    bench.round_trip(pair, host, guest)
    bench.round_trip(pair, guest, host)
    bench.next_channels(pair, host, guest)
    bench.next_channels(pair, guest, host)
    pair.end()


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench vm", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=9, help="runs of each (default 9)")
    arguments = parser.parse_args()
    if lacking():
        sys.exit(f"guests can't run: {lacking()}")
    explanation = [
        f"Guests by TCG (no KVM here) with 2 processors on the host's 2; {arguments.pairs} runs of each in turn, a ratio is the",
        "median of the ratios of runs beside each other. The port is a virtio-serial port of the same guest, a UNIX socket on",
        "the host.",
    ]
    report = Report(ROOT / "docs" / "benchmarks-vm.md", "Benchmarks with guests", "./run bench vm", explanation, WHY)
    with tempfile.TemporaryDirectory(prefix="kvmchan-vm-") as name:
        libvirtd = PrivateLibvirtd(Path(name) / "lv")
        network = Network(libvirtd, Path(name))
        try:
            with in_time(DEADLINE * arguments.pairs, "the benchmark"):
                libvirtd.start()
                measure(network, Path(name), report, arguments.pairs)
                network.stop()
        finally:
            network.kill()
            libvirtd.stop()
    report.write()


if __name__ == "__main__":
    main()
