"""The success result in every version of the specification, up and down. Source: reference 1.8."""

from __future__ import annotations

import pytest

from conf.errors import CniError, DecodeFailure, IncompatibleCniVersion
from conf.executables import SUPPORTED_VERSIONS
from conf.netconf import Dns
from conf.result import Interface, Ip, Result, Route, parse

OLD, WITH_VERSION, NEW = SUPPORTED_VERSIONS[:2], SUPPORTED_VERSIONS[2:5], SUPPORTED_VERSIONS[5:]

FULL = Result(
    interfaces=[
        Interface(name="net1", mac="02:00:00:00:00:01", mtu=1400, sandbox="/run/netns/blue", pciID="0000:3b:02.0"),
        Interface(name="vhost0", socketPath="/run/vhost.sock"),
    ],
    ips=[
        Ip(address="10.0.0.5/24", gateway="10.0.0.1", interface=0),
        Ip(address="10.0.0.6/24", interface=1),
        Ip(address="fd00::5/64", gateway="fd00::1"),
    ],
    routes=[
        Route(dst="10.8.0.0/16"),
        Route(dst="0.0.0.0/0", gw="10.0.0.9", mtu=1300, advmss=1200, priority=7, table=0, scope=0),
        Route(dst="::/0", gw="fd00::9", table=100),
    ],
    dns=Dns(nameservers=["10.0.0.53"], search=["example"]),
)
ROUTES = [
    {"dst": "10.8.0.0/16"},
    {"dst": "0.0.0.0/0", "gw": "10.0.0.9", "mtu": 1300, "advmss": 1200, "priority": 7, "table": 0, "scope": 0},
    {"dst": "::/0", "gw": "fd00::9", "table": 100},
]
DNS = {"nameservers": ["10.0.0.53"], "search": ["example"]}
IPS = [
    {"interface": 0, "address": "10.0.0.5/24", "gateway": "10.0.0.1"},
    {"interface": 1, "address": "10.0.0.6/24"},
    {"address": "fd00::5/64", "gateway": "fd00::1"},
]


@pytest.mark.parametrize("version", NEW)
def test_as_1(version):
    assert FULL.to_json(version) == {
        "cniVersion": version,
        "interfaces": [
            {
                "name": "net1",
                "mac": "02:00:00:00:00:01",
                "mtu": 1400,
                "sandbox": "/run/netns/blue",
                "pciID": "0000:3b:02.0",
            },
            {"name": "vhost0", "socketPath": "/run/vhost.sock"},
        ],
        "ips": IPS,
        "routes": ROUTES,
        "dns": DNS,
    }


@pytest.mark.parametrize("version", WITH_VERSION)
def test_as_0_3_and_0_4(version):
    assert FULL.to_json(version) == {
        "cniVersion": version,
        "interfaces": [
            {"name": "net1", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/blue"},
            {"name": "vhost0"},
        ],
        "ips": [{"version": family, **ip} for family, ip in zip("446", IPS, strict=True)],
        "routes": ROUTES,
        "dns": DNS,
    }


@pytest.mark.parametrize("version", OLD)
def test_as_0_1_and_0_2_one_address_a_family_with_its_routes(version):
    assert FULL.to_json(version) == {
        "cniVersion": version,
        "ip4": {
            "ip": "10.0.0.5/24",
            "gateway": "10.0.0.1",
            "routes": [{"dst": "10.8.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.0.0.9"}],
        },
        "ip6": {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": [{"dst": "::/0", "gw": "fd00::9"}]},
        "dns": DNS,
    }


def test_routes_of_a_family_without_an_address_are_not_told_in_0_2():
    result = Result(ips=[Ip(address="10.0.0.5/24")], routes=[Route(dst="::/0")])
    assert result.to_json("0.2.0") == {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.5/24"}, "dns": {}}


@pytest.mark.parametrize("version", OLD)
def test_no_address_cannot_be_said_in_0_2(version):
    with pytest.raises(CniError) as refused:
        Result(interfaces=[Interface(name="net1")]).to_json(version)
    assert (refused.value.code, version in refused.value.msg) == (7, True)


@pytest.mark.parametrize(
    ("version", "document"),
    [("1.1.0", {}), ("1.0.0", {}), ("0.4.0", {"dns": {}}), ("0.3.1", {"dns": {}}), ("0.3.0", {"dns": {}})],
)
def test_nothing_is_left_out_but_dns_in_0(version, document):
    assert Result().to_json(version) == {"cniVersion": version, **document}


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_what_is_written_is_read_again(version):
    document = FULL.to_json(version)
    assert parse(document, cni_version="1.1.0", what="it").to_json(version) == document


@pytest.mark.parametrize("written", SUPPORTED_VERSIONS)
@pytest.mark.parametrize("asked", SUPPORTED_VERSIONS)
def test_every_version_becomes_every_other(written, asked):
    told = parse(FULL.to_json(written), cni_version=written, what="it").to_json(asked)
    assert told["cniVersion"] == asked
    addresses = [told[key]["ip"] for key in ("ip4", "ip6")] if asked in OLD else [ip["address"] for ip in told["ips"]]
    assert {"10.0.0.5/24", "fd00::5/64"} <= set(addresses)
    assert told["dns"] == DNS


@pytest.mark.parametrize("absent", [{}, {"cniVersion": ""}, {"cniVersion": None}])
def test_result_without_a_version_is_of_the_configurations(absent):
    assert parse({**absent, "ip4": {"ip": "10.0.0.2/24"}}, cni_version="0.2.0", what="it").ips[0].interface is None
    assert parse({**absent, "ips": [{"address": "10.0.0.2/24", "interface": 0}]}, cni_version="1.0.0", what="it").ips[
        0
    ] == Ip(address="10.0.0.2/24", interface=0)


def test_version_we_do_not_speak():
    with pytest.raises(IncompatibleCniVersion):
        parse({"cniVersion": "2.0.0"}, cni_version="1.0.0", what="it")
    with pytest.raises(IncompatibleCniVersion):
        FULL.to_json("0.9.0")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"ips": [{"address": "10.0.0.5"}]}, "10.0.0.5"),
        ({"ips": [{"address": "10.0.0.555/24"}]}, "10.0.0.555/24"),
        ({"ips": [{"address": "10.0.0.5/33"}]}, "10.0.0.5/33"),
        ({"ips": [{"address": "10.0.0.5/24", "gateway": "nowhere"}]}, "nowhere"),
        ({"ips": [{"address": "10.0.0.5/24", "interface": "0"}]}, "interface"),
        ({"ips": [{}]}, "address"),
        ({"ips": {}}, "ips"),
        ({"interfaces": [{"mac": "x"}]}, "name"),
        ({"routes": [{"gw": "10.0.0.1"}]}, "dst"),
        ({"routes": [{"dst": "default"}]}, "default"),
        ({"routes": [{"dst": "10.0.0.0"}]}, "10.0.0.0"),
        ({"routes": [{"dst": "0.0.0.0/0", "gw": "x"}]}, '"x"'),
        ({"routes": [{"dst": "0.0.0.0/0", "table": "main"}]}, "table"),
        ({"dns": []}, "dns"),
        ({"cniVersion": "0.2.0", "ip4": {"gateway": "10.0.0.1"}}, "ip"),
        ({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1"}}, "10.0.0.1"),
        ({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/24", "routes": [{"dst": "x"}]}}, "x"),
    ],
)
def test_malformed_result_is_a_decode_failure_that_names_it(document, said):
    with pytest.raises(DecodeFailure) as refused:
        parse(document, cni_version="1.1.0", what="the result of /opt/cni/bin/x")
    assert refused.value.msg.startswith("the result of /opt/cni/bin/x: ")
    assert said in str(refused.value)


def test_family():
    assert (Ip(address="10.0.0.5/24").family, Ip(address="fd00::5/64").family) == (4, 6)
    assert (Route(dst="0.0.0.0/0").family, Route(dst="::/0").family) == (4, 6)
