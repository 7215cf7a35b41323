"""The agent in a container that runc made, with the DaemonSet's mounts and capabilities, and VFs that it attaches.

What such a container may not do (write to its /sys and /proc/sys, system calls outside of the default profile) is tried
nowhere else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cni.linux.capabilities import NEEDED
from conf.executables import COMMAND
from tests.contract import container
from tests.contract.agent import wait_until
from tests.contract.archive import read_entry
from tests.vm.node import VFS, Pod, netdev

LAB = {"vfs": 2, "mem_mib": 2048}
pytest_plugins = ["tests.vm.node_fixtures", "tests.vm.containerd_fixtures"]
pytestmark = [
    pytest.mark.usefixtures("host_is_as_before"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("containerd", "ctr", "runc", "/usr/lib/cni/host-local"))),
        reason="needs the Debian packages containerd and containernetworking-plugins",
    ),
]

VF = VFS[0]
# What ctr gives a container that asks for nothing: containerd, oci/spec.go defaultUnixCaps.
_GIVEN = {
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID"),
    *("CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL"),
    "CAP_AUDIT_WRITE",
}


@dataclass(frozen=True)
class Agent:
    """The agent in its container."""

    log: Path
    pid_file: Path

    def served(self) -> list[dict[str, Any]]:
        """Return what its log tells of requests."""
        return [line for line in map(json.loads, self.log.read_text().splitlines()) if "took_ms" in line]

    def status(self) -> dict[str, str]:
        text = Path(f"/proc/{self.pid_file.read_text()}/status").read_text()
        return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def image(place: Path) -> list[str]:
    """Make a root for the container, the guest's /usr its own, and return the options that mount into it."""
    archive = Path("/opt/cni/bin", COMMAND)
    runtime = read_entry(archive)["runtime_dir"]
    mounted = {"/usr": "ro", runtime: "ro"}
    for each in container.agents()["volumeMounts"]:
        mounted[each["mountPath"]] = "ro" if each.get("readOnly") else "rw"
        Path(each["mountPath"]).mkdir(parents=True, exist_ok=True)
    for folder in (*mounted, "/proc", "/sys", "/dev", "/etc", "/run", "/opt/cni/bin"):
        (place / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (place / name).symlink_to(f"usr/{name}")
    shutil.copy(archive, place / "opt/cni/bin")
    return [f"--mount=type=bind,src={path},dst={path},options=rbind:{mode}" for path, mode in mounted.items()]


@pytest.fixture(scope="module")
def agent(ctr: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    spec = container.agents()
    wanted = {f"CAP_{name}" for name in spec["securityContext"]["capabilities"]["add"]}
    place = tmp_path_factory.mktemp("image")
    made = Agent(place / "log", place / "pid")
    options = [
        *(f"--cap-drop={name}" for name in _GIVEN - wanted),
        *(f"--cap-add={name}" for name in wanted - _GIVEN),
        *image(place / "root"),
        *("--net-host", "--with-ns=pid:/proc/1/ns/pid", "--read-only", "--seccomp", f"--pid-file={made.pid_file}"),
    ]
    words = [*ctr, "run", "--rm", *options, "--rootfs", place / "root", "vferry-agent", *spec["command"], *spec["args"]]
    with made.log.open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            wait_until(
                lambda: process.poll() is not None or "listening" in made.log.read_text(),
                "the agent listens",
                patience_s=240,
            )
            assert process.poll() is None, made.log.read_text()
            yield made
        finally:
            process.terminate()


def call(command: str, conf: dict[str, Any], pod: Pod) -> subprocess.CompletedProcess[str]:
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod.name,
        "CNI_NETNS": f"/run/netns/{pod.name}",
        "CNI_IFNAME": "net1",
        # Ours are not there: host-local is the Go plugin.
        "CNI_PATH": "/usr/lib/cni",
        "PATH": os.defpath,
    }
    executable = f"/opt/cni/bin/{conf['type']}"
    return subprocess.run(
        [executable], env=environ, input=json.dumps(conf), capture_output=True, text=True, check=False
    )


def test_agent_has_no_more_than_the_manifest_gives_it(agent: Agent) -> None:
    status = agent.status()
    assert status["CapBnd"] == status["CapPrm"] == status["CapEff"]
    assert int(status["CapEff"], 16) == sum(1 << number for number in NEEDED.values())
    assert status["Seccomp"] == "2"  # SECCOMP_MODE_FILTER
    root = f"/proc/{agent.pid_file.read_text()}/root"
    for path in ("/sys", "/proc/sys", "/"):
        assert os.statvfs(root + path).f_flag & os.ST_RDONLY, path


@pytest.mark.parametrize("name", ["sriov", "host-device"])
def test_vf_is_attached_checked_and_given_back(agent: Agent, blue: Pod, name: str) -> None:
    before = len(agent.served())
    ifname = netdev(VF)
    conf: dict[str, Any] = {
        "cniVersion": "1.0.0",
        "name": f"rail-{name}",
        "type": name,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.7.7.0/24"}], [{"subnet": "fd00:7::/64"}]]},
    }
    conf |= {"deviceID": VF, "vlan": 100, "spoofchk": "off"} if name == "sriov" else {"pciBusID": VF}
    added = call("ADD", conf, blue)
    assert added.returncode == 0, (added, agent.log.read_text())
    result = json.loads(added.stdout)
    assert [each["address"] for each in result["ips"]] == ["10.7.7.2/24", "fd00:7::2/64"]
    assert netdev(VF) == ""
    assert Path(f"/var/lib/cni/networks/{conf['name']}/10.7.7.2").exists()
    for command in ("CHECK", "DEL"):
        done = call(command, {**conf, "prevResult": result}, blue)
        assert (done.returncode, done.stdout) == (0, ""), done
    assert netdev(VF) == ifname
    assert not Path(f"/var/lib/cni/networks/{conf['name']}/10.7.7.2").exists()
    wait_until(lambda: len(agent.served()) == before + 3, "all of it was served by the agent")
    assert [each["code"] for each in agent.served()[before:]] == [0, 0, 0]
