"""The device that ``host-device`` is pointed at, by whichever selector is given first; finding it changes nothing.

Source: reference 3.1; containernetworking/plugins plugins/main/host-device/host-device.go getLink.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni.kernel import Kernel
from cni.linux.link import Link
from cni.linux.rtnetlink import Rtnetlink
from cni.linux.sysfs import is_pci_address
from cni.sriov_device import DPDK_DRIVERS
from cni.steps import timed
from conf.errors import DeviceNotFound, InvalidNetworkConfig, TryAgainLater
from conf.host_device import HostDeviceConf


@dataclass(frozen=True)
class HostDevice:
    """A host link, or a function that a DPDK driver has (``link`` is None); ``device_id`` is "" for a virtual link."""

    device_id: str
    link: Link | None
    dpdk_driver: str | None = None


@timed("find")
def find(kernel: Kernel, host: Rtnetlink, conf: HostDeviceConf) -> HostDevice:
    """Return the device.

    Raises: DeviceNotFound naming selector and value; InvalidNetworkConfig when several links answer to it.
    """
    if conf.device:
        return _of_link(kernel, host.link_get(conf.device), f'"device": "{conf.device}"')
    if conf.hwaddr:
        return _of_link(kernel, _by_mac(host, conf.hwaddr), f'"hwaddr": "{conf.hwaddr}"')
    if conf.kernelpath:
        names = kernel.sysfs.kernelpath_netdevs(conf.kernelpath)
        return _of_link(kernel, _first(host, names), f'"kernelpath": "{conf.kernelpath}"')
    chosen = _chosen(kernel, conf)
    if is_pci_address(chosen):
        return _of_pci(kernel, host, chosen)
    named = f'auxiliary device "{chosen}"'
    return HostDevice(chosen, _required(_first(host, kernel.sysfs.auxiliary_netdevs(chosen)), named))


def _chosen(kernel: Kernel, conf: HostDeviceConf) -> str:
    """Return the runtime's device where it is given, else pciBusID, as upstream has it."""
    key = "runtimeConfig.deviceID" if conf.runtime_device_id else "pciBusID"
    chosen = conf.runtime_device_id or str(conf.pci_bus_id)
    if not kernel.sysfs.device_exists(chosen):
        raise DeviceNotFound(
            f'"{key}": "{chosen}" is not found or unsupported', hint="is it still there? were the VFs made anew?"
        )
    return chosen


def _of_pci(kernel: Kernel, host: Rtnetlink, pci_address: str) -> HostDevice:
    named = f'"pciBusID": "{pci_address}"'
    driver = kernel.sysfs.pci_driver(pci_address)
    if driver is None:
        raise DeviceNotFound(f"{named} has no driver bound to it", hint="bind one; a netdev or DPDK driver will do")
    link = _first(host, kernel.sysfs.pci_netdevs(pci_address))
    if link is None and driver in DPDK_DRIVERS:
        return HostDevice(pci_address, None, driver)
    return HostDevice(pci_address, _required(link, f"{named} (driver {driver})"))


def _of_link(kernel: Kernel, link: Link | None, named: str) -> HostDevice:
    link = _required(link, named)
    if link.parent_bus == "auxiliary":
        return HostDevice(link.parent_dev or "", link)
    pci_address = kernel.sysfs.net_device_pci(link.ifname)
    # virtio's parent is no PCI function, but there is its own above it; above a USB NIC there is one for all of USB.
    is_its_own = pci_address and link.ifname in kernel.sysfs.pci_netdevs(pci_address)
    return HostDevice(pci_address if pci_address and is_its_own else "", link)


def _required(link: Link | None, named: str) -> Link:
    if link is None:
        raise TryAgainLater(
            f"failed to find host device: {named}: no such interface on the host",
            hint="is it misspelt, in another netns, or has its driver not made it yet?",
        )
    return link


def _first(host: Rtnetlink, names: tuple[str, ...]) -> Link | None:
    return next((link for link in map(host.link_get, names) if link is not None), None)


def _by_mac(host: Rtnetlink, mac: str) -> Link | None:
    """Return the link with that MAC; where several share it, as a bond's do, the one that was born with it."""
    found = [link for link in host.links() if link.mac.lower() == mac]
    physical = [link for link in found if link.kind is None or link.parent_dev]
    born = [link for link in physical if link.perm_mac == mac]
    candidates = (born if len(born) == 1 else physical) or found
    if len(candidates) > 1:
        raise InvalidNetworkConfig(
            f'"hwaddr": "{mac}" is the MAC of {", ".join(link.ifname for link in candidates)}',
            hint='tell them apart by "device" or "pciBusID"',
        )
    return candidates[0] if candidates else None
