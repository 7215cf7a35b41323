"""A container on a VF with its RDMA device, by containerd: a client of the chain that nobody here wrote.

Its DEL comes when the container's netns has gone, so the kernel has returned the VF under the container's name for it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.vm.node import VFS, netdev
from tests.vm.rdma_node import devices, rdma_name

LAB = {"vfs": 2, "mem_mib": 2048}
pytest_plugins = ["tests.vm.node_fixtures", "tests.vm.rdma_node", "tests.vm.containerd_fixtures"]
pytestmark = [
    pytest.mark.usefixtures("host_is_as_before", "rdma_is_as_before"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("containerd", "ctr", "busybox"))),
        reason="needs the Debian packages containerd and busybox-static",
    ),
]

VF = VFS[0]
TUNING = {"type": "tuning", "mtu": 1300, "sysctl": {"net.core.somaxconn": "500"}}
IPAM = {"type": "whereabouts", "datastore": "local", "range": "10.7.7.0/24", "range_start": "10.7.7.5"}
CHAINS: dict[str, list[dict[str, Any]]] = {
    "sriov-rdma-tuning": [{"type": "sriov", "deviceID": VF, "ipam": IPAM}, {"type": "rdma", "deviceID": VF}, TUNING],
    "sriov-isolated": [{"type": "sriov", "deviceID": VF, "ipam": IPAM, "rdmaIsolation": True}],
    "host-device-isolated": [{"type": "host-device", "pciBusID": VF, "ipam": IPAM, "rdmaIsolation": True}],
}


@pytest.fixture(scope="module")
def root_fs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rootfs")
    for folder in ("bin", "proc", "sys", "dev", "etc"):
        (place / folder).mkdir()
    shutil.copy(shutil.which("busybox") or "", place / "bin/busybox")
    for applet in ("sh", "ip", "ls", "cat"):
        (place / "bin" / applet).symlink_to("busybox")
    return place


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_container_has_the_vf_and_its_rdma_device_and_the_host_gets_both_back(
    ctr: list[str], root_fs: Path, chain: list[dict[str, Any]]
) -> None:
    folder = Path("/etc/cni/net.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "10-rail.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "rail", "plugins": chain}))
    name, ifname = rdma_name(VF), netdev(VF)
    others = {*devices()} - {name}
    script = "ip -o addr show eth0; cat /sys/class/net/eth0/mtu; echo; ls /sys/class/infiniband"
    container = ["run", "--cni", "--rm", "--rootfs", root_fs, f"c-{chain[0]['type']}-{len(chain)}", "/bin/sh", "-c"]
    done = subprocess.run([*ctr, *container, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "inet 10.7.7." in done.stdout
    assert name in done.stdout
    assert not any(other in done.stdout for other in others)
    assert ("1300" in done.stdout) == (TUNING in chain)
    assert (netdev(VF), rdma_name(VF)) == (ifname, name)
