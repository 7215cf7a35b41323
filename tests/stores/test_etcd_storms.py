"""etcd behind a network that loses, delays and repeats, and under callers that are killed: nothing doubled or left.

What is left may only be empty records, which etcd itself removes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
from collections import Counter

import pytest

from conf.errors import CniError
from conf.etcd import Etcd
from ipam.reaping import Reaper, Rules, Word
from ipam.stores.contract import Deadline, Want
from ipam.stores.etcd import EtcdStore
from tests.stores.conftest import owner, pool
from tests.stores.flapping_proxy import MISHAPS, FlappingProxy
from tests.stores.pace import Pace

OPERATIONS = 2000
WORKERS = 8
OWNERS = 40
KILLS = 100


@pytest.fixture
def prefix(request):
    return f"/storm-{os.getpid()}-{request.node.name}"


@pytest.fixture
def open_store(etcd_server, prefix, tmp_path):
    def make(url=etcd_server.url, *, deadline_s=30.0, cooldown_s=0.0, try_s=0.2):
        return EtcdStore(
            Etcd(endpoints=[url], prefix=prefix),
            deadline=Deadline(deadline_s),
            cooldown_s=cooldown_s,
            scratch=tmp_path / "run" / "stores",
            try_s=try_s,
        )

    return make


WANTS = [Want(pool("10.3.0.0/25")), Want(pool("2001:db8:3::/64"))]


class Ledger:
    """What callers were promised, checked at each promise."""

    def __init__(self):
        self._lock = threading.Lock()
        self._holders = {}
        self.doubled = []
        self.failed = Counter()

    def promise(self, name, leases):
        with self._lock:
            for lease in leases:
                holder = self._holders.setdefault(str(lease.address), name)
                if holder != name:
                    self.doubled.append((str(lease.address), holder, name))

    def forget(self, name):
        with self._lock:
            self._holders = {address: holder for address, holder in self._holders.items() if holder != name}


def _work(number, open_store, url, ledger):
    rng = random.Random(number)
    for _ in range(OPERATIONS // WORKERS):
        name = f"{number}-{rng.randrange(OWNERS // WORKERS)}"
        try:
            with open_store(url, deadline_s=300.0) as store:
                if rng.random() < 0.55:
                    ledger.promise(name, store.reserve(owner(name), WANTS, allocation="window"))
                else:
                    ledger.forget(name)
                    store.release(owner(name))
        except CniError as error:
            ledger.failed[type(error).__name__] += 1


def _left(etcd_server, prefix):
    keys = etcd_server.keys(f"{prefix}/v1/")
    return {key: value for key, (value, kv) in keys.items() if "lease" not in kv or json.loads(value)["leases"]}


def test_2000_operations_through_a_flapping_network(etcd_server, open_store, prefix):
    proxy = FlappingProxy(etcd_server.port, seed=3)
    ledger = Ledger()
    threads = [
        threading.Thread(target=_work, args=(number, open_store, proxy.url, ledger)) for number in range(WORKERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.doubled == []
    assert set(proxy.seen) == {*MISHAPS, "pass"}
    assert sum(ledger.failed.values()) < OPERATIONS // 100, ledger.failed
    with open_store() as store:
        held = [(lease.owner.container_id, lease.address.version) for lease in store.leases()]
        assert set(Counter(held).values()) <= {1}
        assert len(held) == 2 * len({name for name, _ in held})  # both families or none
        for number in range(WORKERS // 2):
            for each in range(OWNERS // WORKERS):
                store.release(owner(f"{number}-{each}"))
    # Requests of before the release are still on their way.
    proxy.close()
    reaper = Reaper(lambda deadline: open_store(), AllGone(), rules=Rules(grace_s=0, interval_s=0))
    assert {each.state for each in reaper.look()} == {"seen once"}
    assert {each.state for each in reaper.look()} == {"reaped"}
    assert _left(etcd_server, prefix) == {}


class AllGone:
    """A node none of whose sandboxes is there any more."""

    def sandbox(self, lease):
        return Word(gone=f"the sandbox of {lease.owner} is gone")


def _churn(open_store, name):
    while True:
        with open_store(try_s=5.0) as store:
            store.reserve(owner(name), WANTS, allocation="window")
            store.release(owner(name))


def test_callers_killed_at_any_moment_leave_nothing_after_their_del(etcd_server, open_store, prefix):
    context = multiprocessing.get_context("fork")
    pace = Pace(random.Random(11), 0.005, 0.06)
    interrupted = 0
    for number in range(KILLS):
        name = f"c{number % 30}"
        child = context.Process(target=_churn, args=(open_store, name), daemon=True)
        child.start()
        pace.pause()
        os.kill(child.pid, signal.SIGKILL)
        with open_store() as store:
            leases = store.release(owner(name))
            assert len(leases) in (0, 2)
            interrupted += bool(leases)
            pace.learn(had_leases=bool(leases))
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert 0 < interrupted < KILLS
    assert _left(etcd_server, prefix) == {}


def test_a_caller_killed_with_its_request_on_the_way_loses_to_its_del(etcd_server, open_store, prefix):
    proxy = FlappingProxy(etcd_server.port, seed=5, mishaps={"hand over after the client has left": 1.0}, delay_s=0.5)
    for number in range(10):
        sent_before, deadline_s = proxy.seen.total(), 0.05
        while proxy.seen.total() == sent_before:  # a busy machine may not come to send anything in so short a time
            with open_store(proxy.url, deadline_s=deadline_s) as store, pytest.raises(CniError):
                store.reserve(owner(f"c{number}"), WANTS, allocation="window")
            deadline_s *= 2
        with open_store() as store:
            store.release(owner(f"c{number}"))
    proxy.close()
    assert proxy.seen["hand over after the client has left"] >= 10
    assert _left(etcd_server, prefix) == {}
