"""``node_slice_size``: addresses out of the slice that upstream's controller has given to the node."""

from __future__ import annotations

import json

import pytest

from conf.errors import (
    AddressesExhausted,
    CheckFailed,
    InvalidNetworkConfig,
    PluginNotAvailable,
    StoreUnavailable,
    TryAgainLater,
    UnsupportedField,
)
from conf.request import read_request
from conf.whereabouts import Kubernetes, StoreConf
from ipam.stores.contract import Deadline
from ipam.stores.survey import open_survey
from ipam.whereabouts import Whereabouts
from tests.stores.conftest import KUBERNETES, kubernetes_lab
from tests.stores.upstream_writer import Upstream

SLICES = {"node1": "10.0.0.0/29", "node2": "10.0.0.8/29", "": "10.0.0.16/29"}


class Cluster:
    """Nodes that share one API server; what node runs a verb is NODENAME's."""

    def __init__(self, lab, upstream):
        self.lab, self.upstream = lab, upstream

    def divide(self, name="rail1", *, whole="10.0.0.0/24", slices=SLICES, **keys):
        """Write the NodeSlicePool as upstream's controller does."""
        allocations = [{"nodeName": node, "sliceRange": part} for node, part in slices.items()]
        body = {
            "apiVersion": "whereabouts.cni.cncf.io/v1alpha1",
            "kind": "NodeSlicePool",
            "metadata": {"name": name},
            "spec": {"range": whole, "sliceSize": "/29"},
            "status": {"allocations": allocations},
        } | keys
        assert self.upstream.call("POST", "nodeslicepools", body)

    def run(self, verb, node, cid="c1", *, ipam=None, **keys):
        def open_store(conf, deadline):
            make = self.lab.elsewhere(self.lab.run / node)
            return make(clock=lambda: 1.7e9, cooldown_s=0.0, deadline_s=conf.deadline_s)

        ipam = {"type": "whereabouts", "datastore": "kubernetes", "range": "10.0.0.0/24", "node_slice_size": "/29"} | (
            ipam or {}
        )
        config = {"cniVersion": "1.1.0", "name": "rail1", "type": "x", "ipam": ipam, **keys}
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": cid, "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "net1"}
        request = read_request({**environ, "NODENAME": node}, json.dumps(config).encode())
        plugin = Whereabouts(open_store=open_store, defaults=lambda name: {}, flat_files=[])
        verbs = {"ADD": plugin.add, "DEL": plugin.delete, "CHECK": plugin.check, "GC": plugin.gc}
        return {**verbs, "STATUS": plugin.status}[verb](request)

    def addresses(self, node, cid="c1", **keys):
        return [ip.address for ip in self.run("ADD", node, cid, **keys).ips]

    def held(self):
        with self.lab(clock=lambda: 1.7e9, cooldown_s=0.0, deadline_s=10) as store:
            return {lease.owner.container_id: str(lease.address) for lease in store.leases()}


@pytest.fixture(params=sorted(KUBERNETES))
def cluster(request, api_server, tmp_path):
    lab = kubernetes_lab(api_server, request.param, tmp_path)
    (tmp_path / "run").mkdir()
    upstream = Upstream(api_server)
    api_server.switch(tokens=None)
    return Cluster(lab, upstream)


LOWEST = {"allocation": "lowest"}


def test_each_node_gives_addresses_of_its_slice_with_the_length_of_the_range(cluster):
    cluster.divide()
    given = [cluster.addresses("node2", f"c{n}", ipam=LOWEST)[0] for n in range(6)]
    assert given == [f"10.0.0.{n}/24" for n in range(9, 15)]  # as upstream: neither the first nor the last one
    with pytest.raises(AddressesExhausted, match=r"10\.0\.0\.9 to 10\.0\.0\.14"):
        cluster.run("ADD", "node2", "late")
    assert cluster.addresses("node1", "c9", ipam=LOWEST) == ["10.0.0.1/24"]
    assert cluster.addresses("node2", "c0") == ["10.0.0.9/24"]


def test_bounds_gateway_and_exclude_count_in_slices_too(cluster):
    cluster.divide()
    ipam = {"range_start": "10.0.0.3", "exclude": ["10.0.0.4"], "gateway": "10.0.0.3", **LOWEST}
    result = cluster.run("ADD", "node1", ipam=ipam)
    assert [(ip.address, ip.gateway) for ip in result.ips] == [("10.0.0.5/24", "10.0.0.3")]


def test_a_requested_address_is_of_the_slice_or_refused(cluster):
    cluster.divide()
    assert cluster.addresses("node1", runtimeConfig={"ips": ["10.0.0.5"]}) == ["10.0.0.5/24"]
    with pytest.raises(InvalidNetworkConfig, match=r"10\.0\.0\.9"):
        cluster.run("ADD", "node1", "c2", runtimeConfig={"ips": ["10.0.0.9"]})


def test_only_the_divided_range_is_sliced(cluster):
    cluster.divide()
    ipam = {"ipRanges": [{"range": "2001:db8::/64"}], **LOWEST}
    assert cluster.addresses("node2", ipam=ipam) == ["10.0.0.9/24", "2001:db8::1/64"]


@pytest.mark.parametrize("overlaps", [True, False])
@pytest.mark.parametrize("network_name", ["", "blue"])
def test_check_del_and_gc_know_what_is_of_a_slice(cluster, network_name, overlaps):
    cluster.divide(network_name or "rail1")
    ipam = {"network_name": network_name, "enable_overlapping_ranges": overlaps}
    prev_result = cluster.run("ADD", "node1", "alive", ipam=ipam).to_json("1.1.0")
    for cid, node in (("stale", "node1"), ("elsewhere", "node2"), ("gone", "node1")):
        cluster.run("ADD", node, cid, ipam=ipam)
    cluster.run("CHECK", "node1", "alive", ipam=ipam, prevResult=prev_result)
    cluster.run("DEL", "node1", "gone", ipam=ipam)
    valid = {"cni.dev/valid-attachments": [{"containerID": "alive", "ifname": "net1"}]}
    cluster.run("GC", "node1", ipam=ipam, **valid)
    assert cluster.held().keys() == {"alive", "elsewhere"}
    cluster.run("DEL", "node1", "alive", ipam=ipam)
    with pytest.raises(CheckFailed):
        cluster.run("CHECK", "node1", "alive", ipam=ipam, prevResult=prev_result)
    cluster.run("DEL", "node2", "elsewhere", ipam=ipam)
    assert cluster.upstream.reservations() == {}


def test_what_a_slice_has_is_held_when_the_controller_has_moved_it(cluster, api_server):
    cluster.divide()
    given = cluster.addresses("node1")
    cluster.upstream.call("DELETE", "nodeslicepools/rail1")
    cluster.divide(slices={"node1": "10.0.0.8/29", "node2": "10.0.0.0/29"})
    taken = {cluster.addresses("node2", f"d{n}")[0] for n in range(5)}
    assert not taken & set(given)
    with pytest.raises(AddressesExhausted):
        cluster.run("ADD", "node2", "late")
    cluster.run("DEL", "node1")
    assert "c1" not in cluster.held()


def test_what_is_missing_is_said(cluster):
    with pytest.raises(StoreUnavailable, match="no NodeSlicePool kube-system/rail1"):
        cluster.run("ADD", "node1")
    with pytest.raises(PluginNotAvailable):
        cluster.run("STATUS", "node1")
    cluster.divide()
    cluster.run("STATUS", "node1")
    with pytest.raises(TryAgainLater, match="node node3 has no slice") as raised:
        cluster.run("ADD", "node3")
    assert raised.value.details == "2 of 3 slices are given"
    with pytest.raises(InvalidNetworkConfig, match=r"no range is 10\.0\.0\.0/24"):
        cluster.run("ADD", "node1", ipam={"range": "10.9.0.0/24"})
    assert cluster.held() == {}


@pytest.mark.parametrize("keys", [{"slices": {"node1": "nonsense"}}, {"slices": {"node1": "10.9.0.0/29"}}])
def test_a_slice_that_is_none_is_an_error(cluster, keys):
    cluster.divide(**keys)
    with pytest.raises(InvalidNetworkConfig, match="slice of node node1"):
        cluster.run("ADD", "node1")


def test_it_costs_one_request(cluster, api_server):
    cluster.divide()
    cluster.run("ADD", "node1", "c0")
    api_server.reset()
    cluster.run("ADD", "node1", "c1", ipam=LOWEST | {"node_slice_size": "", "range": "10.5.0.0/24"})
    without = sum(api_server.counts()["requests"].values())
    cluster.run("ADD", "node1", "c2", ipam=LOWEST | {"node_slice_size": "", "range": "10.5.0.0/24"})
    api_server.reset()
    cluster.run("ADD", "node1", "c3", ipam=LOWEST)
    assert sum(api_server.counts()["requests"].values()) <= without + 1


def test_upstreams_pool_of_the_slice_is_used(api_server, tmp_path):
    cluster = Cluster(kubernetes_lab(api_server, "kubernetes", tmp_path), Upstream(api_server))
    (tmp_path / "run").mkdir()
    api_server.switch(tokens=None)
    cluster.divide("blue")
    assert cluster.addresses("node2", ipam={"network_name": "blue"}) == ["10.0.0.9/24"]
    spec = cluster.upstream.call("GET", "ippools/blue-node2-10.0.0.8-29")["spec"]
    assert (spec["range"], list(spec["allocations"])) == ("10.0.0.8/29", ["1"])
    assert list(cluster.upstream.reservations()) == ["blue-10.0.0.9"]


@pytest.mark.parametrize("network_name", ["", "blue"])
def test_what_upstream_added_in_a_slice_is_released_with_its_reservation(api_server, tmp_path, network_name):
    """The pool's name has the node in it, the reservation's has not, and upstream notes nothing that tells."""
    cluster = Cluster(kubernetes_lab(api_server, "kubernetes", tmp_path), Upstream(api_server))
    (tmp_path / "run").mkdir()
    prefix = f"{network_name}-" if network_name else ""
    name, spec = f"{prefix}10.0.0.1", {"podref": "ns/web-0", "ifname": "net1"}
    allocations = {"1": {"id": "c1", **spec}}
    for kind, plural, called, body in (
        ("IPPool", "ippools", f"{prefix}node-1-10.0.0.0-29", {"range": "10.0.0.0/29", "allocations": allocations}),
        ("OverlappingRangeIPReservation", "overlappingrangeipreservations", name, spec),
    ):
        made = {"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": kind, "metadata": {"name": called}}
        assert cluster.upstream.call("POST", plural, {**made, "spec": body})
    conf = StoreConf(datastore="kubernetes", kubernetes=Kubernetes(kubeconfig=cluster.lab.kubeconfig))
    assert list(open_survey(conf, Deadline(10)).contradictions(None, [])) == []
    cluster.run("DEL", "node-1", ipam={"network_name": network_name})
    assert (cluster.held(), cluster.upstream.reservations()) == ({}, {})


def test_the_roles_of_both_stores_may_read_slices(api_server, tmp_path):
    for name in KUBERNETES:
        lab = kubernetes_lab(api_server, name, tmp_path)
        with lab(clock=lambda: 1.7e9, cooldown_s=0.0, deadline_s=10) as store:
            path = "/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/kube-system/nodeslicepools/absent"
            assert store.api.get(path) is None


def test_without_an_api_server_it_is_refused(tmp_path):
    config = {
        "cniVersion": "1.1.0",
        "name": "n",
        "ipam": {
            "type": "whereabouts",
            "datastore": "local",
            "dataDir": str(tmp_path / "data"),
            "range": "10.0.0.0/24",
            "node_slice_size": "26",
        },
    }
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "net1"}
    plugin = Whereabouts(defaults=lambda name: {}, flat_files=[])
    with pytest.raises(UnsupportedField, match='"node_slice_size" cannot be used with datastore local'):
        plugin.add(read_request(environ, json.dumps(config).encode()))
