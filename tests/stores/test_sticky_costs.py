"""What it costs to remember pods' addresses: nothing for a pod that is new, in calls."""

from __future__ import annotations

import pytest

from ipam.stores.contract import Want
from tests.stores.conftest import KUBERNETES, EtcdLab, Lab, kubernetes_lab, owner, pool

BLOCK = "10.0.0.0/24"


@pytest.fixture
def etcd_lab(etcd_server, tmp_path):
    return Lab(EtcdLab(etcd_server, tmp_path / "run" / "stores"))


@pytest.fixture(params=sorted(KUBERNETES))
def api_lab(request, api_server, tmp_path):
    return Lab(kubernetes_lab(api_server, request.param, tmp_path))


def calls(store):
    return store.gateway.calls if hasattr(store, "gateway") else store.api.calls


def start(lab, name, pod, **opening):
    """Return the address and the calls that it cost."""
    with lab.open(**opening) as store:
        pod = owner(name, pod_namespace="ns", pod_name=pod) if pod else owner(name)
        (lease,) = store.reserve(pod, [Want(pool(BLOCK))], allocation=store.allocation)
        return str(lease.address), calls(store)


def stop(lab, name, **opening):
    with lab.open(**opening) as store:
        store.release(owner(name))
        return calls(store)


def costs_of_new_pods(lab):
    start(lab, "warm-up", "")
    return [start(lab, f"{kind}{n}", kind and f"{kind}-{n}")[1] for n in range(3) for kind in ("", "web")]


def test_a_new_pod_costs_etcd_no_more_than_no_pod(etcd_lab):
    assert costs_of_new_pods(etcd_lab) == [1] * 6


def test_a_new_pod_costs_the_api_server_no_more_than_no_pod(api_lab):
    costs = costs_of_new_pods(api_lab)
    assert set(costs) == {1 if api_lab.make.store.name == "kubernetes-leases" else 3}


def test_a_pod_that_comes_again_costs_etcd_one_call_more_and_a_del_none(etcd_lab):
    start(etcd_lab, "warm-up", "")
    address, _ = start(etcd_lab, "c1", "web-0")
    first = stop(etcd_lab, "c1")
    assert start(etcd_lab, "c2", "web-0") == (address, 2)
    assert stop(etcd_lab, "c2") == first - 1  # the node has its memory's etcd lease by now


def test_a_pod_that_comes_again_to_its_node_costs_the_api_server_nothing_more(api_lab):
    start(api_lab, "warm-up", "")
    address, cost = start(api_lab, "c1", "web-0")
    stop(api_lab, "c1")
    assert start(api_lab, "c2", "web-0") == (address, cost)


def test_asking_for_it_costs_one_call(api_lab):
    start(api_lab, "warm-up", "")
    _, cost = start(api_lab, "c1", "web-0", sticky=True)
    assert cost == (2 if api_lab.make.store.name == "kubernetes-leases" else 3)


def test_an_expired_memory_lease_of_etcd_is_replaced(etcd_lab, etcd_server):
    start(etcd_lab, "c1", "web-0")
    stop(etcd_lab, "c1")
    ((_, kv),) = etcd_server.keys(f"{etcd_lab.make.prefix}/v1/former/").values()
    etcd_server.call("/v3/lease/revoke", {"ID": kv["lease"]})
    address, _ = start(etcd_lab, "c2", "web-1")
    stop(etcd_lab, "c2")
    assert start(etcd_lab, "c3", "web-1")[0] == address


def test_memory_does_not_fill_an_ippool(api_server, tmp_path):
    lab = Lab(kubernetes_lab(api_server, "kubernetes", tmp_path))
    for n in range(30):
        start(lab, f"c{n}", f"job-{n}")
        stop(lab, f"c{n}")
        lab.clock.now += 86400
    with lab.open() as store:
        (there,) = store._cluster().pools()
    assert len(there.annotations) <= 3
