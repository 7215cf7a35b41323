"""``sriov`` on a NIC: what it sets, what it refuses, and that the host is afterwards as it was before.

Errors in the middle, kills and races are in test_sriov_undo, a VF for DPDK in test_sriov_vfio. What an emulated igb
cannot show: a minimum rate, a link state, 802.1ad (it refuses all three), spoof checking (it is stored only).
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.vm.node import PF, VFS, config, ip, links, netdev, side_by_side, vf_state

LAB = {"vfs": 4}
pytest_plugins = ["tests.vm.node_fixtures"]
pytestmark = pytest.mark.usefixtures("host_is_as_before")

ROOT = Path(__file__).resolve().parents[2]
MAC = "02:00:5e:10:00:01"
EVERYTHING = {
    "vlan": 100,
    "vlanQoS": 3,
    "mac": MAC,
    "mtu": 1400,
    "max_tx_rate": 100,
    "spoofchk": "off",
    "trust": "on",
    "promisc": True,
    "allmulti": True,
}


def static(address: str, **keys: object) -> dict[str, object]:
    return {"ipam": {"type": "static", "addresses": [{"address": address}], **keys}}


def test_four_vfs_at_once_and_a_wire_that_keeps_vlans_apart(pods, tmp_path):
    vlans = {"red": 100, "rose": 100, "lime": 200, "leaf": 200}
    ipam = {"type": "whereabouts", "datastore": "local", "range": "10.7.7.0/28", "dataDir": str(tmp_path)}
    made = {pods(name): config(vf, vlan=vlan, ipam=ipam) for vf, (name, vlan) in zip(VFS, vlans.items(), strict=True)}
    results = {pod: tmp_path / pod.name for pod in made}

    def add(pod, conf):
        results[pod].write_text(json.dumps(pod.add(conf)))

    assert side_by_side(*[partial(add, pod, conf) for pod, conf in made.items()]) == [0] * 4
    result = {pod: json.loads(results[pod].read_text()) for pod in made}
    at = {pod: result[pod]["ips"][0]["address"].split("/")[0] for pod in made}
    assert len({*at.values()}) == 4
    assert side_by_side(*[partial(pod.check, conf, result[pod]) for pod, conf in made.items()]) == [0] * 4
    red, rose, lime, leaf = made
    assert red.pings(at[rose])
    assert lime.pings(at[leaf])
    assert not red.pings(at[lime], tries=2)
    assert side_by_side(*[partial(pod.delete, conf) for pod, conf in made.items()]) == [0] * 4


def test_add_sets_what_is_asked_and_check_sees_what_was_changed(blue):
    conf = config(**EVERYTHING, **static("10.7.7.1/24", routes=[{"dst": "10.8.0.0/16", "gw": "10.7.7.9"}]))
    result = blue.add(conf)
    assert result["interfaces"] == [{"name": "net1", "mac": MAC, "mtu": 1400, "sandbox": blue.path, "pciID": VFS[0]}]
    link = blue.link()
    assert (link["address"], link["mtu"]) == (MAC, 1400)
    assert {"UP", "PROMISC", "ALLMULTI"} <= {*link["flags"]}
    vf = vf_state(0)
    assert vf["address"] == MAC
    assert vf["vlan_list"] == [{"vlan": 100, "qos": 3}]
    assert vf["rate"] == {"max_tx": 100, "min_tx": 0}
    assert (vf["spoofchk"], vf["trust"]) == (False, True)
    assert "10.8.0.0/16 via 10.7.7.9" in blue.ip("route")
    blue.check(conf, result)
    ip("link", "set", PF, "vf", "0", "vlan", "101", "qos", "3")
    blue.ip("addr", "flush", "dev", "net1")
    refusal = blue.refused("CHECK", {**conf, "prevResult": result})
    assert refusal["code"] == 103
    assert "VLAN is 101/3/802.1q, wanted 100/3/802.1q" in refusal["details"]
    assert "10.7.7.1/24" in refusal["details"]
    blue.delete(conf)


def test_mac_is_the_pods_own_and_reachable_and_no_admin_mac_stays_behind(blue, green):
    mine = config(VFS[0], mac=MAC, **static("10.7.7.1/24"))
    other = config(VFS[1], **static("10.7.7.2/24"))
    result = blue.add(mine)
    green.add(other)
    assert (result["interfaces"][0]["mac"], blue.link()["address"], vf_state(0)["address"]) == (MAC, MAC, MAC)
    # The neighbour is asked by broadcast, but the answer is unicast to the MAC that igbvf would lose.
    assert green.pings("10.7.7.1")
    green.delete(other)
    blue.delete(mine)
    assert_vf_chooses_its_mac(0)


def test_mac_that_the_vf_has_already_stays_its_own_choice(blue):
    conf = config(VFS[0], mac=links()[netdev(VFS[0])]["address"])
    blue.check(conf, blue.add(conf))
    blue.delete(conf)
    assert_vf_chooses_its_mac(0)


def assert_vf_chooses_its_mac(index):
    """See that no administrative MAC is left: igbvf would refuse any other one, the VF is not trusted."""
    name = netdev(VFS[index])
    own = links()[name]["address"]
    ip("link", "set", name, "address", "02:00:5e:10:00:99")
    assert vf_state(index)["address"] == "02:00:5e:10:00:99"
    ip("link", "set", name, "address", own)


def test_mac_set_by_the_administrator_is_his_again(blue):
    name, own = netdev(VFS[1]), links()[netdev(VFS[1])]["address"]
    ip("link", "set", PF, "vf", "1", "mac", own)
    conf = config(VFS[1], mac=MAC)
    blue.add(conf)
    assert blue.link()["address"] == MAC
    blue.delete(conf)
    assert vf_state(1)["address"] == own
    with pytest.raises(AssertionError, match="assign requested address"):
        ip("link", "set", name, "address", "02:00:5e:10:00:99")
    ip("link", "set", PF, "vf", "1", "mac", "00:00:00:00:00:00")
    ip("link", "set", name, "address", "02:00:5e:10:00:99")
    ip("link", "set", name, "address", own)


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        ({"vlan": 100, "min_tx_rate": 10, "max_tx_rate": 100}, "EINVAL"),
        ({"vlan": 100, "max_tx_rate": 4_000_000_000}, "EINVAL"),
        ({"vlan": 100, "link_state": "enable"}, "EOPNOTSUPP"),
        ({"vlan": 100, "vlanProto": "802.1ad"}, "EPROTONOSUPPORT"),
        ({"vlan": 100, "mac": MAC, "mtu": 9999}, "EINVAL"),
    ],
)
def test_what_the_driver_refuses_is_one_clear_error_and_no_change(blue, host_is_as_before, keys, cause):
    refusal = blue.refused("ADD", config(VFS[2], **keys))
    assert refusal["code"] == 102
    assert "VF 2 of eth0" in refusal["msg"] or "net1" in refusal["msg"]
    assert refusal["details"].startswith(cause)
    assert host_is_as_before() == []


@pytest.mark.parametrize(
    ("conf", "env", "code", "said"),
    [
        (config(vlan=4095), {}, 7, '"vlan": 4095'),
        (config(vlan=100, spoofchk="On"), {}, 7, '"spoofchk": "On"'),
        (config(mac="01:00:5e:00:00:01"), {}, 7, '"mac": "01:00:5e:00:00:01"'),
        (config("../../../etc"), {}, 7, '"deviceID": "../../../etc"'),
        (config("0000:01:00.0", vlan=100), {}, 7, "0000:01:00.0"),
        (config("0000:01:1f.7", vlan=100), {}, 100, "0000:01:1f.7"),
        (config(vlan=100), {"CNI_CONTAINERID": "a/b"}, 4, 'CNI_CONTAINERID="a/b"'),
        (config(vlan=100), {"CNI_IFNAME": "n234567890123456"}, 4, "n234567890123456"),
        (config(vlan=100), {"CNI_NETNS": "/proc/self/ns/net"}, 8, "/proc/self/ns/net"),
        (config(vlan=100, ipam={"type": "nobody"}), {"CNI_PATH": "/nowhere"}, 7, "nobody"),
        (config(vlan=100, ipam={"type": "static"}), {}, 7, "no address"),
        # Found out when all is done: this version has no words for an interface without an address.
        ({**config(vlan=100, mac=MAC), "cniVersion": "0.2.0"}, {}, 7, "without an address"),
    ],
)
def test_bad_input_is_one_clear_error_and_no_change(blue, host_is_as_before, conf, env, code, said):
    refusal = blue.refused("ADD", conf, **env)
    assert (refusal["code"], said in refusal["msg"]) == (code, True), refusal
    assert host_is_as_before() == []


def test_vlan_keep_leaves_the_administrators_vlan(blue):
    ip("link", "set", PF, "vf", "1", "vlan", "55", "qos", "2")
    conf = config(VFS[1], vlan="keep", spoofchk="off")
    blue.check(conf, blue.add(conf))
    kept = vf_state(1)["vlan_list"]
    blue.delete(conf)
    assert kept == vf_state(1)["vlan_list"] == [{"vlan": 55, "qos": 2}]
    ip("link", "set", PF, "vf", "1", "vlan", "0")


def test_vlan_zero_takes_the_vlan_off_for_the_pods_time(blue):
    ip("link", "set", PF, "vf", "1", "vlan", "55")
    conf = config(VFS[1], vlan=0)
    blue.add(conf)
    during = vf_state(1)["vlan_list"]
    blue.delete(conf)
    assert (during, vf_state(1)["vlan_list"]) == ([{}], [{"vlan": 55}])
    ip("link", "set", PF, "vf", "1", "vlan", "0")


def test_what_the_administrator_had_on_the_link_comes_back(blue):
    name = netdev(VFS[2])
    ip("link", "set", name, "up", "mtu", "1450", "txqueuelen", "500", "alias", "rail 3")
    ip("link", "property", "add", "dev", name, "altname", "rail3-with-a-long-name", "altname", "net1")
    before = links()[name]
    conf = config(VFS[2], **EVERYTHING)
    blue.add(conf)
    blue.delete(conf)
    after = links()[name]
    for key in ("mtu", "txqlen", "ifalias", "address", "promiscuity"):
        assert after[key] == before[key]
    assert {*after["altnames"]} == {"rail3-with-a-long-name", "net1"}
    assert "UP" in after["flags"]
    assert "PROMISC" not in after["flags"]
    ip("link", "property", "del", "dev", name, "altname", "rail3-with-a-long-name", "altname", "net1")
    ip("link", "set", name, "down", "mtu", "1500", "txqueuelen", "1000", "alias", "")


def test_what_the_pod_did_to_the_link_does_not_come_back(blue):
    conf = config(VFS[3], trust="on")
    blue.add(conf)
    blue.ip("link", "set", "net1", "down")
    blue.ip("link", "set", "net1", "name", "foo", "address", MAC, "mtu", "1300", "promisc", "on", "alias", "mine")
    # An altname that the host has a link of: the kernel refuses the move then, whatever the link is called.
    blue.ip("link", "property", "add", "dev", "foo", "altname", PF, "altname", "bar")
    blue.delete(conf)


def test_interface_comes_back_when_its_name_is_free_again(blue):
    conf, name = config(VFS[3], vlan=100), netdev(VFS[3])
    blue.add(conf)
    ip("link", "add", name, "type", "bridge")
    refusal = blue.refused("DEL", conf)
    assert refusal["code"] == 108
    assert (f"not as {name}" in refusal["msg"], vf_state(3)["vlan_list"]) == (True, [{}])
    stranger = links()[name]
    assert "parentdev" not in stranger
    ip("link", "delete", name)
    blue.delete(conf)


@pytest.mark.parametrize("net1_on_host", [False, True])
def test_netns_deleted_before_del(blue, net1_on_host):
    conf = config(VFS[0], **EVERYTHING)
    blue.add(conf)
    if net1_on_host:
        ip("link", "add", "net1", "type", "bridge")
    blue.destroy()
    blue.delete(conf)
    if net1_on_host:
        ip("link", "delete", "net1")


def test_del_without_a_netns_at_all_and_del_again(blue):
    conf = config(VFS[0], **EVERYTHING)
    blue.add(conf)
    blue.delete(conf, CNI_NETNS="")
    blue.delete(conf)
    blue.delete(conf, CNI_NETNS="")


def test_stale_owners_del_leaves_the_next_owner_alone(blue, green, host_is_as_before):
    first, second = config(vlan=100, mac=MAC), config(vlan=200, spoofchk="off")
    blue.add(first)
    blue.destroy()
    # blue's DEL was lost; green's ADD brings the VF home and takes it.
    result = green.add(second)
    theirs = host_is_as_before(), green.link()
    blue.delete(first)
    vf = host_is_as_before(), green.link()
    green.check(second, result)
    green.delete(second)
    # All that the late DEL took away is its own record.
    gone = {line for line in theirs[0] if line not in vf[0]}
    assert vf[1] == theirs[1]
    assert all("attachments/sriov/blue:net1.json" in line for line in gone)
    assert len(gone) == 1


def test_vf_held_by_a_living_pod_is_refused(blue, green, host_is_as_before):
    blue.add(config(vlan=100))
    held = host_is_as_before()
    refusal = green.refused("ADD", config(vlan=200))
    assert refusal["code"] == 11
    assert f"pci address {VFS[0]} is already allocated" in refusal["msg"]
    assert host_is_as_before() == held
    # The same container once more, under another name too.
    assert blue.refused("ADD", config(vlan=100))["code"] == 101
    assert blue.refused("ADD", config(vlan=100), ifname="net2")["code"] == 11
    assert host_is_as_before() == held
    blue.delete(config(vlan=100))


def test_ifname_already_taken_leaves_the_foreign_link_alone(blue, host_is_as_before):
    # No dummy: where nobody forbids it (systemd does) its module makes a dummy0 on the host. A bridge has timers.
    blue.ip("link", "add", "net1", "type", "veth", "peer", "name", "net1-end")
    blue.ip("link", "set", "net1", "up", "address", "02:00:5e:10:00:77")
    foreign = blue.link()
    refusal = blue.refused("ADD", config(**EVERYTHING))
    assert refusal["code"] == 101
    assert 'CNI_IFNAME="net1"' in refusal["msg"]
    assert host_is_as_before() == []
    blue.delete(config(**EVERYTHING))
    assert blue.link() == foreign


def test_result_of_the_plugin_before_us_is_passed_on(blue):
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": blue.path}],
        "ips": [{"address": "10.1.0.2/24", "interface": 0}],
    }
    conf = {**config(VFS[1], **static("10.7.7.1/24")), "prevResult": previous, "dns": {"nameservers": ["10.1.0.1"]}}
    result = blue.add(conf)
    assert [interface["name"] for interface in result["interfaces"]] == ["eth0", "net1"]
    assert result["ips"] == [*previous["ips"], {"address": "10.7.7.1/24", "interface": 1}]
    assert result["dns"] == {"nameservers": ["10.1.0.1"]}
    blue.delete(conf)


def test_gc_gives_back_what_the_runtime_does_not_know_any_more(blue, green):
    ours, theirs = config(VFS[0], vlan=100), config(VFS[1], vlan=200)
    blue.add(ours)
    green.add(theirs)
    blue.destroy()
    valid = {"cni.dev/valid-attachments": [{"containerID": "green", "ifname": "net1"}]}
    blue.call("GC", {**ours, **valid})
    assert (netdev(VFS[0]) != "", netdev(VFS[1])) == (True, "")
    assert green.call("STATUS", theirs).status == 0
    green.delete(theirs)


def test_installed_executable_writes_one_document_to_stdout_and_nothing_else(blue, tmp_path):
    executable = ROOT / "build/contract/bin/sriov"
    ipam = {"type": "whereabouts", "datastore": "local", "range": "10.7.7.0/28", "dataDir": str(tmp_path)}
    conf = config(**EVERYTHING, ipam=ipam)
    calls = "trace=write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,sendfile,splice,vmsplice,tee,copy_file_range"
    # By seccomp only the calls that are asked for stop the process; every call would be half a minute here.
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-o", tmp_path / "trace", "-e", calls]
    printed, pipe = run([*strace, executable], "ADD", blue, conf)
    result = json.loads(printed)
    told = [line for line in (tmp_path / "trace").read_text().splitlines() if pipe in line]
    assert [len(told), result["interfaces"][0]["mac"], blue.link()["address"]] == [1, MAC, MAC]
    blue.check(conf, result)
    assert run([executable], "DEL", blue, conf)[0] == ""


def test_articles_nad_attaches_as_it_stands(blue, green, tmp_path):
    """The whole of it, as Multus hands it over, with nothing on the node but which datastore it has."""
    document = yaml.safe_load((ROOT / "conf/examples/sriov-rdma-net.nad.yaml").read_text())
    mine, other = ({**json.loads(document["spec"]["config"]), "deviceID": vf} for vf in VFS[:2])
    defaults = Path("/etc/vferry/vferry.toml")  # the guest's
    defaults.parent.mkdir(exist_ok=True)
    defaults.write_text(f'[whereabouts]\ndatastore = "local"\ndataDir = "{tmp_path}"\n')
    try:
        result = json.loads(run([ROOT / "build/contract/bin/sriov"], "ADD", blue, mine)[0])
        (interface,), (address,) = result["interfaces"], result["ips"]
        assert result["cniVersion"] == "0.3.1"
        assert interface == {"name": "net1", "mac": blue.link()["address"], "sandbox": blue.path}
        assert address == {"version": "4", "interface": 0, "address": "192.168.100.1/24"}
        assert green.add(other)["ips"][0]["address"] == "192.168.100.2/24"
        assert green.pings("192.168.100.1")
        green.delete(other)
        blue.delete(mine)
        assert green.add(mine)["ips"][0]["address"] == "192.168.100.3/24"  # the two others cool down
        green.delete(mine)
    finally:
        defaults.unlink()


def run(executable, command, pod, conf):
    """Return what an invocation wrote to stdout, and what strace calls the pipe that was."""
    read, write = os.pipe()
    env = {"CNI_COMMAND": command, "CNI_CONTAINERID": pod.name, "CNI_NETNS": pod.path, "CNI_IFNAME": "net1"}
    env["CNI_PATH"] = str(executable[-1].parent)
    done = subprocess.run(executable, env=env, input=json.dumps(conf).encode(), stdout=write, cwd="/proc", check=False)
    pipe = f"<pipe:[{os.fstat(write).st_ino}]>"
    os.close(write)
    with open(read) as stdout:
        printed = stdout.read()
    assert done.returncode == 0, printed
    return printed, pipe
