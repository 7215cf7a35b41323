#!/usr/bin/env python3
"""Measure where the CPU time of a cold ADD goes: the interpreter, what it imports, by whose it is, and the ADD itself.

Root is needed. The executables are built aside, unless --folder has some; nothing installed is touched. The ADD is one
of host-device with host-local, into a netns; every round has one as it is, for the whole, and one by ``-X importtime``,
for the modules.

    bench/cold.py --rounds 20

Telling of each module takes time too, which is then in the modules' lines: the second ADD is longer than the first, and
what is left for the ADD itself shorter. Modules are told of by the clock, so each line is the least of all rounds: take
enough of them on a machine that does something else. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.ipam import machine
from bench.plugin_lab import built, pods
from bench.plugins import Launcher

# Top-level modules -> whose they are; what is in none of them and not the standard library's is the last one's.
GROUPS = {
    "pydantic": {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"},
    "netaddr": {"netaddr"},
    "pyroute2": {"pyroute2"},
    "ours": {"cni", "conf", "ipam", "__main__"},
}
LIBRARY, OTHERS = "standard library", "others"
# CPython, Python/import.c: what of its own a module took, what with those it imported, its name.
_LINE = re.compile(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", re.M)


def group_of(module: str) -> str:
    """Return whose a module is."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return LIBRARY
    return next((name for name, tops in GROUPS.items() if top in tops), OTHERS)


def imports(words: list[str], environ: dict[str, str], document: bytes) -> dict[str, float]:
    """Run a program of Python with ``-X importtime``; return what each of its modules took, in ms."""
    python, *rest = words
    done = subprocess.run(
        [python, "-IS", "-X", "importtime", *rest], env=environ, input=document, capture_output=True, check=False
    )
    if done.returncode:
        sys.exit((done.stdout + done.stderr).decode())
    return {name: int(micros) / 1000 for micros, name in _LINE.findall(done.stderr.decode())}


class Bench:
    """One run: samples in ms by what took them."""

    def __init__(self, launcher: Launcher, executable: Path, place: tuple[str, str], data: Path) -> None:
        netns, link = place
        self._launcher = launcher
        with executable.open("rb") as file:
            self._python = file.readline()[2:].split()[0].decode()
        self._executable = str(executable)
        self._environ = {
            "CNI_CONTAINERID": netns,
            "CNI_NETNS": f"/run/netns/{netns}",
            "CNI_IFNAME": "net1",
            "CNI_PATH": str(executable.parent),
            "VFERRY_AGENT": "off",
        }
        ipam = {"type": "host-local", "subnet": "10.199.0.0/16", "dataDir": str(data)}
        conf = {"cniVersion": "1.0.0", "name": "bench", "type": "host-device", "device": link, "ipam": ipam}
        self._document = json.dumps(conf).encode()
        self.wall: list[float] = []
        self.whole: list[float] = []
        self.bare: list[float] = []
        self.groups: list[Counter[str]] = []
        self.modules: dict[str, float] = {}

    def round(self) -> None:
        """Run the interpreter alone, an ADD as it is, and one that tells of its modules."""
        self.bare.append(self._timed([self._python, "-IS", "-c", "pass"], "VERSION")[1])
        # What these import, the interpreter's own start does: it is in its line.
        own = imports([self._python, "-c", "pass"], {}, b"")
        took, cpu = self._timed([self._executable], "ADD")
        self.wall.append(took)
        self.whole.append(cpu)
        self._timed([self._executable], "DEL")
        modules = imports([self._python, self._executable], self._environ | {"CNI_COMMAND": "ADD"}, self._document)
        self._timed([self._executable], "DEL")
        groups: Counter[str] = Counter()
        for module, milliseconds in modules.items():
            if module not in own:
                groups[group_of(module)] += milliseconds
                self.modules[module] = min(milliseconds, self.modules.get(module, milliseconds))
        self.groups.append(groups)

    def _timed(self, words: list[str], verb: str) -> tuple[float, float]:
        _wall, ((took, cpu, _peak, status, document),) = self._launcher.run(
            [(words, self._environ | {"CNI_COMMAND": verb}, self._document)]
        )
        if status:
            sys.exit(f"{verb}: {document.decode()}")
        return 1000 * took, 1000 * cpu


def table(bench: Bench) -> str:
    """Return the split as a table of Markdown."""
    whole = min(bench.whole)
    parts = {"interpreter": min(bench.bare)}
    for name in (LIBRARY, *GROUPS, OTHERS):
        parts[name] = min(each[name] for each in bench.groups)
    parts["the ADD itself"] = whole - sum(parts.values())
    lines = ["| part of a cold ADD | CPU ms | of all |", "|---|---:|---:|"]
    lines += [f"| {name} | {took:.1f} | {took / whole:.0%} |" for name, took in parts.items() if took]
    lines.append(f"| all | {whole:.1f} | 100% |")
    slowest = [f"`{name}` {took:.1f}" for name, took in Counter(bench.modules).most_common(8)]
    return "\n".join([*lines, "", f"The slowest modules, ms of their own: {', '.join(slowest)}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="/usr/bin/python3", help="interpreter to build them for")
    parser.add_argument("--folder", type=Path, help="executables that are there, such as those in /opt/cni/bin")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    launcher = Launcher(given.python)
    with tempfile.TemporaryDirectory(prefix="vfcold-") as temporary, pods(1) as (place,), ExitStack() as running:
        directory = Path(temporary)
        folder = given.folder or running.enter_context(built(directory, given.python)).folder
        bench = Bench(launcher, folder / "host-device", place, directory / "files")
        bench.round()  # unpacks the libraries
        bench = Bench(launcher, folder / "host-device", place, directory / "files")
        for _ in range(given.rounds):
            bench.round()
    launcher.close()
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    wall = statistics.median(bench.wall)
    print(f"{machine()}; load {load}; {given.rounds} rounds; an ADD took {wall:.1f} ms (median)\n\n{table(bench)}")


if __name__ == "__main__":
    main()
