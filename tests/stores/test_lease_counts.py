"""What the agent counts in a shared store: this node's leases, and nobody else's."""

from __future__ import annotations

import time

import pytest
from netaddr import IPNetwork

from cni.agent.lease_counts import count_leases
from conf.etcd import Etcd
from ipam.ranges import Range
from ipam.stores.contract import Deadline, Owner, Pool, Want
from ipam.stores.etcd import EtcdStore
from tests.stores.conftest import kubernetes_lab

OWNERS = [("here", "blue", True), ("here", "blue", True), ("here", "", False), ("there", "blue", True)]


def lease(open_store):
    """Have nodes lease an address each, "blue" where it is not named otherwise."""
    for number, (node, name, overlap) in enumerate(OWNERS):
        pool = Pool(name, Range.of(IPNetwork("10.9.0.0/24")), overlap)
        with open_store(node) as store:
            store.reserve(Owner(f"c{number}", "net1", node=node), [Want(pool)], allocation=store.allocation)


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Count on the node "here", whose defaults choose a datastore."""
    monkeypatch.setenv("NODENAME", "here")
    nowhere = {"dataDir": str(tmp_path / "none")}
    return lambda **keys: count_leases(defaults=lambda name: {**nowhere, **keys} if name == "whereabouts" else nowhere)


def test_leases_of_this_node_in_etcd(etcd_server, tmp_path, counted):
    etcd = {"endpoints": [etcd_server.url], "prefix": f"/{tmp_path.name}"}
    lease(lambda node: EtcdStore(Etcd(**etcd), deadline=Deadline(30), cooldown_s=0, scratch=tmp_path / node))
    assert counted(datastore="etcd", etcd=etcd) == {("etcd", "blue"): 2, ("etcd", "/10.9.0.0/24"): 1}


def test_leases_of_this_node_among_ipleases(api_server, tmp_path, counted):
    lab = kubernetes_lab(api_server, "kubernetes-leases", tmp_path)
    lease(lambda node: lab.elsewhere(tmp_path / node)(clock=time.time, cooldown_s=0, deadline_s=30))
    counts = counted(datastore="kubernetes-leases", kubernetes={"kubeconfig": lab.kubeconfig})
    assert counts == {("kubernetes-leases", "blue"): 2, ("kubernetes-leases", "/10.9.0.0/24"): 1}


def test_upstreams_pools_are_not_read_by_every_node(api_server, tmp_path, counted):
    lab = kubernetes_lab(api_server, "kubernetes", tmp_path)
    api_server.reset()
    assert counted(datastore="kubernetes", kubernetes={"kubeconfig": lab.kubeconfig}) == {}
    assert api_server.counts()["requests"] == {}
