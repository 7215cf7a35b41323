"""etcd under callers that are killed: nothing is left after a DEL but empty records, which etcd itself removes.

How it fares behind a network that fails at random is in test_contract_outages.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal

import pytest

from conf.errors import CniError
from conf.etcd import Etcd
from ipam.stores.contract import Deadline, Want
from ipam.stores.etcd import EtcdStore
from tests.stores.conftest import owner, pool
from tests.stores.flapping_proxy import FlappingProxy
from tests.stores.pace import Pace

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


def _left(etcd_server, prefix):
    keys = etcd_server.keys(f"{prefix}/v1/")
    return {key: value for key, (value, kv) in keys.items() if "lease" not in kv or json.loads(value)["leases"]}


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
