"""Callers killed with -9 at random; what they leave is given back by their DEL or by ``vferry ipam reconcile``."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter

import pytest

from ipam.stores.contract import Want
from tests.stores.conftest import STORES, EtcdLab, Lab, owner, pool
from tests.stores.node import Node
from tests.stores.pace import Pace

KILLS = 300
AT_ONCE = 4
BLOCK, OTHER = "10.3.0.0/23", "2001:db8:3::/64"
WANTS = [Want(pool(BLOCK)), Want(pool(OTHER))]


@pytest.fixture(params=["etcd", "local"])
def lab(request):
    return Lab(STORES[request.param](request), clock=time.time)


class Callers:
    """What is killed: callers of one node."""

    def __init__(self, lab, node):
        self._lab, self._node = lab, node

    def add(self, name):
        """Record, then reserve, as an interface plugin does."""
        self._node.record(name)
        with self._lab.open(cooldown_s=0.0) as store:
            return store.reserve(owner(name, node=self._node.name), WANTS, allocation=store.allocation)

    def delete(self, name):
        with self._lab.open(cooldown_s=0.0) as store:
            leases = store.release(owner(name))
        self._node.forget(name)
        return leases

    def churn(self, name, promised):
        """Add and delete until killed; tell what was promised, and that a DEL begins."""
        while True:
            addresses = " ".join(str(lease.address) for lease in self.add(name))
            os.write(promised, f"+{name} {addresses}\n".encode())
            os.write(promised, f"-{name}\n".encode())
            self.delete(name)


@pytest.fixture
def node(lab, tmp_path, monkeypatch):
    return Node(lab.make, (BLOCK, OTHER), tmp_path, monkeypatch)


def test_300_killed_callers_leave_nothing_after_del_or_reconcile(lab, node, tmp_path):
    callers = Callers(lab, node)
    context = multiprocessing.get_context("fork")
    rng = random.Random(17)
    pace = Pace(rng, 0.003, 0.03)
    promised = os.open(tmp_path / "promised", os.O_CREAT | os.O_APPEND | os.O_RDWR)
    left_to_reconcile = []
    for batch in range(KILLS // AT_ONCE):
        names = [f"c{batch}-{at}" for at in range(AT_ONCE)]
        children = [context.Process(target=callers.churn, args=(name, promised), daemon=True) for name in names]
        for child in children:
            child.start()
        for child, name in zip(children, names, strict=True):
            pace.pause()
            os.kill(child.pid, signal.SIGKILL)
            if rng.random() < 0.5:
                os.write(promised, f"={name}\n".encode())
                leases = callers.delete(name)
                assert len(leases) in (0, 2)
                pace.learn(had_leases=bool(leases))
            else:
                left_to_reconcile.append(name)
        for child in children:
            child.join()
            assert child.exitcode == -signal.SIGKILL
    os.close(promised)
    _require_never_doubled((tmp_path / "promised").read_text())
    with lab.open() as store:
        held = Counter(lease.owner.container_id for lease in store.leases())
    assert held.keys() <= set(left_to_reconcile)
    assert set(held.values()) == {2}, "both families or none"
    assert node.reconcile("--dry-run") == {"stale": sum(held.values())}
    assert node.reconcile() == {"reaped": sum(held.values())}
    with lab.open() as store:
        assert list(store.leases()) == []
    assert _keys_left(lab) == []


def _require_never_doubled(told):
    """Read what was promised, in the order of the writes; who is killed keeps what it had until its DEL, or the end."""
    holders, deleted = {}, set()
    for line in told.splitlines():
        name, *addresses = line[1:].split()
        if line[0] in "-=":
            holders = {address: holder for address, holder in holders.items() if holder != name}
        if line[0] == "=":
            deleted.add(name)  # its last promise may be written a moment later than this
        for address in addresses if name not in deleted else ():
            assert holders.setdefault(address, name) == name, f"{address} of {holders[address]} was given to {name}"


def _keys_left(lab):
    """Return the keys of etcd that are neither empty records nor about to expire."""
    if not isinstance(lab.make, EtcdLab):
        return []
    keys = lab.make.server.keys(f"{lab.make.prefix}/v1/")
    return [key for key, (value, kv) in keys.items() if "lease" not in kv or json.loads(value)["leases"]]
