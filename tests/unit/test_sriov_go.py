"""The Go plugin's attachments under ``sriov``: given back, held, left to whom they belong; and its way back from ours.

The format of its files is in test_upstream_sriov.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.unit.sriov_node import EVERYTHING, IPAM, MAC, VF0, config, differences

pytest_plugins = ["tests.unit.sriov_node_fixtures"]

OWN_MAC = "aa:00:00:00:01:00"


def go_state(**changed):
    """Return what the Go plugin of v2.10 writes for a VLAN, a MAC and spoofchk."""
    orig = {
        "HostIFName": "ens1v0",
        "SpoofChk": True,
        "Trust": False,
        "AdminMAC": OWN_MAC,
        "EffectiveMAC": OWN_MAC,
        "Vlan": 0,
        "VlanQoS": 0,
        "VlanProto": 33024,
        "MinTxRate": 0,
        "MaxTxRate": 0,
        "LinkState": 0,
        "MTU": 1500,
    }
    return {
        "cniVersion": "0.4.0",
        "name": "rail",
        "type": "sriov",
        "ipam": {"type": "fake"},
        "dns": {},
        "OrigVfState": orig,
        "Master": "ens1",
        "MAC": MAC,
        "MTU": 1500,
        "vlan": 100,
        "vlanQoS": 0,
        "vlanProto": "802.1q",
        "deviceID": VF0,
        "VFID": 0,
        "spoofchk": "off",
        "runtimeConfig": {},
        **changed,
    }


def added_by_go(machine, pod, **changed):
    """Make what an ADD of the Go plugin leaves."""
    net, link = machine.node.netdev_of(VF0) or (None, None)
    if link:
        net.links.remove(link)
        link.ifname, link.mac, link.up = "net1", MAC, True
        pod.net.take(link)
    machine.vf.vlan_id, machine.vf.mac, machine.vf.is_pinned, machine.vf.spoofchk = 100, MAC, True, False
    (machine.folder / "go/pci").mkdir(parents=True, exist_ok=True)
    (machine.folder / "go" / f"{pod.name}-net1").write_text(json.dumps(go_state(**changed)))
    (machine.folder / "go/pci" / VF0).write_text(pod.path)
    machine.ipam.leases[(pod.name, "net1")] = 4


@pytest.fixture
def pinned(machine):
    """Begin with what the Go plugin cannot but leave: an administrative MAC, and the link down."""
    machine.vf.is_pinned, machine.host_link.up = True, False
    return machine


@pytest.mark.parametrize("netns_lives", [True, False])
def test_del_of_a_go_made_attachment(pinned, blue, netns_lives):
    before = pinned.snapshot()
    added_by_go(pinned, blue)
    if not netns_lives:
        blue.destroy()
    blue.delete(config(vlan=100, mac=MAC, spoofchk="off", ipam=IPAM))
    if not netns_lives:
        pinned.node.pod(blue.path)
    assert not differences(before, {**pinned.snapshot(), "records": []})
    assert pinned.records() == []


def test_go_made_attachment_is_held_by_its_living_sandbox(pinned, blue, green):
    added_by_go(pinned, blue)
    answer = green.refused("ADD", config())
    assert (answer.code, f"pci address {VF0} is already allocated" in answer.text) == (11, True)
    blue.destroy()
    green.add(config(vlan=7))
    green.delete(config(vlan=7))
    assert (pinned.vf.vlan_id, pinned.vf.mac, pinned.vf.spoofchk, pinned.host_link.ifname) == (
        0,
        OWN_MAC,
        True,
        "ens1v0",
    )
    assert pinned.records() == []


def test_go_made_allocation_without_a_state_holds_while_its_netns_lives(machine, blue, green):
    (machine.folder / "go/pci").mkdir(parents=True)
    (machine.folder / "go/pci" / VF0).write_text(blue.path)
    assert green.refused("ADD", config()).code == 11
    blue.destroy()
    green.add(config())
    assert machine.go_files.allocated_to(VF0) == green.path


def test_go_made_attachment_of_a_vf_for_dpdk(pinned, blue):
    pinned.node.unbind(pinned.vf, "vfio-pci")
    before = pinned.snapshot()
    orig = {**go_state()["OrigVfState"], "HostIFName": "", "EffectiveMAC": "", "MTU": 0}
    added_by_go(pinned, blue, OrigVfState=orig)
    blue.delete(config(vlan=100, ipam=IPAM))
    assert not differences(before, pinned.snapshot())


def test_damaged_go_state_is_an_error_on_del_and_no_hindrance_for_others(machine, blue, green):
    (machine.folder / "go").mkdir()
    (machine.folder / "go/blue-net1").write_text('{"deviceID": 7}')
    answer = blue.refused("DEL", config())
    assert (answer.code, "blue-net1" in answer.text) == (5, True)
    green.add(config())


def test_device_that_the_go_plugin_took_since_is_left_alone(machine, blue, green):
    """A node that went back to the Go plugin and forth again, under a pod of ours that died in between."""
    blue.add(config(vlan=100, mac=MAC, ipam=IPAM))
    blue.destroy()
    (machine.folder / "go/blue-net1").unlink()
    added_by_go(machine, green)
    during = machine.node.snapshot()
    blue.delete(config(vlan=100, mac=MAC, ipam=IPAM))
    assert not differences(during, machine.node.snapshot())
    assert machine.go_files.allocated_to(VF0) == green.path
    assert [*machine.ipam.leases] == [("green", "net1")]


def test_go_plugin_finds_what_it_needs_to_take_ours_back(machine, blue):
    machine.vf.vlan_id = 55
    blue.add(EVERYTHING)
    state = json.loads((machine.folder / "go/blue-net1").read_text())
    assert state["OrigVfState"]["Vlan"] == 55
    assert (state["deviceID"], state["VFID"], state["Master"], state["vlan"]) == (VF0, 0, "ens1", 100)
    assert (machine.folder / "go/pci" / VF0).read_text() == blue.path


@pytest.mark.parametrize("env", [{}, {"CNI_NETNS": ""}])
@pytest.mark.parametrize("blue_lives", [True, False])
def test_late_del_of_a_go_made_attachment_leaves_the_next_go_made_one(pinned, blue, green, env, blue_lives):
    """What the Go plugin itself gets wrong (sriov-cni#219, #313): the allocation names the next one's sandbox."""
    added_by_go(pinned, blue)
    os.utime(pinned.folder / "go/blue-net1", (1, 1))
    pinned.vf.vlan_id = 0
    net, link = pinned.node.netdev_of(VF0)
    net.links.remove(link)
    pinned.node.host.take(link)
    if not blue_lives:
        blue.destroy()
    added_by_go(pinned, green, vlan=200)
    during = pinned.node.snapshot()
    blue.delete(config(ipam=IPAM), **env)
    assert not differences(during, pinned.node.snapshot())
    assert pinned.go_files.allocated_to(VF0) == green.path
    assert [*pinned.ipam.leases] == [("green", "net1")]
    green.delete(config(ipam=IPAM))
    assert (pinned.host_link.ifname, pinned.vf.vlan_id, pinned.records()) == ("ens1v0", 0, [])


@pytest.mark.parametrize("first", ["blue", "green"])
def test_several_dead_go_made_attachments_are_taken_back_from_the_last_to_the_first(pinned, blue, green, first):
    """Each state file has what was before its own ADD; the oldest one's is what was before all."""
    for pod in (blue, green):
        vlan, time = (44, 1) if pod.name == first else (33, 2)
        added_by_go(pinned, pod, OrigVfState={**go_state()["OrigVfState"], "Vlan": vlan})
        os.utime(pinned.folder / f"go/{pod.name}-net1", (time, time))
    pinned.node.destroy(blue.path)
    pinned.node.destroy(green.path)
    heir = pinned.pod("heir")
    heir.add(config(vlan="keep"))
    assert pinned.vf.vlan_id == 44
