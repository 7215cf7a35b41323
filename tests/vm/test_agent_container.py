"""The agent in a container that runc made, with the DaemonSet's mounts and capabilities, and VFs that it attaches.

What such a container may not do (write to its /sys and /proc/sys, system calls outside of the default profile) is tried
nowhere else. Cold starts beside it answer and do the same, byte for byte, and it and they exclude each other.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cni.linux.capabilities import NEEDED
from conf.executables import COMMAND
from tests.contract import container
from tests.contract.agent import wait_until
from tests.contract.archive import read_entry, refusal
from tests.contract.host import ended
from tests.processes import started
from tests.vm.node import FLAGS, PF, VFS, VOLATILE, Pod, config, differences, links, netdev, snapshot, vf_state
from tests.vm.rdma_node import RDMA, STATIC, VF, devices

LAB = {"vfs": 2, "mem_mib": 2048}
pytest_plugins = ["tests.vm.node_fixtures", "tests.vm.rdma_node", "tests.vm.containerd_fixtures"]
pytestmark = [
    pytest.mark.usefixtures("host_is_as_before", "rdma_is_as_before"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("containerd", "ctr", "runc", "/usr/lib/cni/host-local"))),
        reason="needs the Debian packages containerd and containernetworking-plugins",
    ),
]

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
                patience_s=900,
            )
            assert process.poll() is None, made.log.read_text()
            yield made
        finally:
            process.terminate()


def start(command: str, conf: dict[str, Any], pod: Pod, **env: str) -> subprocess.Popen[str]:
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod.name,
        "CNI_NETNS": f"/run/netns/{pod.name}",
        "CNI_IFNAME": "net1",
        # Ours are not there: host-local is the Go plugin.
        "CNI_PATH": "/usr/lib/cni",
        "PATH": os.defpath,
        **env,
    }
    return started([f"/opt/cni/bin/{conf['type']}"], conf, environ)


def call(command: str, conf: dict[str, Any], pod: Pod, **env: str) -> subprocess.CompletedProcess[str]:
    return ended(start(command, conf, pod, **env))


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


# --- cold and warm

COLD = {"VFERRY_AGENT": "off"}
OURS = {"CNI_PATH": "/opt/cni/bin"}
SRIOV = config(VF, vlan=100, vlanQoS=3, mac="02:00:5e:10:00:01", mtu=1400, spoofchk="off", trust="on", **STATIC)


def state(pod: str) -> dict[str, Any]:
    """Return all that plugins change: links and VFs, on the host and in a pod, RDMA devices, who is on record."""
    found = {name: "" if name.startswith("/") else link for name, link in snapshot().items()}
    for name, link in links(pod).items():
        kept = {key: value for key, value in link.items() if key not in VOLATILE}
        found[f"{name} of {pod}"] = {**kept, "flags": sorted(FLAGS & {*link["flags"]})}
    return found | {"RDMA": devices(), f"RDMA of {pod}": devices(pod)}


class Conversation:
    """What the executables are asked, and what came of it: exit status, stdout, and how host and pod are then."""

    def __init__(self, pod: Pod, **env: str) -> None:
        self._pod = pod
        self._env = {**OURS, **env}
        self.answers: list[tuple[str, int, str]] = []
        self.states: list[dict[str, Any]] = []

    def ask(self, verb: str, conf: dict[str, Any], *, expected: int = 0) -> dict[str, Any]:
        done = call(verb, conf, self._pod, **self._env)
        document: dict[str, Any] = json.loads(done.stdout or "{}")
        assert document.get("code", 0) == expected, done
        self.answers.append((f"{verb} {conf}", done.returncode, done.stdout))
        return document

    def look(self) -> None:
        self.states.append(state(self._pod.name))

    def everything(self) -> None:
        self.ask("ADD", {**SRIOV, "mtu": 9999}, expected=102)  # when VLAN and MAC are set: the driver refuses
        self.look()
        result = self.ask("ADD", SRIOV)
        result = self.ask("ADD", {**RDMA, "prevResult": result})
        self.look()
        self.ask("CHECK", {**RDMA, "prevResult": result})
        untrue = {**result, "ips": [{"address": "10.9.9.9/24", "interface": 0}]}
        self.ask("CHECK", {**SRIOV, "prevResult": untrue}, expected=103)
        for conf in (RDMA, SRIOV):
            self.ask("DEL", {**conf, "prevResult": result})
        self.look()


def test_vf_and_rdma_device_are_attached_as_by_a_cold_start(agent: Agent, blue: Pod) -> None:
    cold, warm, before = Conversation(blue, **COLD), Conversation(blue), len(agent.served())
    cold.everything()
    assert len(agent.served()) == before
    warm.everything()
    wait_until(lambda: len(agent.served()) == before + len(warm.answers), "all of it was served by the agent")
    assert warm.answers == cold.answers
    assert [differences(*each) for each in zip(cold.states, warm.states, strict=True)] == [[]] * len(cold.states)
    # That there was something to see.
    attached = cold.states[1]
    assert attached["net1 of blue"]["mtu"] == 1400
    assert attached[PF]["vfinfo_list"][0]["vlan_list"] == [{"vlan": 100, "qos": 3}]
    assert len(attached["RDMA of blue"]) == 1


def test_cold_and_warm_exclude_each_other_on_one_vf(
    agent: Agent, blue: Pod, green: Pod, host_is_as_before: Callable[[], list[str]]
) -> None:
    took_s, name = 0.0, netdev(VF)
    for number in range(3):
        began = time.monotonic()
        cold = start("ADD", SRIOV, green, **OURS, **COLD)
        # The warm one comes when a cold start has only begun; when it is about to take the VF; when it has taken it.
        if number == 1:
            time.sleep(took_s * 0.8)
        if number == 2:
            wait_until(lambda: not netdev(VF), "the cold one has it")
        warm = call("ADD", SRIOV, blue, **OURS)
        done = {green: ended(cold), blue: warm}
        took_s = took_s or time.monotonic() - began
        ((loser, lost),) = [(pod, each) for pod, each in done.items() if each.returncode]
        (winner,) = {*done} - {loser}
        answer = refusal(lost)
        assert (answer["code"], answer["msg"]) == (11, f"pci address {VF} is already allocated")
        assert f"container {winner.name} has it" in answer["details"]
        assert number != 2 or winner == green
        assert (netdev(VF), winner.link()["mtu"], "net1" in links(loser.name)) == ("", 1400, False)
        assert vf_state(VFS.index(VF))["vlan_list"] == [{"vlan": 100, "qos": 3}]
        for pod, expected in ((loser, ""), (winner, name)):
            deleted = call("DEL", SRIOV, pod, **OURS)
            assert (deleted.returncode, deleted.stdout, netdev(VF)) == (0, "", expected), deleted
        assert host_is_as_before() == []
