"""The device that ``sriov`` is pointed at: a VF behind its PF, one inside a VM without a PF, or one held by DPDK.

Finding it changes nothing. What is done with it, and in which order, is in cni/sriov.py.

Source: reference 2.2 step 2 and 2.6.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni.attach import host_link
from cni.kernel import Kernel
from cni.linux.link import Link
from cni.linux.rtnetlink import Rtnetlink
from cni.steps import timed
from cni.vf import VfPort
from conf.attachment import VfRecord, Wanted
from conf.errors import DeviceNotFound, InvalidNetworkConfig, TryAgainLater

DPDK_DRIVERS = frozenset({"vfio-pci", "uio_pci_generic", "igb_uio"})


@dataclass(frozen=True)
class Device:
    """One device fit for ``sriov``: ``link`` is None when a DPDK driver has it, ``port`` when there is no PF."""

    pci_address: str
    pf_pci_address: str | None
    port: VfPort | None
    pf_mtu_bytes: int
    link: Link | None
    dpdk_driver: str | None

    def vf_record(self) -> VfRecord | None:
        """Return what the PF says of the VF now, for the way back."""
        if self.port is None:
            return None
        state = self.port.state()
        return VfRecord(
            mac=state.mac,
            vlan_id=state.vlan_id,
            vlan_qos=state.vlan_qos,
            vlan_proto=state.vlan_proto,
            min_tx_rate_mbps=state.min_tx_rate_mbps,
            max_tx_rate_mbps=state.max_tx_rate_mbps,
            spoofchk=state.spoofchk,
            trust=state.trust,
            link_state=state.link_state,
        )


@timed("find")
def find(kernel: Kernel, host: Rtnetlink, pci_address: str, wanted: Wanted) -> Device:
    """Return the device at a PCI address.

    Raises: DeviceNotFound when there is none; InvalidNetworkConfig when it is a PF, or when something is wanted that
    only a PF can do and there is none; TryAgainLater when its driver has no netdev for us (yet).
    """
    sysfs, named = kernel.sysfs, f'"deviceID": "{pci_address}"'
    if not sysfs.pci_exists(pci_address):
        raise DeviceNotFound(f"{named}: there is no such PCI device", hint="'vferry vfs' lists the VFs of this node")
    pf_pci_address = sysfs.pci_physfn(pci_address)
    if pf_pci_address is None and sysfs.sriov_totalvfs(pci_address):
        raise InvalidNetworkConfig(
            f"{named} is a PF, not a VF", hint="'vferry vfs' lists the VFs; to move a whole PF use host-device"
        )
    pf = _pf(kernel, host, pf_pci_address)
    _require_reachable(named, pf_pci_address, pf, wanted)
    driver = sysfs.pci_driver(pci_address)
    link = host_link(kernel, host, pci_address)
    if link is None and driver not in DPDK_DRIVERS:
        raise TryAgainLater(
            f"{named} has no network interface on the host",
            details=f"its driver is {driver}" if driver else "no driver is bound to it",
            hint="is it in another netns, put there by somebody who left no record? else bind its driver",
        )
    if pf_pci_address is None:
        _require_unused(named, host, link)
    return Device(
        pci_address=pci_address,
        pf_pci_address=pf_pci_address,
        port=_port(kernel, host, pf, pci_address),
        pf_mtu_bytes=pf.mtu_bytes if pf else 0,
        link=link,
        dpdk_driver=driver if link is None else None,
    )


def port_of(kernel: Kernel, host: Rtnetlink, pci_address: str) -> VfPort | None:
    """Return the PF's side of a VF as it is now, None without a PF."""
    return _port(kernel, host, _pf(kernel, host, kernel.sysfs.pci_physfn(pci_address)), pci_address)


def _pf(kernel: Kernel, host: Rtnetlink, pf_pci_address: str | None) -> Link | None:
    ifname = kernel.sysfs.pf_ifname(pf_pci_address) if pf_pci_address else None
    return host.link_get(ifname) if ifname else None


def _port(kernel: Kernel, host: Rtnetlink, pf: Link | None, pci_address: str) -> VfPort | None:
    if pf is None:
        return None
    return VfPort(host, pf.index, pf.ifname, kernel.sysfs.pci_vf_index(pci_address))


def _require_reachable(named: str, pf_pci_address: str | None, pf: Link | None, wanted: Wanted) -> None:
    if pf is not None:
        return
    by_key = {
        "vlan": wanted.vlan_id,
        "min_tx_rate/max_tx_rate": wanted.min_tx_rate_mbps,
        "spoofchk": wanted.spoofchk,
        "trust": wanted.trust,
        "link_state": wanted.link_state,
    }
    asked = [key for key, value in by_key.items() if value is not None]
    if asked:
        reason = (
            f"its PF {pf_pci_address} has no network interface here"
            if pf_pci_address
            else "it has no PF here, as a VF inside a VM has none"
        )
        raise InvalidNetworkConfig(
            f"{named}: {', '.join(asked)} can be set by the PF only",
            details=reason,
            hint='leave these keys out ("vlan": "keep"), or set them where the PF is',
        )


def _require_unused(named: str, host: Rtnetlink, link: Link | None) -> None:
    """Refuse a plain NIC that the host itself uses; without a PF nothing else tells it from a VF."""
    if link is None:
        return
    used = [address.address for address in host.addresses(link.index) if address.scope == 0]  # RT_SCOPE_UNIVERSE
    if used:
        raise InvalidNetworkConfig(
            f"{named} is in use by the host: {link.ifname} has {', '.join(used)}",
            hint="give the address of a VF; remove the addresses if this NIC is meant",
        )
