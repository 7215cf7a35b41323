#!/usr/bin/env python3
"""Measure how long ADDs take when many nodes ask one datastore at once, and what they cost; no address is given twice.

A node is a process; its networks are reserved one after the other, as Multus does for a pod, each by a store opened
for it alone and so over a connection of its own. The start of an interpreter is not in the times: bench/plugins.py
measures it. Stores are real processes on this machine, which share its cores with the nodes.

    bench/ipam.py --nodes 128 --networks 16
    bench/ipam.py --curve 1,2,4,8,16,32,64,128,256,512 --plot build/ipam.svg
    bench/ipam.py --full                         # one ADD alone, in ranges wide, narrow, and with 60,000 leases
    bench/ipam.py --report build/ipam            # all of these, and the plot
    bench/ipam.py --stores kubernetes --server KUBECONFIG   # not at the stand-in: see tests/stores/outside_server.py

Nothing here asserts a time: docs/performance.md shows what a run printed, with the machine named.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from threading import BrokenBarrierError
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from netaddr import IPNetwork

import bench.full
import ipam.stores.kubernetes
import ipam.stores.kubernetes_leases
from bench.full import Cost, Fill, rows
from bench.plot import line_plot
from conf.etcd import Etcd
from ipam.ranges import Range
from ipam.stores.contract import Deadline, Owner, Pool, Store, Want
from ipam.stores.etcd import EtcdStore
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes import KubernetesStore
from ipam.stores.kubernetes_api import KubernetesApi
from ipam.stores.kubernetes_leases import KubernetesLeasesStore
from ipam.stores.local import LocalStore
from tests.stores.api_server import ApiServer
from tests.stores.etcd_server import EtcdServer
from tests.stores.filling import fill_etcd, fill_ipleases, fill_ippool, fill_local
from tests.stores.outside_server import InUse, OutsideServer

DEADLINE_S = 240.0
CURVE = "1,2,4,8,16,32,64,100,128,256,512"
OpenStore = Callable[[str], Store]


@dataclass(frozen=True)
class Lab:
    """One datastore: opened by each node, and filled past the store, up to ``most`` addresses of one range."""

    open: OpenStore
    fill: Fill
    most: int = 60_000


MakeLab = Callable[[Path], contextlib.AbstractContextManager[Lab]]
MakeServer = Callable[[Path], contextlib.AbstractContextManager[ApiServer | OutsideServer]]


@contextlib.contextmanager
def local(directory: Path) -> Iterator[Lab]:
    """The local store; all nodes are this host."""
    data = directory / "data"
    yield Lab(
        lambda node: LocalStore(data, deadline=Deadline(DEADLINE_S), cooldown_s=60),
        lambda pool, values: fill_local(data, pool, values),
    )


@contextlib.contextmanager
def etcd(directory: Path) -> Iterator[Lab]:
    """One etcd, its data on the disk under the temporary directory."""
    server = EtcdServer(directory).start()
    conf = Etcd(endpoints=[server.url])
    try:
        yield Lab(
            lambda node: EtcdStore(
                conf, deadline=Deadline(DEADLINE_S), cooldown_s=60, scratch=directory / "run" / node
            ),
            lambda pool, values: fill_etcd(server, conf.prefix, pool, values),
        )
    finally:
        server.stop()


def kubernetes(
    api_server: MakeServer,
    make: type[KubernetesStore | KubernetesLeasesStore],
    module: ModuleType,
    fill: Any,
    most: int,
) -> MakeLab:
    """A store at an API server, as whom its kubeconfig says."""

    @contextlib.contextmanager
    def lab(directory: Path) -> Iterator[Lab]:
        with api_server(directory) as server:
            kubeconfig = str(server.kubeconfig)
            yield Lab(
                lambda node: open_node(kubeconfig, directory / "run" / node),
                lambda pool, values: fill(kubeconfig, pool, values),
                most,
            )

    def open_node(kubeconfig: str, run: Path) -> Store:
        deadline = Deadline(DEADLINE_S)
        run.mkdir(parents=True, exist_ok=True)
        return make(
            lambda: KubernetesApi(find_access(kubeconfig), deadline=deadline, crds=module.CRDS, rbac=module.RBAC),
            deadline=deadline,
            cooldown_s=60,
            scratch=run / "stores",
            journals=run / "owners",
        )

    return lab


@contextlib.contextmanager
def on_one_node(make_lab: MakeLab, directory: Path) -> Iterator[Lab]:
    """The same store, opened by many processes of one node, which share its files of hints and locks."""
    with make_lab(directory) as lab:
        yield replace(lab, open=lambda node: lab.open("node"))


def labs(api_server: MakeServer) -> dict[str, MakeLab]:
    """Return every store; one joins by one line here, and counts its calls in an attribute ``gateway`` or ``api``."""
    return {
        "etcd": etcd,
        # All leases of a range are one object, of 1.5 MB at most.
        "kubernetes": kubernetes(api_server, KubernetesStore, ipam.stores.kubernetes, fill_ippool, 6_000),
        "kubernetes-leases": kubernetes(
            api_server, KubernetesLeasesStore, ipam.stores.kubernetes_leases, fill_ipleases, 60_000
        ),
        "local": local,
    }


# The stand-in of tests/stores is one process of Python, where an API server is a fast one with an etcd.
STORES = labs(ApiServer)


def measured(open_store: OpenStore, node: str, use: Callable[[Store], object]) -> tuple[Cost, object]:
    """Open a store, use it and close it, as one invocation does."""
    begin = time.perf_counter()
    with open_store(node) as store:
        returned = use(store)
    took_s = time.perf_counter() - begin
    gateway = getattr(store, "gateway", None) or getattr(store, "api", None)
    if gateway is None:
        return Cost(took_s), returned
    return Cost(took_s, gateway.calls, gateway.sent_bytes, gateway.received_bytes), returned


def run_node(number: int, open_store: OpenStore, pools: list[Pool], barrier: Any, results: Any) -> None:
    """Put what one node measured; or what it failed with, and then nobody waits for it."""
    try:
        results.put(node_outcome(number, open_store, pools, barrier))
    except BrokenBarrierError:
        pass  # the one that failed tells
    except Exception as error:
        barrier.abort()
        results.put(f"node{number} failed: {type(error).__name__}: {error}")


def node_outcome(number: int, open_store: OpenStore, pools: list[Pool], barrier: Any) -> tuple[Any, ...]:
    """Reserve one address in every network, then release them."""
    node = f"node{number}"
    added, removed, addresses, moments = [], [], [], []
    barrier.wait()
    moments.append(time.perf_counter())
    for at, pool in enumerate(pools):
        owner = Owner(f"pod-{number}", f"net{at + 1}", node=node)
        cost, leases = measured(
            open_store, node, lambda store, o=owner, p=pool: store.reserve(o, [Want(p)], allocation=store.allocation)
        )
        added.append(cost)
        addresses += [(lease.space, str(lease.address)) for lease in leases]
    moments.append(time.perf_counter())
    barrier.wait()
    moments.append(time.perf_counter())
    for at in range(len(pools)):
        owner = Owner(f"pod-{number}", f"net{at + 1}", node=node)
        removed.append(measured(open_store, node, lambda store, o=owner: store.release(o))[0])
    moments.append(time.perf_counter())
    return added, removed, addresses, moments


@dataclass(frozen=True)
class Outcome:
    """All ADDs and DELs of one run."""

    added: list[Cost]
    removed: list[Cost]
    add_wall_s: float
    del_wall_s: float


def run(open_store: OpenStore, nodes: int, networks: int, *, prefix: int) -> Outcome:
    """Let all nodes begin together; exits when an address was given twice."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(nodes), context.Queue()
    pools = [Pool(f"rail{at}", Range.of(IPNetwork(f"10.{at}.0.0/{prefix}"))) for at in range(networks)]
    processes = [
        context.Process(target=run_node, args=(number, open_store, pools, barrier, results)) for number in range(nodes)
    ]
    for process in processes:
        process.start()
    collected = []
    for _ in processes:
        collected.append(outcome := results.get())
        if isinstance(outcome, str):
            # The others have their deadline to end, but what they would measure is worth nothing.
            for process in processes:
                process.kill()
            sys.exit(outcome)
    for process in processes:
        process.join()
    every_added, every_removed, every_address, moments = zip(*collected, strict=True)
    addresses = list(chain.from_iterable(every_address))
    if len(set(addresses)) != nodes * networks:
        sys.exit(f"{len(addresses)} addresses were given, of which only {len(set(addresses))} are different")
    # One clock for all processes of a machine: from the first that began to the last that ended.
    add_begun, add_ended, del_begun, del_ended = zip(*moments, strict=True)
    return Outcome(
        list(chain.from_iterable(every_added)),
        list(chain.from_iterable(every_removed)),
        max(add_ended) - min(add_begun),
        max(del_ended) - min(del_begun),
    )


def percentile_ms(costs: list[Cost], percent: int) -> float:
    """Return a percentile of the times."""
    times = sorted(cost.took_s for cost in costs)
    return 1000 * times[min(len(times) * percent // 100, len(times) - 1)]


def row(store: str, verb: str, costs: list[Cost], wall_s: float) -> str:
    """Return one line of the table; retries are the calls beyond those of the cheapest one."""
    calls = [cost.calls for cost in costs]
    times = " ".join(f"{percentile_ms(costs, percent):8.1f}" for percent in (50, 95, 99))
    sent, received = (statistics.mean(getattr(cost, f"{way}_bytes") for cost in costs) for way in ("sent", "received"))
    return (
        f"{store:<18} {verb} {len(costs):6} {wall_s:8.2f} {len(costs) / wall_s:7.0f} {times} "
        f"{statistics.mean(calls):6.2f} {max(calls):4} {sum(calls) - min(calls) * len(calls):7} "
        f"{sent:7.0f} {received:7.0f}"
    )


HEADING = (
    f"{'store':<18} {'':3} {'number':>6} {'wall s':>8} {'per s':>7} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} "
    f"{'calls':>6} {'max':>4} {'retries':>7} {'B sent':>7} {'B recv':>7}"
)


def machine() -> str:
    """Name the machine as far as it says."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{os.cpu_count()} x {model}, {platform.platform()}, Python {platform.python_version()}"


def run_full(name: str, make_lab: MakeLab, *, rounds: int, taken: int) -> None:
    """Print what one ADD costs alone."""
    with tempfile.TemporaryDirectory() as directory, make_lab(Path(directory)) as lab:

        def add(node: str, owner: str, pool: Pool) -> Cost:
            holder = Owner(owner, "net1", node=node)
            return measured(
                lab.open, node, lambda store: store.reserve(holder, [Want(pool)], allocation=store.allocation)
            )[0]

        for line in rows(name, add, lab.fill, taken=min(lab.most, taken), rounds=rounds):
            print(line, flush=True)


def run_crowd(name: str, make_lab: MakeLab, nodes: int, networks: int, *, prefix: int) -> float:
    """Print what many ADDs at once cost, and return their seconds in all."""
    with tempfile.TemporaryDirectory() as directory, make_lab(Path(directory)) as lab:
        outcome = run(lab.open, nodes, networks, prefix=prefix)
    print(row(name, "ADD", outcome.added, outcome.add_wall_s))
    print(row(name, "DEL", outcome.removed, outcome.del_wall_s), flush=True)
    return outcome.add_wall_s


def run_curve(stores: dict[str, MakeLab], sizes: list[int], *, prefix: int, plot: Path | None) -> None:
    """Print what more and more ADDs at once cost, and draw it."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, make_lab in stores.items():
        curves[name] = [(size, 1000 * run_crowd(name, make_lab, size, 1, prefix=prefix)) for size in sizes]
    if plot:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_text(
            line_plot(curves, title="Concurrent ADDs until all have an address", x="ADDs at once", y="ms in all")
        )


def said(what: str, heading: str) -> None:
    """Print a heading, and how busy the machine is."""
    print(f"\n# {what}; load {os.getloadavg()[0]:.1f}\n{heading}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", default=",".join(STORES), help=f"some of {', '.join(STORES)}")
    parser.add_argument(
        "--server", default="", metavar="KUBECONFIG", help="an administrator's of an API server with no leases"
    )
    parser.add_argument("--nodes", type=int, default=128)
    parser.add_argument("--networks", type=int, default=16)
    parser.add_argument("--prefix", type=int, default=20, help="prefix length of every network's range")
    parser.add_argument("--curve", default="", help="numbers of nodes to run in turn, of one network each")
    parser.add_argument("--one-node", action="store_true", help="all are processes of one node, as its pods' ADDs are")
    parser.add_argument("--plot", type=Path, help="SVG file for the curve")
    parser.add_argument("--full", action="store_true", help="one ADD alone, in empty, wide and nearly full ranges")
    parser.add_argument("--rounds", type=int, default=25, help="how often, with --full")
    parser.add_argument("--taken", type=int, default=60_000, help="so many leases at most in the full one")
    parser.add_argument("--report", type=Path, metavar="DIR", help="all of it, with the plot in DIR")
    arguments = parser.parse_args()
    made = labs(partial(OutsideServer, admin=arguments.server)) if arguments.server else STORES
    stores = {name: made[name] for name in arguments.stores.split(",")}
    if arguments.one_node:
        stores = {name: partial(on_one_node, make_lab) for name, make_lab in stores.items()}
    sizes = [int(size) for size in (arguments.curve or (CURVE if arguments.report else "")).split(",") if size]
    plot = arguments.report / "ipam-concurrency.svg" if arguments.report else arguments.plot
    print(f"# {machine()}{', all on one node' if arguments.one_node else ''}")
    if any(name.startswith("kubernetes") for name in stores):
        where = f"the server of {arguments.server}" if arguments.server else "the stand-in of tests/stores, in Python"
        print(f"# kubernetes, kubernetes-leases: at {where}")
    if sizes:
        said("one range, so many ADDs at once", HEADING)
        run_curve(stores, sizes, prefix=arguments.prefix, plot=plot)
    if arguments.report or not (sizes or arguments.full):
        said(f"{arguments.nodes} nodes at once, {arguments.networks} networks each", HEADING)
        for name, make_lab in stores.items():
            run_crowd(name, make_lab, arguments.nodes, arguments.networks, prefix=arguments.prefix)
    if arguments.report or arguments.full:
        said("one ADD alone, connection included", bench.full.HEADING)
        for name, make_lab in stores.items():
            run_full(name, make_lab, rounds=arguments.rounds, taken=arguments.taken)


if __name__ == "__main__":
    try:
        main()
    except InUse as error:
        sys.exit(str(error))
