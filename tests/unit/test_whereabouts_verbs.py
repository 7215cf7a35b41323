"""``whereabouts`` giving back and verifying: DEL, CHECK, GC, STATUS."""

from __future__ import annotations

import pytest

from conf.errors import (
    CheckFailed,
    InvalidNetworkConfig,
    PluginNotAvailable,
    StoreUnavailable,
    UndoneInPart,
)
from ipam.stores import door
from tests.unit.whereabouts_node import NAD, Node, request


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


# DEL.


def test_delete_gives_back_and_repeats(node):
    node.add(config=NAD)
    node.plugin.delete(request("DEL", config=NAD))
    node.plugin.delete(request("DEL", config=NAD))
    assert node.leases() == {}


def test_delete_of_another_container_changes_nothing(node):
    node.add(config=NAD)
    node.plugin.delete(request("DEL", config=NAD, cid="c2"))
    node.plugin.delete(request("DEL", config=NAD, ifname="net2"))
    assert node.leases() == {"c1/net1": "192.168.100.1"}


@pytest.mark.parametrize(
    "ipam",
    [
        {},
        {"range": "nonsense"},
        {"range": "10.0.0.0/24", "exclude": 7, "gateway": "x", "routes": "y"},
        {"cooldownSeconds": "soon", "deadlineSeconds": -1, "network_name": "No_Name"},
        {"datastore": "nonsense"},
        {"datastore": 7},
    ],
)
def test_delete_needs_no_valid_configuration(node, ipam):
    node.add(config=NAD)
    node.plugin.delete(request("DEL", ipam=ipam, args="IP=nonsense"))
    assert node.leases() == {}


def test_delete_without_any_datastore_looks_where_local_leases_are(node):
    node.add(config=NAD)
    data_dir = node.defaults.pop("dataDir")
    del node.defaults["datastore"]
    node.plugin.delete(request("DEL", ipam={"dataDir": data_dir}))
    node.defaults["dataDir"] = data_dir
    assert node.leases() == {}


def test_delete_without_ipam_and_without_leases_succeeds_and_makes_nothing(node, tmp_path):
    node.plugin.delete(request("DEL"))
    assert list(tmp_path.iterdir()) == []


def test_delete_fails_loudly_when_the_store_does(node, tmp_path):
    node.add(config=NAD)
    (tmp_path / "leases" / "leases.sqlite").write_bytes(b"damaged")
    with pytest.raises(StoreUnavailable):
        node.plugin.delete(request("DEL", config=NAD))


# CHECK.

DUAL = {
    "range": "10.0.0.0/24",
    "gateway": "10.0.0.254",
    "ipRanges": [{"range": "2001:db8::/64"}],
    "addresses": [{"address": "172.16.0.5/16"}],
}


def check(node, *ips, ipam=DUAL, **kwargs):
    prev = {"cniVersion": "1.1.0", "ips": list(ips)}
    node.plugin.check(request("CHECK", ipam=ipam, prevResult=prev, **kwargs))


def told(node):
    return node.add(ipam=DUAL).to_json("1.1.0")["ips"]


def test_check_accepts_what_add_said_and_what_others_added(node):
    check(node, {"address": "192.0.2.7/24"}, *told(node), {"address": "2001:db8:1::7/64"})


def test_check_finds_a_missing_lease(node):
    ips = told(node)
    node.plugin.delete(request("DEL", ipam=DUAL))
    with pytest.raises(CheckFailed, match="holds no lease in range"):
        check(node, *ips)


def test_check_finds_a_lease_of_another_interface(node):
    ips = told(node)
    with pytest.raises(CheckFailed, match="holds no lease"):
        check(node, *ips, ifname="net2")


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_check_finds_an_address_the_result_does_not_tell(node, missing):
    ips = told(node)
    lost = ips.pop(missing)
    with pytest.raises(CheckFailed, match="is missing in prevResult") as raised:
        check(node, *ips)
    assert lost["address"] in raised.value.msg


def test_check_finds_an_address_of_the_range_that_is_not_leased(node):
    with pytest.raises(CheckFailed, match=r"10\.0\.0\.77/24 of prevResult is not leased"):
        check(node, *told(node), {"address": "10.0.0.77/24"})


def test_check_finds_another_gateway(node):
    first, *rest = told(node)
    with pytest.raises(CheckFailed, match="another gateway"):
        check(node, {**first, "gateway": "10.0.0.253"}, *rest)


def test_check_needs_prev_result(node):
    node.add(ipam=DUAL)
    with pytest.raises(InvalidNetworkConfig, match="prevResult"):
        node.plugin.check(request("CHECK", ipam=DUAL))


# GC.


def gc(node, *valid, **kwargs):
    listed = [{"containerID": cid, "ifname": ifname} for cid, ifname in valid]
    kwargs.setdefault("ipam", {"range": "10.0.0.0/24"})
    node.plugin.gc(request("GC", **{"cni.dev/valid-attachments": listed}, **kwargs))


@pytest.fixture
def crowd(node):
    """Four leases: two of this network, one of another CNI network, one of another network_name."""
    node.add(ipam={"range": "10.0.0.0/24"}, cid="a")
    node.add(ipam={"range": "10.0.0.0/24"}, cid="b")
    node.add(ipam={"range": "10.0.0.0/24"}, cid="c", name="rail2")
    node.add(ipam={"range": "10.0.0.0/24", "network_name": "blue"}, cid="d")
    return node


def test_gc_gives_back_what_is_not_listed_of_this_network_only(crowd):
    gc(crowd, ("a", "net1"))
    assert crowd.leases().keys() == {"a/net1", "c/net1", "d/net1"}


def test_gc_minds_the_interface(crowd):
    gc(crowd, ("a", "net2"), ("b", "net1"))
    assert crowd.leases().keys() == {"b/net1", "c/net1", "d/net1"}


def test_gc_with_an_empty_list_gives_back_everything_of_this_network(crowd):
    gc(crowd)
    assert crowd.leases().keys() == {"c/net1", "d/net1"}


def test_gc_without_a_list_does_nothing(crowd):
    crowd.plugin.gc(request("GC", ipam={"range": "10.0.0.0/24"}))
    assert len(crowd.leases()) == 4


def test_gc_with_a_malformed_list_is_an_error_and_does_nothing(crowd):
    with pytest.raises(InvalidNetworkConfig, match="valid-attachments"):
        crowd.plugin.gc(request("GC", ipam={}, **{"cni.dev/valid-attachments": [{"containerID": 5}]}))
    assert len(crowd.leases()) == 4


def test_gc_needs_no_ranges(crowd):
    gc(crowd, ipam={})
    assert crowd.leases().keys() == {"c/net1", "d/net1"}


class Stubborn:
    """A store several nodes share; it refuses to reap the n-th lease."""

    def __init__(self, store, *, shared=False, refuse_at=None):
        self._store, self.shared, self._left = store, shared, refuse_at
        self.name, self.allocation = store.name, store.allocation

    def __getattr__(self, name):
        return getattr(self._store, name)

    def __enter__(self):
        self._store.__enter__()
        return self

    def __exit__(self, *caught):
        self._store.__exit__(*caught)

    def reap(self, lease):
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise StoreUnavailable("no answer")
        return self._store.reap(lease)


def test_gc_goes_on_after_an_error_and_tells_it(crowd):
    crowd.open_store = lambda *args: Stubborn(door.open_store(*args), refuse_at=1)
    with pytest.raises(UndoneInPart, match="1 stale lease") as raised:
        gc(crowd)
    assert "10.0.0.1: no answer" in raised.value.details
    assert crowd.leases().keys() == {"a/net1", "c/net1", "d/net1"}


def test_gc_of_a_shared_store_leaves_what_other_nodes_made(node):
    node.open_store = lambda *args: Stubborn(door.open_store(*args), shared=True)
    for cid, name in (("mine", "node1"), ("theirs", "node2")):
        made = request(ipam={"range": "10.0.0.0/24"}, cid=cid)
        made.environ["NODENAME"] = name
        node.plugin.add(made)
    sweep = request("GC", ipam={}, **{"cni.dev/valid-attachments": []})
    sweep.environ["NODENAME"] = "node1"
    node.plugin.gc(sweep)
    assert node.leases().keys() == {"theirs/net1"}


# STATUS.


def test_status_passes_and_writes_nothing(node, tmp_path):
    node.plugin.status(request("STATUS", ipam={"range": "10.0.0.0/24"}))
    assert list(tmp_path.iterdir()) == []
    node.add(ipam={"range": "10.0.0.0/24"})
    node.plugin.status(request("STATUS", ipam={"range": "10.0.0.0/24"}))


def test_status_says_50_and_the_cause_when_the_store_is_not_usable(node, tmp_path):
    node.add(config=NAD)
    (tmp_path / "leases" / "leases.sqlite").write_bytes(b"damaged")
    with pytest.raises(PluginNotAvailable) as raised:
        node.plugin.status(request("STATUS", ipam={"range": "10.0.0.0/24"}))
    assert raised.value.code == 50
    assert "NOTADB" in raised.value.details


def test_status_names_a_bad_configuration(node):
    with pytest.raises(InvalidNetworkConfig, match='"range": "x"'):
        node.plugin.status(request("STATUS", ipam={"range": "x"}))
