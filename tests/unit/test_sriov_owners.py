"""Who holds a VF: two owners, dead and late ones, records of an earlier boot, devices that have gone.

What becomes of a call that fails in the middle is in test_sriov_undo, the Go plugin's attachments in test_sriov_go.
"""

from __future__ import annotations

import pytest

from tests.unit.fake_node import FakeLink
from tests.unit.sriov_node import EVERYTHING, IPAM, MAC, VF0, VF1, config, differences

pytest_plugins = ["tests.unit.sriov_node_fixtures"]

OWN_MAC = "aa:00:00:00:01:00"


def test_two_owners_one_wins(machine, blue, green):
    blue.add(EVERYTHING)
    answer = green.refused("ADD", EVERYTHING)
    assert (answer.code, f"pci address {VF0} is already allocated" in answer.text) == (11, True)
    assert "container blue has it as net1" in answer.text
    assert blue.refused("ADD", EVERYTHING).code == 101
    assert blue.refused("ADD", EVERYTHING, ifname="net2").code == 11
    green.delete(EVERYTHING)
    assert blue.link().mac == MAC


def test_del_again_and_del_without_a_netns(machine, blue):
    before = machine.snapshot()
    blue.delete(EVERYTHING)
    for env in ({}, {"CNI_NETNS": ""}):
        blue.add(EVERYTHING)
        blue.delete(EVERYTHING, **env)
        blue.delete(EVERYTHING, **env)
        assert not differences(before, machine.snapshot())


def test_del_without_a_record_still_releases_the_address(machine, blue):
    machine.ipam.leases[("blue", "net1")] = 9
    blue.delete(EVERYTHING)
    assert machine.ipam.leases == {}


def test_del_needs_no_configuration_of_the_device(machine, blue):
    before = machine.snapshot()
    blue.add(EVERYTHING)
    blue.delete({"cniVersion": "1.1.0", "name": "rail", "type": "sriov", "vlan": "nonsense"})
    assert not differences(before, machine.snapshot())


@pytest.mark.parametrize("on_host", ["nothing", "the pod's name", "the host name"])
def test_netns_deleted_before_del(machine, blue, on_host):
    before = machine.snapshot()
    blue.add(EVERYTHING)
    foreign = FakeLink("net1" if on_host == "the pod's name" else "ens1v0", 99, "02:00:00:00:00:99", kind="veth")
    if on_host != "nothing":
        machine.node.host.links.append(foreign)
    blue.destroy()
    answer = blue.call("DEL", EVERYTHING)
    if on_host == "the host name":
        assert (answer.code, "is back on the host as net1, not as ens1v0" in answer.text) == (108, True)
        assert machine.vf.vlan_id == 0  # every other step was taken
        assert machine.records()
    else:
        assert answer.status == 0
    if on_host != "nothing":
        machine.node.host.links.remove(foreign)
    blue.delete(EVERYTHING)
    machine.node.pod(blue.path)
    assert not differences(before, machine.snapshot())


def test_what_the_pod_did_to_the_interface_does_not_come_back(machine, blue):
    before = machine.snapshot()
    blue.add(EVERYTHING)
    link = blue.link()
    link.ifname, link.mac, link.mtu_bytes, link.alias, link.txqlen, link.up = "foo", "02:0:0:0:0:1", 1300, "a", 7, False
    link.altnames = ["ens1", "ens1v0", "bar"]
    blue.delete(EVERYTHING)
    assert not differences(before, machine.snapshot())


def test_name_in_the_host_taken_while_the_vf_comes_home(machine, blue):
    before = machine.snapshot()
    blue.add(EVERYTHING)
    foreign = FakeLink("ens1v0", 99, "02:00:00:00:00:99", kind="veth")
    machine.node.host.links.append(foreign)
    answer = blue.call("DEL", EVERYTHING)
    assert answer.code == 108
    assert machine.node.netdev_of(VF0)[0] is machine.node.host
    assert foreign.mac == "02:00:00:00:00:99"
    # The next ADD too brings the VF in order first.
    machine.node.host.links.remove(foreign)
    blue.delete(EVERYTHING)
    assert not differences(before, machine.snapshot())


def test_interface_nowhere_to_be_found_keeps_the_record(machine, blue):
    before = machine.snapshot()
    blue.add(EVERYTHING)
    link = blue.link()
    blue.net.links.remove(link)
    answer = blue.call("DEL", EVERYTHING)
    assert (answer.code, f"neither on the host nor in {blue.path}" in answer.text) == (11, True)
    blue.net.links.append(link)
    blue.delete(EVERYTHING)
    assert not differences(before, machine.snapshot())


def test_late_del_of_a_dead_owner_changes_nothing_but_its_own_lease(machine, blue, green):
    blue.add(config(vlan=100, mac=MAC, ipam=IPAM))
    blue.destroy()
    result = green.add(config(vlan=200, ipam=IPAM))
    during = machine.node.snapshot()
    blue.delete(config(vlan=100, mac=MAC, ipam=IPAM))
    assert not differences(during, machine.node.snapshot())
    assert [*machine.ipam.leases] == [("green", "net1")]
    assert green.check(config(vlan=200, ipam=IPAM), result).status == 0
    assert not [path for path in machine.records() if "blue" in path]


def test_late_del_leaves_the_allocation_of_a_sandbox_with_the_same_path(machine, blue, green):
    blue.add(config(vlan=100))
    blue.destroy()
    machine.node.nets[blue.path] = machine.node.nets.pop(green.path)  # a new sandbox under the old name
    green.add(config(vlan=200), CNI_NETNS=blue.path)
    blue.delete(config(vlan=100))
    assert machine.go_files.allocated_to(VF0) == blue.path
    assert machine.vf.vlan_id == 200


def test_vf_is_free_for_the_next_when_only_the_address_could_not_be_released(machine, blue, green):
    for driver in ("igbvf", "vfio-pci"):
        if driver == "vfio-pci":
            machine.node.unbind(machine.vf, driver)
        blue.add(config(vlan=100, ipam=IPAM))
        machine.node.arm()
        really, machine.ipam.delete = machine.ipam.delete, lambda _request: 1 / 0
        assert blue.call("DEL", config(vlan=100, ipam=IPAM)).status == 1
        machine.ipam.delete = really
        result = green.add(config(vlan=200, ipam=IPAM))
        blue.delete(config(vlan=100, ipam=IPAM))
        assert green.check(config(vlan=200, ipam=IPAM), result).status == 0
        green.delete(config(vlan=200, ipam=IPAM))
        assert (machine.records(), machine.ipam.leases) == ([], {})


def test_same_attachment_on_another_device_does_not_forget_the_first(machine, blue):
    before = machine.snapshot()
    # Killed before the move, with VF 0 set up already; the runtime comes again with another VF and without a DEL.
    blue.add(EVERYTHING)
    calls = len(machine.node.calls)
    blue.delete(EVERYTHING)
    machine.node.arm(killed_at=12)
    assert calls > 12
    assert blue.killed("ADD", EVERYTHING)
    assert machine.vf.vlan_id == 100
    answer = blue.call("ADD", config(VF1, vlan=7))
    assert answer.status == 0 or answer.code in (11, 101)
    blue.delete(config(VF1))
    assert not differences(before, machine.snapshot())


def test_record_of_an_earlier_boot_is_no_hold_and_says_nothing_of_the_device_now(machine, blue, green):
    blue.add(EVERYTHING)
    link = blue.link()
    machine.node.reboot()
    # The VFs are made anew, under another name.
    link.ifname, link.mac, link.promisc, link.allmulti, link.mtu_bytes = "eth9", OWN_MAC, False, False, 1500
    fresh = type(machine.vf)(VF0, 0, mac=OWN_MAC)
    machine.node.vfs[0] = fresh
    machine.node.pod(green.path)
    before = machine.node.snapshot()
    green.add(config(vlan=7))
    blue.delete(EVERYTHING)
    assert machine.vf.vlan_id == 7
    green.delete(config(vlan=7))
    assert not differences(before, machine.node.snapshot())
    assert machine.records() == []


def test_del_of_an_earlier_boot_touches_no_device(machine, blue):
    blue.add(EVERYTHING)
    machine.node.reboot()
    during = machine.node.snapshot()
    blue.delete(EVERYTHING)
    assert not differences(during, machine.node.snapshot())
    assert (machine.records(), machine.ipam.leases) == ([], {})


def test_del_of_a_device_that_has_gone(machine, blue):
    blue.add(EVERYTHING)
    blue.net.links.remove(blue.link())
    machine.node.vfs.pop(0)
    blue.delete(EVERYTHING)
    assert (machine.records(), machine.ipam.leases) == ([], {})
