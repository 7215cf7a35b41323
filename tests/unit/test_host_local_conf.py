"""What ``host-local`` is told: upstream's dialect, and every refusal with key and value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conf.errors import InvalidEnvironment, InvalidNetworkConfig
from conf.host_local import read_folder, read_host_local, read_keys
from conf.request import read_request

EXAMPLES = Path(__file__).resolve().parents[2] / "conf" / "examples"
V4, V6 = {"subnet": "10.1.2.0/24"}, {"subnet": "fd00:1::/64"}


def request(command="ADD", *, version="1.0.0", cni_args="", **keys):
    config = {"cniVersion": version, "name": "rail1", **keys}
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "net1",
        "CNI_NETNS": "/x",
        "CNI_ARGS": cni_args,
    }
    return read_request(environ, json.dumps(config).encode())


def order(ipam, **keys):
    return read_host_local(request(ipam={"type": "host-local", **ipam}, **keys), {})


def refusal(ipam, **keys):
    with pytest.raises(InvalidNetworkConfig) as raised:
        order(ipam, **keys)
    return str(raised.value)


@pytest.mark.parametrize(
    ("given", "span", "gateway"),
    [
        ({"subnet": "10.1.2.0/24"}, "10.1.2.1-10.1.2.254", "10.1.2.1"),
        ({"subnet": "10.1.2.0/30"}, "10.1.2.1-10.1.2.2", "10.1.2.1"),
        ({"subnet": "fd00::/126"}, "fd00::1-fd00::3", "fd00::1"),
        ({"subnet": "::/96"}, "::1-::ffff:ffff", "::1"),
        ({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.0", "rangeEnd": "10.1.2.255"}, "10.1.2.0-10.1.2.255", ""),
        ({"subnet": "10.1.2.0/24", "gateway": "10.1.2.254"}, "10.1.2.1-10.1.2.254", "10.1.2.254"),
        ({"subnet": "10.1.2.0/24", "gateway": "10.1.3.1"}, "10.1.2.1-10.1.2.254", "10.1.3.1"),
        ({"Subnet": "10.1.2.0/24", "RANGESTART": "10.1.2.9", "gateway": ""}, "10.1.2.9-10.1.2.254", "10.1.2.1"),
    ],
)
def test_bounds_and_gateway_have_upstreams_defaults(given, span, gateway):
    for ipam in (given, {"ranges": [[given]]}):
        (only,) = order(ipam).sets
        assert str(only) == span
        assert str(only.ranges[0].router) == (gateway or "10.1.2.1")


def test_sets_of_the_runtime_come_first_then_the_old_style_then_ranges():
    runtime = [[{"subnet": "10.7.0.0/24"}, {"subnet": "10.8.0.0/24"}]]
    found = order({**V4, "ranges": [[V6]]}, runtimeConfig={"ipRanges": runtime}).sets
    assert [str(each) for each in found] == [
        "10.7.0.1-10.7.0.254,10.8.0.1-10.8.0.254",
        "10.1.2.1-10.1.2.254",
        "fd00:1::1-fd00:1::ffff:ffff:ffff:ffff",
    ]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            {"subnet": "10.1.2.3/24"},
            '"10.1.2.3/24" is not valid: it has host bits set, the network address is 10.1.2.0',
        ),
        ({"subnet": "10.1.2.0/31"}, "too small to allocate from, the smallest is a /30"),
        ({"subnet": "fd00::/127"}, "too small to allocate from, the smallest is a /126"),
        ({"subnet": "10.1.2.0"}, "no prefix length"),
        ({"subnet": 7}, "7 is not valid"),
        ({"subnet": "10.01.2.0/24"}, "10.01.2.0"),
        ({**V4, "gateway": "fd00::1"}, '"gateway": "fd00::1" is not of the family of subnet 10.1.2.0/24'),
        ({**V4, "rangeStart": "10.1.1.255"}, '"rangeStart": "10.1.1.255" is not in subnet 10.1.2.0/24'),
        ({**V4, "rangeEnd": "10.1.3.0"}, '"rangeEnd": "10.1.3.0" is not in subnet 10.1.2.0/24'),
        ({**V4, "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8"}, "ends before it starts: 10.1.2.9 to 10.1.2.8"),
        ({**V4, "rangeEnd": "10.1.2.0"}, "ends before it starts: 10.1.2.1 to 10.1.2.0"),
        ({**V4, "rangeStart": "nonsense"}, '"nonsense"'),
    ],
)
def test_a_bad_range_is_named_in_either_style(given, complaint):
    assert complaint in refusal(given)
    nested = refusal({"ranges": [[V6], [{"subnet": "10.9.0.0/24"}, given]]})
    assert complaint in nested
    assert "ranges.1.1" in nested


@pytest.mark.parametrize(
    ("ipam", "complaint"),
    [
        ({}, "no range to give addresses from"),
        ({"ranges": []}, "no range to give addresses from"),
        ({"ranges": [[]]}, "range set 0 is empty"),
        ({"ranges": [[{}]]}, '"ranges.0.0.subnet" is missing'),
        ({"ranges": [V4]}, '"ranges.0"'),
        (
            {"ranges": [[V4, V6]]},
            "range set 0 has mixed address families; 10.1.2.0/24, fd00:1::/64",
        ),
        ({"ranges": [[V4, {"subnet": "10.1.0.0/16"}]]}, "10.1.2.1-10.1.2.254 and 10.1.0.1-10.1.255.254 overlap"),
        ({"ranges": [[V4], [{"subnet": "10.1.0.0/16"}]]}, "range set 0 overlaps with 1"),
        ({**V4, "ranges": [[V6], [V4]]}, "range set 0 overlaps with 2"),
        ({**V4, "dataDir": "networks"}, '"dataDir": "networks" is not valid: it is not an absolute path'),
        ({**V4, "dataDir": 7}, '"dataDir": 7'),
        ({**V4, "resolvConf": "resolv.conf"}, '"resolvConf": "resolv.conf"'),
        ({**V4, "routes": [{"dst": "10.0.0.0"}]}, '"routes.0.dst": "10.0.0.0"'),
    ],
)
def test_a_bad_configuration_is_named(ipam, complaint):
    assert complaint in refusal(ipam)


def test_disjoint_parts_of_one_subnet_are_no_overlap():
    first = {**V4, "rangeEnd": "10.1.2.99"}
    second = {**V4, "rangeStart": "10.1.2.100"}
    assert len(order({"ranges": [[first, second]]}).sets) == 1
    assert len(order({"ranges": [[first], [second]]}).sets) == 2


def test_ranges_of_the_runtime_are_read_as_strictly():
    assert "runtimeConfig" in refusal(V4, runtimeConfig={"ipRanges": [[{"subnet": "10.0.0.1/24"}]]})
    assert "range set 0 overlaps with 1" in refusal(V4, runtimeConfig={"ipRanges": [[V4]]})
    assert "not an object" in refusal(V4, runtimeConfig=["ips"])


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions_take_one_set_per_family(version):
    two = [[V4], [{"subnet": "10.9.0.0/24"}]]
    assert len(order({"ranges": [[V4], [V6]]}, version=version).sets) == 2
    assert f"cniVersion {version} does not support more than one address per family" in refusal(
        {"ranges": two}, version=version
    )
    assert len(order({"ranges": two}, version="0.3.0").sets) == 2


def test_requested_addresses_come_from_three_places_in_order_and_count_once():
    found = order(
        {"ranges": [[V4], [V6]]},
        cni_args="IgnoreUnknown=1;IP=10.1.2.9;K8S_POD_NAME=a",
        args={"cni": {"ips": ["10.1.2.8/16", "10.1.2.9"]}},
        runtimeConfig={"ips": ["FD00:1::9/64"]},
    )
    assert [str(address) for address in found.requested] == ["10.1.2.9", "10.1.2.8", "fd00:1::9"]


def test_bad_requested_addresses_are_named():
    with pytest.raises(InvalidEnvironment, match="CNI_ARGS: IP is not valid"):
        order(V4, cni_args="IP=nonsense")
    assert '"runtimeConfig.ips" is not valid' in refusal(V4, runtimeConfig={"ips": ["nonsense"]})
    assert "runtimeConfig.ips" in refusal(V4, runtimeConfig={"ips": [7]})


def test_a_gateway_beside_ranges_is_said_to_count_for_nothing(caplog):
    found = order({"ranges": [[V4]], "gateway": "10.1.2.254"})
    assert str(found.sets[0].ranges[0].router) == "10.1.2.1"
    assert "count for nothing" in caplog.text


def test_the_folder_is_known_whatever_the_rest_is():
    broken = {"dataDir": "/data", "subnet": "nonsense", "ranges": 7}
    assert str(read_folder(request("DEL", ipam=broken), {})) == "/data/rail1"
    for ipam in ({}, {"dataDir": ""}, None, "nonsense"):
        assert str(read_folder(request("DEL", ipam=ipam), {})) == "/var/lib/cni/networks/rail1"
    assert str(read_folder(request("DEL"), {"dataDir": "/node"})) == "/node/rail1"


def test_status_does_not_miss_what_the_runtime_adds():
    assert read_keys(request("STATUS", version="1.1.0", ipam={}), {}).sets == ()


def test_the_example_is_read_as_it_stands():
    plugin = json.loads((EXAMPLES / "host-local.conflist").read_text())["plugins"][0]
    assert [each.version for each in order(plugin["ipam"]).sets] == [4, 6]
