"""``whereabouts`` giving addresses: ADD, from request to result."""

from __future__ import annotations

import json

import pytest

from conf.errors import (
    AddressesExhausted,
    InvalidEnvironment,
    InvalidNetworkConfig,
    TryAgainLater,
)
from ipam.stores import door
from tests.unit.whereabouts_node import NAD, Node, request


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


# ADD.


def test_the_articles_nad_works_as_it_stands(node):
    document = node.add(config=NAD).to_json("0.3.1")
    assert document == {
        "cniVersion": "0.3.1",
        "ips": [{"version": "4", "address": "192.168.100.1/24"}],
        "dns": {},
    }


def test_the_datastore_may_come_from_the_flat_file(node):
    node.flat_files[0].write_text(json.dumps(node.defaults))
    node.defaults = {}
    assert node.addresses(config=NAD) == ["192.168.100.1/24"]


def test_no_datastore_is_chosen_silently(node):
    node.defaults = {}
    with pytest.raises(InvalidNetworkConfig, match='no "datastore" is chosen') as raised:
        node.add(config=NAD)
    assert "vferry.toml" in raised.value.hint
    assert "local" in raised.value.hint


@pytest.mark.parametrize(
    ("ipam", "reason"),
    [
        ({"datastore": "nonsense"}, '"datastore": "nonsense" is not known'),
        ({"datastore": "Local"}, '"datastore": "Local" is not known'),
    ],
)
def test_a_datastore_that_is_not_there_is_named(node, ipam, reason):
    with pytest.raises(InvalidNetworkConfig) as raised:
        node.add(ipam={"range": "10.0.0.0/24", **ipam})
    assert reason in raised.value.msg
    assert "local" in raised.value.hint


def test_a_datastore_this_build_lacks_is_named_and_kubernetes_is_the_choice_of_a_kubeconfig(node, monkeypatch):
    monkeypatch.setattr(door, "STORES", {"local": door.STORES["local"]})
    node.defaults = {}
    with pytest.raises(InvalidNetworkConfig, match='"datastore": "kubernetes" is not available in this build'):
        node.add(ipam={"range": "10.0.0.0/24", "kubernetes": {"kubeconfig": "/etc/kubeconfig"}})


def test_the_same_container_and_interface_get_the_same_address(node):
    first = node.addresses(config=NAD)
    assert node.addresses(config=NAD, cid="c2") == ["192.168.100.2/24"]
    assert node.addresses(config=NAD) == first
    assert node.addresses(config=NAD, ifname="net2") == ["192.168.100.3/24"]


def test_dual_stack_with_a_gateway_per_family(node):
    ipam = {
        "range": "10.0.0.0/29",
        "gateway": "10.0.0.1",
        "ipRanges": [{"range": "2001:db8::/64", "gateway": "2001:db8::1"}, {"range": "10.9.0.0/24"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.1.0.5/16", "gw": "10.0.0.1", "mtu": 9000}],
        "dns": {"nameservers": ["10.0.0.53"]},
    }
    assert node.add(ipam=ipam).to_json("1.1.0") == {
        "cniVersion": "1.1.0",
        "ips": [
            {"address": "10.0.0.2/29", "gateway": "10.0.0.1"},
            {"address": "2001:db8::2/64", "gateway": "2001:db8::1"},
            {"address": "10.9.0.1/24"},
        ],
        "routes": ipam["routes"],
        "dns": ipam["dns"],
    }


@pytest.mark.parametrize(
    ("text", "gateway", "given"),
    [
        ("2001:db8::/64", "fe80::1", "fe80::1"),
        ("10.0.0.7/32", "10.0.0.1", "10.0.0.1"),
        ("10.0.0.0/24", "10.9.9.9", ""),
        ("10.0.0.0/24", "2001:db8::1", ""),
    ],
)
def test_a_gateway_is_given_where_it_can_be_reached(node, text, gateway, given):
    (ip,) = node.add(ipam={"range": text, "gateway": gateway}).ips
    assert ip.gateway == given


def test_bounds_gateway_exclude_and_static_addresses_are_never_handed_out(node):
    ipam = {
        "range": "10.0.0.0/28",
        "range_start": "10.0.0.2",
        "range_end": "10.0.0.8",
        "gateway": "10.0.0.3",
        "exclude": ["10.0.0.4", "10.0.0.7/31"],
        "addresses": [{"address": "10.0.0.5/28"}],
    }
    given = [node.addresses(ipam=ipam, cid=f"c{n}")[0] for n in range(2)]
    # 10.0.0.7/31 is 10.0.0.6 and .7 once its host bit is masked away
    assert given == ["10.0.0.2/28", "10.0.0.8/28"]
    with pytest.raises(AddressesExhausted) as raised:
        node.add(ipam=ipam, cid="late")
    assert "10.0.0.0/28 (10.0.0.2 to 10.0.0.8)" in raised.value.msg
    assert raised.value.details == "size 2, used 2, cooling down 0, excluded 5"


def test_the_exclude_of_the_configuration_counts_for_every_range(node):
    ipam = {"ipRanges": [{"range": "10.0.0.0/24"}], "exclude": ["10.0.0.0/25"]}
    assert node.addresses(ipam=ipam) == ["10.0.0.128/24"]


@pytest.mark.parametrize(
    "ipam",
    [
        {"range": "10.0.0.0/29", "exclude": ["10.0.0.0/28"]},
        {"range": "10.0.0.1/32", "gateway": "10.0.0.1"},
        {"range": "10.0.0.0/24", "range_end": "10.0.0.0"},
    ],
)
def test_a_range_with_nothing_left_is_an_error(node, ipam):
    with pytest.raises(InvalidNetworkConfig, match="has no address to hand out"):
        node.add(ipam=ipam)


def test_point_to_point_ranges_are_usable_throughout(node):
    assert [node.addresses(ipam={"range": "10.0.0.4/31"}, cid=f"c{n}") for n in range(2)] == [
        ["10.0.0.4/31"],
        ["10.0.0.5/31"],
    ]
    assert node.addresses(ipam={"range": "10.0.1.4/32"}) == ["10.0.1.4/32"]


def test_static_addresses_come_after_the_leased_ones(node):
    ipam = {"range": "10.0.0.0/24", "addresses": [{"address": "172.16.0.5/16", "gateway": "172.16.0.1"}]}
    args = "IP=10.7.0.9/24;GATEWAY=10.7.0.1"
    assert [(ip.address, ip.gateway) for ip in node.add(ipam=ipam, args=args).ips] == [
        ("10.0.0.1/24", ""),
        ("172.16.0.5/16", "172.16.0.1"),
        ("10.7.0.9/24", "10.7.0.1"),
    ]


def test_static_addresses_alone_need_no_datastore(node):
    node.defaults = {}
    ipam = {"addresses": [{"address": "172.16.0.5/16"}]}
    assert node.addresses(ipam=ipam) == ["172.16.0.5/16"]
    node.plugin.status(request("STATUS", ipam=ipam))
    node.plugin.delete(request("DEL", ipam=ipam))


def test_no_range_at_all_is_an_error(node):
    with pytest.raises(InvalidNetworkConfig, match="no range"):
        node.add(ipam={})


def test_old_versions_take_one_address_per_family(node):
    ipam = {"range": "10.0.0.0/24", "ipRanges": [{"range": "2001:db8::/64"}]}
    assert len(node.addresses(ipam=ipam, version="0.2.0")) == 2
    with pytest.raises(InvalidNetworkConfig, match=r"0\.2\.0"):
        node.add(ipam={**ipam, "addresses": [{"address": "10.5.0.1/24"}]}, version="0.2.0", cid="c2")
    assert node.leases().keys() == {"c1/net1"}


def test_all_ranges_or_none(node):
    ipam = {"range": "10.0.0.0/24", "ipRanges": [{"range": "10.1.0.1/32"}]}
    node.add(ipam=ipam)
    with pytest.raises(AddressesExhausted):
        node.add(ipam=ipam, cid="c2")
    assert node.leases().keys() == {"c1/net1"}


def test_pod_is_recorded_when_given_and_not_missed_otherwise(node):
    node.add(config=NAD, args="IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_UID=u", cid="with")
    node.add(config=NAD, cid="without")
    with node.plugin._open(node.plugin._read_store(request("DEL"))) as store:
        owners = {lease.owner.container_id: lease.owner for lease in store.leases()}
    assert (owners["with"].pod_namespace, owners["with"].pod_name, owners["with"].pod_uid) == ("ns", "pod", "u")
    assert owners["with"].cni_network == "sriov-rdma-net"
    assert owners["without"].pod_name == ""


@pytest.mark.parametrize("allocation", ["lowest", "window"])
def test_allocation_is_the_configurations(node, allocation):
    given = {node.addresses(ipam={"range": "10.0.0.0/16", "allocation": allocation}, cid=f"c{n}")[0] for n in range(12)}
    in_order = {f"10.0.0.{n}/16" for n in range(1, 13)}
    assert (given == in_order) == (allocation == "lowest")


def test_network_names_and_overlap_checks_make_name_spaces(node):
    wide, narrow = {"range": "10.0.0.0/24"}, {"range": "10.0.0.0/28"}
    apart = {"enable_overlapping_ranges": False}
    assert node.addresses(ipam=wide, cid="a") == ["10.0.0.1/24"]
    assert node.addresses(ipam=narrow, cid="b", name="other-cni-network") == ["10.0.0.2/28"]
    assert node.addresses(ipam={**narrow, "network_name": "blue"}, cid="c") == ["10.0.0.1/28"]
    assert node.addresses(ipam={**wide, **apart}, cid="d") == ["10.0.0.1/24"]
    assert node.addresses(ipam={**narrow, **apart}, cid="e") == ["10.0.0.1/28"]


# Addresses asked for.


def runtime(*ips):
    return {"runtimeConfig": {"ips": list(ips)}}


def test_a_requested_address_is_leased(node):
    ipam = {"range": "10.0.0.0/24", "ipRanges": [{"range": "2001:db8::/64"}]}
    assert node.addresses(ipam=ipam, **runtime("2001:db8::77/64")) == ["10.0.0.1/24", "2001:db8::77/64"]
    with pytest.raises(TryAgainLater, match="already allocated"):
        node.add(ipam=ipam, cid="c2", **runtime("2001:db8::77"))
    assert node.leases().keys() == {"c1/net1"}


def test_args_are_asked_after_the_runtime_and_silence_cni_args(node):
    ipam = {"range": "10.0.0.0/24"}
    by_args = {"Args": {"cni": {"ips": ["10.0.0.40"]}}}
    assert node.addresses(ipam=ipam, args="IP=10.7.0.1/24", **by_args) == ["10.0.0.40/24"]
    assert node.addresses(ipam=ipam, cid="c2", **by_args, **runtime("10.0.0.50")) == ["10.0.0.50/24"]


def test_two_requested_addresses_need_two_ranges(node):
    once, twice = {"range": "10.0.0.0/24"}, {"range": "10.0.0.0/24", "ipRanges": [{"range": "10.0.0.0/24"}]}
    ips = runtime("10.0.0.40", "10.0.0.41")
    assert node.addresses(ipam=twice, **ips) == ["10.0.0.40/24", "10.0.0.41/24"]
    with pytest.raises(InvalidNetworkConfig, match=r'"10\.0\.0\.41" cannot be given'):
        node.add(ipam=once, cid="c2", **ips)


@pytest.mark.parametrize(
    ("ip", "reason"),
    [
        ("10.0.1.1", "in none of the ranges 10.0.0.0/24"),
        ("2001:db8::1", "in none of the ranges"),
        ("10.0.0.0", "never hands it out"),
        ("10.0.0.255", "never hands it out"),
        ("10.0.0.1", "never hands it out"),
        ("10.0.0.9", "never hands it out"),
        ("nonsense", ""),
    ],
)
def test_an_address_that_cannot_be_given_is_an_error(node, ip, reason):
    with pytest.raises(InvalidNetworkConfig, match=r"runtimeConfig\.ips") as raised:
        node.add(ipam={"range": "10.0.0.0/24", "gateway": "10.0.0.1", "exclude": ["10.0.0.9"]}, **runtime(ip))
    assert reason in raised.value.details
    assert node.leases() == {}


def test_bad_cni_args_are_an_error_before_anything_is_leased(node):
    with pytest.raises(InvalidEnvironment, match="IP"):
        node.add(config=NAD, args="IP=10.0.0.1")
    assert node.leases() == {}
