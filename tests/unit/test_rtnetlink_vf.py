"""VF messages, against a kernel that reads them by struct, and against the bytes iproute2 sends."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from cni.linux.netlink import NetlinkSocket
from cni.linux.rtnetlink import Rtnetlink
from conf.errors import KernelRefused
from tests.unit.fake_rtnetlink import NOT_KNOWN, PF_INDEX, FakeKernel, FakeVf

PF, VF = PF_INDEX, 2

# What `ip link set dev lo vf 2 ...` of iproute2 6.1 sends after struct ifinfomsg (strace -e write=all).
IPROUTE2 = {
    "vlan": "20001600 1c000100 18000c00 14000100 02000000 64000000 03000000 88a80000",
    "mac": "30001600 2c000100 28000100 02000000 02000000 00aa0000" + " 00000000" * 6,
    "rate": "18001600 14000100 10000600 02000000 0a000000 c8000000",
    "spoofchk": "14001600 10000100 0c000400 02000000 01000000",
    "trust": "14001600 10000100 0c000900 02000000 00000000",
    "link_state": "14001600 10000100 0c000500 02000000 02000000",
}
SETTERS: dict[str, Callable[[Rtnetlink], None]] = {
    "vlan": lambda rtnl: rtnl.link_set_vf_vlan(PF, VF, vlan_id=100, qos=3, proto="802.1ad"),
    "mac": lambda rtnl: rtnl.link_set_vf_mac(PF, VF, "02:00:00:00:00:aa"),
    "rate": lambda rtnl: rtnl.link_set_vf_rate(PF, VF, min_tx_rate_mbps=10, max_tx_rate_mbps=200),
    "spoofchk": lambda rtnl: rtnl.link_set_vf_spoofchk(PF, VF, on=True),
    "trust": lambda rtnl: rtnl.link_set_vf_trust(PF, VF, on=False),
    "link_state": lambda rtnl: rtnl.link_set_vf_link_state(PF, VF, "disable"),
}


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel(vfs={index: FakeVf() for index in range(4)})


@pytest.fixture
def rtnl(kernel: FakeKernel) -> Rtnetlink:
    return Rtnetlink(netlink=NetlinkSocket(0, transport=kernel))


@pytest.mark.parametrize("what", SETTERS)
def test_vf_setters_send_the_bytes_of_iproute2(rtnl: Rtnetlink, kernel: FakeKernel, what: str) -> None:
    SETTERS[what](rtnl)
    assert kernel.requests[-1][32:] == bytes.fromhex(IPROUTE2[what])


def test_vf_setters_are_read_back(rtnl: Rtnetlink) -> None:
    rtnl.link_set_vf_vlan(PF, VF, vlan_id=4094, qos=7, proto="802.1ad")
    rtnl.link_set_vf_mac(PF, VF, "02:00:5e:10:00:ff")
    rtnl.link_set_vf_rate(PF, VF, min_tx_rate_mbps=10, max_tx_rate_mbps=100000)
    rtnl.link_set_vf_spoofchk(PF, VF, on=False)
    rtnl.link_set_vf_trust(PF, VF, on=True)
    rtnl.link_set_vf_link_state(PF, VF, "enable")
    vf = rtnl.link_vf_get(PF, VF)
    assert vf is not None
    assert (vf.index, vf.mac) == (VF, "02:00:5e:10:00:ff")
    assert (vf.vlan_id, vf.vlan_qos, vf.vlan_proto) == (4094, 7, "802.1ad")
    assert (vf.min_tx_rate_mbps, vf.max_tx_rate_mbps) == (10, 100000)
    assert (vf.spoofchk, vf.trust, vf.link_state) == (False, True, "enable")


def test_other_vfs_are_left_alone(rtnl: Rtnetlink, kernel: FakeKernel) -> None:
    for setter in SETTERS.values():
        setter(rtnl)
    assert [vf for index, vf in kernel.vfs.items() if index != VF] == [FakeVf()] * 3


def test_vf_is_found_by_number_and_not_by_place(rtnl: Rtnetlink, kernel: FakeKernel) -> None:
    kernel.vfs = {index: FakeVf(vlan=index * 10) for index in (3, 0, 6)}
    found = rtnl.link_vf_get(PF, 6)
    assert found is not None and found.vlan_id == 60
    assert rtnl.link_vf_get(PF, 1) is None


def test_settings_the_driver_does_not_know_are_none(rtnl: Rtnetlink, kernel: FakeKernel) -> None:
    kernel.vfs[VF] = FakeVf(spoofchk=NOT_KNOWN, trust=NOT_KNOWN)
    vf = rtnl.link_vf_get(PF, VF)
    assert vf is not None
    assert (vf.spoofchk, vf.trust) == (None, None)


def test_old_kernel_gets_the_old_vlan_attribute(rtnl: Rtnetlink, kernel: FakeKernel) -> None:
    kernel.knows_vlan_list = False
    rtnl.link_set_vf_vlan(PF, VF, vlan_id=100, qos=2, proto="802.1q")
    assert (kernel.vfs[VF].vlan, kernel.vfs[VF].qos) == (100, 2)


def test_old_kernel_is_not_asked_for_802_1ad_by_another_name(rtnl: Rtnetlink, kernel: FakeKernel) -> None:
    kernel.knows_vlan_list = False
    with pytest.raises(KernelRefused) as refused:
        rtnl.link_set_vf_vlan(PF, VF, vlan_id=100, qos=2, proto="802.1ad")
    assert refused.value.errno == errno.EOPNOTSUPP
    assert kernel.vfs[VF] == FakeVf()


def test_another_refusal_of_a_vlan_is_not_tried_again(rtnl: Rtnetlink, kernel: FakeKernel) -> None:
    kernel.refuse = {1: (errno.EPROTONOSUPPORT, "")}
    with pytest.raises(KernelRefused) as refused:
        rtnl.link_set_vf_vlan(PF, VF, vlan_id=100, qos=2, proto="802.1q")
    assert refused.value.errno == errno.EPROTONOSUPPORT
    assert len(kernel.requests) == 1


def test_refusal_names_vf_setting_and_the_kernels_words(rtnl: Rtnetlink, kernel: FakeKernel) -> None:
    kernel.refuse = {2: (errno.EINVAL, "driver: too fast")}
    rtnl.link_get(index=PF)
    with pytest.raises(KernelRefused) as refused:
        rtnl.link_set_vf_rate(PF, VF, min_tx_rate_mbps=0, max_tx_rate_mbps=5)
    assert refused.value.msg == "setting rates 0 to 5 Mbit/s failed on VF 2 of ens1 (ifindex 7)"
    assert refused.value.details == "EINVAL (Invalid argument): driver: too fast"


@pytest.mark.parametrize("count", [1, 330, 400, 1024])
def test_lists_longer_than_an_attribute_are_read_whole(rtnl: Rtnetlink, kernel: FakeKernel, count: int) -> None:
    kernel.vfs = {index: FakeVf(vlan=index) for index in range(count)}
    link = rtnl.link_get("ens1", vfs=True)
    assert link is not None
    assert [(vf.index, vf.vlan_id) for vf in link.vfs] == [(index, index) for index in range(count)]
    assert (link.num_vfs, link.ifname, link.parent_dev) == (count, "ens1", "0000:01:00.0")


def test_a_pf_without_vfs_has_none(rtnl: Rtnetlink, kernel: FakeKernel) -> None:
    kernel.vfs = {}
    link = rtnl.link_get(index=PF, vfs=True)
    assert link is not None and (link.num_vfs, link.vfs) == (0, ())
    assert rtnl.link_vf_get(PF, 0) is None


def test_vfs_are_not_read_unless_asked_for(rtnl: Rtnetlink) -> None:
    link = rtnl.link_get("ens1")
    assert link is not None and (link.num_vfs, link.vfs) == (None, ())


def test_absent_links_are_none(rtnl: Rtnetlink) -> None:
    assert rtnl.link_get("ens9") is None
    assert rtnl.link_get(index=9) is None
