"""What an attachment is to get: one of several ranges, slices of nodes, against models that walk over addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from conf.errors import AddressesExhausted, InvalidNetworkConfig
from conf.node_name import read_node_name
from conf.whereabouts import read_whereabouts
from ipam.order import pools_of
from ipam.ranges import Range, usable
from ipam.stores.contract import NodeSlice
from tests.unit.whereabouts_node import Node, request

TWO = {
    "ipRangesAllocation": "first_available",
    "range": "10.0.0.0/31",
    "gateway": "10.1.0.254",
    "ipRanges": [{"range": "10.1.0.0/24"}, {"range": "2001:db8::/64", "gateway": "2001:db8::1"}],
}


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


# first_available.


def test_first_available_gives_one_address_in_all_with_the_gateway_of_its_range(node):
    given = [[(ip.address, ip.gateway) for ip in node.add(ipam=TWO, cid=f"c{n}").ips] for n in range(3)]
    assert given == [[("10.0.0.0/31", "")], [("10.0.0.1/31", "")], [("10.1.0.1/24", "10.1.0.254")]]
    assert node.addresses(ipam=TWO, cid="c2") == ["10.1.0.1/24"]


@pytest.mark.parametrize("strategy", ["all", "", None])
def test_all_is_what_it_is_without(node, strategy):
    assert len(node.addresses(ipam=TWO | {"ipRangesAllocation": strategy})) == 3


def test_first_available_reserves_the_address_that_is_asked_for(node):
    ips = {"ips": ["2001:db8::77"]}
    assert [(ip.address, ip.gateway) for ip in node.add(ipam=TWO, runtimeConfig=ips).ips] == [
        ("2001:db8::77/64", "2001:db8::1")
    ]
    with pytest.raises(InvalidNetworkConfig, match=r"10\.1\.0\.6"):
        node.add(ipam=TWO, cid="c2", runtimeConfig={"ips": ["10.1.0.5", "10.1.0.6"]})
    with pytest.raises(InvalidNetworkConfig, match=r"10\.9\.0\.1"):
        node.add(ipam=TWO, cid="c2", runtimeConfig={"ips": ["10.9.0.1"]})


def test_first_available_check_and_del(node):
    for cid in ("c0", "c1", "c2"):
        result = node.add(ipam=TWO, cid=cid).to_json("1.1.0")
    node.plugin.check(request("CHECK", ipam=TWO, cid="c2", prevResult=result))
    node.plugin.delete(request("DEL", ipam=TWO, cid="c2"))
    assert node.leases().keys() == {"c0/net1", "c1/net1"}


def test_first_available_says_that_every_range_is_full(node):
    ipam = {"ipRangesAllocation": "first_available", "ipRanges": [{"range": "10.0.0.1/32"}, {"range": "10.0.0.2/32"}]}
    for cid in ("c0", "c1"):
        node.add(ipam=ipam, cid=cid)
    with pytest.raises(AddressesExhausted, match=r"10\.0\.0\.1/32.*10\.0\.0\.2/32"):
        node.add(ipam=ipam, cid="c2")


def test_first_available_takes_one_range_alone_and_old_versions_too(node):
    alone = {"ipRangesAllocation": "first_available", "range": "10.0.0.0/24"}
    assert node.addresses(ipam=alone) == ["10.0.0.1/24"]
    two_of_a_family = TWO | {"addresses": []}
    assert node.addresses(ipam=two_of_a_family, cid="c2", version="0.2.0") == ["10.0.0.0/31"]


def test_another_strategy_is_refused():
    with pytest.raises(InvalidNetworkConfig, match='"ipRangesAllocation": "any"'):
        read_whereabouts(TWO | {"ipRangesAllocation": "any"})


# Sticky.


@pytest.mark.parametrize(("sticky", "again"), [(None, "10.0.0.1/24"), (True, "10.0.0.1/24"), (False, "10.0.0.3/24")])
def test_a_pod_gets_its_address_again_while_it_cools(node, sticky, again):
    node.defaults["cooldownSeconds"] = 60
    ipam = {"range": "10.0.0.0/24", "sticky": sticky}
    pods = {
        cid: f"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME={name}" for cid, name in (("a", "w-0"), ("b", "w-1"))
    }
    for cid, args in pods.items():
        node.add(ipam=ipam, cid=cid, args=args)
    node.plugin.delete(request("DEL", ipam=ipam, cid="a"))  # without CNI_ARGS: the lease knows whose it was
    assert node.addresses(ipam=ipam, cid="c", args=pods["a"]) == [again]


# Slices.


@given(
    st.integers(20, 29),
    st.integers(0, 7),
    st.data(),
    st.booleans(),
)
def test_a_sliced_range_offers_what_is_in_both(length, number, data, is_v6):
    version, width = (6, 128) if is_v6 else (4, 32)
    whole = IPNetwork((IPAddress("2001:db8::" if is_v6 else "10.0.0.0").value, length + width - 32), version=version)
    part = IPNetwork((whole.first + number * (whole.size // 8), whole.prefixlen + 3), version=version)
    bound = st.none() | st.integers(whole.first, whole.last).map(lambda value: IPAddress(value, version))
    start, end = data.draw(bound), data.draw(bound)
    if start is not None and end is not None and start > end:
        start, end = end, start
    exclude = data.draw(st.lists(st.integers(part.first, part.last), max_size=5))
    keys = {"range_start": str(start or ""), "range_end": str(end or "")}
    keys["exclude"] = [str(IPAddress(value, version)) for value in exclude]
    model = set(range(usable(part)[0], usable(part)[1] + 1)) & set(range(*_half_open(usable(whole))))
    model = {
        value for value in model if (start is None or value >= start.value) and (end is None or value <= end.value)
    }
    model -= set(exclude)
    conf = read_whereabouts({"range": str(whole), **keys})
    node_slice = NodeSlice("node1", whole, part)
    if not model:
        with pytest.raises(InvalidNetworkConfig, match="has no address to hand out"):
            pools_of(conf, node_slice=node_slice)
        return
    (pool,) = pools_of(conf, node_slice=node_slice)
    assert pool.range.network == whole
    assert pool.range.size == len(model)
    for value in range(part.first - 2, part.last + 3):
        assert pool.range.offers(IPAddress(value, version)) == (value in model)


def _half_open(bounds):
    return bounds[0], bounds[1] + 1


def test_a_slice_of_two_or_one_addresses_is_used_whole():
    conf = read_whereabouts({"range": "10.0.0.0/24"})
    for part, size in (("10.0.0.8/31", 2), ("10.0.0.8/32", 1), ("10.0.0.0/31", 1)):
        (pool,) = pools_of(conf, node_slice=NodeSlice("n", IPNetwork("10.0.0.0/24"), IPNetwork(part)))
        assert pool.range.size == size
    assert isinstance(pool.range, Range)


@pytest.mark.parametrize("size", ["/", "26/", "x", "/129", "-1"])
def test_a_slice_size_that_is_none_is_refused(size):
    with pytest.raises(InvalidNetworkConfig, match="node_slice_size"):
        read_whereabouts({"range": "10.0.0.0/24", "node_slice_size": size})


# Which node.


def test_node_name_is_nodenames_then_the_files_then_the_hosts(tmp_path, monkeypatch):
    monkeypatch.setattr("os.uname", lambda: type("Uname", (), {"nodename": "host"}))
    flat_file, name = tmp_path / "whereabouts.conf", tmp_path / "nodename"
    assert read_node_name({}, "") == read_node_name({}, str(tmp_path)) == read_node_name({}, str(flat_file)) == "host"
    name.write_text("\n")
    assert read_node_name({}, str(tmp_path)) == "host"
    name.write_text("worker-1.example\n")
    flat_file.write_text("{}")
    assert read_node_name({}, str(tmp_path)) == read_node_name({}, str(flat_file)) == "worker-1.example"
    assert read_node_name({"NODENAME": "given"}, str(tmp_path)) == "given"
