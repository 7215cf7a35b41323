"""``host-device`` with a NIC: PCI selectors, a netdev that the kernel returns, a VF that user space drives.

Everything that needs no PCI device is in tests/netns/test_host_device.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.vm.node import PF, VFS, Pod, ip, links, netdev, wait_until
from tests.vm.test_sriov_vfio import bind

LAB = {"vfs": 2, "iommu": True}
pytest_plugins = ["tests.vm.node_fixtures"]
pytestmark = pytest.mark.usefixtures("host_is_as_before")

VF, DPDK = VFS[:2]
GO = Path("/usr/lib/cni")
STATIC = {"ipam": {"type": "static", "addresses": [{"address": "10.7.7.1/24"}]}}


def config(**keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "rail", "type": "host-device", **keys}


@pytest.fixture(scope="module", autouse=True)
def administrators_own() -> None:
    """Give the VF what an administrator may have given it, and the other one to vfio; all of it must survive."""
    name = netdev(VF)
    for number, vf in enumerate((VF, DPDK)):  # without an administrative MAC a VF has another one at every bind
        ip("link", "set", PF, "vf", str(number), "mac", links()[netdev(vf)]["address"])
    ip("link", "set", name, "up", "mtu", "1450", "alias", "rail 1")
    ip("link", "property", "add", "dev", name, "altname", "rail1-with-a-long-name")
    ip("addr", "add", "10.9.0.5/24", "dev", name)
    ip("route", "add", "10.20.0.0/16", "via", "10.9.0.1", "dev", name, "proto", "static")
    subprocess.run(["modprobe", "vfio-pci"], check=True)
    bind(DPDK, "vfio-pci")


def network() -> tuple[str, str]:
    name = netdev(VF)
    (address,) = [
        each for each in json.loads(ip("-j", "addr", "show", "dev", name))[0]["addr_info"] if each["family"] == "inet"
    ]
    return f"{address['local']}/{address['prefixlen']}", ip("route", "show", "proto", "static")


@pytest.fixture(autouse=True)
def network_is_as_before() -> Any:
    before = network()
    yield
    assert network() == before


@pytest.fixture
def kernelpath() -> str:
    return os.path.realpath(f"/sys/bus/pci/devices/{VF}")


@pytest.mark.parametrize("selector", ["pciBusID", "runtimeConfig", "device", "hwaddr", "kernelpath", "altname"])
@pytest.mark.parametrize("netns", ["lives", "gone"])
def test_every_selector_and_rename_back_after_the_kernel_returned_it(
    blue: Pod, kernelpath: str, selector: str, netns: str
) -> None:
    name = netdev(VF)
    mac = links()[name]["address"]
    conf = config(
        **{
            "pciBusID": {"pciBusID": VF},
            "runtimeConfig": {"runtimeConfig": {"deviceID": VF}},
            "device": {"device": name},
            "hwaddr": {"hwaddr": mac},
            "kernelpath": {"kernelpath": kernelpath},
            "altname": {"device": "rail1-with-a-long-name"},
        }[selector],
        **STATIC,
    )
    result = blue.add(conf)
    assert result["interfaces"] == [{"name": "net1", "mac": mac, "mtu": 1450, "sandbox": blue.path, "pciID": VF}]
    blue.check(conf, result)
    if netns == "gone":
        blue.destroy()
        wait_until(lambda: netdev(VF), "the kernel returned it")
        assert netdev(VF) == "net1"
    blue.delete(conf)
    assert netdev(VF) == name
    blue.delete(conf)


def test_returned_device_whose_pod_name_is_taken_on_the_host(blue: Pod) -> None:
    ip("link", "add", "net1", "type", "bridge")
    conf = config(pciBusID=VF, **STATIC)
    blue.add(conf)
    blue.destroy()
    blue.delete(conf, CNI_NETNS="")
    ip("link", "delete", "net1")


@pytest.mark.parametrize("selector", ["pciBusID", "device", "hwaddr", "kernelpath"])
def test_next_pod_takes_the_device_of_a_dead_one_by_the_name_it_had(
    blue: Pod, green: Pod, kernelpath: str, selector: str
) -> None:
    name = netdev(VF)
    given = {"pciBusID": VF, "device": name, "hwaddr": links()[name]["address"], "kernelpath": kernelpath}
    conf = config(**{selector: given[selector]}, **STATIC)
    blue.add(conf)
    refusal = green.refused("ADD", conf)
    assert (refusal["code"], "container blue has it as net1" in refusal["details"]) == (11, True), refusal
    blue.destroy()
    result = green.add(conf)
    assert green.link()["ifalias"] == name
    blue.delete(conf)
    green.check(conf, result)
    green.delete(conf)


def test_gc_renames_a_returned_device(blue: Pod) -> None:
    conf = config(pciBusID=VF, **STATIC)
    blue.add(conf)
    blue.destroy()
    assert blue.call("GC", {**conf, "cni.dev/valid-attachments": []}).status == 0


def test_device_that_was_bound_to_another_driver_meanwhile(blue: Pod) -> None:
    bind(DPDK, "")
    conf = config(pciBusID=DPDK, **STATIC)
    blue.add(conf)
    bind(DPDK, "vfio-pci")
    blue.delete(conf)


@pytest.mark.skipif(not (GO / "host-device").exists(), reason=f"no {GO}/host-device")
@pytest.mark.parametrize("netns", ["lives", "path gone", "empty"])
@pytest.mark.parametrize("selector", ["pciBusID", "device"])
def test_go_plugins_add_is_undone_even_when_the_kernel_returned_the_device(
    blue: Pod, netns: str, selector: str
) -> None:
    name = netdev(VF)
    ip("link", "set", name, "alias", "")  # the Go plugin loses the administrator's
    conf = {**config(**{selector: {"pciBusID": VF, "device": name}[selector]}), "cniVersion": "1.0.0"}
    environ = {
        **os.environ,
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "blue",
        "CNI_NETNS": blue.path,
        "CNI_IFNAME": "net1",
        "CNI_PATH": str(GO),
    }
    subprocess.run([GO / "host-device"], input=json.dumps(conf).encode(), env=environ, check=True)
    if netns != "lives":
        blue.destroy()
        wait_until(lambda: netdev(VF), "the kernel returned it")
    blue.delete(conf, **({"CNI_NETNS": ""} if netns == "empty" else {}))
    blue.delete(conf)
    assert netdev(VF) == name
    ip("link", "set", name, "alias", "rail 1", "up")
    # What the Go plugin does not keep.
    ip("addr", "add", "10.9.0.5/24", "dev", name)
    ip("route", "add", "10.20.0.0/16", "via", "10.9.0.1", "dev", name, "proto", "static")


def test_device_of_a_dpdk_driver_is_not_moved_but_gets_an_address(blue: Pod, green: Pod) -> None:
    conf = config(pciBusID=DPDK, **STATIC)
    result = blue.add(conf)
    assert result["interfaces"] == [{"name": "net1", "sandbox": blue.path, "pciID": DPDK}]
    assert result["ips"] == [{"interface": 0, "address": "10.7.7.1/24"}]
    assert {*links("blue")} == {"lo"}
    blue.check(conf, result)
    refusal = green.refused("ADD", conf)
    assert (refusal["code"], "container blue has it" in refusal["details"]) == (11, True)
    blue.delete(conf)
    blue.delete(conf)
    blue.add(conf)
    blue.destroy()
    green.add(conf)
    blue.delete(conf)
    green.delete(conf)


def test_dpdk_without_ipam(blue: Pod) -> None:
    conf = config(pciBusID=DPDK)
    assert "ips" not in blue.add(conf)
    blue.delete(conf)
    refusal = blue.refused("ADD", config(pciBusID=DPDK, rdmaIsolation=True))
    assert refusal["code"] in (7, 100)


def test_use_interface_network_of_a_vf(blue: Pod) -> None:
    conf = config(pciBusID=VF, useInterfaceNetwork=True)
    result = blue.add(conf)
    assert [each["address"] for each in result["ips"]] == ["10.9.0.5/24"]
    assert "10.20.0.0/16 via 10.9.0.1" in blue.ip("route")
    blue.check(conf, result)
    blue.destroy()
    blue.delete(conf)


@pytest.mark.parametrize("plugin", ["host-device", "sriov"])
def test_device_info_file_is_written_for_the_runtime_and_removed(blue: Pod, tmp_path: Path, plugin: str) -> None:
    path = tmp_path / "devinfo" / "default-rail-blue_net1"
    keys = {"host-device": {"pciBusID": VF}, "sriov": {"deviceID": VF}}[plugin]
    conf = {**config(**keys, runtimeConfig={"CNIDeviceInfoFile": str(path)}), "type": plugin}
    blue.add(conf)
    written = json.loads(path.read_text())
    assert written == {"type": "pci", "version": "1.1.0", "pci": {"pci-address": VF}}
    blue.delete(conf)
    assert not path.exists()


def test_device_info_file_of_the_device_plugin_is_left_alone(blue: Pod, tmp_path: Path) -> None:
    path = tmp_path / "default-rail-blue_net1"
    path.write_text("the device plugin's")
    conf = config(pciBusID=VF, runtimeConfig={"CNIDeviceInfoFile": str(path)})
    blue.add(conf)
    blue.delete(conf)
    assert path.read_text() == "the device plugin's"
