"""Links by rtnetlink, between two scratch namespaces."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from cni.linux.link import Link
from cni.linux.netlink import NetlinkSocket
from cni.linux.rtnetlink import Rtnetlink
from cni.linux.rtnetlink_socket import NETLINK_ROUTE, RTM_SETLINK
from conf.errors import KernelRefused
from tests.netns.conftest import ScratchNetns, wait_until

LONG_NAME = "enp175s0f1v0-a-name-longer-than-fifteen"


def refusal(error: pytest.ExceptionInfo[KernelRefused]) -> int:
    return error.value.errno


class Counting(NetlinkSocket):
    """Counts the commands sent."""

    def __init__(self, netns: Any) -> None:
        super().__init__(NETLINK_ROUTE, netns)
        self.commands: list[int] = []

    def command(self, message: Any, kind: int, **words: Any) -> None:
        self.commands.append(kind)
        self.race()
        super().command(message, kind, **words)

    def race(self) -> None:
        """Do what somebody else does just before the kernel gets our command."""


def test_move_and_rename_is_one_message(host_ns: ScratchNetns, sandbox: ScratchNetns, veth: Link) -> None:
    netlink = Counting(host_ns.netns)
    with Rtnetlink(host_ns.netns, netlink=netlink) as rtnl:
        rtnl.link_set_netns(veth.index, netns=sandbox.netns, ifname="net1")
    assert netlink.commands == [RTM_SETLINK]
    moved = sandbox.link("net1")
    assert (moved.mac, moved.kind) == (veth.mac, "veth")
    assert host_ns.rtnl.link_get("ens1v0") is None
    assert host_ns.rtnl.link_get("net1") is None


def test_move_keeps_mtu_mac_alias_and_altnames(host_ns: ScratchNetns, sandbox: ScratchNetns, veth: Link) -> None:
    host_ns.rtnl.link_set_mtu(veth.index, 1400)
    host_ns.rtnl.link_set_address(veth.index, "02:00:00:00:00:aa")
    host_ns.rtnl.link_set_alias(veth.index, "rail 1")
    host_ns.rtnl.altname_add(veth.index, LONG_NAME)
    host_ns.rtnl.link_set_netns(veth.index, netns=sandbox.netns, ifname="net1")
    moved = sandbox.link("net1")
    assert (moved.mtu_bytes, moved.mac, moved.alias, moved.altnames) == (
        1400,
        "02:00:00:00:00:aa",
        "rail 1",
        (LONG_NAME,),
    )


def test_move_of_a_link_that_is_up(host_ns: ScratchNetns, sandbox: ScratchNetns, veth: Link) -> None:
    host_ns.rtnl.link_set_up(veth.index)
    host_ns.rtnl.addr_add(veth.index, "10.0.0.5/24")
    host_ns.rtnl.link_set_netns(veth.index, netns=sandbox.netns, ifname="net1")
    moved = sandbox.link("net1")
    assert not moved.up
    assert sandbox.rtnl.addresses(moved.index) == ()


def test_move_out_under_the_old_name(host_ns: ScratchNetns, sandbox: ScratchNetns, veth: Link) -> None:
    host_ns.rtnl.link_set_netns(veth.index, netns=sandbox.netns, ifname="net1")
    sandbox.rtnl.link_set_netns(sandbox.link("net1").index, netns=host_ns.netns, ifname="ens1v0")
    assert host_ns.link("ens1v0").mac == veth.mac


def test_move_where_the_old_name_is_taken_by_another(host_ns: ScratchNetns, sandbox: ScratchNetns, veth: Link) -> None:
    sandbox.ip("link", "add", "ens1v0", "type", "veth", "peer", "name", "other")
    host_ns.rtnl.link_set_netns(veth.index, netns=sandbox.netns, ifname="net1")
    assert sandbox.link("net1").mac == veth.mac
    assert sandbox.link("ens1v0").mac != veth.mac


def test_move_where_the_index_is_taken_by_another(host_ns: ScratchNetns, sandbox: ScratchNetns, veth: Link) -> None:
    sandbox.ip("link", "add", "first", "index", str(veth.index), "type", "veth", "peer", "name", "other")
    host_ns.rtnl.link_set_netns(veth.index, netns=sandbox.netns, ifname="net1")
    moved = sandbox.link("net1")
    assert (moved.mac, moved.index != veth.index) == (veth.mac, True)


@pytest.mark.parametrize("as_altname", [False, True])
def test_taken_name_refuses_the_move_and_changes_nothing(
    host_ns: ScratchNetns, sandbox: ScratchNetns, veth: Link, as_altname: bool
) -> None:
    sandbox.ip("link", "add", "held0" if as_altname else "net1", "type", "veth", "peer", "name", "other")
    if as_altname:
        sandbox.ip("link", "property", "add", "dev", "held0", "altname", "net1")
    before, there = host_ns.rtnl.links(), sandbox.rtnl.links()
    with pytest.raises(KernelRefused) as refused:
        host_ns.rtnl.link_set_netns(veth.index, netns=sandbox.netns, ifname="net1")
    assert refusal(refused) == errno.EEXIST
    assert "net1" in refused.value.details
    assert host_ns.rtnl.links() == before
    assert sandbox.rtnl.links() == there


def test_name_taken_in_the_last_moment_brings_the_link_back(
    host_ns: ScratchNetns, sandbox: ScratchNetns, veth: Link
) -> None:
    class Racing(Counting):
        def race(self) -> None:
            if len(self.commands) == 1:
                sandbox.ip("link", "add", "net1", "type", "veth", "peer", "name", "other")

    host_ns.rtnl.link_set_up(veth.index)
    host_ns.rtnl.altname_add(veth.index, LONG_NAME)
    with (
        Rtnetlink(host_ns.netns, netlink=Racing(host_ns.netns)) as rtnl,
        pytest.raises(KernelRefused) as refused,
    ):
        rtnl.link_set_netns(veth.index, netns=sandbox.netns, ifname="net1")
    assert refusal(refused) == errno.EEXIST
    back = host_ns.link("ens1v0")
    assert (back.mac, back.up, back.altnames) == (veth.mac, True, (LONG_NAME,))
    assert sandbox.rtnl.link_get("ens1v0") is None
    assert sandbox.link("net1").mac != veth.mac


def test_altname_equal_to_the_new_name_refuses_the_move(
    host_ns: ScratchNetns, sandbox: ScratchNetns, veth: Link
) -> None:
    host_ns.rtnl.altname_add(veth.index, "net1")
    with pytest.raises(KernelRefused) as refused:
        host_ns.rtnl.link_set_netns(veth.index, netns=sandbox.netns, ifname="net1")
    assert refusal(refused) == errno.EEXIST
    assert host_ns.link("ens1v0").altnames == ("net1",)


def test_move_of_an_absent_link_is_enodev(host_ns: ScratchNetns, sandbox: ScratchNetns) -> None:
    with pytest.raises(KernelRefused) as refused:
        host_ns.rtnl.link_set_netns(4711, netns=sandbox.netns, ifname="net1")
    assert refusal(refused) == errno.ENODEV


def test_loopback_does_not_move_and_stays(host_ns: ScratchNetns, sandbox: ScratchNetns) -> None:
    with pytest.raises(KernelRefused) as refused:
        host_ns.rtnl.link_set_netns(1, netns=sandbox.netns, ifname="net1")
    assert refusal(refused) == errno.EINVAL
    assert host_ns.link("lo").index == 1


def test_link_get_by_name_altname_and_index(host_ns: ScratchNetns, veth: Link) -> None:
    host_ns.rtnl.altname_add(veth.index, LONG_NAME)
    host_ns.rtnl.altname_add(veth.index, "short")
    found = host_ns.rtnl.link_get("ens1v0")
    assert found is not None and set(found.altnames) == {LONG_NAME, "short"}
    for same in (
        host_ns.rtnl.link_get(LONG_NAME),
        host_ns.rtnl.link_get("short"),
        host_ns.rtnl.link_get(index=veth.index),
    ):
        assert same == found
    assert host_ns.rtnl.link_get("absent") is None
    assert host_ns.rtnl.link_get(LONG_NAME + "x") is None
    assert host_ns.rtnl.link_get(index=4711) is None


def test_altname_del(host_ns: ScratchNetns, veth: Link) -> None:
    host_ns.rtnl.altname_add(veth.index, "short")
    host_ns.rtnl.altname_del(veth.index, "short")
    assert host_ns.link("ens1v0").altnames == ()
    with pytest.raises(KernelRefused):
        host_ns.rtnl.altname_del(veth.index, "short")


def test_altname_taken_by_another_is_eexist(host_ns: ScratchNetns, veth: Link) -> None:
    with pytest.raises(KernelRefused) as refused:
        host_ns.rtnl.altname_add(veth.index, "ens1p0")
    assert refusal(refused) == errno.EEXIST


def test_links_lists_all(host_ns: ScratchNetns, veth: Link) -> None:
    assert {link.ifname for link in host_ns.rtnl.links()} == {"lo", "ens1v0", "ens1p0"}
    assert veth in host_ns.rtnl.links()


def test_vfs_of_a_link_without_are_none(host_ns: ScratchNetns, veth: Link) -> None:
    assert {(link.num_vfs, link.vfs) for link in host_ns.rtnl.links(vfs=True)} == {(0, ())}
    assert host_ns.rtnl.link_vf_get(veth.index, 0) is None
    with pytest.raises(KernelRefused) as refused:
        host_ns.rtnl.link_set_vf_trust(veth.index, 0, on=True)
    assert refusal(refused) == errno.EOPNOTSUPP


def test_up_and_down(host_ns: ScratchNetns, veth: Link) -> None:
    host_ns.rtnl.link_set_up(veth.index)
    assert host_ns.link("ens1v0").up
    wait_until(lambda: host_ns.link("ens1v0").running)  # the kernel's link watch comes a moment later
    host_ns.rtnl.link_set_down(veth.index)
    assert not host_ns.link("ens1v0").up


@pytest.mark.parametrize("which", ["promisc", "allmulti"])
def test_promisc_and_allmulti(host_ns: ScratchNetns, veth: Link, which: str) -> None:
    setter = getattr(host_ns.rtnl, f"link_set_{which}")
    host_ns.rtnl.link_set_up(veth.index)
    setter(veth.index, on=True)
    setter(veth.index, on=True)  # asked for twice, counted once
    on = host_ns.link("ens1v0")
    assert (getattr(on, which), on.up, on.promiscuity) == (True, True, 1 if which == "promisc" else 0)
    setter(veth.index, on=False)
    off = host_ns.link("ens1v0")
    assert (getattr(off, which), off.up, off.promiscuity) == (False, True, 0)


def test_name_mtu_mac_alias_and_queue_length(host_ns: ScratchNetns, veth: Link) -> None:
    host_ns.rtnl.link_set_name(veth.index, "renamed")
    host_ns.rtnl.link_set_mtu(veth.index, 9000)
    host_ns.rtnl.link_set_address(veth.index, "02:00:00:00:00:0f")
    host_ns.rtnl.link_set_alias(veth.index, "a rail, ü")
    host_ns.rtnl.link_set_txqlen(veth.index, 17)
    link = host_ns.link("renamed")
    assert (link.mtu_bytes, link.mac, link.alias, link.txqlen) == (9000, "02:00:00:00:00:0f", "a rail, ü", 17)
    host_ns.rtnl.link_set_alias(veth.index, "")
    assert host_ns.link("renamed").alias == ""
    assert "alias" not in host_ns.ip("link", "show", "renamed")


def test_refusal_carries_operation_object_errno_and_the_kernels_words(host_ns: ScratchNetns, veth: Link) -> None:
    with pytest.raises(KernelRefused) as refused:
        host_ns.rtnl.link_set_mtu(veth.index, 10)
    assert refusal(refused) == errno.EINVAL
    assert refused.value.msg == f"setting MTU 10 failed on ens1v0 (ifindex {veth.index})"
    assert refused.value.ext_ack == "mtu less than device minimum"


def test_macvlan_tells_its_kind_and_parentless_links_have_no_parent(host_ns: ScratchNetns, veth: Link) -> None:
    host_ns.ip("link", "add", "mv0", "link", "ens1v0", "type", "macvlan", "mode", "bridge")
    assert host_ns.link("mv0").kind == "macvlan"
    assert (host_ns.link("mv0").parent_dev, host_ns.link("lo").kind) == (None, None)
