"""RDMA in a machine whose devices all netns share: nothing can be isolated, and whoever asks for it is told so."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.vm.node import Pod
from tests.vm.rdma_node import EACH_CHAIN, HOST_DEVICE, ISOLATED, RDMA, SRIOV, VF, delete, devices, open_uverbs

LAB = {"vfs": 2}
pytest_plugins = ["tests.vm.node_fixtures"]
pytestmark = pytest.mark.usefixtures("host_is_as_before")

REFUSAL = "RDMA subsystem network namespace mode is shared, it must be exclusive to isolate a device"


@pytest.fixture(scope="module", autouse=True)
def shared_mode() -> None:
    """Load the drivers as the kernel has it of itself."""
    for module in ("ib_uverbs", "vfrdma"):
        subprocess.run(["modprobe", module], check=True)
    assert "netns shared" in subprocess.run(["rdma", "system"], capture_output=True, text=True, check=True).stdout


@EACH_CHAIN
def test_add_is_refused_and_says_how_to_set_the_mode(blue: Pod, chain: list[dict[str, Any]]) -> None:
    before = devices()
    *earlier, last = chain
    result = blue.add(earlier[0]) if earlier else None
    refusal = blue.refused("ADD", {**last, "prevResult": result} if result else last)
    assert (refusal["code"], refusal["msg"]) == (7, REFUSAL)
    assert "options ib_core netns_mode=0" in refusal["details"]
    assert "before the first netns exists" in refusal["details"]
    delete(blue, chain)
    assert devices() == before


def test_shared_mode_ignore_passes_the_result_on_and_the_pod_sees_every_device(blue: Pod) -> None:
    ignoring = {**RDMA, "sharedMode": "ignore"}
    result = blue.add(SRIOV)
    assert blue.add({**ignoring, "prevResult": result}) == result
    blue.check(ignoring, result)
    assert blue.call("STATUS", ignoring).status == 0
    # What a pod sees in this mode, and why nothing is isolated by it.
    assert len(devices("blue")) == 2
    assert (open_uverbs(VF, blue), open_uverbs(VF)) == (0, 0)
    delete(blue, [SRIOV, ignoring])


@pytest.mark.parametrize("conf", [RDMA, {**SRIOV, **ISOLATED}, {**HOST_DEVICE, **ISOLATED}])
def test_status_reports_the_mode(blue: Pod, conf: dict[str, Any]) -> None:
    refusal = blue.refused("STATUS", conf)
    assert (refusal["code"], REFUSAL in refusal["details"]) == (50, True)
    assert "netns_mode=0" in refusal["details"]
