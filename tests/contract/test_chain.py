"""The built ``host-device`` with Go's ``tuning`` and ``sbr`` after it, as real clients run a chain.

The clients are ``vferry run`` and containerd's ``ctr run --cni``. The same on a VF is in tests/vm/test_containerd.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import netns_hindrance
from tests.contract.node import Node, node

GO = Path("/usr/lib/cni")
pytestmark = [
    pytest.mark.skipif(bool(netns_hindrance()), reason=netns_hindrance()),
    pytest.mark.skipif(not (GO / "tuning").exists(), reason=f"no {GO}: Debian package containernetworking-plugins"),
]
# The newest version that Debian 12's containernetworking-plugins 1.1.1 speaks.
NETWORK = {
    "cniVersion": "1.0.0",
    "name": "rail",
    "plugins": [
        {
            "type": "host-device",
            "device": "ens1v0",
            "ipam": {"type": "whereabouts", "datastore": "local", "range": "10.7.7.0/24", "gateway": "10.7.7.254"}
            | {"routes": [{"dst": "10.8.0.0/16"}]},
        },
        {"type": "tuning", "mtu": 1300, "mac": "02:00:00:00:00:77", "sysctl": {"net.core.somaxconn": "500"}},
        {"type": "sbr"},
    ],
}


@pytest.fixture(params=["cold", "warm"])
def rail(archives: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    plugins = [*archives.iterdir(), GO / "tuning", GO / "sbr"]
    with node(tmp_path / "node", plugins=plugins, network=NETWORK) as made:
        if request.param == "cold":
            yield made
            return
        with made.agent() as log:
            yield made
        # An agent that nobody asked would prove nothing.
        assert "host-device DEL" in log.read_text()


@pytest.fixture
def pod(rail: Node) -> Iterator[str]:
    name = f"{rail.name}-pod"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def vferry(on: Node, verb: str, netns: str | Path, *words: str) -> str:
    return on.run("/opt/cni/bin/vferry", "run", verb, "rail", netns, *words)


def in_pod(name: str, *words: str) -> str:
    return subprocess.run(["ip", "-n", name, *words], capture_output=True, text=True, check=True).stdout


def test_vferry_run_with_tuning_and_sbr_after_ours(rail: Node, pod: str) -> None:
    before, netns = rail.link("ens1v0"), f"/run/netns/{pod}"
    result = json.loads(vferry(rail, "add", netns, "-i", "net1"))
    assert result["ips"][0]["address"] == "10.7.7.1/24"
    assert result["interfaces"][0]["mac"] == "02:00:00:00:00:77"
    assert "10.8.0.0/16 via 10.7.7.254 dev net1 table 100" in in_pod(pod, "route", "show", "table", "all")
    assert "from 10.7.7.1 lookup 100" in in_pod(pod, "rule")
    assert vferry(rail, "check", netns, "-i", "net1") == ""
    assert vferry(rail, "del", netns, "-i", "net1") == ""
    assert (rail.link("ens1v0"), rail.records()) == (before, [])


CTR = shutil.which("ctr")
CONTAINERD = shutil.which("containerd")
BUSYBOX = Path("/usr/bin/busybox")


@pytest.fixture
def ctr(rail: Node, tmp_path: Path) -> Iterator[list[str | Path]]:
    """Return a client of a containerd of the test's own, that runs plugins on the node as on any other."""
    if not (CTR and CONTAINERD and BUSYBOX.exists()):
        pytest.skip("needs the Debian packages containerd and busybox-static")
    place = tmp_path / "containerd"
    place.mkdir()
    (place / "config.toml").write_text(
        f'version = 2\nroot = "{place}/root"\nstate = "{place}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{place}/socket"\n'
    )
    with open(place / "log", "wb") as log:
        daemon = subprocess.Popen([CONTAINERD, "--config", place / "config.toml"], stdout=log, stderr=log)
    until = time.monotonic() + 300
    try:
        client = [CTR, "--address", f"{place}/socket"]
        while subprocess.run([*client, "version"], capture_output=True, check=False).returncode:
            assert daemon.poll() is None, (place / "log").read_text()
            assert time.monotonic() < until, (place / "log").read_text()
            time.sleep(0.05)
        yield client
    finally:
        daemon.terminate()
        daemon.wait()


@pytest.fixture
def root_fs(tmp_path: Path) -> Path:
    place = tmp_path / "rootfs"
    for folder in ("bin", "proc", "sys", "dev", "etc"):
        (place / folder).mkdir(parents=True)
    shutil.copy(BUSYBOX, place / "bin/busybox")
    for applet in ("sh", "ip", "cat", "read"):
        (place / "bin" / applet).symlink_to("busybox")
    return place


def contained(rail: Node, ctr: list[str | Path], root_fs: Path, name: str) -> tuple[str, str]:
    """Run a container, CHECK it while it runs, and return what it and the CHECK said."""
    script = "ip -o addr show eth0; ip rule; ip route show table 100; cat /sys/class/net/eth0/mtu; echo ready; read end"
    running = subprocess.Popen(
        rail.command(*ctr, "run", "--cni", "--rm", "--rootfs", root_fs, name, "/bin/sh", "-c", script),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout
    assert running.stdin
    said = ""
    while (line := running.stdout.readline()) != "ready\n":
        assert line, f"the container ended with {running.wait()} after saying {said!r}"
        said += line
    pids = subprocess.run([*ctr, "task", "ls"], capture_output=True, text=True, check=True).stdout.split()
    netns = f"/proc/{pids[pids.index(name) + 1]}/ns/net"
    checked = vferry(rail, "check", netns, "-i", "eth0", "--container-id", f"default-{name}")
    running.communicate("end\n", timeout=300)
    assert running.returncode == 0
    return said, checked


def test_containerd_with_tuning_and_sbr_after_ours(rail: Node, ctr: list[str | Path], root_fs: Path) -> None:
    said, checked = contained(rail, ctr, root_fs, "c1")
    assert "inet 10.7.7.1/24" in said
    assert "from 10.7.7.1 lookup 100" in said
    assert "10.8.0.0/16 via 10.7.7.254" in said
    assert "\n1300\n" in said
    assert checked == ""
    # containerd's DEL comes when the netns has gone. Go's sbr fails then, so that DEL never gets as far as ours.
    rail.configure({**NETWORK, "plugins": NETWORK["plugins"][:2]})
    vferry(rail, "del", "/nonexistent", "-i", "eth0", "--container-id", "default-c1")
    assert rail.records() == []


def test_containerds_own_del_after_the_netns_has_gone(rail: Node, ctr: list[str | Path], root_fs: Path) -> None:
    network = {**NETWORK, "plugins": [dict(NETWORK["plugins"][0]), NETWORK["plugins"][1]]}
    # One address: were it not released, the second container would get none.
    one = {"range": "10.7.7.0/24", "range_start": "10.7.7.5", "range_end": "10.7.7.5", "cooldownSeconds": 0}
    network["plugins"][0]["ipam"] = {"type": "whereabouts", "datastore": "local", **one}
    rail.configure(network)
    for name in ("c1", "c2"):
        said, checked = contained(rail, ctr, root_fs, name)
        assert ("inet 10.7.7." in said, checked) == (True, "")
        assert rail.records() == []
        # A veth goes with its netns.
        rail.run("ip", "link", "add", "ens1v0", "type", "veth", "peer", "name", "ens1p0")
