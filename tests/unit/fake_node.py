"""A node in memory: host links, sandboxes, one PF with its VFs and their drivers' odd ways.

What the calls of ``cni.kernel.Kernel`` make of it is in fake_kernel. Every call can fail, before or after it was
carried out, or be the last one of a killed process. Which order of calls is right is not its business, only that
nothing is changed without the device's lock.

Source: net/core/dev.c (moving, renaming, a netns that ends), drivers/net/ethernet/intel/igb and igbvf (MACs).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from cni.linux.link import Link
from cni.linux.netns import NetnsIdentity
from cni.linux.route import Route
from conf.errors import InvalidNetns, KernelRefused, NetnsGone

PF_PCI, PF = "0000:3b:00.0", "ens1"
ZERO = "00:00:00:00:00:00"
HOST = "/proc/thread-self/ns/net"


class Killed(BaseException):
    """The process was killed by SIGKILL: nothing of it runs any more, no undo either."""


@dataclass
class FakeLink:
    ifname: str
    index: int
    mac: str
    mtu_bytes: int = 1500
    up: bool = False
    promisc: bool = False
    allmulti: bool = False
    txqlen: int = 1000
    alias: str = ""
    altnames: list[str] = field(default_factory=list)
    parent_dev: str | None = None
    kind: str | None = None
    perm_mac: str | None = None
    addresses: list[str] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        return {self.ifname, *self.altnames}

    def seen(self, *, names_parent: bool) -> Link:
        return Link(
            index=self.index,
            ifname=self.ifname,
            mac=self.mac,
            mtu_bytes=self.mtu_bytes,
            up=self.up,
            running=self.up,
            promisc=self.promisc,
            allmulti=self.allmulti,
            alias=self.alias,
            altnames=tuple(self.altnames),
            parent_dev=self.parent_dev if names_parent else None,
            parent_bus="pci" if self.parent_dev and names_parent else None,
            kind=self.kind,
            perm_mac=self.perm_mac,
            txqlen=self.txqlen,
        )


@dataclass
class FakeVf:
    """One VF as its PF keeps it; ``is_pinned``: its MAC was set by the administrator, the VF has no say."""

    pci_address: str
    index: int
    driver: str | None = "igbvf"
    mac: str = ZERO
    is_pinned: bool = False
    vlan_id: int = 0
    vlan_qos: int = 0
    vlan_proto: str = "802.1q"
    min_tx_rate_mbps: int = 0
    max_tx_rate_mbps: int = 0
    spoofchk: bool | None = True
    trust: bool | None = False
    link_state: str | None = "auto"


@dataclass
class Quirks:
    """How the drivers of this node behave beside the plain way."""

    takes_up_admin_mac: bool = True  # the VF's netdev, when the PF is told
    lists_chosen_mac: bool = True  # the PF, when the VF has chosen one; mlx5 lists the administrator's only
    pinned_mac_errno: int = errno.EPERM  # the answer to a choice against the administrator's; 0: it is allowed
    refuses_zero_mac: bool = False
    admin_mac_settles_after: int = 0  # pauses until the netdev has it: i40e resets the VF, which takes its time
    netdev_mac_settles_after: int = 0  # pauses until the netdev has it: iavf asks the PF after it has answered
    unsupported: frozenset[str] = frozenset()  # names of setters that answer EOPNOTSUPP
    unreported: frozenset[str] = frozenset()  # fields of a VF that the PF does not list
    renames_only_when_down: bool = False
    names_parent: bool = True  # since Linux 5.14


@dataclass
class FakeNetns:
    """One open namespace."""

    path: str
    net: FakeNet

    @property
    def fd(self) -> int:
        return self.net.inode

    @property
    def identity(self) -> NetnsIdentity:
        return NetnsIdentity(inode=self.net.inode, device=4, boot_id=self.net.node.boot)

    def __enter__(self) -> FakeNetns:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def close(self) -> None:
        pass

    def same_as(self, other: FakeNetns) -> bool:
        return self.net is other.net

    @contextmanager
    def entered(self) -> Iterator[None]:
        was, self.net.node.inside = self.net.node.inside, self.net
        try:
            yield
        finally:
            self.net.node.inside = was


class FakeNet:
    """A network namespace and the links in it."""

    def __init__(self, node: Node, inode: int) -> None:
        self.node = node
        self.inode = inode
        self.links: list[FakeLink] = []
        self.sysctls: dict[tuple[str, ...], str] = {}
        self._indexes = count(2)

    def find(self, *, index: int | None = None, name: str | None = None) -> FakeLink | None:
        return next((each for each in self.links if each.index == index or name in each.names), None)

    def take(self, link: FakeLink) -> None:
        taken = {each.index for each in self.links}
        if link.index in taken:
            link.index = next(index for index in self._indexes if index not in taken)
        self.links.append(link)


class Node:
    """The machine; its attributes are what a test sets up and looks at."""

    def __init__(self, *, vfs: int = 2) -> None:
        self.quirks = Quirks()
        self.boot = "boot-1"
        self._inodes = count(4026531840)
        self.host = FakeNet(self, next(self._inodes))
        self.inside = self.host
        self.nets: dict[str, FakeNet] = {HOST: self.host}
        self.not_netns: set[str] = set()
        self.has_pf = True
        self.locked: list[str] = []
        self.calls: list[str] = []
        self.fails_at, self.fails_late, self.killed_at, self.only_changes = 0, False, 0, True
        self.is_killed = self.has_failed = False
        self._pending_mac: dict[str, tuple[int, str]] = {}
        self.announced: list[tuple[str, ...]] = []
        self.host.take(FakeLink("lo", 1, ZERO, mtu_bytes=65536, up=True))
        self.host.take(FakeLink(PF, 2, "aa:00:00:00:00:01", mtu_bytes=9000, up=True, parent_dev=PF_PCI))
        self.vfs = [FakeVf(f"0000:3b:02.{index}", index) for index in range(vfs)]
        for vf in self.vfs:
            mac = f"aa:00:00:00:01:{vf.index:02x}"
            vf.mac = mac  # chosen by the VF, as drivers do that have no MAC from the PF
            self.host.take(
                FakeLink(f"ens1v{vf.index}", 10 + vf.index, mac, parent_dev=vf.pci_address, perm_mac=mac, up=True)
            )

    # What a test does to it

    def pod(self, path: str) -> FakeNet:
        net = self.nets[path] = FakeNet(self, next(self._inodes))
        net.links.append(FakeLink("lo", 1, ZERO, mtu_bytes=65536, up=True))
        return net

    def destroy(self, path: str) -> None:
        """End a netns: links with a device go to the host, under their name or, when that is taken, a new one."""
        for link in self.nets.pop(path).links:
            if link.parent_dev is None:
                continue
            taken = {name for each in self.host.links for name in each.names}
            link.ifname = f"dev{link.index}" if link.ifname in taken else link.ifname
            link.altnames = [name for name in link.altnames if name not in taken]
            link.up, link.addresses, link.routes = False, [], []
            self.host.take(link)

    def netdev_of(self, pci_address: str) -> tuple[FakeNet, FakeLink] | None:
        return next(
            ((net, link) for net in self.nets.values() for link in net.links if link.parent_dev == pci_address), None
        )

    def unbind(self, vf: FakeVf, driver: str | None) -> None:
        """Give a VF another driver, one without a netdev."""
        vf.driver = driver
        found = self.netdev_of(vf.pci_address)
        if found:
            found[0].links.remove(found[1])

    def reboot(self) -> None:
        self.boot += "'"
        for path in [path for path in self.nets if path != HOST]:
            self.destroy(path)

    def snapshot(self) -> dict[str, Any]:
        """Return all that an attachment may not leave changed; an index is given anew by every move."""

        def told(link: FakeLink) -> dict[str, Any]:
            return {**asdict(link), "altnames": sorted(link.altnames), "index": None}

        return {
            path: {
                "links": {link.ifname: told(link) for link in net.links},
                **({"sysctls": dict(net.sysctls)} if net is self.host else {}),
            }
            for path, net in self.nets.items()
        } | {"vfs": [asdict(vf) for vf in self.vfs]}

    # Failing

    def arm(self, *, fails_at: int = 0, late: bool = False, killed_at: int = 0, only_changes: bool = True) -> None:
        """Count anew: the n-th call fails, ``late`` after it was carried out, or is the last one."""
        self.calls = []
        self.fails_at, self.fails_late, self.killed_at, self.only_changes = fails_at, late, killed_at, only_changes
        self.is_killed = self.has_failed = False

    @contextmanager
    def call(self, what: str, target: str = "", *, changes: bool = True, error: Exception | None = None) -> Iterator:
        if self.is_killed:
            raise Killed
        if self.only_changes and not changes:
            yield
            return
        self.calls.append(what)
        number = len(self.calls)
        if number == self.killed_at:
            self.is_killed = True
            raise Killed
        refused = error or KernelRefused(what, target, errno.EIO)
        if number == self.fails_at and not self.fails_late:
            self.has_failed = True
            raise refused
        yield
        if number == self.fails_at:
            self.has_failed = True
            raise refused

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        assert name not in self.locked
        self.locked.append(name)
        try:
            yield
        finally:
            self.locked.remove(name)

    def require_lock(self) -> None:
        assert self.locked, "a change without the device's lock"

    # The collaborators

    def announce(self, netns: FakeNetns, *, ifname: str, addresses: list[str], **_more: object) -> tuple[()]:
        link = netns.net.find(name=ifname)
        assert link is not None
        assert set(addresses) <= set(link.addresses)
        self.announced.append((ifname, *addresses))
        return ()

    def sleep(self, _seconds: float) -> None:
        for pci_address, (left, mac) in list(self._pending_mac.items()):
            self._pending_mac[pci_address] = left - 1, mac

    def open(self, path: str) -> FakeNetns:
        """Stand in for ``Netns.open``."""
        if self.is_killed:
            raise Killed
        if path in self.not_netns:
            raise InvalidNetns(f"{path} is a namespace, but not a network namespace")
        if path not in self.nets:
            raise NetnsGone(f"netns {path} does not exist")
        return FakeNetns(path, self.nets[path])

    def current(self) -> FakeNetns:
        """Stand in for ``Netns.current``."""
        return FakeNetns(HOST, self.inside)

    # VFs

    def vf_at(self, pci_address: str | None) -> FakeVf | None:
        return next((vf for vf in self.vfs if vf.pci_address == pci_address), None)

    def settle_mac(self, link: FakeLink) -> None:
        left, mac = self._pending_mac.get(link.parent_dev or "", (1, ""))
        if left <= 0:
            link.mac = mac
            del self._pending_mac[link.parent_dev or ""]

    def set_netdev_mac(self, link: FakeLink, mac: str) -> None:
        vf = self.vf_at(link.parent_dev)
        if vf and vf.is_pinned and not vf.trust and self.quirks.pinned_mac_errno:
            if mac == link.mac:
                return  # igbvf takes that for done, though the PF refused
            raise KernelRefused(f"setting MAC {mac}", link.ifname, self.quirks.pinned_mac_errno)
        if self.quirks.netdev_mac_settles_after and vf:
            self.mac_to_come(vf, self.quirks.netdev_mac_settles_after, mac)
        else:
            self._pending_mac.pop(link.parent_dev or "", None)
            link.mac = mac
        if vf and self.quirks.lists_chosen_mac:
            vf.mac = mac

    def set_admin_mac(self, vf: FakeVf, mac: str) -> None:
        if mac == ZERO and self.quirks.refuses_zero_mac:
            raise KernelRefused(f"setting MAC {mac}", f"VF {vf.index}", errno.EINVAL)
        vf.mac, vf.is_pinned = mac, mac != ZERO
        self._pending_mac.pop(vf.pci_address, None)
        found = self.netdev_of(vf.pci_address)
        if found and mac != ZERO and self.quirks.takes_up_admin_mac:
            self.mac_to_come(vf, self.quirks.admin_mac_settles_after, mac)
            self.settle_mac(found[1])

    def mac_to_come(self, vf: FakeVf, pauses: int, mac: str) -> None:
        if self._pending_mac.get(vf.pci_address, (0, ""))[1] != mac:  # asking again does not make it later
            self._pending_mac[vf.pci_address] = pauses, mac
