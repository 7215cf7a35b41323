"""Which RDMA device belongs to a function, and what is said of one that RDMA-CM cannot use."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from cni.kernel import Kernel
from cni.linux.rdma import RdmaLink
from cni.linux.sysfs import Sysfs
from cni.rdma_device import find
from conf.errors import DeviceNotFound, InvalidNetworkConfig
from tests.unit.fake_sysfs import FakeSysfs

VF = "0000:3b:00.2"


def on_host(*links: RdmaLink) -> SimpleNamespace:
    return SimpleNamespace(rdma_link_get=lambda name: next((link for link in links if link.name == name), None))


def kernel_with(tmp_path, *names: str) -> Kernel:
    function = FakeSysfs(tmp_path).device(VF)
    for name in names:
        (function / "infiniband" / name).mkdir(parents=True)
    return Kernel(sysfs=Sysfs(str(tmp_path)))


@pytest.mark.parametrize(("guid", "told"), [(0, True), (0x0C42A10300AF1234, False)])
def test_node_guid_of_zero_is_warned_of_with_the_remedy(tmp_path, caplog, guid, told):
    with caplog.at_level(logging.WARNING, logger="vferry"):
        record = find(kernel_with(tmp_path, "mlx5_2"), on_host(RdmaLink(4, "mlx5_2", guid)), VF)
    assert (record.name, record.index, record.node_guid) == ("mlx5_2", 4, guid)
    assert ("set the VF's MAC, then unbind and bind its driver" in caplog.text) is told


def test_function_without_an_rdma_device_is_an_error_that_asks_for_its_driver(tmp_path):
    with pytest.raises(DeviceNotFound, match="no RDMA devices found") as refused:
        find(kernel_with(tmp_path), on_host(), VF)
    assert "driver" in refused.value.hint


def test_function_with_two_rdma_devices_is_refused_by_their_names(tmp_path):
    with pytest.raises(InvalidNetworkConfig, match="mlx5_2, mlx5_3"):
        find(kernel_with(tmp_path, "mlx5_2", "mlx5_3"), on_host(), VF)
