"""How each store is taken away from its callers, made slow, and made to fail at random; one entry a store in OUTAGES.

Of a network store the network fails, of ``local`` the file system its files are on: one of its own that is full
or read-only, or calls of it that are late or fail. What the test itself asks the store reaches it all the same.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

import pytest

from ipam.stores.contract import Deadline
from ipam.stores.etcd import EtcdStore
from ipam.stores.iplease import COLLECTION
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes_api import KubernetesApi
from ipam.stores.local import DATABASE
from tests.stores import flapping_files, flapping_proxy
from tests.stores.conftest import KUBERNETES, EtcdLab, Lab, LocalLab, kubernetes_lab
from tests.stores.etcd_server import free_port
from tests.stores.flapping_files import FlappingFiles, exit_code, hindrance
from tests.stores.flapping_proxy import FlappingProxy
from tests.stores.upstream_writer import Upstream


def _call(function, *args):
    return function(*args)


def _start(function, *args):
    process = get_context("fork").Process(target=function, args=args, daemon=True)
    process.start()
    return exit_code(process)


@dataclass(frozen=True)
class Callers:
    """Callers that an outage concerns: the store as they open it, and how it is called in every error.

    ``call`` has them call a function and returns or raises what it does. ``start`` has another process of theirs do so
    and returns how that ended.
    """

    lab: Lab
    store: str
    call: object = _call
    start: object = _start
    seen: Counter = field(default_factory=Counter)


class NetworkOutage:
    """Of a store that is reached over a network."""

    MISHAPS = {*flapping_proxy.MISHAPS, "pass"}
    # At least so many operations succeed while all that happens: their callers try again by themselves.
    SUCCESSES = 0.99
    WAYS = {"nobody listens": None, "hangs up": {"lose the request": 1.0}, "says nothing": {"say nothing": 1.0}}

    def __init__(self, lab, port, reached_at, left, **opening):
        self.lab, self._port, self._reached_at, self.left = lab, port, reached_at, left
        # Of callers through the network that flaps.
        self.opening = opening

    def _callers(self, url, proxy=None):
        return Callers(replace(self.lab, make=self._reached_at(url)), url, seen=proxy.seen if proxy else Counter())

    @contextmanager
    def _behind(self, **proxy):
        proxy = FlappingProxy(self._port, seed=3, **proxy)
        try:
            yield self._callers(proxy.url, proxy)
        finally:
            proxy.close()

    @contextmanager
    def down(self, way):
        if self.WAYS[way] is None:
            yield self._callers(f"http://127.0.0.1:{free_port()}")
            return
        with self._behind(mishaps=self.WAYS[way]) as callers:
            yield callers

    @contextmanager
    def away(self):
        """Nobody listens, until what is given beside the callers is called."""
        port, proxies = free_port(), []
        callers = self._callers(f"http://127.0.0.1:{port}")
        try:
            yield callers, lambda: proxies.append(FlappingProxy(self._port, seed=0, mishaps={}, listen=port))
        finally:
            for proxy in proxies:
                proxy.close()

    def slow(self, seconds):
        """Every request arrives late, or its reply does."""
        mishaps = {"delay the request": 0.5, "delay the reply": 1.0}
        return self._behind(mishaps=mishaps, least_delay_s=seconds, delay_s=seconds)

    def losing_replies(self):
        return self._behind(mishaps={"lose the request": 0.1, "lose the reply": 0.2})

    def flapping(self):
        return self._behind(delay_s=0.1)


class FilesOutage:
    """Of a store of files: ``disk`` is a file system that nothing else is on."""

    MISHAPS = {*flapping_files.MISHAPS, "be done"}
    # A disk that fails is told at once.
    SUCCESSES = 0.4
    WAYS = {"is read-only": None, "is full": None, "answers with errors": {"fail": 1.0}}

    def __init__(self, lab, disk):
        self.lab, self._disk, self.opening = lab, disk, {}

    def left(self):
        with sqlite3.connect(self.lab.make.data_dir / DATABASE) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return {address for (address,) in db.execute("SELECT address FROM lease")}

    def _callers(self, files=None):
        more = {"call": files.call, "start": files.start, "seen": files.seen} if files else {}
        return Callers(self.lab, str(self.lab.make.data_dir), **more)

    @contextmanager
    def _on(self, **files):
        if reason := hindrance():
            pytest.skip(reason)
        yield self._callers(FlappingFiles(self._disk, seed=3, **files))

    @contextmanager
    def down(self, way):
        if way == "is full":
            with filled(self._disk):
                yield self._callers()
        elif way == "is read-only":
            remount(self._disk, "ro")
            try:
                yield self._callers()
            finally:
                remount(self._disk, "rw")
        else:
            with self._on(mishaps=self.WAYS[way]) as callers:
                yield callers

    @contextmanager
    def away(self):
        """Somebody holds the lock, until what is given beside the callers is called."""
        rival = sqlite3.connect(self.lab.make.data_dir / DATABASE, isolation_level=None, check_same_thread=False)
        try:
            rival.execute("BEGIN IMMEDIATE")
            yield self._callers(), lambda: rival.execute("ROLLBACK")
        finally:
            rival.close()

    def slow(self, seconds):
        """Every call on a file is late, of which an ADD makes some sixty."""
        return self._on(mishaps={"be late": 1.0}, delays_s=(seconds / 30, seconds / 30))

    def losing_replies(self):
        return self._on(mishaps={"fail after the deed": 0.02, "kill after the deed": 0.02})

    def flapping(self):
        return self._on()


def remount(disk, how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


@contextmanager
def filled(disk):
    """Leave nothing free."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError:
            pass
    try:
        yield
    finally:
        ballast.unlink()


def _etcd(request):
    server = request.getfixturevalue("etcd_server")
    make = EtcdLab(server, request.getfixturevalue("tmp_path") / "run" / "stores", store=EtcdStore)

    def left():
        """Empty records may be left: etcd itself removes them."""
        keys = server.keys(f"{make.prefix}/v1/")
        return {key for key, (value, kv) in keys.items() if "lease" not in kv or json.loads(value)["leases"]}

    return NetworkOutage(
        Lab(make, clock=time.time), server.port, lambda url: replace(make, through=url), left, try_s=0.2
    )


def _kubernetes(name):
    def outage(request):
        server, tmp_path = (request.getfixturevalue(each) for each in ("api_server", "tmp_path"))
        make = kubernetes_lab(server, name, tmp_path)
        upstream = Upstream(server)

        def through(url):
            path = tmp_path / f"{url.rpartition(':')[2]}.kubeconfig"
            server.write_kubeconfig(path=path, cluster={"server": url}, token="node's token")
            return replace(make, kubeconfig=str(path))

        def left():
            if name == "kubernetes":
                return {each for entries in upstream.pools().values() for each in entries} | set(
                    upstream.reservations()
                )
            access = find_access(str(server.write_kubeconfig(path=tmp_path / "admin.kubeconfig", token="admin")))
            leases = KubernetesApi(access, deadline=Deadline(300), crds="", rbac="").listed(COLLECTION)
            return {lease["metadata"]["name"] for lease in leases if "releasedAt" not in lease["spec"]}

        return NetworkOutage(Lab(make, clock=time.time), server.port, through, left)

    return outage


def _local(request):
    if os.geteuid() != 0:
        pytest.skip("a file system of its own needs root")
    disk = request.getfixturevalue("tmp_path") / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], check=True)
    request.addfinalizer(lambda: subprocess.run(["umount", "--lazy", str(disk)], check=True))
    return FilesOutage(Lab(LocalLab(disk / "data"), clock=time.time), disk)


OUTAGES = {"etcd": _etcd, "local": _local, **{name: _kubernetes(name) for name in KUBERNETES}}
WAYS = [
    (name, way) for name in sorted(OUTAGES) for way in (FilesOutage.WAYS if name == "local" else NetworkOutage.WAYS)
]


def together(*functions):
    """Call them all at once and return what each returned or raised."""
    outcomes = [None] * len(functions)

    def call(at):
        try:
            outcomes[at] = functions[at]()
        except Exception as error:
            outcomes[at] = error

    threads = [threading.Thread(target=call, args=(at,)) for at in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
