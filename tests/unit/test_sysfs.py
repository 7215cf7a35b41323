"""PCI functions as sysfs shows them: trees of the reference (enp175s0f1; ens1 and ens1d1) and of switchdev."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni.linux.sysfs import Sysfs, is_pci_address
from conf.errors import DeviceNotFound, KernelRefused
from tests.unit.fake_sysfs import FakeSysfs

PF, VF0, VF1 = "0000:af:00.1", "0000:af:06.0", "0000:af:06.1"


@pytest.fixture
def tree(tmp_path: Path) -> FakeSysfs:
    """Return PF enp175s0f1 with VFs enp175s6 and enp175s7."""
    tree = FakeSysfs(tmp_path / "sys")
    tree.device(PF, sriov_totalvfs=8, sriov_numvfs=2, numa_node=1, vendor="0x8086", device="0x1572")
    tree.driver(PF, "i40e")
    tree.netdev(PF, "enp175s0f1")
    for index, addr, ifname in ((0, VF0, "enp175s6"), (1, VF1, "enp175s7")):
        tree.vf(PF, index, addr, numa_node=-1)
        tree.driver(addr, "iavf")
        tree.netdev(addr, ifname)
    return tree


@pytest.fixture
def sysfs(tree: FakeSysfs) -> Sysfs:
    return Sysfs(str(tree.root))


@pytest.mark.parametrize("text", ["0000:01:10.0", "0000:af:06.7", "10000:e1:00.0", "0000:AF:1f.0"])
def test_pci_addresses(text: str) -> None:
    assert is_pci_address(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "01:10.0", "0000:01:10.8", "0000:01:20.0", "0000:0g:10.0", "mlx5_core.sf.4", "０000:01:10.0"),
        *("0000:01:10.0/", "0000:01:10.0\n", " 0000:01:10.0", "../0000:01:10.0", "0000:01:10.0/../x"),
    ],
)
def test_no_pci_addresses(text: str) -> None:
    assert not is_pci_address(text)


@pytest.mark.parametrize("text", ["../../../etc", "0000:af:06.0/../0000:af:06.1", "enp175s6", ""])
def test_no_path_gets_in_by_an_address(sysfs: Sysfs, text: str) -> None:
    for question in (sysfs.pci_exists, sysfs.pci_driver, sysfs.pci_netdevs, sysfs.pci_physfn, sysfs.numa_node):
        with pytest.raises(DeviceNotFound):
            question(text)


def test_vf_to_pf(sysfs: Sysfs) -> None:
    assert [sysfs.pci_physfn(addr) for addr in (VF0, VF1, PF)] == [PF, PF, None]
    assert [sysfs.pci_vf_index(addr) for addr in (VF0, VF1)] == [0, 1]
    assert [sysfs.pci_netdevs(addr) for addr in (VF0, VF1)] == [("enp175s6",), ("enp175s7",)]


def test_pf_to_vf(sysfs: Sysfs) -> None:
    assert sysfs.pci_virtfns(PF) == {0: VF0, 1: VF1}
    assert (sysfs.sriov_totalvfs(PF), sysfs.sriov_numvfs(PF)) == (8, 2)
    assert (sysfs.sriov_totalvfs(VF0), sysfs.pci_virtfns(VF0)) == (0, {})
    assert sysfs.pf_ifname(PF) == "enp175s0f1"


def test_the_machine(sysfs: Sysfs, tree: FakeSysfs) -> None:
    tree.device("0000:00:1f.0")
    assert sysfs.pf_addresses() == (PF,)
    assert sysfs.pci_vfs() == (VF0, VF1)


def test_attributes(sysfs: Sysfs) -> None:
    assert (sysfs.pci_driver(PF), sysfs.pci_driver(VF0)) == ("i40e", "iavf")
    assert (sysfs.pci_vendor(PF), sysfs.pci_device(PF)) == ("0x8086", "0x1572")
    assert (sysfs.numa_node(PF), sysfs.numa_node(VF0)) == (1, None)


def test_absent_function(sysfs: Sysfs) -> None:
    absent = "0000:ff:00.0"
    assert not sysfs.pci_exists(absent)
    assert (sysfs.pci_driver(absent), sysfs.pci_netdevs(absent), sysfs.pf_ifname(absent)) == (None, (), None)
    with pytest.raises(DeviceNotFound):
        sysfs.pci_vf_index(absent)


def test_more_than_ten_vfs_are_in_order_of_number(sysfs: Sysfs, tree: FakeSysfs) -> None:
    for index in range(2, 12):
        tree.vf(PF, index, f"0000:af:08.{index - 2}" if index < 10 else f"0000:af:09.{index - 10}")
    assert list(sysfs.pci_virtfns(PF)) == list(range(12))
    assert sysfs.pci_vf_index("0000:af:09.1") == 11


def test_vf_without_physfn_is_no_vf_here(sysfs: Sysfs, tree: FakeSysfs) -> None:
    tree.device("0000:00:05.0")
    tree.netdev("0000:00:05.0", "ens5")
    assert sysfs.pci_physfn("0000:00:05.0") is None
    assert sysfs.pci_netdevs("0000:00:05.0") == ("ens5",)
    with pytest.raises(DeviceNotFound) as absent:
        sysfs.pci_vf_index("0000:00:05.0")
    assert "0000:00:05.0" in absent.value.msg


def test_vf_that_its_pf_does_not_list(sysfs: Sysfs, tree: FakeSysfs) -> None:
    (tree.root / "bus/pci/devices" / PF / "virtfn1").unlink()
    with pytest.raises(DeviceNotFound):
        sysfs.pci_vf_index(VF1)


def test_vf_bound_to_vfio_has_no_netdev(sysfs: Sysfs, tree: FakeSysfs) -> None:
    tree.vf(PF, 2, "0000:af:06.2")
    tree.driver("0000:af:06.2", "vfio-pci")
    assert (sysfs.pci_driver("0000:af:06.2"), sysfs.pci_netdevs("0000:af:06.2")) == ("vfio-pci", ())


def test_virtio_netdevs_hang_one_level_deeper(sysfs: Sysfs, tree: FakeSysfs) -> None:
    tree.device("0000:00:04.0")
    tree.netdev("0000:00:04.0", "ens4", below="virtio3")
    assert sysfs.pci_netdevs("0000:00:04.0") == ("ens4",)
    assert sysfs.net_device_pci("ens4") == "0000:00:04.0"


def test_pf_with_two_uplinks_is_named_by_the_first_port(sysfs: Sysfs, tree: FakeSysfs) -> None:
    tree.device("0000:05:00.0", sriov_totalvfs=4)
    tree.netdev("0000:05:00.0", "a-second", dev_port=1)
    tree.netdev("0000:05:00.0", "ens1", dev_port=0)
    assert sysfs.pci_netdevs("0000:05:00.0") == ("a-second", "ens1")
    assert sysfs.pf_ifname("0000:05:00.0") == "ens1"


def test_pf_with_two_uplinks_on_one_port_is_named_by_name(sysfs: Sysfs, tree: FakeSysfs) -> None:
    tree.device("0000:05:00.0", sriov_totalvfs=4)
    for ifname in ("ens1d1", "ens1"):
        tree.netdev("0000:05:00.0", ifname)
    assert sysfs.pf_ifname("0000:05:00.0") == "ens1"


@pytest.mark.parametrize("uplink_port", ["p0", "p1s2", None])
def test_representors_are_not_the_pf(sysfs: Sysfs, tree: FakeSysfs, uplink_port: str | None) -> None:
    tree.device("0000:08:00.0", sriov_totalvfs=16)
    ports = ("pf0vf0", "pf0vf12", "c1pf0vf0", "pf0sf88", "c1pf0sf1", "pf0hpf", "c1pf0")
    for number, port in enumerate(ports):
        tree.netdev("0000:08:00.0", f"aaa{number}", phys_port_name=port, dev_port=0)
    attributes = {"phys_port_name": uplink_port} if uplink_port else {}
    tree.netdev("0000:08:00.0", "ens8f0np0", **attributes)
    assert sysfs.pf_ifname("0000:08:00.0") == "ens8f0np0"


def test_pf_with_representors_only_has_no_netdev_here(sysfs: Sysfs, tree: FakeSysfs) -> None:
    tree.device("0000:08:00.0", sriov_totalvfs=16)
    tree.netdev("0000:08:00.0", "eth4", phys_port_name="pf0vf0")
    assert sysfs.pf_ifname("0000:08:00.0") is None


def test_rdma_devices(sysfs: Sysfs, tree: FakeSysfs) -> None:
    for name in ("mlx5_4", "mlx5_3"):
        (tree.root / "bus/pci/devices" / VF0 / "infiniband" / name).mkdir(parents=True)
    assert sysfs.rdma_devices(VF0) == ("mlx5_3", "mlx5_4")
    assert sysfs.rdma_devices(VF1) == ()


def test_netdev_to_pci(sysfs: Sysfs, tree: FakeSysfs) -> None:
    (tree.root / "devices/virtual/net/veth0").mkdir(parents=True)
    (tree.root / "class/net/veth0").symlink_to("../../devices/virtual/net/veth0")
    assert sysfs.net_device_pci("enp175s6") == VF0
    for ifname in ("veth0", "absent", "", "..", "../../bus/pci/devices/0000:af:06.0/net/enp175s6"):
        assert sysfs.net_device_pci(ifname) is None


def test_unreadable_is_not_absent(tmp_path: Path) -> None:
    tree = FakeSysfs(tmp_path / "sys")
    place = tree.device("0000:01:00.0")
    (place / "driver").mkdir()  # readlink says EINVAL: no driver
    (place / "numa_node").mkdir()  # read says EISDIR: something is wrong
    sysfs = Sysfs(str(tree.root))
    assert sysfs.pci_driver("0000:01:00.0") is None
    with pytest.raises(KernelRefused) as refused:
        sysfs.numa_node("0000:01:00.0")
    assert "numa_node" in refused.value.target
