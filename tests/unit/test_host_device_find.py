"""Which device ``host-device`` is pointed at, by each selector, on a made-up sysfs; nothing is moved here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cni.host_device_find import HostDevice, find
from cni.kernel import Kernel
from cni.linux.link import Link
from cni.linux.sysfs import Sysfs
from conf.errors import CniError, DeviceNotFound, InvalidNetworkConfig, TryAgainLater
from conf.host_device import load
from conf.request import read_request
from tests.unit.fake_sysfs import FakeSysfs

VF, PF, USB, VIRTIO, AUX = "0000:3b:02.1", "0000:3b:00.0", "0000:00:14.0", "0000:00:03.0", "mlx5_core.sf.4"
DPDK = {"0000:3b:03.0": "vfio-pci", "0000:3b:03.1": "uio_pci_generic", "0000:3b:03.2": "igb_uio"}
GUID = "80:00:00:28:fe:80:00:00:00:00:00:00:ec:0d:9a:03:00:1f:a0:2c"


def link(ifname: str, mac: str, **more: Any) -> Link:
    plain = Link(
        index=len(ifname) + 1,
        ifname=ifname,
        mac=mac,
        mtu_bytes=1500,
        up=True,
        running=True,
        promisc=False,
        allmulti=False,
        perm_mac=mac,
        parent_bus="pci" if more.get("parent_dev") else None,
    )
    return replace(plain, **more)


LINKS = (
    link("ens1v0", "aa:00:00:00:00:01", parent_dev=VF),
    link("usb0", "aa:00:00:00:00:02", parent_dev="1-1:1.0", parent_bus="usb"),
    link("ens3", "aa:00:00:00:00:03", parent_dev="virtio0", parent_bus="virtio"),
    link("ens1s4", "aa:00:00:00:00:04", parent_dev=AUX, parent_bus="auxiliary"),
    link("veth7", "aa:00:00:00:00:05", kind="veth", perm_mac=None),
    link("bond0", "aa:00:00:00:00:06", kind="bond", perm_mac=None),
    link("ens5", "aa:00:00:00:00:06", parent_dev=PF),
    link("ens6", "aa:00:00:00:00:06", parent_dev="0000:3b:00.1", perm_mac="aa:00:00:00:00:07"),
    link("ib0", GUID, parent_dev="0000:3b:00.2", kind="ipoib"),
    link("vlan7", "aa:00:00:00:00:08", kind="vlan", perm_mac=None),
    link("macvlan7", "aa:00:00:00:00:08", kind="macvlan", perm_mac=None),
)


class Host:
    """The links of the host."""

    def links(self) -> tuple[Link, ...]:
        return LINKS

    def link_get(self, ifname: str) -> Link | None:
        return next((each for each in LINKS if each.ifname == ifname), None)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    sysfs = FakeSysfs(tmp_path)
    for address, driver in ((VF, "mlx5_core"), (PF, "mlx5_core"), (USB, "xhci_hcd"), (VIRTIO, "virtio-pci")):
        sysfs.device(address)
        sysfs.driver(address, driver)
    sysfs.netdev(VF, "ens1v0")
    sysfs.netdev(PF, "ens5")
    sysfs.netdev(USB, "usb0", below="usb1/1-1/1-1:1.0")
    sysfs.netdev(VIRTIO, "ens3", below="virtio0")
    for address, driver in DPDK.items():
        sysfs.device(address)
        sysfs.driver(address, driver)
    sysfs.device("0000:3b:04.0")
    auxiliary = tmp_path / "devices/pci0000:00" / PF / AUX
    (auxiliary / "net/ens1s4").mkdir(parents=True)
    (auxiliary / "net/ens1s4/device").symlink_to("../..")
    (tmp_path / "class/net/ens1s4").symlink_to(auxiliary / "net/ens1s4")
    (tmp_path / "bus/auxiliary/devices").mkdir(parents=True)
    (tmp_path / "bus/auxiliary/devices" / AUX).symlink_to(auxiliary)
    return Kernel(sysfs=Sysfs(str(tmp_path)))


def found(kernel: Kernel, **keys: Any) -> HostDevice:
    stdin = json.dumps({"cniVersion": "1.1.0", "name": "rail", "type": "host-device", **keys}).encode()
    environ = {"CNI_COMMAND": "STATUS", "CNI_PATH": ""}
    return find(kernel, Host(), load(read_request(environ, stdin)))


@pytest.mark.parametrize(
    ("keys", "ifname", "device_id"),
    [
        ({"device": "ens1v0"}, "ens1v0", VF),
        ({"device": "veth7"}, "veth7", ""),
        ({"device": "usb0"}, "usb0", ""),  # the PCI function above it is that of all of USB
        ({"device": "ens3"}, "ens3", VIRTIO),
        ({"device": "ens1s4"}, "ens1s4", AUX),
        ({"hwaddr": "AA:00:00:00:00:01"}, "ens1v0", VF),
        ({"hwaddr": "aa00.0000.0005"}, "veth7", ""),
        ({"hwaddr": "aa:00:00:00:00:06"}, "ens5", PF),  # of a bond and its two ports the one born with it
        ({"hwaddr": GUID.upper()}, "ib0", ""),
        ({"kernelpath": f"/sys/devices/pci0000:00/{VF}"}, "ens1v0", VF),
        ({"kernelpath": f"/sys/devices/pci0000:00/{USB}/usb1/1-1/1-1:1.0/"}, "usb0", ""),
        ({"pciBusID": VF}, "ens1v0", VF),
        ({"pciBusID": VF.upper()}, "ens1v0", VF),
        ({"pciBusID": VIRTIO}, "ens3", VIRTIO),
        ({"pciBusID": AUX}, "ens1s4", AUX),  # Multus writes the device there, whatever its bus
        ({"runtimeConfig": {"deviceID": VF}}, "ens1v0", VF),
        ({"runtimeConfig": {"deviceID": AUX}}, "ens1s4", AUX),
    ],
)
def test_every_selector(kernel: Kernel, keys: dict[str, Any], ifname: str, device_id: str) -> None:
    device = found(kernel, **keys)
    assert device.link is not None
    assert (device.link.ifname, device.device_id, device.dpdk_driver) == (ifname, device_id, None)


def test_order_of_the_selectors_is_upstreams(kernel: Kernel) -> None:
    keys: dict[str, Any] = {
        "device": "veth7",
        "hwaddr": "aa:00:00:00:00:03",
        "kernelpath": f"/sys/devices/pci0000:00/{PF}",
        "runtimeConfig": {"deviceID": AUX},
        "pciBusID": VF,
    }
    order = []
    while keys:
        device = found(kernel, **keys)
        assert device.link is not None
        order.append(device.link.ifname)
        del keys[next(iter(keys))]
    assert order == ["veth7", "ens3", "ens5", "ens1s4", "ens1v0"]


@pytest.mark.parametrize(("address", "driver"), DPDK.items())
def test_device_of_a_dpdk_driver_has_no_link(kernel: Kernel, address: str, driver: str) -> None:
    assert found(kernel, pciBusID=address) == HostDevice(address, None, driver)


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"device": "ens9"}, TryAgainLater, '"device": "ens9"'),
        ({"pciBusID": "0000:3b:09.0"}, DeviceNotFound, '"pciBusID": "0000:3b:09.0" is not found'),
        ({"pciBusID": "0000:3b:04.0"}, DeviceNotFound, '"pciBusID": "0000:3b:04.0" has no driver'),
        ({"pciBusID": USB}, TryAgainLater, "(driver xhci_hcd)"),
        ({"runtimeConfig": {"deviceID": "mlx5_core.sf.9"}}, DeviceNotFound, '"mlx5_core.sf.9" is not found'),
        ({"runtimeConfig": {"deviceID": "../x"}}, InvalidNetworkConfig, "'../x' is not valid"),
        ({"hwaddr": "aa:00:00:00:00:08"}, InvalidNetworkConfig, "is the MAC of vlan7, macvlan7"),
    ],
)
def test_what_cannot_be_found_is_named(kernel: Kernel, keys: dict[str, Any], error: type[CniError], said: str) -> None:
    with pytest.raises(error) as refused:
        found(kernel, **keys)
    assert said in refused.value.msg
