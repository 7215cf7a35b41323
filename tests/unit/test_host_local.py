"""``host-local``: what an ADD leaves on the disk, who may take it away, and what a crash leaves behind."""

from __future__ import annotations

import pytest

from conf.errors import (
    AddressesExhausted,
    CheckFailed,
    InvalidNetworkConfig,
    IoFailure,
    PluginNotAvailable,
    TryAgainLater,
)
from conf.request import read_request
from ipam.host_local import HostLocal
from tests.unit.host_local_fixtures import POOL, POOL6, content, put

pytest_plugins = ["tests.unit.host_local_fixtures"]


def test_add_answers_with_addresses_gateways_routes_and_dns(host_local, request_of, tmp_path):
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text(
        "# nameserver 9.9.9.9\n;x y\nnameserver 192.0.2.3 ignored\nnameserver ::1\ndomain a.example\n"
        "domain b.example\nsearch c.example d.example\nsearch e.example\noptions ndots:2\noptions\nsortlist 1.2.3.4\n"
    )
    ipam = {
        "ranges": [[{**POOL, "gateway": "10.1.2.6"}], [POOL6]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd00:9::/64", "gw": "fd00::1", "mtu": 1400}],
        "resolvConf": str(resolv_conf),
    }
    assert host_local.add(request_of(ipam=ipam)).to_json("1.1.0") == {
        "cniVersion": "1.1.0",
        "ips": [
            {"address": "10.1.2.1/29", "gateway": "10.1.2.6"},
            {"address": "fd00::2/125", "gateway": "fd00::1"},
        ],
        "routes": ipam["routes"],
        "dns": {
            "nameservers": ["192.0.2.3", "::1"],
            "domain": "b.example",
            "search": ["c.example", "d.example", "e.example"],
            "options": ["ndots:2"],
        },
    }


def test_add_leaves_upstreams_files(add, folder):
    add("c1", ipam={"ranges": [[POOL], [POOL6]]})
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == {
        "lock": b"",
        "10.1.2.2": b"c1\r\nnet1",
        "fd00::2": b"c1\r\nnet1",
        "last_reserved_ip.0": b"10.1.2.2",
        "last_reserved_ip.1": b"fd00::2",
    }


def test_a_name_is_written_as_go_writes_it(add, folder):
    add("c1", ipam={"subnet": "::a00:0/120"})
    assert content(folder) == {"::a00:2": "c1\r\nnet1"}


def test_addresses_go_round_until_none_is_left(add, delete):
    assert [add(f"c{n}") for n in range(3)] == [["10.1.2.2/29"], ["10.1.2.3/29"], ["10.1.2.4/29"]]
    delete("c1")
    assert [add(f"d{n}") for n in range(3)] == [["10.1.2.5/29"], ["10.1.2.6/29"], ["10.1.2.3/29"]]
    with pytest.raises(AddressesExhausted) as raised:
        add("e0")
    assert raised.value.msg == (
        "failed to allocate for range 0: no IP addresses available in range set: 10.1.2.1-10.1.2.6"
    )
    assert "used 5" in raised.value.details
    delete("d0")
    assert add("e0") == ["10.1.2.5/29"]  # the last reserved one was .3


@pytest.mark.parametrize("text", ["", "nonsense", "10.9.9.9", "fd00::5", "\0\0\0"])
def test_a_last_reserved_address_that_means_nothing_begins_anew(add, folder, text):
    put(folder, last_reserved_ip_0=text)
    (folder / "last.reserved.ip.0").rename(folder / "last_reserved_ip.0")
    assert add() == ["10.1.2.2/29"]


def test_the_gateway_of_another_range_is_not_given(add):
    first = {**POOL, "rangeStart": "10.1.2.2", "rangeEnd": "10.1.2.3", "gateway": "10.1.2.4"}
    second = {**POOL, "rangeStart": "10.1.2.4", "rangeEnd": "10.1.2.5", "gateway": "10.1.2.6"}
    assert [add(f"c{n}", ipam={"ranges": [[first, second]]}) for n in range(3)] == [
        ["10.1.2.2/29"],
        ["10.1.2.3/29"],
        ["10.1.2.5/29"],
    ]


def test_a_second_add_is_refused_in_upstreams_words_and_keeps_the_first(add, folder):
    add("c1")
    with pytest.raises(TryAgainLater) as raised:
        add("c1")
    assert raised.value.msg == "10.1.2.2 has been allocated to c1, duplicate allocation is not allowed"
    with pytest.raises(TryAgainLater, match="duplicate"):
        add("c1", runtimeConfig={"ips": ["10.1.2.6"]})
    assert content(folder) == {"10.1.2.2": "c1\r\nnet1"}
    assert add("c1", ifname="net2") == ["10.1.2.3/29"]
    assert add("c1", ipam={"subnet": "10.9.0.0/29"}) == ["10.9.0.2/29"]  # another range of the same network


def test_requested_addresses_are_given_out_of_their_sets(add):
    both = {"ranges": [[POOL], [POOL6]]}
    assert add("c1", ipam=both, runtimeConfig={"ips": ["fd00::5/64"]}) == ["10.1.2.2/29", "fd00::5/125"]
    assert add("c2", ipam=both, cni_args="IP=10.1.2.5", args={"cni": {"ips": ["fd00::7"]}}) == [
        "10.1.2.5/29",
        "fd00::7/125",
    ]
    assert add("c3", ipam=both) == ["10.1.2.6/29", "fd00::2/125"]  # the round robin goes on behind them


@pytest.mark.parametrize(
    ("ips", "error", "complaint"),
    [
        (["10.1.2.1"], InvalidNetworkConfig, "requested ip 10.1.2.1 is subnet's gateway"),
        (["10.1.2.7"], InvalidNetworkConfig, "failed to allocate all requested IPs: 10.1.2.7"),
        (["10.1.2.5", "10.1.2.6"], InvalidNetworkConfig, "failed to allocate all requested IPs: 10.1.2.6"),
        (["10.1.2.2"], TryAgainLater, "requested IP address 10.1.2.2 is not available in range set 10.1.2.1-10.1.2.6"),
    ],
)
def test_a_requested_address_that_cannot_be_given_fails_all(add, folder, ips, error, complaint):
    add("c1", ipam={"ranges": [[POOL], [POOL6]]})
    before = content(folder)
    with pytest.raises(error) as raised:
        add("c2", ipam={"ranges": [[POOL], [POOL6]]}, runtimeConfig={"ips": ips})
    assert raised.value.msg == complaint
    assert content(folder) == before


def test_a_set_without_a_free_address_fails_all_and_moves_nothing(add, folder):
    ipam = {"ranges": [[POOL], [{**POOL6, "rangeEnd": "fd00::2"}]]}
    add("c1", ipam=ipam)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(AddressesExhausted, match="range 1"):
        add("c2", ipam=ipam)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_delete_takes_what_is_the_attachments_and_nothing_else(add, delete, folder):
    put(folder, **{"10_1_2_3": "c1", "10_1_2_4": "c1\r\nnet10", "10_1_2_5": "c10\r\nnet1"})
    (folder / "10.1.2.2").write_text("c1\r\nnet1\n")
    delete("c1")
    assert sorted(content(folder)) == ["10.1.2.3", "10.1.2.4", "10.1.2.5"]
    delete("c1", ifname="net7")  # nothing names net7: the old format, by container alone
    assert sorted(content(folder)) == ["10.1.2.4", "10.1.2.5"]
    delete("c1")
    assert sorted(content(folder)) == ["10.1.2.4", "10.1.2.5"]


def test_delete_needs_nothing_but_the_folder(add, delete, folder, host_local, request_of):
    delete("c1")
    assert not folder.exists()  # nothing is made by a DEL
    add("c1")
    delete("c1", ipam={"subnet": "nonsense", "ranges": 7}, cni_args="garbage")
    assert content(folder) == {}
    defaults = {"dataDir": str(folder.parent)}
    add("c1")
    bare = read_request(request_of("DEL").environ, b'{"cniVersion": "1.0.0", "name": "rail1"}')
    HostLocal(defaults=lambda _: defaults).delete(bare)
    assert content(folder) == {}


def prev(*addresses, gateway="10.1.2.1"):
    ips = [{"address": text, **({"gateway": gateway} if "." in text else {"gateway": "fd00::1"})} for text in addresses]
    return {"prevResult": {"cniVersion": "1.1.0", "ips": ips}}


def test_check_accepts_what_add_gave_and_what_others_added(add, host_local, request_of, folder):
    both = {"ranges": [[POOL], [POOL6]]}
    add("c1", ipam=both)
    host_local.check(request_of("CHECK", ipam=both, **prev("172.16.0.9/16", "10.1.2.2/29", "fd00::2/125")))
    put(folder, **{"10_1_2_2": "c1"})
    host_local.check(request_of("CHECK", ipam=both, **prev("10.1.2.2/29", "fd00::2/125")))


@pytest.mark.parametrize(
    ("told", "gateway", "complaint"),
    [
        (["10.1.2.2/29"], "10.1.2.1", "fd00::2/125 is missing"),
        (["10.1.2.2/24", "fd00::2/125"], "10.1.2.1", r"10\.1\.2\.2/29 is missing"),
        (["10.1.2.2/29", "fd00::2/125"], "10.1.2.6", "another gateway"),
        (["10.1.2.2/29", "fd00::2/125", "10.1.2.3/29"], "10.1.2.1", r"10\.1\.2\.3/29 of prevResult is not reserved"),
    ],
)
def test_check_finds_what_prev_result_tells_wrongly(add, host_local, request_of, told, gateway, complaint):
    both = {"ranges": [[POOL], [POOL6]]}
    add("c1", ipam=both)
    with pytest.raises(CheckFailed, match=complaint):
        host_local.check(request_of("CHECK", ipam=both, **prev(*told, gateway=gateway)))


def test_check_finds_an_address_that_is_lost_or_anothers(add, host_local, request_of, folder):
    with pytest.raises(CheckFailed, match="c1/net1 holds no address"):
        host_local.check(request_of("CHECK", **prev("10.1.2.2/29")))
    add("c1")
    put(folder, **{"10_1_2_2": "c2\r\nnet1"})
    with pytest.raises(CheckFailed, match="c1/net1 holds no address"):
        host_local.check(request_of("CHECK", **prev("10.1.2.2/29")))
    with pytest.raises(InvalidNetworkConfig, match="prevResult"):
        host_local.check(request_of("CHECK"))


def test_gc_takes_what_is_of_no_valid_attachment(add, host_local, request_of, folder):
    for container_id, ifname in (("c1", "net1"), ("c1", "net2"), ("c2", "net1")):
        add(container_id, ifname=ifname)
    put(folder, **{"10_1_2_5": "", "10_1_2_6": "by hand, for the printer"})
    valid = [{"containerID": "c1", "ifname": "net1"}]
    host_local.gc(request_of("GC", ipam={"ranges": "nonsense"}, **{"cni.dev/valid-attachments": valid}))
    assert content(folder) == {"10.1.2.2": "c1\r\nnet1", "10.1.2.6": "by hand, for the printer"}
    assert (folder / "last_reserved_ip.0").exists()


def test_gc_without_a_list_or_a_folder_does_nothing(add, host_local, request_of, folder):
    host_local.gc(request_of("GC", **{"cni.dev/valid-attachments": []}))
    assert not folder.exists()
    add("c1")
    host_local.gc(request_of("GC"))
    assert content(folder) == {"10.1.2.2": "c1\r\nnet1"}
    host_local.gc(request_of("GC", **{"cni.dev/valid-attachments": []}))
    assert content(folder) == {}


def test_status_says_whether_an_add_would_find_its_folder(host_local, request_of, folder, tmp_path):
    host_local.status(request_of("STATUS"))
    assert not folder.exists()
    with pytest.raises(PluginNotAvailable, match=r"resolvConf.*No such file"):
        host_local.status(request_of("STATUS", ipam={**POOL, "resolvConf": str(tmp_path / "none")}))
    with pytest.raises(InvalidNetworkConfig):
        host_local.status(request_of("STATUS", ipam={"subnet": "nonsense"}))
    folder.parent.write_text("a file")
    with pytest.raises(PluginNotAvailable, match="no directory"):
        host_local.status(request_of("STATUS"))


def test_a_resolv_conf_that_is_not_there_reserves_nothing(add, folder, tmp_path):
    with pytest.raises(IoFailure, match=f'"resolvConf": "{tmp_path}/none"'):
        add("c1", ipam={**POOL, "resolvConf": str(tmp_path / "none")})
    assert not folder.exists()
