"""What tests of RDMA in the guest share: chains of plugins, devices and their netns, the drivers loaded as on a node.

What is asked of the plugins is in the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cni.linux.netns import Netns
from cni.upstream_rdma import ROOT as GO_RDMA_FILES
from tests.vm.node import VFS, Pod, config

VF, OTHER = VFS[0], VFS[1]
STATIC: dict[str, Any] = {"ipam": {"type": "static", "addresses": [{"address": "10.7.7.1/24"}]}}
SRIOV = config(VF, **STATIC)
HOST_DEVICE = {"cniVersion": "1.1.0", "name": "rail", "type": "host-device", "pciBusID": VF, **STATIC}
RDMA = {"cniVersion": "1.1.0", "name": "rail", "type": "rdma", "deviceID": VF}
ISOLATED = {"rdmaIsolation": True}
CHAINS = {
    "sriov-rdma": [SRIOV, RDMA],
    "host-device-rdma": [HOST_DEVICE, RDMA],
    "sriov-isolated": [{**SRIOV, **ISOLATED}],
    "host-device-isolated": [{**HOST_DEVICE, **ISOLATED}],
}
EACH_CHAIN = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)


def rdma(*words: str, netns: str = "") -> str:
    enter = ["ip", "netns", "exec", netns] if netns else []
    done = subprocess.run([*enter, "rdma", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def devices(netns: str = "") -> dict[str, str]:
    """Return the RDMA devices that a netns has: name to node GUID."""
    return {each["ifname"]: each["node_guid"] for each in json.loads(rdma("-j", "dev", netns=netns) or "[]")}


def rdma_name(pci_address: str) -> str:
    """Return the name of a VF's RDMA device, wherever it is."""
    (file,) = Path("/sys/bus/pci/devices", pci_address, "infiniband_verbs").glob("*/ibdev")
    return file.read_text().strip()


def open_uverbs(pci_address: str, pod: Pod | None = None) -> int:
    """Open the VF's uverbs device, inside a pod or on the host, and return errno, 0 when it opens."""
    (device,) = os.listdir(f"/sys/bus/pci/devices/{pci_address}/infiniband_verbs")
    with Netns.open(pod.path) if pod else nullcontext() as netns, netns.entered() if netns else nullcontext():
        try:
            os.close(os.open(f"/dev/infiniband/{device}", os.O_RDWR))
        except OSError as error:
            return error.errno or -1
    return 0


def add(pod: Pod, chain: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Run a chain's ADD and return its result."""
    result: dict[str, Any] = {}
    for conf in chain:
        result = pod.add({**conf, "prevResult": result} if result else conf, **more)
    return result


def delete(pod: Pod, chain: list[dict[str, Any]], **more: Any) -> None:
    for conf in reversed(chain):
        pod.delete(conf, **more)


def check(pod: Pod, chain: list[dict[str, Any]], result: dict[str, Any]) -> None:
    for conf in chain:
        pod.check(conf, result)


@pytest.fixture(scope="module", autouse=True)
def exclusive_mode() -> None:
    """Load the drivers as a node's modprobe.d would have it; at the boot, before any other netns."""
    subprocess.run(["modprobe", "ib_core", "netns_mode=0"], check=True)
    subprocess.run(["modprobe", "ib_uverbs"], check=True)
    subprocess.run(["modprobe", "vfrdma"], check=True)
    assert len(devices()) == 2


@pytest.fixture
def rdma_is_as_before(exclusive_mode: None) -> Iterator[None]:
    before = devices()
    yield
    assert (devices(), [*GO_RDMA_FILES.glob("*")]) == (before, [])
