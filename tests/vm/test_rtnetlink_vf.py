"""VF messages and moves on igb, a real SR-IOV driver: what rtnetlink sets is what ``ip`` shows, and the other way."""

from __future__ import annotations

import errno
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cni.linux.link import Link, VfState
from cni.linux.netns import Netns
from cni.linux.rtnetlink import Rtnetlink
from cni.linux.sysfs import Sysfs
from conf.errors import KernelRefused

LAB = {"vfs": 4}

PF, PF_ADDR = "eth0", "0000:01:00.0"
VF_ADDRS = {0: "0000:01:10.0", 1: "0000:01:10.2", 2: "0000:01:10.4", 3: "0000:01:10.6"}
VF = 2


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def shown_by_ip(vf: int) -> dict[str, Any]:
    (pf,) = json.loads(ip("-json", "link", "show", PF))
    return next(each for each in pf["vfinfo_list"] if each["vf"] == vf)


@pytest.fixture
def rtnl() -> Iterator[Rtnetlink]:
    with Rtnetlink() as opened:
        yield opened


@pytest.fixture
def pf(rtnl: Rtnetlink) -> Link:
    found = rtnl.link_get(PF)
    assert found is not None
    return found


@pytest.fixture
def sandbox() -> Iterator[Netns]:
    ip("netns", "add", "blue")
    with Netns.open("/run/netns/blue") as opened:
        yield opened
    ip("netns", "del", "blue")


def vf_state(rtnl: Rtnetlink, pf: Link) -> VfState:
    found = rtnl.link_vf_get(pf.index, VF)
    assert found is not None
    return found


def test_sysfs_and_rtnetlink_agree(rtnl: Rtnetlink, pf: Link) -> None:
    sysfs = Sysfs()
    assert (pf.parent_dev, pf.parent_bus) == (PF_ADDR, "pci")
    assert sysfs.pf_ifname(PF_ADDR) == PF
    assert sysfs.pci_virtfns(PF_ADDR) == VF_ADDRS
    assert (sysfs.sriov_totalvfs(PF_ADDR), sysfs.sriov_numvfs(PF_ADDR)) == (7, 4)
    assert (sysfs.pf_addresses(), sysfs.pci_vfs()) == ((PF_ADDR,), tuple(VF_ADDRS.values()))
    for vf, addr in VF_ADDRS.items():
        (ifname,) = sysfs.pci_netdevs(addr)
        link = rtnl.link_get(ifname)
        assert link is not None and link.parent_dev == addr
        assert (sysfs.pci_vf_index(addr), sysfs.pci_physfn(addr)) == (vf, PF_ADDR)
        assert (sysfs.net_device_pci(ifname), sysfs.pci_driver(addr)) == (addr, "igbvf")


def test_list_of_vfs(rtnl: Rtnetlink, pf: Link) -> None:
    with_vfs = rtnl.link_get(PF, vfs=True)
    assert with_vfs is not None
    assert (with_vfs.num_vfs, [vf.index for vf in with_vfs.vfs]) == (4, [0, 1, 2, 3])
    assert {link.ifname: len(link.vfs) for link in rtnl.links(vfs=True)}[PF] == 4
    assert rtnl.link_vf_get(pf.index, 4) is None


@pytest.mark.parametrize(("vlan_id", "qos"), [(100, 0), (4094, 7), (0, 0)])
def test_vlan(rtnl: Rtnetlink, pf: Link, vlan_id: int, qos: int) -> None:
    rtnl.link_set_vf_vlan(pf.index, VF, vlan_id=vlan_id, qos=qos, proto="802.1q")
    state = vf_state(rtnl, pf)
    assert (state.vlan_id, state.vlan_qos, state.vlan_proto) == (vlan_id, qos, "802.1q")
    vlan = shown_by_ip(VF).get("vlan_list", [{}])[0]
    assert (vlan.get("vlan", 0), vlan.get("qos", 0)) == (vlan_id, qos)


def test_mac(rtnl: Rtnetlink, pf: Link) -> None:
    before = vf_state(rtnl, pf).mac
    rtnl.link_set_vf_mac(pf.index, VF, "02:00:00:00:00:aa")
    assert vf_state(rtnl, pf).mac == shown_by_ip(VF)["address"] == "02:00:00:00:00:aa"
    rtnl.link_set_vf_mac(pf.index, VF, before)
    assert vf_state(rtnl, pf).mac == before


def test_rate(rtnl: Rtnetlink, pf: Link) -> None:
    for rate_mbps in (100, 0):
        rtnl.link_set_vf_rate(pf.index, VF, min_tx_rate_mbps=0, max_tx_rate_mbps=rate_mbps)
        assert vf_state(rtnl, pf).max_tx_rate_mbps == shown_by_ip(VF)["rate"]["max_tx"] == rate_mbps


def test_spoofchk_and_trust(rtnl: Rtnetlink, pf: Link) -> None:
    before = vf_state(rtnl, pf)
    for on in (True, False):
        rtnl.link_set_vf_spoofchk(pf.index, VF, on=on)
        rtnl.link_set_vf_trust(pf.index, VF, on=not on)
        state, shown = vf_state(rtnl, pf), shown_by_ip(VF)
        assert (state.spoofchk, state.trust) == (shown["spoofchk"], shown["trust"]) == (on, not on)
    assert before.spoofchk is not None and before.trust is not None
    rtnl.link_set_vf_spoofchk(pf.index, VF, on=before.spoofchk)
    rtnl.link_set_vf_trust(pf.index, VF, on=before.trust)


def test_settings_of_one_vf_leave_the_others_alone(rtnl: Rtnetlink, pf: Link) -> None:
    others = [rtnl.link_vf_get(pf.index, vf) for vf in (0, 1, 3)]
    rtnl.link_set_vf_vlan(pf.index, VF, vlan_id=77, qos=1, proto="802.1q")
    assert [rtnl.link_vf_get(pf.index, vf) for vf in (0, 1, 3)] == others
    rtnl.link_set_vf_vlan(pf.index, VF, vlan_id=0, qos=0, proto="802.1q")


def test_what_igb_refuses(rtnl: Rtnetlink, pf: Link) -> None:
    before = vf_state(rtnl, pf)
    refusals = {}
    for name, setting in {
        "min rate": lambda: rtnl.link_set_vf_rate(pf.index, VF, min_tx_rate_mbps=10, max_tx_rate_mbps=100),
        "link state": lambda: rtnl.link_set_vf_link_state(pf.index, VF, "enable"),
        "802.1ad": lambda: rtnl.link_set_vf_vlan(pf.index, VF, vlan_id=5, qos=0, proto="802.1ad"),
        "no such vf": lambda: rtnl.link_set_vf_trust(pf.index, 99, on=True),
    }.items():
        with pytest.raises(KernelRefused) as refused:
            setting()
        refusals[name] = refused.value.errno
    assert refusals == {
        "min rate": errno.EINVAL,
        "link state": errno.EOPNOTSUPP,
        "802.1ad": errno.EPROTONOSUPPORT,
        "no such vf": errno.EINVAL,
    }
    assert vf_state(rtnl, pf) == before


def test_vf_moves_into_a_netns_and_back(rtnl: Rtnetlink, sandbox: Netns) -> None:
    (ifname,) = Sysfs().pci_netdevs(VF_ADDRS[VF])
    link = rtnl.link_get(ifname)
    assert link is not None
    rtnl.link_set_netns(link.index, netns=sandbox, ifname="net1")
    assert Sysfs().pci_netdevs(VF_ADDRS[VF]) == ()  # sysfs shows the host's links only
    with Rtnetlink(sandbox) as inside, Netns.current() as host:
        moved = inside.link_get("net1")
        assert moved is not None
        assert (moved.parent_dev, moved.mac, moved.mtu_bytes) == (VF_ADDRS[VF], link.mac, link.mtu_bytes)
        inside.link_set_netns(moved.index, netns=host, ifname=ifname)
    back = rtnl.link_get(ifname)
    assert back is not None
    assert (back.parent_dev, back.mac) == (VF_ADDRS[VF], link.mac)


def test_vf_comes_back_under_the_pods_name_when_the_netns_dies(rtnl: Rtnetlink) -> None:
    (ifname,) = Sysfs().pci_netdevs(VF_ADDRS[VF])
    link = rtnl.link_get(ifname)
    assert link is not None
    ip("netns", "add", "green")
    with Netns.open("/run/netns/green") as green:
        rtnl.link_set_netns(link.index, netns=green, ifname="net1")
    ip("netns", "del", "green")
    for _ in range(300):
        returned = rtnl.link_get("net1")
        if returned is not None:
            break
        time.sleep(0.1)
    assert returned is not None and returned.parent_dev == VF_ADDRS[VF]
    rtnl.link_set_name(returned.index, ifname)
    assert Sysfs().pci_netdevs(VF_ADDRS[VF]) == (ifname,)
