"""A containerd of the test's own in the guest, and the plugins where containers' networks look for them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.executables import COMMAND, EXECUTABLES
from tests.vm.node import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed() -> None:
    # Built by the host for all guests. Copied, and from one file: on the host it may be replaced meanwhile.
    Path("/opt/cni/bin").mkdir(parents=True, exist_ok=True)
    archive = shutil.copy(f"{ROOT}/build/contract/bin/{COMMAND}", "/opt/cni/bin")
    for name in EXECUTABLES:
        shutil.copy(archive, f"/opt/cni/bin/{name}")
    shutil.copy("/usr/lib/cni/tuning", "/opt/cni/bin")


@pytest.fixture(scope="module")
def ctr(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Return the client of a containerd of the test's own."""
    place = tmp_path_factory.mktemp("containerd")
    if not Path("/sys/fs/cgroup/cgroup.procs").exists():
        subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=True)
    (place / "config.toml").write_text(
        f'version = 2\nroot = "{place}/root"\nstate = "{place}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{place}/socket"\n'
    )
    with open(place / "log", "wb") as log:
        daemon = subprocess.Popen(["containerd", "--config", place / "config.toml"], stdout=log, stderr=log)
    client = ["ctr", "--address", f"{place}/socket"]
    wait_until(
        lambda: subprocess.run([*client, "version"], capture_output=True, check=False).returncode == 0,
        "containerd answers",
    )
    yield client
    daemon.terminate()
    daemon.wait()
