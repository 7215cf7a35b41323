#!/usr/bin/env python3
"""Measure the plugins side by side: ours cold, ours warm by the agent, and the Go plugins; all in turns in one run.

Root is needed. Whatever else the machine does falls on all alike, so read the ratios first. The executables are built
aside, with an agent of their own; nothing installed is touched.

    bench/plugins.py --rounds 50 --at-once 1,10,50,100 --plot docs/plugins-concurrency.svg
    bench/plugins.py --go '1.1.1=/usr/lib/cni' --go '1.9.1=/opt/newer/cni'

Each pod is a netns, each device one end of a veth; an ADD of host-device moves it, with an address or without. Nothing
here asserts a time: docs/performance.md shows what a run printed, with the machine named.
"""

from __future__ import annotations

import argparse
import json
import marshal
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.ipam import machine
from bench.launcher import Done, Job
from bench.plot import line_plot
from bench.plugin_lab import Agent, Ipam, built, datastores, pods
from cni.linux.netns import Netns
from cni.linux.rtnetlink import Rtnetlink

IFNAME = "net1"
GO = "Go"
STORES = ("local", "etcd", "kubernetes", "kubernetes-leases")
# How many rounds a batch of many at once has, of those that one alone has.
_SHARE_OF_ROUNDS = 10
# Until the agent has reaped its child and made another one ready, and the kernel has taken apart the netns that newer
# Go plugins make for each move: that goes on behind their end, under the locks that the next move would wait for.
_SETTLE_S = 0.25


class Launcher:
    """The small process that starts what is measured."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, "-IS", Path(__file__).with_name("launcher.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, jobs: list[Job]) -> tuple[float, list[Done]]:
        assert self._process.stdin and self._process.stdout
        marshal.dump(jobs, self._process.stdin)
        self._process.stdin.flush()
        took: tuple[float, list[Done]] = marshal.load(self._process.stdout)
        return took

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@dataclass(frozen=True)
class Way:
    """One of the columns: whose executables, and whether an agent runs them."""

    name: str
    folder: Path
    agent: Agent | None = None


@dataclass
class Sample:
    """All that was seen of one row: batches' wall times, and CPU and peak memory of each invocation."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    def add(self, wall_s: float, cpu_s: float, peak_mb: float) -> None:
        self.wall_s.append(wall_s)
        self.cpu_s.append(cpu_s)
        self.peak_mb = max(self.peak_mb, peak_mb)

    @property
    def median_ms(self) -> float:
        return 1000 * statistics.median(self.wall_s)

    @property
    def p95_ms(self) -> float:
        return 1000 * sorted(self.wall_s)[min(len(self.wall_s) * 95 // 100, len(self.wall_s) - 1)]


Row = tuple[str, str, int]  # what is configured, verb, how many at once


class Bench:
    """One run; ``samples`` is by row and way."""

    def __init__(self, ways: list[Way], chains: dict[str, Ipam | None], places: list[tuple[str, str]]) -> None:
        self.samples: dict[Row, dict[str, Sample]] = defaultdict(lambda: defaultdict(Sample))
        self.steps: Counter[str] = Counter()
        self.floor_s: list[float] = []
        self._ways = ways
        self._chains = chains
        self._places = places

    def round(self, launcher: Launcher, at_once: int) -> None:
        """Run every chain by every way once, ``at_once`` together."""
        for title, ipam in self._chains.items():
            for way in self._ways:
                if ipam and not (way.folder / str(ipam["type"])).exists():
                    continue
                for verb in ("VERSION", "ADD", "DEL") if ipam is None and at_once == 1 else ("ADD", "DEL"):
                    self._batch(launcher, way, title, ipam, verb, at_once)
        if at_once == 1:
            self.floor_s.append(self._bare_move())

    def _batch(self, launcher: Launcher, way: Way, title: str, ipam: Ipam | None, verb: str, at_once: int) -> None:
        jobs = [self._job(way, ipam, verb, place) for place in self._places[:at_once]]
        before = way.agent.cpu_s() if way.agent else 0.0
        is_stepped = way.agent and (title, verb, at_once) == ("host-local", "ADD", 1)
        steps = way.agent.steps() if way.agent and is_stepped else Counter()
        wall_s, done = launcher.run(jobs)
        for _took, _cpu, _peak, status, document in done:
            if status:
                sys.exit(f"{way.name} {title} {verb}: {document.decode()}")
        cpu_s = sum(each[1] for each in done)
        time.sleep(_SETTLE_S)
        if way.agent:
            cpu_s += way.agent.cpu_s() - before
            if is_stepped:
                self.steps += way.agent.steps() - steps
        sample = self.samples[title, verb, at_once][way.name]
        sample.add(wall_s if at_once > 1 else done[0][0], cpu_s / at_once, max(each[2] for each in done) / 1024)

    def _job(self, way: Way, ipam: Ipam | None, verb: str, place: tuple[str, str]) -> Job:
        netns, link = place
        conf = {"cniVersion": "1.0.0", "name": "bench", "type": "host-device", "device": link}
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": netns,
            "CNI_NETNS": f"/run/netns/{netns}",
            "CNI_IFNAME": IFNAME,
            "CNI_PATH": str(way.folder),
            "PATH": os.environ["PATH"],
            **({} if way.agent else {"VFERRY_AGENT": "off"}),
        }
        document = json.dumps({**conf, "ipam": ipam} if ipam else conf).encode()
        return [str(way.folder / "host-device")], environ, document

    def _bare_move(self) -> float:
        """Return the time of the kernel's part: the one message that moves the link under its new name."""
        netns, ifname = self._places[0]
        with (
            Netns.open(f"/run/netns/{netns}") as pod,
            Netns.current() as home,
            Rtnetlink() as host,
            Rtnetlink(pod) as inside,
        ):
            link = host.link_get(ifname)
            assert link is not None
            begin = time.perf_counter()
            host.link_set_netns(link.index, netns=pod, ifname=IFNAME)
            took = time.perf_counter() - begin
            moved = inside.link_get(IFNAME)
            assert moved is not None
            inside.link_set_netns(moved.index, netns=home, ifname=ifname)
        return took


def table(bench: Bench) -> str:
    """Return all rows as a table of Markdown; the wall time of many at once is until the last one is done."""
    of = list(dict.fromkeys(way for by_way in bench.samples.values() for way in by_way if way.startswith(GO)))
    lines = [
        f"| host-device and | verb | at once | by | median ms | p95 ms |{''.join(f' of {go} |' for go in of)}"
        " CPU ms each | peak MB |",
        f"|---|---|---:|---|---:|---:|{'---:|' * len(of)}---:|---:|",
    ]
    for (title, verb, at_once), by_way in bench.samples.items():
        for way, sample in by_way.items():
            ratios = (f" {sample.median_ms / by_way[go].median_ms:.2f} |" if go in by_way else " |" for go in of)
            lines.append(
                f"| {title} | {verb} | {at_once} | {way} | {sample.median_ms:.1f} | {sample.p95_ms:.1f} "
                f"|{''.join(ratios)} {1000 * statistics.mean(sample.cpu_s):.1f} | {sample.peak_mb:.0f} |"
            )
    return "\n".join(lines)


def step_table(bench: Bench, bare: Sample) -> str:
    """Return where the time of one warm ADD with host-local goes, the kernel's floor beside it."""
    sample = bench.samples["host-local", "ADD", 1].get("warm")
    count = bench.steps.pop("requests", 0)
    if sample is None or not count:
        return ""
    steps = {step: 1000 * seconds / count for step, seconds in bench.steps.items()}
    wall = 1000 * statistics.mean(sample.wall_s)
    floors = {"shim": bare.median_ms, "move": 1000 * statistics.mean(bench.floor_s)}
    steps["shim"] = wall - sum(steps.values())
    said = {
        "shim": "shim: the start of Python, the offer, the answer",
        "other": "other: configuration, record, announcement, result, the child's end",
    }
    lines = ["| step of a warm ADD with host-local | mean ms | floor ms |", "|---|---:|---:|"]
    for step in ("shim", "queue", "find", "lock", "move", "ipam", "addresses", "other"):
        lines.append(f"| {said.get(step, step)} | {steps.get(step, 0):.1f} | {floors.get(step, 0):.1f} |")
    lines.append(f"| all | {wall:.1f} | {sum(floors.values()):.1f} |")
    return "\n".join(lines)


def curves(bench: Bench) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (title, verb, at_once), by_way in bench.samples.items():
        for way, sample in by_way.items():
            if (title, verb) == ("host-local", "ADD"):
                found[way].append((at_once, sample.median_ms))
    return found


def measure(bench: Bench, launcher: Launcher, sizes: list[int], rounds: int, python: str) -> Sample:
    """Run all rounds, telling how far it is; return the starts of a bare interpreter."""
    bare, began = Sample(), time.monotonic()
    for at_once in sizes:
        number = rounds if at_once == 1 else max(1, rounds // _SHARE_OF_ROUNDS)
        for at in range(number):
            took = time.monotonic() - began
            print(f"{at_once} at once: round {at + 1} of {number}, {took:.0f} s so far", file=sys.stderr, flush=True)
            bare.add(launcher.run([([python, "-IS", "-c", "pass"], {}, b"")])[1][0][0], 0, 0)
            bench.round(launcher, at_once)
    return bare


def go_ways(given: list[str] | None) -> list[Way]:
    """Return a column for each folder with Go plugins, by the name it was given."""
    named = (each.rpartition("=") for each in given or ["/usr/lib/cni"])
    return [Way(f"{GO} {name}".strip(), Path(folder)) for name, _, folder in named]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--go", action="append", metavar="[NAME=]FOLDER", help="folders with Go plugins, by default /usr/lib/cni"
    )
    parser.add_argument("--python", default="/usr/bin/python3", help="interpreter that ours start with")
    parser.add_argument("--rounds", type=int, default=50, help="of one at once; of many at once a tenth of them")
    parser.add_argument("--at-once", default="1,10,50,100", help="how many pods, in turn")
    parser.add_argument("--stores", default=",".join(STORES), help="datastores of whereabouts, or none: ''")
    parser.add_argument("--ways", default="Go,warm,cold", help="some of them")
    parser.add_argument("--plot", type=Path, help="SVG file: time against how many at once, with host-local")
    parser.add_argument("--table", type=Path, help="Markdown file, in addition to stdout")
    given = parser.parse_args()
    sizes = [int(size) for size in given.at_once.split(",")]
    names = [name for name in given.stores.split(",") if name]
    launcher = Launcher(given.python)
    with tempfile.TemporaryDirectory(prefix="vfbench-") as folder:
        directory = Path(folder)
        with built(directory, given.python) as agent, pods(max(sizes)) as places:
            with datastores(directory, names) as stores:
                local: Ipam = {"type": "host-local", "subnet": "10.199.0.0/16", "dataDir": str(directory / "files")}
                chains = {"no address": None, "host-local": local}
                chains |= {f"whereabouts ({name})": ipam for name, ipam in stores.items()}
                ways = [*go_ways(given.go), Way("warm", agent.folder, agent), Way("cold", agent.folder)]
                wanted = given.ways.split(",")
                ways = [way for way in ways if way.name.split()[0] in wanted and way.folder.is_dir()]
                bench = Bench(ways, chains, places)
                bare = measure(bench, launcher, sizes, given.rounds, given.python)
            resident, share = agent.memory_mb()
    launcher.close()
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    parts = [
        f"{machine()}; load {load}; {given.rounds} rounds; bare interpreter {bare.median_ms:.1f} ms; "
        f"agent {resident:.0f} MB resident, {share:.0f} MB its share with spare children",
        table(bench),
        step_table(bench, bare),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    print(text)
    if given.table:
        given.table.write_text(text)
    if given.plot:
        title = "ADDs of host-device with host-local until all pods have their link"
        given.plot.write_text(line_plot(curves(bench), title=title, x="pods at once", y="ms in all"))


if __name__ == "__main__":
    main()
