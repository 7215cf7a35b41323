#!/usr/bin/env python3
"""Measure what a broker would save: a process that keeps connections to etcd and passes the requests of others on.

It is an experiment, no part of vferry: docs/performance.md says why. A child is forked with everything imported, as the
agent's are, and reserves one address; its connection is one of its own, or a Unix socket to the broker, which hands
each request to the one of its connections that is free. All ways take turns in one run.

    bench/broker.py --rounds 50 --at-once 1,10,50,100 --kept 4,16

The store's part alone is measured: no executable is started, no link moved. CPU is that of all who take part (children,
broker, etcd) by clocks of 10 ms, so of few rounds it says little. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import os
import queue
import selectors
import signal
import socket
import ssl
import statistics
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from netaddr import IPNetwork

import ipam.stores.etcd
from bench.ipam import machine
from conf.etcd import Etcd
from ipam.ranges import Range
from ipam.stores.contract import Deadline, Owner, Pool, Want
from ipam.stores.etcd import EtcdStore
from ipam.stores.gateway import Endpoint, Gateway
from tests.stores.etcd_server import ETCD, Certificates, EtcdServer

DEADLINE_S = 120.0
# How many rounds a batch of many at once has, of those that one alone has.
_SHARE_OF_ROUNDS = 10
POOL = Pool("", Range.of(IPNetwork("10.200.0.0/16")))
# The length of what follows, with a request its path and a line's end, with an answer the HTTP status, before the body.
_LENGTH = struct.Struct("!I")
_STATUS = struct.Struct("!H")
_TIME = struct.Struct("!d")


def send(sock: socket.socket, content: bytes) -> None:
    sock.sendall(_LENGTH.pack(len(content)) + content)


def receive(sock: socket.socket) -> bytes:
    """Return what was sent at once, empty at the end."""
    head = _exactly(sock, _LENGTH.size)
    return _exactly(sock, _LENGTH.unpack(head)[0]) if head else b""


def _exactly(sock: socket.socket, length: int) -> bytes:
    content = b""
    while len(content) < length:
        part = sock.recv(length - len(content))
        if not part:
            return b""
        content += part
    return content


class Status(NamedTuple):
    """As much of a response as a gateway looks at."""

    status: int
    reason: str = ""


class Brokered(Gateway):
    """A cluster that is asked by way of the broker; ``path`` is its socket."""

    path = ""
    _broker: socket.socket | None = None

    def _once(self, path: str, document: bytes, _token: str) -> dict[str, Any]:
        if self._broker is None:
            self._broker = socket.socket(socket.AF_UNIX)
            self._broker.settimeout(DEADLINE_S)
            self._broker.connect(self.path)
        send(self._broker, path.encode() + b"\n" + document)
        answer = receive(self._broker)
        status = Status(*_STATUS.unpack_from(answer))
        return self._decode(Endpoint("unix", self.path, 0), status, answer[_STATUS.size :])


def serve(listener: socket.socket, connect: Callable[[], HTTPConnection], kept: int) -> NoReturn:
    """Be the broker."""
    waiting: queue.SimpleQueue[tuple[socket.socket, bytes]] = queue.SimpleQueue()

    def ask() -> NoReturn:
        connection = connect()
        while True:
            child, frame = waiting.get()
            path, _, document = frame.partition(b"\n")
            connection.request("POST", path.decode(), document, {"Content-Type": "application/json"})
            response = connection.getresponse()
            send(child, _STATUS.pack(response.status) + response.read())

    for _ in range(kept):
        threading.Thread(target=ask, daemon=True).start()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _events in selector.select():
            if key.fileobj is listener:
                selector.register(listener.accept()[0], selectors.EVENT_READ)
                continue
            child = key.fileobj
            assert isinstance(child, socket.socket)
            # A child sends a frame at once, and the next one when it has its answer.
            if frame := receive(child):
                waiting.put((child, frame))
            else:
                selector.unregister(child)
                child.close()


@dataclass
class Way:
    """One of the columns: how children reach etcd. ``processes`` are all whose CPU counts, but for the children."""

    name: str
    processes: list[int]
    socket: str = ""
    took_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    def cells(self) -> str:
        times = sorted(self.took_s)
        p95 = times[min(len(times) * 95 // 100, len(times) - 1)]
        return f" {1000 * statistics.median(times):.1f} / {1000 * p95:.1f} | {1000 * self.cpu_s / len(times):.1f} |"

    def store(self, conf: Etcd, scratch: Path) -> EtcdStore:
        if self.socket:
            Brokered.path = self.socket
            ipam.stores.etcd.Gateway = Brokered  # in this child alone
        return EtcdStore(conf, deadline=Deadline(DEADLINE_S), cooldown_s=60, scratch=scratch)


def cpu_s(pids: list[int]) -> float:
    """Return what processes have used so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each) for line in fields for each in line[11:13]) / os.sysconf("SC_CLK_TCK")


def batch(way: Way, conf: Etcd, scratch: Path, at_once: int) -> None:
    """Have so many children reserve an address each, and add what that took; exits when one is given twice."""
    before = cpu_s(way.processes)
    gate, opened = os.pipe()
    started = {}
    for number in range(at_once):
        result = os.memfd_create("result")
        pid = os.fork()
        if pid == 0:
            os.close(opened)
            _be_child(way, conf, scratch, number, gate=gate, result=result)
        started[pid] = result
    os.close(gate)
    os.close(opened)
    addresses = set()
    for pid, result in started.items():
        used = os.wait4(pid, 0)[2]
        way.cpu_s += used.ru_utime + used.ru_stime
        content = os.pread(result, 1024, 0)
        os.close(result)
        if not content:
            sys.exit(f"{way.name}: a child failed")
        way.took_s.append(_TIME.unpack_from(content)[0])
        addresses.add(content[_TIME.size :])
    way.cpu_s += cpu_s(way.processes) - before
    if len(addresses) != at_once:
        sys.exit(f"{way.name}: {at_once} addresses were given, of which only {len(addresses)} are different")


def _be_child(way: Way, conf: Etcd, scratch: Path, number: int, *, gate: int, result: int) -> NoReturn:
    try:
        os.read(gate, 1)  # until all are there
        begin = time.perf_counter()
        with way.store(conf, scratch) as store:
            assert isinstance(store.gateway, Brokered) == bool(way.socket)
            (lease,) = store.reserve(Owner(f"pod-{number}", "net1"), [Want(POOL)], allocation=store.allocation)
        os.write(result, _TIME.pack(time.perf_counter() - begin) + str(lease.address).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def connector(conf: Etcd) -> Callable[[], HTTPConnection]:
    """Return what makes a connection that is kept; all have one TLS context."""
    _scheme, host, port = conf.addresses[0]
    if not conf.ca_cert_file:
        return lambda: HTTPConnection(host, port)
    tls = ssl.create_default_context(cafile=conf.ca_cert_file)
    tls.load_cert_chain(conf.cert_file, conf.key_file)
    return lambda: HTTPSConnection(host, port, context=tls)


def brokers(conf: Etcd, etcd: int, directory: Path, kept: list[int], running: ExitStack) -> list[Way]:
    """Start a broker for each number of kept connections; return all ways, without one first."""
    ways = [Way("each its own", [etcd])]
    for number in kept:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / f"{number}.sock"))
        listener.listen(1024)
        pid = os.fork()
        if pid == 0:
            serve(listener, connector(conf), number)
        running.callback(os.waitpid, pid, 0)
        running.callback(os.kill, pid, signal.SIGKILL)
        ways.append(Way(f"{number} kept", [etcd, pid], listener.getsockname()))
        listener.close()
    return ways


def rows(by: str, sizes: list[int], kept: list[int], rounds: int) -> list[str]:
    """Return the lines of one table for one kind of connection."""
    lines = []
    with tempfile.TemporaryDirectory(prefix="vfbroker-") as folder, ExitStack() as running:
        directory = Path(folder)
        certificates = Certificates(directory / "certificates") if by == "tls" else None
        server = EtcdServer(directory, certificates).start()
        running.callback(server.stop)
        access: dict[str, Any] = {"endpoints": [server.url]}
        if certificates:
            access |= {"ca_cert_file": certificates.ca.cert}
            access |= {"cert_file": certificates.client.cert, "key_file": certificates.client.key}
        for size in sizes:
            with ExitStack() as started:
                (directory / str(size)).mkdir()
                ways = brokers(Etcd(**access), server.pid, directory / str(size), kept, started)
                for at in range(rounds if size == 1 else max(1, rounds // _SHARE_OF_ROUNDS)):
                    print(f"{by}, {size} at once: round {at + 1}", file=sys.stderr, flush=True)
                    for way in ways:
                        # Every batch begins with an empty store.
                        place = f"{size}-{at}-{way.name.replace(' ', '-')}"
                        batch(way, Etcd(**access, prefix=f"/{place}"), directory / "run" / place, size)
                lines.append(f"| {size} | {by} |{''.join(way.cells() for way in ways)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="of one at once; of many at once a tenth of them")
    parser.add_argument("--at-once", default="1,10,50,100", help="how many children, in turn")
    parser.add_argument("--kept", default="4,16", help="how many connections a broker keeps, a broker for each number")
    parser.add_argument("--by", default="http,tls", help="http, tls (with a client's certificate), or both")
    given = parser.parse_args()
    if ETCD is None:
        sys.exit("etcd is not installed (Debian: etcd-server)")
    sizes, kept = ([int(number) for number in each.split(",")] for each in (given.at_once, given.kept))
    lines = [line for by in given.by.split(",") for line in rows(by, sizes, kept, given.rounds)]
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"{machine()}; load {load}; {given.rounds} rounds\n")
    heads = "".join(f" {number} kept: p50 / p95 ms | CPU |" for number in kept)
    print(f"| at once | etcd by | each its own: p50 / p95 ms | CPU ms an ADD |{heads}")
    print(f"|---:|---|---:|---:|{'---:|---:|' * len(kept)}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
