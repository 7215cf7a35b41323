"""``static``, as upstream's dialect has it and better where upstream loses something."""

from __future__ import annotations

import json

import pytest

from conf.errors import CheckFailed, InvalidEnvironment, InvalidNetworkConfig
from conf.request import read_request
from ipam.static import Static

ADDRESSES = [
    {"address": "10.10.0.1/24", "gateway": "10.10.0.254"},
    {"address": "3ffe:ffff:0:1ff::1/64", "gateway": "3ffe:ffff::1"},
]


def request(command="ADD", *, ipam=None, args="", version="1.0.0", **keys):
    ipam = {"addresses": ADDRESSES} if ipam is None else ipam
    config = {"cniVersion": version, "name": "net", "type": "x", "ipam": {"type": "static", **ipam}, **keys}
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": args,
    }
    return read_request(environ, json.dumps(config).encode())


@pytest.fixture
def static():
    return Static(defaults=lambda _: {})


def given(static, **kwargs):
    return [(ip.address, ip.gateway) for ip in static.add(request(**kwargs)).ips]


def test_add_gives_addresses_routes_and_dns(static):
    ipam = {
        "addresses": ADDRESSES,
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.5/16", "gw": "10.10.5.1", "mtu": 1400, "scope": 0}],
        "dns": {"nameservers": ["8.8.8.8"], "search": ["example.com"]},
    }
    document = static.add(request(ipam=ipam, version="1.1.0")).to_json("1.1.0")
    assert document == {
        "cniVersion": "1.1.0",
        "ips": ADDRESSES,
        "routes": ipam["routes"],
        "dns": ipam["dns"],
    }


def test_keys_are_matched_as_go_matches_them(static):
    assert given(static, ipam={"Addresses": [{"ADDRESS": "10.0.0.1/24", "Gateway": ""}]}) == [("10.0.0.1/24", "")]


def test_cni_args_append_and_give_gateways_to_the_subnets_that_hold_them(static):
    args = "IgnoreUnknown=1;IP=10.20.0.7/24, 3ffe:ffff:2::7/64 ;GATEWAY=10.20.0.1,10.10.0.253"
    assert given(static, args=args) == [
        ("10.10.0.1/24", "10.10.0.253"),
        ("3ffe:ffff:0:1ff::1/64", "3ffe:ffff::1"),
        ("10.20.0.7/24", "10.20.0.1"),
        ("3ffe:ffff:2::7/64", ""),
    ]


def test_an_address_given_twice_is_given_once(static):
    assert given(static, args="IP=10.10.0.1/24")[0] == ("10.10.0.1/24", "10.10.0.254")
    assert len(given(static, args="IP=10.10.0.1/24")) == 2


def test_args_replace_and_runtime_config_replaces_again(static):
    args = {"cni": {"ips": ["10.30.0.5/24"]}}
    by_args = with_keys({"args": args}, args="IP=10.20.0.7/24")
    by_runtime = with_keys({"args": args, "RuntimeConfig": {"ips": ["10.40.0.5/24"]}})
    assert [ip.address for ip in static.add(by_args).ips] == ["10.30.0.5/24"]
    assert [ip.address for ip in static.add(by_runtime).ips] == ["10.40.0.5/24"]


def with_keys(keys, **kwargs):
    base = request(**kwargs)
    return read_request(base.environ, json.dumps({**base.config, **keys}).encode())


def test_a_replaced_address_keeps_the_gateway_that_is_known_for_it(static):
    ips = ["10.10.0.77/24", "3ffe:ffff:0:1ff::1/64", "172.16.0.1/24", "10.20.0.1/16"]
    result = static.add(with_keys({"runtimeConfig": {"ips": ips}}, args="GATEWAY=10.20.255.254"))
    assert [(ip.address, ip.gateway) for ip in result.ips] == [
        ("10.10.0.77/24", "10.10.0.254"),  # a configured gateway is in its subnet
        ("3ffe:ffff:0:1ff::1/64", "3ffe:ffff::1"),  # the same address is configured
        ("172.16.0.1/24", ""),
        ("10.20.0.1/16", "10.20.255.254"),
    ]


def test_mapped_ipv4_is_ipv4(static):
    assert given(static, ipam={"addresses": [{"address": "::ffff:10.0.0.9/120"}]}) == [("10.0.0.9/24", "")]


@pytest.mark.parametrize(
    ("ipam", "complaint"),
    [
        ({"addresses": [{"address": "10.0.0.1"}]}, '"addresses.0.address": "10.0.0.1"'),
        ({"addresses": [{"address": "10.0.0.300/24"}]}, "10.0.0.300"),
        ({"addresses": [{"address": "10.0.0.1/33"}]}, "0 to 32"),
        ({"addresses": [{"address": "10.0.0.01/24"}]}, "10.0.0.01"),
        ({"addresses": [{"address": "224.0.0.1/24"}]}, "multicast"),
        ({"addresses": [{"address": "0.0.0.0/0"}]}, "unspecified"),
        ({"addresses": [{"address": 5}]}, '"addresses.0.address": 5'),
        ({"addresses": [{"gateway": "10.0.0.1"}]}, '"addresses.0.address" is missing'),
        ({"addresses": [{"address": "10.0.0.2/24", "gateway": "x"}]}, '"addresses.0.gateway": "x"'),
        (
            {"addresses": [{"address": "10.0.0.2/24", "gateway": "fe80::1"}]},
            '"gateway": "fe80::1" is not of the family',
        ),
        ({"addresses": ADDRESSES, "routes": [{"dst": "10.0.0.0"}]}, '"routes.0.dst": "10.0.0.0"'),
        ({"addresses": ADDRESSES, "routes": [{"dst": "10.0.0.0/8", "gw": "fe80::1"}]}, "not of the family of dst"),
        ({"addresses": "10.0.0.1/24"}, '"addresses": "10.0.0.1/24"'),
        ({}, "no address"),
    ],
)
def test_bad_configuration_is_named(static, ipam, complaint):
    with pytest.raises(InvalidNetworkConfig) as raised:
        static.add(request(ipam=ipam))
    assert complaint in raised.value.msg


@pytest.mark.parametrize("args", ["IP=10.0.0.1", "IP=nonsense/24", "GATEWAY=nonsense", "IP=224.0.0.1/24"])
def test_bad_cni_args_are_named(static, args):
    with pytest.raises(InvalidEnvironment, match=args.partition("=")[0]):
        static.add(request(args=args))


@pytest.mark.parametrize("ips", [["10.0.0.1"], ["x/24"], "10.0.0.1/24", [7]])
def test_bad_requested_addresses_are_named(static, ips):
    with pytest.raises(InvalidNetworkConfig, match=r"runtimeConfig\.ips"):
        static.add(with_keys({"runtimeConfig": {"ips": ips}}))


def test_ipam_missing_is_an_error(static):
    with pytest.raises(InvalidNetworkConfig, match='"ipam" is missing'):
        static.add(read_request(request().environ, b'{"cniVersion": "1.0.0", "name": "net"}'))


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions_take_one_address_per_family(static, version):
    assert len(given(static, version=version)) == 2
    with pytest.raises(InvalidNetworkConfig, match=f"cniVersion {version}"):
        given(static, version=version, args="IP=10.20.0.7/24")


def prev(*ips):
    return {"prevResult": {"cniVersion": "1.0.0", "ips": list(ips)}}


def test_check_accepts_what_add_gave_and_what_others_added(static):
    extra = {"address": "172.16.0.1/16"}
    static.check(with_keys(prev(extra, *ADDRESSES), command="CHECK"))


def test_check_finds_a_missing_address(static):
    with pytest.raises(CheckFailed, match="3ffe:ffff:0:1ff::1/64 is missing"):
        static.check(with_keys(prev(ADDRESSES[0]), command="CHECK"))


def test_check_finds_a_missing_address_although_its_subnet_is_told(static):
    with pytest.raises(CheckFailed, match=r"10\.10\.0\.1/24 is missing"):
        static.check(with_keys(prev({**ADDRESSES[0], "address": "10.10.0.2/24"}, ADDRESSES[1]), command="CHECK"))


def test_check_finds_another_prefix_length(static):
    with pytest.raises(CheckFailed, match=r"10\.10\.0\.1/24 is missing"):
        static.check(with_keys(prev({**ADDRESSES[0], "address": "10.10.0.1/16"}, ADDRESSES[1]), command="CHECK"))


def test_check_finds_another_gateway(static):
    with pytest.raises(CheckFailed, match="another gateway"):
        static.check(with_keys(prev({**ADDRESSES[0], "gateway": "10.10.0.1"}, ADDRESSES[1]), command="CHECK"))


def test_check_needs_prev_result(static):
    with pytest.raises(InvalidNetworkConfig, match="prevResult"):
        static.check(request("CHECK"))


def test_delete_and_gc_succeed_whatever_the_configuration(static):
    static.delete(request("DEL", ipam={"addresses": "nonsense"}))
    static.gc(request("GC", ipam={}, version="1.1.0"))


def test_status_reads_the_configuration_and_does_not_miss_what_the_runtime_adds(static):
    static.status(request("STATUS", ipam={}, version="1.1.0"))
    with pytest.raises(InvalidNetworkConfig):
        static.status(request("STATUS", ipam={"addresses": [{"address": "x"}]}, version="1.1.0"))


def test_node_defaults_fill_what_is_absent():
    static = Static(defaults=lambda name: {"dns": {"domain": f"{name}.example"}})
    assert static.add(request()).dns.domain == "static.example"
