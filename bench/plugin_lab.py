"""What bench/plugins.py measures on: our executables built aside with an agent of their own, pods, and datastores.

Nothing here times anything. The stores are real processes on this machine: etcd, and the API server's stand-in of
tests/stores, one process of Python, where a real one is a fast one with an etcd.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from conf.executables import COMMAND, EXECUTABLES
from tests.stores.api_server import ApiServer
from tests.stores.etcd_server import ETCD, EtcdServer, free_port

ROOT = Path(__file__).resolve().parent.parent
Ipam = dict[str, object]
_STEP = re.compile(r'vferry_step_seconds_(sum|count)\{plugin="host-device",step="(\w+)",verb="ADD"\} (\S+)')


@dataclass(frozen=True)
class Agent:
    """A running agent of the executables in ``folder``."""

    folder: Path
    pid: int
    metrics: str

    def cpu_s(self) -> float:
        """Return what it and the children that it has reaped have used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def memory_mb(self) -> tuple[float, float]:
        """Return what it has resident, and the share of it and its spare children in all memory."""
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in (self.pid, *self.children())]
        resident = re.search(r"^Rss: +(\d+)", rollups[0], re.M)
        assert resident is not None
        shares = (re.search(r"^Pss: +(\d+)", rollup, re.M) for rollup in rollups)
        return int(resident[1]) / 1024, sum(int(share[1]) for share in shares if share) / 1024

    def steps(self) -> Counter[str]:
        """Return the seconds of every step of an ADD of host-device so far, and under ``requests`` their number."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=120) as answer:
            page = answer.read().decode()
        found: Counter[str] = Counter()
        for what, step, value in _STEP.findall(page):
            if what == "sum":
                found[step] = float(value)
            elif step == "queue":
                found["requests"] = int(float(value))
        return found


@contextlib.contextmanager
def built(directory: Path, python: str) -> Iterator[Agent]:
    """Build the executables for a place of their own, and run their agent."""
    folder, socket = directory / "bin", directory / "agent.sock"
    places = ("--output", folder, "--runtime-dir", directory / "runtime", "--agent-socket", socket)
    build = [_builder(python), ROOT / "zipapp/build.py", "--python", python, *places]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    for name in EXECUTABLES:
        (folder / name).unlink(missing_ok=True)
        (folder / name).hardlink_to(folder / COMMAND)
    metrics = f"127.0.0.1:{free_port()}"
    command = [folder / COMMAND, "agent", "--metrics", metrics]
    with (directory / "agent.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: socket.exists() or process.poll() is not None)
            if process.poll() is not None:
                sys.exit((directory / "agent.log").read_text())
            yield Agent(folder, process.pid, metrics)
        finally:
            process.terminate()


def _builder(python: str) -> Path:
    """Return the interpreter that has exactly the libraries of the lock; ours has the newest ones there are."""
    # As the contract tests do: what else it makes is made once, and stays.
    place = ROOT / "build" / "contract"
    command = [ROOT / "scripts/install-binaries.sh", f"--python={python}", f"--dest={place}/bin"]
    subprocess.run([*command, f"--runtime-dir={place}/runtime"], check=True, stdout=subprocess.DEVNULL)
    tell = "import importlib.machinery; print(importlib.machinery.EXTENSION_SUFFIXES[0].strip('.').removesuffix('.so'))"
    tag = subprocess.run([python, "-I", "-c", tell], check=True, capture_output=True, text=True).stdout.strip()
    return ROOT / "build" / f"venv-{tag}" / "bin" / "python"


def wait_until(is_true: Callable[[], object], patience_s: float = 300) -> None:
    until = time.monotonic() + patience_s
    while not is_true() and time.monotonic() < until:
        time.sleep(0.01)


@contextlib.contextmanager
def pods(count: int) -> Iterator[list[tuple[str, str]]]:
    """Make so many netns, each with a veth on the host that is to be its pod's; yield (netns, link)."""
    # With our pid: another run beside this one has links of its own. An ifname has 15 bytes.
    made = [(f"vfbench{os.getpid()}-{at}", f"vb{os.getpid()}h{at}") for at in range(count)]
    others = [f"vb{os.getpid()}p{at}" for at in range(count)]
    _ip(*(f"netns add {netns}" for netns, _link in made))
    try:
        for (_netns, link), other in zip(made, others, strict=True):
            _ip(f"link add {link} type veth peer name {other}", f"link set {other} up")
        yield made
    finally:
        _ip(*(f"netns del {netns}" for netns, _link in made), force=True)
        _ip(*(f"link del {other}" for other in others), force=True)


def _ip(*lines: str, force: bool = False) -> None:
    command = ["ip", *(["-force"] if force else []), "-batch", "-"]
    subprocess.run(
        command, input="\n".join(lines), text=True, check=not force, stderr=subprocess.DEVNULL if force else None
    )


@contextlib.contextmanager
def datastores(directory: Path, names: list[str]) -> Iterator[dict[str, Ipam]]:
    """Run what the named datastores of whereabouts need, and yield the ``ipam`` object of each."""
    common: Ipam = {"type": "whereabouts", "range": "10.200.0.0/16"}
    with contextlib.ExitStack() as running:
        found: dict[str, Ipam] = {}
        if "local" in names:
            found["local"] = {**common, "datastore": "local", "dataDir": str(directory / "local")}
        if "etcd" in names and ETCD:
            (directory / "etcd").mkdir()
            server = EtcdServer(directory / "etcd").start()
            running.callback(server.stop)
            found["etcd"] = {**common, "datastore": "etcd", "etcd": {"endpoints": [server.url]}}
        if {"kubernetes", "kubernetes-leases"} & set(names):
            (directory / "kubernetes").mkdir()
            api = running.enter_context(ApiServer(directory / "kubernetes"))
            for name in ("kubernetes", "kubernetes-leases"):
                found[name] = {**common, "datastore": name, "kubernetes": {"kubeconfig": str(api.kubeconfig)}}
        yield {name: found[name] for name in names if name in found}
