"""The device-info file: what stands in it, when it is written and when it is let alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni import device_info_file
from cni.linux.sysfs import Sysfs
from conf.attachment import Attachment, RdmaRecord, SandboxRecord
from conf.errors import InvalidNetworkConfig, IoFailure
from tests.unit.fake_sysfs import FakeSysfs

VF = "0000:3b:02.1"


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    root = tmp_path / "sys"
    FakeSysfs(root).device(VF)
    return Sysfs(str(root))


def attachment(path: Path | str, **more: Any) -> Attachment:
    return Attachment(
        plugin="sriov",
        network="rail",
        container_id="c1",
        ifname="net1",
        sandbox=SandboxRecord(path="/run/netns/a", inode=1, device=4, boot_id="b"),
        device_id=VF,
        device_info_file=str(path),
        **more,
    )


def wanted(path: object, device_id: str = VF) -> str:
    return device_info_file.wanted_path({"runtimeConfig": {"CNIDeviceInfoFile": path}}, device_id)


def test_only_what_the_runtime_asks_for_and_does_not_have_is_written(tmp_path: Path) -> None:
    path = tmp_path / "devinfo"
    assert wanted(str(path)) == str(path)
    assert device_info_file.wanted_path({"runtimeconfig": {"cniDeviceInfoFile": str(path)}}, VF) == str(path)
    assert wanted(str(path), "mlx5_core.sf.4") == ""  # the specification has no type for it
    assert wanted(str(path), "") == ""
    assert wanted("") == wanted(None) == device_info_file.wanted_path({}, VF) == ""
    path.write_text("{}")
    assert wanted(str(path)) == ""
    path.unlink()
    path.symlink_to("nowhere")  # not followed, as the runtime does not expect it
    assert wanted(str(path)) == ""


@pytest.mark.parametrize("path", ["relative/path", 17])
def test_path_that_is_none_is_refused(path: object) -> None:
    with pytest.raises(InvalidNetworkConfig, match="CNIDeviceInfoFile"):
        wanted(path)


def test_file_is_made_with_its_folder_readable_by_all_and_deleted(tmp_path: Path, sysfs: Sysfs) -> None:
    path = tmp_path / "k8s.cni.cncf.io" / "devinfo"
    device_info_file.write(attachment(path), sysfs)
    assert json.loads(path.read_text()) == {"type": "pci", "version": "1.1.0", "pci": {"pci-address": VF}}
    assert path.stat().st_mode & 0o777 == 0o444
    device_info_file.delete(attachment(path))
    device_info_file.delete(attachment(path))
    assert not path.exists()


def test_rdma_device_is_named_whether_it_was_moved_or_not(tmp_path: Path, sysfs: Sysfs) -> None:
    moved, not_moved = tmp_path / "moved", tmp_path / "not-moved"
    device_info_file.write(attachment(moved, rdma=RdmaRecord(name="mlx5_7", index=7)), sysfs)
    for name in ("mlx5_3", "mlx5_2"):
        (tmp_path / "sys/bus/pci/devices" / VF / "infiniband" / name).mkdir(parents=True)
    device_info_file.write(attachment(not_moved), sysfs)
    assert json.loads(moved.read_text())["pci"]["rdma-device"] == "mlx5_7"
    assert json.loads(not_moved.read_text())["pci"]["rdma-device"] == "mlx5_2,mlx5_3"


def test_file_that_came_in_between_is_left(tmp_path: Path, sysfs: Sysfs) -> None:
    path = tmp_path / "devinfo"
    path.write_text("the runtime's")
    device_info_file.write(attachment(path), sysfs)
    assert path.read_text() == "the runtime's"


def test_nothing_is_written_or_deleted_when_none_was_asked_for(sysfs: Sysfs) -> None:
    device_info_file.write(attachment(""), sysfs)
    device_info_file.delete(attachment(""))


def test_what_cannot_be_written_or_deleted_is_an_io_failure(tmp_path: Path, sysfs: Sysfs) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "devinfo", tmp_path / "file" / "deeper" / "devinfo"):
        with pytest.raises(IoFailure, match="devinfo"):
            device_info_file.write(attachment(path), sysfs)
    with pytest.raises(IoFailure, match="cannot delete"):
        device_info_file.delete(attachment(tmp_path))
