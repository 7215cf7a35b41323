"""``sriov`` with a VF that user space drives: set up through the PF, not moved, told of in the result.

VFs with a netdev are in test_sriov.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.vm.node import PF, VFS, config, ip, links, netdev, vf_state, wait_until

LAB = {"vfs": 2, "iommu": True}
pytest_plugins = ["tests.vm.node_fixtures"]
pytestmark = pytest.mark.usefixtures("host_is_as_before")

MAC = "02:00:5e:10:00:01"
VF = VFS[1]
CONF = config(VF, vlan=100, vlanQoS=3, mac=MAC, max_tx_rate=100, spoofchk="off", trust="on")


def bind(pci_address: str, driver: str) -> None:
    """Give a device to a driver, "" for the one that it has of itself."""
    device = Path("/sys/bus/pci/devices", pci_address)
    (device / "driver/unbind").write_text(pci_address)
    (device / "driver_override").write_text(driver or "\n")
    Path("/sys/bus/pci/drivers_probe").write_text(pci_address)
    assert os.path.basename(os.readlink(device / "driver")) == (driver or "igbvf")


@pytest.fixture(scope="module", autouse=True)
def vfio():
    subprocess.run(["modprobe", "vfio-pci"], check=True)
    bind(VF, "vfio-pci")
    # Without an administrative MAC a VF has another one whenever its driver is bound.
    ip("link", "set", PF, "vf", "0", "mac", links()[netdev(VFS[0])]["address"])


def test_pf_settings_are_made_and_taken_back(blue):
    conf = {**CONF, "ipam": {"type": "static", "addresses": [{"address": "10.7.7.1/24", "gateway": "10.7.7.9"}]}}
    result = blue.add(conf)
    assert result["interfaces"] == [
        {"name": "net1", "mac": MAC, "mtu": links()[PF]["mtu"], "sandbox": blue.path, "pciID": VF}
    ]
    assert result["ips"] == [{"interface": 0, "address": "10.7.7.1/24", "gateway": "10.7.7.9"}]
    vf = vf_state(1)
    assert (vf["address"], vf["vlan_list"]) == (MAC, [{"vlan": 100, "qos": 3}])
    assert (vf["rate"]["max_tx"], vf["spoofchk"], vf["trust"]) == (100, False, True)
    assert {*links("blue")} == {"lo"}
    blue.check(conf, result)
    ip("link", "set", PF, "vf", "1", "trust", "off")
    assert "trust is off, wanted on" in blue.refused("CHECK", {**conf, "prevResult": result})["details"]
    blue.delete(conf)
    blue.delete(conf)


def test_vf_is_held_until_its_pod_has_gone(blue, green):
    blue.add(CONF)
    assert green.refused("ADD", CONF)["code"] == 11
    blue.destroy()
    green.add(config(VF, vlan=7))
    blue.delete(CONF)
    assert vf_state(1)["vlan_list"] == [{"vlan": 7}]
    green.delete(config(VF, vlan=7))


def test_what_only_a_netdev_can_have_is_told_not_to_be_set(blue, caplog):
    conf = {**CONF, "mtu": 1400, "promisc": True}
    blue.add(conf)
    blue.delete(conf)
    assert f"{VF} is driven by vfio-pci: mtu, promisc not set" in caplog.messages


def test_del_does_not_wait_for_a_netdev_that_a_new_driver_has_ended(blue, host_is_as_before):
    conf = config(VFS[0], vlan=100)
    name, before = netdev(VFS[0]), vf_state(0)
    blue.add(conf)
    blue.destroy()
    wait_until(lambda: netdev(VFS[0]), "the VF is back")
    bind(VFS[0], "vfio-pci")
    blue.delete(conf)
    assert vf_state(0) == before
    bind(VFS[0], "")
    wait_until(lambda: netdev(VFS[0]) == name, "the driver has made its netdev anew")
