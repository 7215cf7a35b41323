"""``whereabouts`` with datastore etcd, from request to result, on two nodes of one cluster."""

from __future__ import annotations

import json

import pytest

from conf.errors import CheckFailed, PluginNotAvailable, StoreUnavailable
from conf.etcd import Etcd
from conf.request import read_request
from ipam.stores import door
from ipam.stores.contract import Deadline
from ipam.stores.etcd import EtcdStore
from ipam.whereabouts import Whereabouts
from tests.stores.etcd_server import encode, free_port

VALID = "cni.dev/valid-attachments"


class Cluster:
    """Nodes that share one etcd, each with its own scratch directory."""

    def __init__(self, url, tmp_path):
        self.etcd = {"endpoints": [url], "prefix": f"/{tmp_path.name}"}
        self._tmp_path = tmp_path

    def run(self, verb, node, cid="c1", *, name="rail1", ipam=None, **keys):
        def open_store(conf, deadline):
            if conf.chosen != "etcd":
                return door.open_store(conf, deadline)
            scratch = self._tmp_path / node
            return EtcdStore(conf.etcd, deadline=deadline, cooldown_s=conf.cooldown_s, scratch=scratch)

        config = {"cniVersion": "1.1.0", "name": name, "type": "x", **keys}
        config["ipam"] = {"type": "whereabouts", "datastore": "etcd", "range": "10.0.0.0/24", "etcd": self.etcd}
        config["ipam"] |= ipam or {}
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": cid, "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "net1"}
        request = read_request({**environ, "NODENAME": node}, json.dumps(config).encode())
        plugin = Whereabouts(open_store=open_store, defaults=lambda name: {}, flat_files=[])
        verbs = {"ADD": plugin.add, "DEL": plugin.delete, "CHECK": plugin.check, "GC": plugin.gc}
        return {**verbs, "STATUS": plugin.status}[verb](request)


@pytest.fixture
def cluster(etcd_server, tmp_path):
    return Cluster(etcd_server.url, tmp_path)


def test_two_nodes_never_get_one_address(cluster):
    given = [cluster.run("ADD", f"node{n % 2}", f"c{n}").ips[0].address for n in range(20)]
    assert len(set(given)) == 20
    assert cluster.run("ADD", "node0", "c0").ips[0].address == given[0]


def test_check_after_add_and_after_del(cluster):
    result = cluster.run("ADD", "node0")
    prev_result = result.to_json("1.1.0")
    cluster.run("CHECK", "node0", prevResult=prev_result)
    cluster.run("DEL", "node0")
    with pytest.raises(CheckFailed):
        cluster.run("CHECK", "node0", prevResult=prev_result)


@pytest.mark.parametrize("lost", ["own/", "ip/"])
def test_check_tells_of_a_lease_that_the_store_has_lost(cluster, etcd_server, lost):
    prev_result = cluster.run("ADD", "node0").to_json("1.1.0")
    (key,) = etcd_server.keys(f"{cluster.etcd['prefix']}/v1/{lost}")
    etcd_server.call("/v3/kv/deleterange", {"key": encode(key)})
    with pytest.raises(CheckFailed, match="holds no lease in range") as raised:
        cluster.run("CHECK", "node0", prevResult=prev_result)
    assert "delete the pod" in raised.value.hint


def test_gc_takes_only_what_this_node_made_for_this_network(cluster):
    cluster.run("ADD", "node0", "stale")
    cluster.run("ADD", "node0", "alive")
    cluster.run("ADD", "node0", "of-another-network", name="rail2")
    cluster.run("ADD", "node1", "of-another-node")
    cluster.run("GC", "node0", **{VALID: [{"containerID": "alive", "ifname": "net1"}]})
    with _store(cluster) as store:
        assert {lease.owner.container_id for lease in store.leases()} == {
            "alive",
            "of-another-network",
            "of-another-node",
        }


def test_gc_gives_both_families_of_an_attachment_back_at_once(cluster):
    dual = {"range": "10.0.0.0/24", "ipRanges": [{"range": "2001:db8::/64"}]}
    for name in ("stale", "alive", "stale-too"):
        cluster.run("ADD", "node0", name, ipam=dual)
    cluster.run("GC", "node0", ipam=dual, **{VALID: [{"containerID": "alive", "ifname": "net1"}]})
    with _store(cluster) as store:
        assert [lease.owner.container_id for lease in store.leases()] == ["alive", "alive"]


def _store(cluster):
    return EtcdStore(Etcd(**cluster.etcd), deadline=Deadline(10), cooldown_s=0)


def test_status(cluster):
    cluster.run("STATUS", "node0")
    cluster.etcd["endpoints"] = [f"http://127.0.0.1:{free_port()}"]
    with pytest.raises(PluginNotAvailable, match="etcd"):
        cluster.run("STATUS", "node0")


def test_del_fails_when_etcd_is_down_and_not_when_nobody_says_where_it_is(cluster, tmp_path):
    cluster.etcd["endpoints"] = [f"http://127.0.0.1:{free_port()}"]
    with pytest.raises(StoreUnavailable):
        cluster.run("DEL", "node0", ipam={"deadlineSeconds": 0.3})
    cluster.etcd = {}
    cluster.run("DEL", "node0", ipam={"dataDir": str(tmp_path / "leases")})
