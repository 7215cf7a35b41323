"""The dialect of ``whereabouts``: ranges, what is refused, flat file and node defaults."""

from __future__ import annotations

import json

import pytest

from conf.defaults import filled
from conf.errors import DecodeFailure, InvalidNetworkConfig
from conf.flat_file import fill, read_flat_file
from conf.whereabouts import parse_range, read_store_conf, read_whereabouts

ARTICLE = {
    "type": "whereabouts",
    "range": "192.168.100.0/24",
    "exclude": ["192.168.100.0/32", "192.168.100.255/32"],
}


@pytest.mark.parametrize(
    ("text", "network", "start", "end"),
    [
        ("192.168.2.0/24", "192.168.2.0/24", None, None),
        ("192.168.2.7/24", "192.168.2.0/24", None, None),
        ("192.168.002.010/24", "192.168.2.0/24", None, None),
        ("192.168.2.225-192.168.2.230/28", "192.168.2.224/28", "192.168.2.225", "192.168.2.230"),
        ("010.001.000.005-010.001.000.009/24", "10.1.0.0/24", "10.1.0.5", "10.1.0.9"),
        ("2001:DB8::5/64", "2001:db8::/64", None, None),
        ("2001:db8::5-2001:db8::9/64", "2001:db8::/64", "2001:db8::5", "2001:db8::9"),
        ("::ffff:10.0.0.7/120", "10.0.0.0/24", None, None),
        ("10.0.0.4/31", "10.0.0.4/31", None, None),
    ],
)
def test_range_reads_every_form(text, network, start, end):
    read = parse_range(text)
    assert str(read.network) == network
    assert [value and str(value) for value in (read.start, read.end)] == [start, end]


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.0",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/",
        "10.0.0.0/255.255.255.0",
        "10.0/8",
        "10.0.0.0/24/24",
        "10.0.1.5-10.0.0.9/24",
        "10.0.0.9-10.0.0.5/24",
        "10.0.0.5-10.0.0.9",
        "10.0.0.5/24-10.0.0.9/24",
        "fe80::1%eth0/64",
        "2001:db8::5-10.0.0.9/24",
        "::ffff:10.0.0.0/64",
        "٣.0.0.0/8",
        "1_0.0.0.0/8",
        "+10.0.0.0/8",
        " 10.0.0.0/8",
        "",
    ],
)
def test_range_refuses_what_it_cannot_read(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_range(text)


def test_the_articles_nad_reads_as_it_stands():
    conf = read_whereabouts(ARTICLE)
    assert str(conf.ranges[0].range.network) == "192.168.100.0/24"
    assert list(map(str, conf.exclude)) == ["192.168.100.0/32", "192.168.100.255/32"]
    assert conf.enable_overlapping_ranges is True
    assert (conf.chosen, conf.cooldown_s, conf.deadline_s, conf.data_dir) == ("", 60, 30, "/var/lib/cni/vferry/local")


def test_range_comes_before_ip_ranges():
    conf = read_whereabouts(
        {"range": "10.0.0.0/24", "ipRanges": [{"range": "2001:db8::/64", "exclude": ["2001:db8::5"]}]}
    )
    assert [str(element.range.network) for element in conf.ranges] == ["10.0.0.0/24", "2001:db8::/64"]
    assert str(conf.ranges[1].exclude[0]) == "2001:db8::5/128"


def test_the_dash_form_overrides_the_bounds_and_says_so(caplog):
    conf = read_whereabouts({"range": "10.0.0.5-10.0.0.9/24", "range_start": "10.0.0.5", "range_end": "10.0.0.7"})
    assert list(map(str, conf.bounds)) == ["10.0.0.5", "10.0.0.9"]
    assert caplog.messages == [
        'ipam: "range_end": "10.0.0.7" counts for nothing: the bounds of "range" are 10.0.0.5 and 10.0.0.9'
    ]


def test_bounds_of_a_cidr_are_nothing_to_warn_of(caplog):
    read_whereabouts({"range": "10.0.0.0/24", "range_start": "10.0.0.5", "range_end": "10.0.0.7"})
    assert caplog.messages == []


def test_upstreams_machinery_and_empty_strings_are_tolerated():
    conf = read_whereabouts(
        {
            **ARTICLE,
            "range_start": "",
            "range_end": "",
            "gateway": "",
            "routes": None,
            "log_file": "/tmp/x",
            "leader_lease_duration": 1500,
            "node_slice_size": "/26",
            "sleep_for_race": 0,
            "kubernetes": {"kubeconfig": "/etc/kubeconfig", "k8s_api_root": "https://10.0.0.1"},
            "etcd_host": 5,
            "etcd": {"endpoints": ["http://127.0.0.1:2379"], "anything": True},
            "reconciler_cron_expression": "30 4 * * *",
        }
    )
    assert conf.chosen == "kubernetes"
    assert conf.gateway is None


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"range": "10.0.0.0"}, '"range": "10.0.0.0"'),
        ({"range": 5}, '"range": 5'),
        ({"range_start": "nonsense"}, '"range_start": "nonsense"'),
        ({"range_start": "192.168.100.010"}, '"range_start": "192.168.100.010"'),
        ({"range_start": "192.168.101.1"}, '"range_start": "192.168.101.1" is not in range 192.168.100.0/24'),
        ({"range_end": "2001:db8::1"}, '"range_end": "2001:db8::1" is not in range'),
        ({"range_start": "192.168.100.9", "range_end": "192.168.100.8"}, '"range_end": "192.168.100.8" is below'),
        ({"range": "", "range_start": "10.0.0.1"}, '"range_start": "10.0.0.1" is given without a "range"'),
        ({"exclude": ["192.168.100.010"]}, '"exclude.0": "192.168.100.010"'),
        ({"exclude": ["192.168.100.0/24", "x/8"]}, '"exclude.1": "x/8"'),
        ({"exclude": "192.168.100.1"}, '"exclude": "192.168.100.1"'),
        ({"gateway": "nonsense"}, '"gateway": "nonsense"'),
        ({"ipRanges": [{}]}, '"ipRanges" has no "range"'),
        ({"ipRanges": [{"range": "10.0.0.0/99"}]}, '"ipRanges.0.range": "10.0.0.0/99"'),
        ({"enable_overlapping_ranges": "false"}, '"enable_overlapping_ranges": "false"'),
        ({"allocation": "random"}, '"allocation": "random"'),
        ({"cooldownSeconds": -1}, '"cooldownSeconds": -1'),
        ({"cooldownSeconds": "60"}, '"cooldownSeconds": "60"'),
        ({"deadlineSeconds": 0}, '"deadlineSeconds": 0'),
        ({"deadlineSeconds": True}, '"deadlineSeconds": true'),
        ({"dataDir": "relative/path"}, '"dataDir": "relative/path"'),
        ({"network_name": "No_Name"}, '"network_name": "No_Name"'),
        ({"network_name": "a/b"}, '"network_name": "a/b"'),
    ],
)
def test_bad_keys_are_named_with_their_value(keys, complaint):
    with pytest.raises(InvalidNetworkConfig) as raised:
        read_whereabouts({**ARTICLE, **keys})
    assert complaint in raised.value.msg
    assert raised.value.code == 7


def test_delete_reads_around_keys_that_are_not_valid():
    conf = read_store_conf({"datastore": "local", "DATADIR": 5, "cooldownSeconds": "x", "network_name": "blue"})
    assert (conf.chosen, conf.data_dir, conf.cooldown_s) == ("local", "/var/lib/cni/vferry/local", 60)
    assert conf.network_name == "blue"


# The flat file.


@pytest.fixture
def flat(tmp_path):
    def write(name, obj):
        path = tmp_path / name
        path.write_text(obj if isinstance(obj, str) else json.dumps(obj))
        return path

    return write


def test_the_first_flat_file_wins_and_none_is_no_error(flat, tmp_path):
    first, second = flat("first", {"range": "10.0.0.0/24"}), flat("second", {"range": "10.0.1.0/24"})
    absent = tmp_path / "absent"
    assert read_flat_file({}, paths=[absent, first, second]) == {"range": "10.0.0.0/24"}
    assert read_flat_file({}, paths=[absent, first / "below"]) == {}
    assert read_flat_file({"Configuration_Path": str(second)}, paths=[first]) == {"range": "10.0.1.0/24"}
    assert read_flat_file({"configuration_path": str(tmp_path)}, paths=[first]) == {"range": "10.0.0.0/24"}


def test_a_broken_flat_file_is_an_error_that_names_it(flat):
    with pytest.raises(DecodeFailure, match=r"flat file .*broken"):
        read_flat_file({}, paths=[flat("broken", "{")])


def test_the_flat_file_fills_what_is_absent_or_empty():
    inline = {
        "Range": "",
        "gateway": "10.0.0.1",
        "exclude": [],
        "cooldownSeconds": 0,
        "sticky": False,
        "kubernetes": {"kubeconfig": ""},
    }
    from_file = {
        "range": "10.0.0.0/24",
        "gateway": "10.0.0.254",
        "exclude": ["10.0.0.9"],
        "cooldownSeconds": 30,
        "sticky": True,
        "kubernetes": {"kubeconfig": "/k", "k8s_api_root": "r"},
        "enable_overlapping_ranges": False,
    }
    assert fill(inline, from_file) == {
        "range": "10.0.0.0/24",
        "gateway": "10.0.0.1",
        "exclude": ["10.0.0.9"],
        "cooldownSeconds": 0,
        "sticky": False,
        "kubernetes": {"kubeconfig": "/k", "k8s_api_root": "r"},
    }


@pytest.mark.parametrize("given", [True, False])
def test_the_flat_file_cannot_change_overlap_checks(given):
    assert fill({"enable_overlapping_ranges": given}, {"Enable_Overlapping_Ranges": not given}) == {
        "enable_overlapping_ranges": given
    }


def test_the_nad_wins_over_the_flat_file_and_that_over_the_nodes_defaults():
    flat_file = {"network_name": "from-file", "dataDir": "/from/file"}
    defaults = {"network_name": "from-node", "dataDir": "/from/node", "datastore": "local"}
    conf = read_whereabouts(filled(fill({**ARTICLE, "dataDir": "/from/nad"}, flat_file), defaults))
    assert (conf.data_dir, conf.network_name, conf.chosen) == ("/from/nad", "from-file", "local")
