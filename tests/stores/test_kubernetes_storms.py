"""The Kubernetes stores under callers that are killed: nothing is doubled, nothing is left after a DEL.

How they fare behind a network that fails at random is in test_contract_outages.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace

import pytest

from conf.errors import CniError
from ipam.reaping import Reaper, Rules, Word
from ipam.stores.contract import Deadline, Want
from ipam.stores.iplease import COLLECTION
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes_api import KubernetesApi
from tests.stores.conftest import KUBERNETES, Lab, kubernetes_lab, owner, pool
from tests.stores.flapping_proxy import FlappingProxy
from tests.stores.pace import Pace
from tests.stores.promised import Promised
from tests.stores.upstream_writer import Upstream

KILLS = 300
KILLERS = 10
# Of many at once on a machine that does something else too; what has to be done in time is tried elsewhere.
PATIENCE_S = 300.0
WANTS = [Want(pool("10.3.0.0/25")), Want(pool("2001:db8:3::/64"))]


@pytest.fixture(params=sorted(KUBERNETES))
def lab(request, api_server, tmp_path):
    return Lab(kubernetes_lab(api_server, request.param, tmp_path), clock=time.time)


@pytest.fixture
def left(lab, api_server, tmp_path):
    """Return what is held in the server, read past the store."""
    upstream = Upstream(api_server)

    def read():
        if lab.make.store.name == "kubernetes":
            allocated = {name for entries in upstream.pools().values() for name in entries}
            return allocated | set(upstream.reservations())
        access = find_access(str(api_server.write_kubeconfig(path=tmp_path / "admin.kubeconfig", token="admin")))
        leases = KubernetesApi(access, deadline=Deadline(PATIENCE_S), crds="", rbac="").listed(COLLECTION)
        return {lease["metadata"]["name"] for lease in leases if "releasedAt" not in lease["spec"]}

    return read


def _churn(lab, name, promised):
    while True:
        with lab.open(cooldown_s=0.0, deadline_s=PATIENCE_S) as store:
            promised.promise(name, store.reserve(owner(name), WANTS, allocation=store.allocation))
            promised.forget(name)
            store.release(owner(name))


def _kill(lab, number, promised, results):
    """Kill callers at any moment, each followed by its DEL; tell what the DELs found, and what they left."""
    context = multiprocessing.get_context("fork")
    rng = random.Random(number)
    pace = Pace(rng, 0.005, 0.15)
    interrupted, left = 0, []
    for _ in range(KILLS // KILLERS):
        name = f"c{number}-{rng.randrange(3)}"
        child = context.Process(target=_churn, args=(lab, name, promised))
        child.start()
        pace.pause()
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        promised.forget(name)
        with lab.open(cooldown_s=0.0, deadline_s=PATIENCE_S) as store:
            leases = store.release(owner(name))
            interrupted += bool(leases)
            pace.learn(had_leases=bool(leases))
            left += store.find(owner(name))
        assert child.exitcode == -signal.SIGKILL
    results.put((interrupted, left))


class Gone:
    """A node on which nothing lives."""

    def sandbox(self, lease):
        return Word(gone="it was killed")


def reconcile(lab):
    """Look twice, as reconcile does, and return what was given back."""
    reaper = Reaper(lambda _: lab.open(cooldown_s=0.0), Gone(), rules=Rules(grace_s=0.0, interval_s=0.0))
    return [each for _ in range(2) for each in reaper.look() if each.state == "reaped"]


def test_callers_killed_at_any_moment_leave_nothing_after_their_del_and_double_nothing(lab, left, tmp_path):
    context = multiprocessing.get_context("fork")
    results, promised = context.Queue(), Promised(tmp_path / "promised")
    killers = [context.Process(target=_kill, args=(lab, number, promised, results)) for number in range(KILLERS)]
    for killer in killers:
        killer.start()
    found = [results.get(timeout=900) for _ in killers]
    for killer in killers:
        killer.join()
        assert killer.exitcode == 0
    assert 0 < sum(interrupted for interrupted, _ in found) < KILLS
    assert [lease for _, leases in found for lease in leases] == []
    assert promised.doubled() == []
    # A request that the server did after all that is reconcile's; there is hardly ever one.
    assert len(reconcile(lab)) <= KILLS // 50
    assert left() == set()


def test_a_caller_killed_with_its_request_on_the_way_loses_to_its_del(lab, left, api_server, tmp_path):
    """The server does what it was sent after the DEL was there."""
    mishaps = {(late := "hand over after the client has left"): 0.5}
    proxy = FlappingProxy(api_server.port, seed=5, mishaps=mishaps, delay_s=0.2)
    through = _through(lab, proxy, api_server, tmp_path)
    for number in range(10):
        sent_before, deadline_s = proxy.seen[late], 0.3
        while proxy.seen[late] == sent_before:
            with through.open(deadline_s=deadline_s) as store, contextlib.suppress(CniError):
                store.reserve(owner(f"c{number}"), WANTS, allocation=store.allocation)
            deadline_s += 0.1
        with lab.open() as store:
            store.release(owner(f"c{number}"))
    proxy.close()
    assert proxy.seen[late] >= 10
    assert left() == set()


def _through(lab, proxy, api_server, tmp_path):
    path = tmp_path / "through.kubeconfig"
    api_server.write_kubeconfig(path=path, cluster={"server": proxy.url}, token="node's token")
    return Lab(replace(lab.make, kubeconfig=str(path)), clock=time.time)
