"""``sriov`` on a node in memory: what it sets, refuses, answers and checks.

What becomes of a call that fails is in test_sriov_undo, who may take a device from whom in test_sriov_owners, bad
configurations are in test_sriov_conf.
"""

from __future__ import annotations

import errno

import pytest

from conf.errors import DelegateFailed, IoFailure
from tests.unit.fake_node import PF, PF_PCI, ZERO, FakeLink, Quirks
from tests.unit.sriov_node import EVERYTHING, IPAM, MAC, VF0, VF1, config, differences

pytest_plugins = ["tests.unit.sriov_node_fixtures"]

OWN_MAC = "aa:00:00:00:01:00"


@pytest.mark.parametrize(
    ("keys", "seen"),
    [
        ({"vlan": 100}, {"vlan_id": 100, "vlan_qos": 0, "vlan_proto": "802.1q"}),
        ({"vlan": 100, "vlanQoS": 7}, {"vlan_id": 100, "vlan_qos": 7}),
        ({"vlan": 100, "vlanProto": "802.1AD"}, {"vlan_id": 100, "vlan_proto": "802.1ad"}),
        ({"vlan": 0}, {"vlan_id": 0, "vlan_qos": 0}),
        ({"vlan": "keep"}, {"vlan_id": 55, "vlan_qos": 2}),
        ({}, {"vlan_id": 55, "vlan_qos": 2}),
        ({"min_tx_rate": 10}, {"min_tx_rate_mbps": 10, "max_tx_rate_mbps": 0}),
        ({"max_tx_rate": 10}, {"min_tx_rate_mbps": 0, "max_tx_rate_mbps": 10}),
        ({"max_tx_rate": 0}, {"min_tx_rate_mbps": 0, "max_tx_rate_mbps": 0}),
        ({"spoofchk": "off"}, {"spoofchk": False}),
        ({"trust": "on"}, {"trust": True}),
        ({"link_state": "disable"}, {"link_state": "disable"}),
        ({"mac": MAC.upper()}, {"mac": MAC}),
    ],
)
def test_each_setting_of_the_vf_and_the_way_back(machine, blue, keys, seen):
    machine.vf.vlan_id, machine.vf.vlan_qos, machine.vf.max_tx_rate_mbps = 55, 2, 900
    before = machine.snapshot()
    blue.add(config(**keys))
    assert {name: getattr(machine.vf, name) for name in seen} == seen
    blue.delete(config(**keys))
    assert not differences(before, machine.snapshot())


@pytest.mark.parametrize(
    ("keys", "seen"),
    [
        ({"mtu": 1400}, {"mtu_bytes": 1400}),
        ({"promisc": True}, {"promisc": True}),
        ({"allmulti": True}, {"allmulti": True}),
        ({"mac": MAC}, {"mac": MAC}),
        ({}, {"up": True, "ifname": "net1", "mac": OWN_MAC, "mtu_bytes": 1500}),
    ],
)
def test_each_setting_of_the_interface_and_the_way_back(machine, blue, keys, seen):
    machine.host_link.up = False
    before = machine.snapshot()
    blue.add(config(**keys))
    assert {name: getattr(blue.link(), name) for name in seen} == seen
    blue.delete(config(**keys))
    assert not differences(before, machine.snapshot())


def test_result_and_addresses(machine, blue):
    result = blue.add(EVERYTHING)
    assert result == {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "net1", "mac": MAC, "mtu": 1400, "sandbox": blue.path, "pciID": VF0}],
        "ips": [
            {"interface": 0, "address": "10.7.7.5/24", "gateway": "10.7.7.1"},
            {"interface": 0, "address": "fd00::5/64", "gateway": "fd00::1"},
        ],
        "routes": [{"dst": "10.8.0.0/16"}, {"dst": "::/0", "gw": "fd00::2"}],
    }
    assert blue.link().addresses == ["10.7.7.5/24", "fd00::5/64"]
    # A route without a next hop goes by the first gateway of its family.
    assert [(route.dst, route.gateway) for route in blue.link().routes] == [
        ("10.8.0.0/16", "10.7.7.1"),
        ("::/0", "fd00::2"),
    ]
    assert machine.node.announced == [("net1", "10.7.7.5/24", "fd00::5/64")]
    settings = {"/".join(path): value for path, value in blue.net.sysctls.items()}
    assert settings["net/ipv4/conf/net1/arp_notify"] == settings["net/ipv6/conf/net1/ndisc_notify"] == "1"
    assert settings["net/ipv6/conf/net1/disable_ipv6"] == "0"
    assert machine.node.host.sysctls == {}


def test_without_ipam_there_is_an_interface_without_addresses(machine, blue):
    result = blue.add(config())
    assert (sorted(result), blue.link().addresses, blue.link().up) == (["cniVersion", "interfaces"], [], True)
    assert machine.node.announced == []


def test_record_and_its_folders_are_private(machine, blue):
    blue.add(EVERYTHING)
    paths = [path for path in machine.folder.rglob("*") if not path.is_symlink()]
    modes = {str(path.relative_to(machine.folder)): path.stat().st_mode & 0o777 for path in paths}
    assert {*modes.values()} == {0o700, 0o600}, modes


def test_mac_that_the_runtime_asks_for_goes_first(blue):
    conf = config(mac="02:00:00:00:00:01")
    by_args = {"CNI_ARGS": "IgnoreUnknown=1;MAC=02:00:00:00:00:02"}
    by_runtime = {**conf, "runtimeConfig": {"mac": "02:00:00:00:00:03"}}
    for asked, env, mac in ((conf, {}, 1), (conf, by_args, 2), (by_runtime, by_args, 3)):
        assert blue.add(asked, **env)["interfaces"][0]["mac"] == f"02:00:00:00:00:0{mac}"
        blue.delete(asked, **env)


@pytest.mark.parametrize("is_pinned", [False, True])
def test_mac_on_igbvf_trusts_the_vf_for_that_moment_only(machine, blue, is_pinned):
    machine.node.quirks = Quirks(takes_up_admin_mac=False, pinned_mac_errno=errno.EADDRNOTAVAIL)
    machine.vf.is_pinned = is_pinned
    before = machine.snapshot()
    machine.node.arm()
    blue.add(config(mac=MAC))
    assert (blue.link().mac, machine.vf.mac, machine.vf.is_pinned, machine.vf.trust) == (MAC, MAC, True, False)
    assert machine.node.calls.count("link_set_vf_trust") == (2 if is_pinned else 0)
    blue.delete(config(mac=MAC))
    assert not differences(before, machine.snapshot())


@pytest.mark.parametrize("quirks", [Quirks(admin_mac_settles_after=4), Quirks(netdev_mac_settles_after=4)])
def test_mac_that_the_driver_takes_up_late(machine, blue, quirks):
    machine.node.quirks = quirks
    assert blue.add(config(mac=MAC))["interfaces"][0]["mac"] == MAC
    assert blue.link().mac == MAC


def test_mac_that_the_vf_has_already_is_not_the_administrators_afterwards(machine, blue):
    before = machine.snapshot()
    blue.add(config(mac=OWN_MAC))
    assert (machine.vf.mac, machine.vf.is_pinned, blue.link().mac) == (OWN_MAC, True, OWN_MAC)
    blue.delete(config(mac=OWN_MAC))
    assert not differences(before, machine.snapshot())


def test_administrative_mac_that_the_driver_does_not_clear_is_no_reason_for_a_del_to_fail_for_ever(machine, blue):
    machine.node.quirks = Quirks(refuses_zero_mac=True, lists_chosen_mac=False, pinned_mac_errno=0)
    machine.vf.mac = ZERO
    blue.add(config(mac=MAC))
    blue.delete(config(mac=MAC))
    # Not as before, the driver knows no way there; at least it is not the pod's.
    assert (machine.vf.mac, machine.host_link.mac, machine.records()) == (OWN_MAC, OWN_MAC, [])


@pytest.mark.parametrize("name", ["spoofchk", "trust", "link_state"])
def test_what_the_driver_does_not_report_is_not_put_back_and_hurts_nothing(machine, blue, name):
    machine.node.quirks = Quirks(unreported=frozenset({name}))
    result = blue.add(EVERYTHING)
    assert blue.check(EVERYTHING, result).status == 0
    blue.delete(EVERYTHING)
    assert (machine.host_link.mac, machine.vf.vlan_id, machine.records()) == (OWN_MAC, 0, [])


@pytest.mark.parametrize("what", ["vlan", "rate", "spoofchk", "trust", "link_state"])
def test_what_the_driver_cannot_set_is_an_error_and_no_change(machine, blue, what):
    machine.node.quirks = Quirks(unsupported=frozenset({what}))
    answer = blue.refused("ADD", EVERYTHING)
    assert (answer.code, f"setting {what} failed on VF 0 of {PF}" in answer.text) == (102, True)
    assert "EOPNOTSUPP" in answer.text


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_result_that_the_version_cannot_say_is_refused_and_undone(machine, blue, version):
    answer = blue.refused("ADD", {**config(vlan=100), "cniVersion": version})
    assert (answer.code, answer.document["cniVersion"]) == (7, version)
    assert "address" in answer.text
    blue.add({**config(vlan=100, ipam=IPAM), "cniVersion": version})


def test_prev_result_is_passed_on_and_the_nearest_dns_wins(machine, blue):
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": blue.path}],
        "ips": [{"address": "10.1.0.2/24", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "table": 0}],
        "dns": {"nameservers": ["10.1.0.1"]},
    }
    result = blue.add({**config(ipam=IPAM), "prevResult": previous})
    assert [interface["name"] for interface in result["interfaces"]] == ["eth0", "net1"]
    assert result["ips"][0] == previous["ips"][0]
    assert [ip["interface"] for ip in result["ips"]] == [0, 1, 1]
    assert result["routes"][0] == previous["routes"][0]
    assert result["dns"] == previous["dns"]
    blue.delete(config())
    machine.ipam.dns = {"domain": "ipam.example"}
    assert blue.add({**config(ipam=IPAM), "prevResult": previous})["dns"] == {"domain": "ipam.example"}
    blue.delete(config())
    own = {**config(ipam=IPAM), "prevResult": previous, "dns": {"search": ["own.example"]}}
    assert blue.add(own)["dns"] == {"search": ["own.example"]}


def test_malformed_prev_result_is_refused_before_anything_is_done(machine, blue):
    machine.node.arm()
    answer = blue.refused("ADD", {**EVERYTHING, "prevResult": {"ips": [{"address": "10.0.0.300/24"}]}})
    assert (answer.code, "10.0.0.300/24" in answer.text, machine.node.calls) == (6, True, [])


# Refusals


def test_ifname_taken_leaves_the_foreign_link_alone(machine, blue):
    for foreign in (
        FakeLink("net1", 5, "02:00:00:00:00:55", kind="veth", up=True),
        FakeLink("eth5", 5, "02:00:00:00:00:55", kind="veth", altnames=["net1"]),
    ):
        blue.net.links.append(foreign)
        answer = blue.refused("ADD", EVERYTHING)
        assert (answer.code, 'CNI_IFNAME="net1" is taken' in answer.text) == (101, True)
        blue.delete(EVERYTHING)
        assert blue.net.links[-1] is foreign
        blue.net.links.remove(foreign)


def test_netns_that_is_not_there_is_refused(machine, blue):
    before = machine.snapshot()
    machine.node.not_netns.add("/run/mnt")
    for path in ("/run/netns/gone", "/run/mnt"):
        answer = blue.refused("ADD", EVERYTHING, CNI_NETNS=path)
        assert (answer.code, path in answer.text) == (8, True)
    assert machine.snapshot() == before


@pytest.mark.parametrize(
    ("pci_address", "code", "said"),
    [
        (PF_PCI, 7, f'"deviceID": "{PF_PCI}" is a PF'),
        ("0000:3b:1f.7", 100, '"deviceID": "0000:3b:1f.7": there is no such PCI device'),
    ],
)
def test_device_that_is_no_vf_is_refused(blue, pci_address, code, said):
    answer = blue.refused("ADD", config(pci_address))
    assert (answer.code, said in answer.text) == (code, True)


def test_vf_without_netdev_and_without_dpdk_driver_is_to_be_tried_again(machine, blue):
    machine.node.unbind(machine.vf, None)
    answer = blue.refused("ADD", config())
    assert (answer.code, "no driver is bound to it" in answer.text) == (11, True)


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic", "igb_uio"])
def test_vf_of_dpdk_is_set_on_its_pf_and_stays(machine, blue, driver):
    machine.node.unbind(machine.vf, driver)
    machine.vf.is_pinned = True  # without a netdev there is nothing that tells who chose the MAC
    before = machine.snapshot()
    conf = config(vlan=100, mac=MAC, trust="on", ipam=IPAM)
    result = blue.add(conf)
    assert result["interfaces"] == [{"name": "net1", "mac": MAC, "mtu": 9000, "sandbox": blue.path, "pciID": VF0}]
    assert result["ips"][0]["address"] == "10.7.7.5/24"
    assert (machine.vf.vlan_id, machine.vf.mac, [link.ifname for link in blue.net.links]) == (100, MAC, ["lo"])
    assert blue.check(conf, result).status == 0
    machine.vf.vlan_id = 101
    assert "VF VLAN is 101/0/802.1q, wanted 100/0/802.1q" in blue.check(conf, result).text
    blue.delete(conf)
    assert not differences(before, machine.snapshot())


def test_vf_of_dpdk_has_no_interface_to_set_and_the_log_says_so(machine, blue, caplog):
    machine.node.unbind(machine.vf, "vfio-pci")
    blue.add(config(mtu=1400, promisc=True))
    (line,) = [record.getMessage() for record in caplog.records]
    assert all(word in line for word in ("vfio-pci", "mtu", "promisc")), line
    assert "allmulti" not in line


def test_vf_inside_a_vm_is_moved_and_what_a_pf_must_do_is_refused(machine, blue):
    machine.node.has_pf = False
    before = machine.snapshot()
    conf = config(mac=MAC, mtu=1400, vlan="keep", ipam=IPAM)
    result = blue.add(conf)
    assert (blue.link().mac, blue.link().mtu_bytes) == (MAC, 1400)
    assert blue.check(conf, result).status == 0
    blue.delete(conf)
    # Without a PF nothing tells what the VF's PF thinks of it.
    assert not [line for line in differences(before, machine.snapshot()) if not line.startswith("/vfs")]
    for key, value in {"vlan": 0, "max_tx_rate": 1, "spoofchk": "on", "trust": "off", "link_state": "auto"}.items():
        answer = blue.refused("ADD", config(**{key: value}))
        assert (answer.code, key in answer.text, "no PF" in answer.text) == (7, True, True)


def test_nic_that_the_host_uses_is_not_taken_for_a_vf(machine, blue):
    machine.node.has_pf = False
    machine.host_link.addresses.append("192.0.2.1/24")
    answer = blue.refused("ADD", config())
    assert (answer.code, "192.0.2.1/24" in answer.text) == (7, True)


# CHECK and STATUS


def change(name, value):
    return lambda pod: setattr(pod.link(), name, value)


def change_vf(name, value):
    return lambda pod: setattr(pod.machine.vf, name, value)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (change("ifname", "foo"), "it is called foo"),
        (change("up", False), "it is down"),
        (change("mac", "02:00:00:00:00:09"), f"MAC is 02:00:00:00:00:09, prevResult says {MAC}"),
        (change("mtu_bytes", 1300), "MTU is 1300, wanted 1400"),
        (change("promisc", False), "promisc is off"),
        (change("allmulti", False), "allmulti is off"),
        (change("addresses", ["10.7.7.5/24"]), "address fd00::5/64 is not on it"),
        (change("routes", []), "route 10.8.0.0/16 via 10.7.7.1 is not there; route ::/0 via fd00::2 is not there"),
        (change_vf("vlan_id", 101), "VF VLAN is 101/3/802.1ad, wanted 100/3/802.1ad"),
        (change_vf("max_tx_rate_mbps", 7), "VF rate is 10/7, wanted 10/100"),
        (change_vf("spoofchk", True), "VF spoofchk is on, wanted off"),
        (change_vf("trust", False), "VF trust is off, wanted on"),
        (change_vf("link_state", "auto"), "VF link state is auto, wanted enable"),
        (change_vf("mac", "02:00:00:00:00:09"), f"VF MAC is 02:00:00:00:00:09, wanted {MAC}"),
        (lambda pod: pod.machine.ipam.leases.clear(), "no lease"),
        (lambda pod: pod.destroy(), f"{VF0} is not in the sandbox: it is on the host as net1"),
        (lambda pod: pod.machine.node.vfs.pop(0), f"the PF of {VF0}"),
    ],
)
def test_check_finds_each_difference_and_changes_nothing(blue, spoil, said):
    result = blue.add(EVERYTHING)
    assert blue.check(EVERYTHING, result).status == 0
    spoil(blue)
    answer = blue.refused("CHECK", {**EVERYTHING, "prevResult": result})
    assert (answer.code, said in answer.text) == (103, True), answer.text


def test_check_takes_what_later_plugins_changed_from_prev_result(blue):
    result = blue.add(EVERYTHING)
    blue.link().mac, blue.link().mtu_bytes = "02:00:00:00:00:aa", 1200
    blue.link().addresses.append("192.0.2.9/24")
    result["interfaces"][0] |= {"mac": "02:00:00:00:00:AA", "mtu": 1200}
    result["interfaces"].append({"name": "vlan7", "sandbox": blue.path})
    result["ips"].append({"address": "198.51.100.1/24", "interface": 1})
    assert blue.check(EVERYTHING, result).status == 0


def test_check_without_prev_result_or_attachment(blue, green):
    result = blue.add(EVERYTHING)
    assert blue.refused("CHECK", EVERYTHING).code == 7
    assert green.refused("CHECK", {**EVERYTHING, "prevResult": result}).code == 103
    elsewhere = {**result, "interfaces": [{"name": "eth0", "sandbox": blue.path}]}
    assert "prevResult has no interface net1" in blue.refused("CHECK", {**EVERYTHING, "prevResult": elsewhere}).text


def test_ipam_without_an_address_fails_the_add_and_is_no_matter_of_check(machine, blue):
    machine.ipam.silent = True
    refusal = blue.refused("ADD", config(vlan=100, ipam=IPAM))
    assert (refusal.code, "missing IP config" in refusal.text) == (DelegateFailed.code, True)


def test_status_says_whether_an_add_could_work(machine, blue):
    assert blue.call("STATUS", EVERYTHING).status == 0
    machine.node.arm(fails_at=1, only_changes=False)
    assert blue.call("STATUS", EVERYTHING).code == 50
    machine.node.arm()
    machine.ipam.available = False
    assert blue.call("STATUS", EVERYTHING).code == IoFailure.code
    assert blue.call("STATUS", config()).status == 0


def test_two_vfs_side_by_side(machine, blue):
    before = machine.snapshot()
    blue.add(config(VF0, vlan=1))
    blue.add(config(VF1, vlan=2), ifname="net2")
    assert [link.ifname for link in blue.net.links] == ["lo", "net1", "net2"]
    blue.delete(config(VF0))
    assert blue.link("net2").parent_dev == VF1
    blue.delete(config(VF1), ifname="net2")
    assert not differences(before, machine.snapshot())
