"""The record of one attachment: who has which device, what it was before, and what was asked of it.

It is written before the first change and is all that DEL, GC and an ADD's undo need to put the device back. Where it
is kept is in cni/attachments.py.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from conf.section import Json, Section


class SandboxRecord(Section):
    """The netns of an attachment; path alone does not name one, it may be another's after a while."""

    path: str
    inode: int
    device: int
    boot_id: str


class VfRecord(Section):
    """One VF as its PF reported it; None: its driver does not report that."""

    mac: str
    vlan_id: int
    vlan_qos: int
    vlan_proto: str
    min_tx_rate_mbps: int
    max_tx_rate_mbps: int
    spoofchk: bool | None = None
    trust: bool | None = None
    link_state: str | None = None
    mac_is_administrative: bool = True


class AddressRecord(Section):
    """One address that an administrator gave a host link; the kernel's and a DHCP client's come back by themselves."""

    address: str
    broadcast: str = ""
    flags: int = 0


class RouteRecord(Section):
    """One route over a host link, of the same kind."""

    dst: str
    gateway: str | None = None
    table: int
    scope: int
    priority: int = 0
    mtu: int | None = None
    advmss: int | None = None
    src: str | None = None
    protocol: int


class LinkRecord(Section):
    """One netdev as it was on the host; None: not known, as in a record of the Go plugin's.

    ``shares_device``: its function has more netdevs, which only the permanent MAC tells apart.
    """

    ifname: str
    index: int
    mac: str
    mtu_bytes: int
    promisc: bool = False
    allmulti: bool = False
    up: bool | None = None
    txqlen: int | None = None
    alias: str | None = None
    altnames: list[str] | None = None
    parent_dev: str | None = None
    perm_mac: str | None = None
    kind: str | None = None
    shares_device: bool = False
    addresses: list[AddressRecord] = []
    routes: list[RouteRecord] = []

    @property
    def is_virtual(self) -> bool:
        """Whether the kernel destroys it with its netns; a physical link, which it returns, has a device or no kind."""
        return self.kind is not None and self.parent_dev is None


class Wanted(Section):
    """What a configuration asks of a device; None: leave it alone."""

    vlan_id: int | None = None
    vlan_qos: int = 0
    vlan_proto: str = "802.1q"
    mac: str | None = None
    min_tx_rate_mbps: int | None = None
    max_tx_rate_mbps: int | None = None
    spoofchk: bool | None = None
    trust: bool | None = None
    link_state: str | None = None
    mtu_bytes: int | None = None
    promisc: bool = False
    allmulti: bool = False


class RdmaRecord(Section):
    """One RDMA device as it was on the host; the index stays its own wherever it goes, until its driver is unbound."""

    name: str
    index: int | None = None
    node_guid: int = 0


class Attachment(Section):
    """One container's hold on one device.

    ``returned`` says that the device is back while the record waits for the DEL that releases the lease.
    """

    version: Literal[1] = 1
    plugin: str
    network: str
    container_id: str
    ifname: str
    sandbox: SandboxRecord
    device_id: str = Field(description="PCI address or auxiliary device name; empty for a link without a device")
    pf_pci_address: str | None = None
    pf_ifname: str | None = None
    vf_index: int | None = None
    dpdk_driver: str | None = Field(default=None, description="set: the device has no netdev and is not moved")
    link: LinkRecord | None = None
    vf: VfRecord | None = None
    rdma: RdmaRecord | None = None
    wanted: Wanted = Wanted()
    ipam_type: str = ""
    ipam_store: Json = Field(
        default={}, description='keys of "ipam" that say where the ADD leased, the node\'s own defaults included'
    )
    device_info_file: str = Field(default="", description="a file that we wrote for the runtime to read")
    returned: bool = False

    @property
    def owner(self) -> tuple[str, str]:
        """Container ID and ifname."""
        return self.container_id, self.ifname
