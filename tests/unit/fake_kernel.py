"""The calls of ``cni.kernel.Kernel`` on a node in memory, answered as the kernel would.

Source: net/core/rtnetlink.c (do_setlink, do_setvfinfo), Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from cni.kernel import Kernel
from cni.linux.address import Address
from cni.linux.link import Link, VfState
from cni.linux.route import Route
from conf.errors import KernelRefused
from tests.unit.fake_node import PF, PF_PCI, FakeLink, FakeNet, FakeNetns, FakeVf, Node


def kernel_of(node: Node) -> Kernel:
    """Return what a plugin is given to ask this node."""
    return Kernel(
        sysfs=FakeSysfs(node),
        sysctl=FakeSysctl(node),
        rtnetlink=lambda netns: FakeRtnetlink(node, netns.net if netns else node.host),
        announce=node.announce,
        sleep=node.sleep,
    )


class FakeRtnetlink:
    """One socket in one namespace of a node."""

    def __init__(self, node: Node, net: FakeNet) -> None:
        self.node, self.net = node, net

    def __enter__(self) -> FakeRtnetlink:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    @contextmanager
    def _changing(self, what: str, index: int) -> Iterator[FakeLink]:
        self.node.require_lock()
        link = self.net.find(index=index)
        with self.node.call(what, f"ifindex {index}"):
            if link is None:
                raise KernelRefused(what, f"ifindex {index}", errno.ENODEV)
            yield link

    # Links

    def link_get(self, ifname: str | None = None, *, index: int | None = None, vfs: bool = False) -> Link | None:
        assert not vfs
        with self.node.call("link_get", changes=False):
            link = self.net.find(index=index, name=ifname)
            if link is None:
                return None
            self.node.settle_mac(link)
            return link.seen(names_parent=self.node.quirks.names_parent)

    def links(self) -> tuple[Link, ...]:
        with self.node.call("links", changes=False):
            return tuple(link.seen(names_parent=self.node.quirks.names_parent) for link in self.net.links)

    def link_set_netns(self, index: int, *, netns: FakeNetns, ifname: str) -> None:
        with self._changing("link_set_netns", index) as link:
            taken = {name for each in netns.net.links for name in each.names}
            if ifname in link.altnames or taken & {ifname, *link.altnames}:
                raise KernelRefused("moving the link", link.ifname, errno.EEXIST)
            self.net.links.remove(link)
            link.ifname, link.up, link.addresses, link.routes = ifname, False, [], []
            netns.net.take(link)

    def link_set_name(self, index: int, ifname: str) -> None:
        with self._changing("link_set_name", index) as link:
            if link.up and self.node.quirks.renames_only_when_down:
                raise KernelRefused("renaming the link", link.ifname, errno.EBUSY)
            if ifname != link.ifname and self.net.find(name=ifname) is not None:
                raise KernelRefused("renaming the link", link.ifname, errno.EEXIST)
            link.ifname = ifname

    def link_set_mtu(self, index: int, mtu_bytes: int) -> None:
        with self._changing("link_set_mtu", index) as link:
            if mtu_bytes > 9000:
                raise KernelRefused(f"setting MTU {mtu_bytes}", link.ifname, errno.EINVAL)
            link.mtu_bytes = mtu_bytes

    def link_set_address(self, index: int, mac: str) -> None:
        with self._changing("link_set_address", index) as link:
            self.node.set_netdev_mac(link, mac)

    def link_set_alias(self, index: int, alias: str) -> None:
        with self._changing("link_set_alias", index) as link:
            link.alias = alias

    def link_set_txqlen(self, index: int, txqlen: int) -> None:
        with self._changing("link_set_txqlen", index) as link:
            link.txqlen = txqlen

    def link_set_up(self, index: int) -> None:
        with self._changing("link_set_up", index) as link:
            link.up = True

    def link_set_down(self, index: int) -> None:
        with self._changing("link_set_down", index) as link:
            link.up, link.addresses, link.routes = False, [], []

    def link_set_promisc(self, index: int, *, on: bool) -> None:
        with self._changing("link_set_promisc", index) as link:
            link.promisc = on

    def link_set_allmulti(self, index: int, *, on: bool) -> None:
        with self._changing("link_set_allmulti", index) as link:
            link.allmulti = on

    def altname_add(self, index: int, altname: str) -> None:
        with self._changing("altname_add", index) as link:
            if self.net.find(name=altname) is not None:
                raise KernelRefused("adding the altname", altname, errno.EEXIST)
            link.altnames.append(altname)

    def altname_del(self, index: int, altname: str) -> None:
        with self._changing("altname_del", index) as link:
            if altname not in link.altnames:
                raise KernelRefused("removing the altname", altname, errno.ENOENT)
            link.altnames.remove(altname)

    # VFs

    def link_vf_get(self, pf_index: int, vf: int) -> VfState | None:
        with self.node.call("link_vf_get", changes=False):
            found = self._vf(pf_index, vf)
            if found is None:
                return None
            fields = {key: value for key, value in asdict(found).items() if key in VfState.__dataclass_fields__}
            return replace(VfState(**fields), **dict.fromkeys(self.node.quirks.unreported))

    def link_set_vf_vlan(self, pf_index: int, vf: int, *, vlan_id: int, qos: int, proto: str) -> None:
        self._set_vf("vlan", pf_index, vf, vlan_id=vlan_id, vlan_qos=qos, vlan_proto=proto)

    def link_set_vf_rate(self, pf_index: int, vf: int, *, min_tx_rate_mbps: int, max_tx_rate_mbps: int) -> None:
        rates = {"min_tx_rate_mbps": min_tx_rate_mbps, "max_tx_rate_mbps": max_tx_rate_mbps}
        self._set_vf("rate", pf_index, vf, **rates)

    def link_set_vf_spoofchk(self, pf_index: int, vf: int, *, on: bool) -> None:
        self._set_vf("spoofchk", pf_index, vf, spoofchk=on)

    def link_set_vf_trust(self, pf_index: int, vf: int, *, on: bool) -> None:
        self._set_vf("trust", pf_index, vf, trust=on)

    def link_set_vf_link_state(self, pf_index: int, vf: int, state: str) -> None:
        self._set_vf("link_state", pf_index, vf, link_state=state)

    def link_set_vf_mac(self, pf_index: int, vf: int, mac: str) -> None:
        with self._changing("link_set_vf_mac", pf_index):
            found = self._vf(pf_index, vf)
            assert found is not None
            self.node.set_admin_mac(found, mac)

    def _set_vf(self, what: str, pf_index: int, vf: int, **values: Any) -> None:
        with self._changing(f"link_set_vf_{what}", pf_index):
            found = self._vf(pf_index, vf)
            if found is None:
                raise KernelRefused(what, f"VF {vf}", errno.EINVAL)
            if what in self.node.quirks.unsupported:
                raise KernelRefused(f"setting {what}", f"VF {vf} of {PF}", errno.EOPNOTSUPP)
            for name, value in values.items():
                setattr(found, name, value)

    def _vf(self, pf_index: int, vf: int) -> FakeVf | None:
        pf = self.net.find(index=pf_index)
        assert pf is not None
        assert pf.parent_dev == PF_PCI
        return next((each for each in self.node.vfs if each.index == vf), None)

    # Addresses and routes

    def addr_add(self, index: int, address: str) -> None:
        with self._changing("addr_add", index) as link:
            if address in link.addresses:
                raise KernelRefused("adding the address", address, errno.EEXIST)
            link.addresses.append(address)

    def addresses(self, index: int) -> tuple[Address, ...]:
        with self.node.call("addresses", changes=False):
            link = self.net.find(index=index)
            assert link is not None
            return tuple(
                Address(
                    address=each,
                    family=10 if ":" in each else 2,
                    scope=0,
                    tentative=False,
                    dadfailed=False,
                    flags=0,
                    index=index,
                )
                for each in link.addresses
            )

    def route_add(self, *, dst: str, gateway: str | None = None, index: int, **more: Any) -> bool:
        with self._changing("route_add", index) as link:
            if not link.up:
                raise KernelRefused("adding the route", dst, errno.ENETDOWN)
            link.routes.append(
                Route(
                    dst=dst,
                    gateway=gateway,
                    index=index,
                    family=10 if ":" in dst else 2,
                    table=254 if more.get("table") is None else more["table"],
                    scope=more.get("scope") or 0,
                    priority=more.get("priority") or 0,
                    mtu=more.get("mtu"),
                    advmss=more.get("advmss"),
                    src=None,
                    protocol=3,
                    kind=1,
                )
            )
            return True

    def routes(self, index: int) -> tuple[Route, ...]:
        with self.node.call("routes", changes=False):
            link = self.net.find(index=index)
            assert link is not None
            return tuple(link.routes)


class FakeSysfs:
    """The PCI functions of a node; netdevs are seen in the host's namespace only."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def pci_exists(self, addr: str) -> bool:
        return addr == PF_PCI or self.node.vf_at(addr) is not None

    def device_exists(self, device_id: str) -> bool:
        return not device_id or self.pci_exists(device_id)

    def pci_driver(self, addr: str) -> str | None:
        vf = self.node.vf_at(addr)
        return vf.driver if vf else "igb"

    def pci_netdevs(self, addr: str) -> tuple[str, ...]:
        return tuple(link.ifname for link in self.node.host.links if link.parent_dev == addr)

    def pci_physfn(self, addr: str) -> str | None:
        return PF_PCI if self.node.vf_at(addr) and self.node.has_pf else None

    def pci_vf_index(self, addr: str) -> int:
        vf = self.node.vf_at(addr)
        assert vf is not None
        return vf.index

    def pf_ifname(self, pf_addr: str) -> str | None:
        return next((link.ifname for link in self.node.host.links if link.parent_dev == pf_addr), None)

    def sriov_totalvfs(self, pf_addr: str) -> int:
        return 7 if pf_addr == PF_PCI else 0

    def rdma_devices(self, _device_id: str) -> tuple[str, ...]:
        return ()


class FakeSysctl:
    """The settings of the namespace that is entered."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def write(self, path: tuple[str, ...], value: str | int) -> None:
        refused = KernelRefused("setting sysctl", "/".join(path), errno.ENOENT)
        with self.node.call("sysctl", error=refused):
            self.node.inside.sysctls[path] = str(value)
