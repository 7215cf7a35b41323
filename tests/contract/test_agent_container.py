"""The agent in a container: requests of the host are served as if there were none."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cni.linux.capabilities import NEEDED
from cni.start.unpack import RUNTIME_MEMBER
from conf.executables import COMMAND, EXECUTABLES
from tests.conftest import netns_hindrance
from tests.contract import container
from tests.contract.agent import Agent, Installed, wait_until
from tests.contract.archive import python_of, read_entry
from tests.contract.host import ip
from tests.contract.test_agent import TELLING, outcome, requests

GO = Path("/usr/lib/cni")
SOCKET = "/run/vferry/agent.sock"

pytestmark = [
    pytest.mark.skipif(bool(netns_hindrance()), reason=netns_hindrance() or "-"),
    pytest.mark.skipif(not (GO / "host-local").exists(), reason="needs containernetworking-plugins"),
]


@dataclass(frozen=True)
class Node:
    """A host whose process 1 is ``pid``, with a link ``dev0``, a pod, and what its containers are made of."""

    pid: int
    pod: str
    installed: Installed
    image: Path

    def run(self, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program of the host there."""
        command = [*container.on_host(self.pid), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    def call(
        self, command: str, conf: dict[str, Any], cwd: Path = Path("/"), **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Call a plugin of the host as its runtime does."""
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.pod,
            "CNI_NETNS": f"/run/netns/{self.pod}",
            "CNI_IFNAME": "net1",
            "CNI_PATH": f"/opt/cni/bin:{GO}",
            "PATH": os.defpath,
            **env,
        }
        # nsenter begins at the root of what it enters.
        return self.run("env", f"--chdir={cwd}", f"/opt/cni/bin/{conf['type']}", env=environ, input=json.dumps(conf))

    def files(self, *folders: str) -> list[str]:
        """Return the files below folders of the host."""
        return sorted(self.run("find", *folders, "-type", "f").stdout.split())

    def agent(self) -> Agent:
        """Start the agent in its container and return when it listens."""
        self.installed.prefix = container.in_container(self.pid, self.image, container.agents())
        self.installed.command = container.command(self.pid, container.agents())
        return self.installed.agent()


@pytest.fixture(scope="module")
def image(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return container.image(archives / "vferry", tmp_path_factory.mktemp("image"))


@pytest.fixture
def node(archives: Path, image: Path, tmp_path: Path) -> Iterator[Node]:
    name = f"vfcontainer{uuid.uuid4().hex[:8]}"  # by chance: one of this pid may have been left by a killed run
    installed = Installed(archives / "vferry", tmp_path, agent_socket=SOCKET)
    made = []
    try:
        for each in (name, f"{name}-pod"):
            ip("netns", "add", each)
            made.append(each)
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "add", "dev0", "type", "veth", "peer", "name", "peer0")
        with container.host(installed, name) as pid:
            try:
                yield Node(pid, f"{name}-pod", installed, image)
            finally:
                installed.stop()
    finally:
        for each in made:
            ip("netns", "del", each)


def config(**ipam: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "rail", "type": "host-device", "device": "dev0", "ipam": ipam}


def test_link_and_address_of_a_foreign_plugin_of_the_host(node: Node, tmp_path: Path) -> None:
    """Go's host-local is in the host's mounts alone, and so are its data and the file it is told to read."""
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    conf = config(
        type="host-local", ranges=[[{"subnet": "10.7.1.0/24"}]], dataDir=str(tmp_path / "leases"),
        resolvConf=str(tmp_path / "resolv.conf"),
    )  # fmt: skip
    # Ours is a link to the file that asks: only another one is foreign.
    (node.installed.bin / "host-local").unlink()
    agent = node.agent()
    assert container.mounts_of(agent.pid) != container.mounts_of(node.pid)

    added = node.call("ADD", conf)
    assert added.returncode == 0, added
    result = json.loads(added.stdout)
    assert [each["address"] for each in result["ips"]] == ["10.7.1.2/24"]
    assert result["dns"] == {"nameservers": ["192.0.2.53"]}
    assert (tmp_path / "leases/rail/10.7.1.2").read_text().split() == [node.pod, "net1"]
    (record,) = node.files("/var/lib/cni/vferry/attachments")
    sandbox = json.loads(node.run("cat", record).stdout)["sandbox"]
    assert sandbox["path"] == f"/run/netns/{node.pod}"
    assert sandbox["inode"] == Path(f"/run/netns/{node.pod}").stat().st_ino

    checked = node.call("CHECK", {**conf, "prevResult": result})
    assert checked.returncode == 0, checked
    # What a warm ADD wrote a cold DEL finds.
    deleted = node.call("DEL", {**conf, "prevResult": result}, VFERRY_AGENT="off")
    assert deleted.returncode == 0, deleted
    assert node.run("ip", "-br", "link", "show", "dev0").returncode == 0
    assert node.files("/var/lib/cni/vferry/attachments") == []
    assert not (tmp_path / "leases/rail/10.7.1.2").exists()
    agent.require_served(2)


def test_cold_and_warm_keep_one_book(node: Node, tmp_path: Path) -> None:
    """A store in a place that no manifest can know: what a cold ADD took, a warm one does not give again."""
    conf = {
        **config(type="whereabouts", datastore="local", range="10.7.2.0/29", dataDir=str(tmp_path / "book")),
        "type": "whereabouts",
    }
    agent = node.agent()
    addresses = []
    for number, setting in enumerate(("off", "on", "off", "on")):
        done = node.call("ADD", conf, CNI_CONTAINERID=f"c{number}", VFERRY_AGENT=setting)
        assert done.returncode == 0, done
        addresses += [each["address"] for each in json.loads(done.stdout)["ips"]]
    assert len(set(addresses)) == 4
    agent.require_served(2)


def test_foreign_plugin_is_given_what_a_cold_start_gives_it(node: Node, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    delegate = tmp_path / "foreign" / "mine"
    delegate.write_text(TELLING.replace("pwd >&2", "pwd >&2; readlink /proc/self/ns/mnt /proc/self/ns/net >&2"))
    delegate.chmod(0o755)
    outcomes = []
    for setting in ("off", ""):
        if not setting:
            agent = node.agent()
        passed = {"CNI_PATH": "foreign", "TRACEPARENT": "00-1-2-3", "VFERRY_AGENT": setting}
        done = node.call("DEL", config(type="mine"), tmp_path, **passed)
        outcomes.append(outcome(done))
    assert "mnt:[" in outcomes[0][2] and str(tmp_path) in outcomes[0][2] and "TRACEPARENT" in outcomes[0][2]
    assert outcomes[0] == outcomes[1]
    agent.require_served(1)


def test_answers_are_those_of_a_cold_start_byte_for_byte(node: Node) -> None:
    """Every kind of request, also those whose modules nobody has imported yet: the host has none of them."""
    assert not node.run("ls", "/opt/python").stdout
    asked = [request for request in requests(node.installed) if request[1]["CNI_COMMAND"]]

    def answers() -> list[tuple[int, str, str]]:
        enter = [*container.on_host(node.pid), "env", "-i"]
        done = []
        for name, env, stdin in asked:
            command = [*enter, *(f"{key}={value}" for key, value in env.items()), f"/opt/cni/bin/{name}"]
            done.append(outcome(subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)))
        return done

    cold = answers()
    agent = node.agent()
    warm = answers()
    for request, one, other in zip(asked, cold, warm, strict=True):
        assert one == other, (request, one, other)
    agent.require_served(len([request for request in asked if request[1]["CNI_COMMAND"] != "add"]))


def test_leases_of_the_host_are_counted(node: Node) -> None:
    """By pool, of whatever was leased before and beside this agent."""
    (node.installed.folder / "etc/vferry/vferry.toml").write_text('[whereabouts]\ndatastore = "local"\n')
    agent = node.agent()
    kinds = {
        "whereabouts": {"type": "whereabouts", "range": "10.7.2.0/29", "network_name": "blue"},
        "host-local": {"type": "host-local", "ranges": [[{"subnet": "10.7.1.0/24"}]]},
    }
    for number, (name, ipam) in enumerate(kinds.items()):
        for container_id in ("a", "b")[: number + 1]:
            conf = {"cniVersion": "1.0.0", "name": "rail", "type": name, "ipam": ipam}
            done = node.call("ADD", conf, CNI_CONTAINERID=container_id, VFERRY_AGENT=("off", "")[number])
            assert done.returncode == 0, done
    # Its first figures were counted at its start; these are a minute's later, or another agent's.
    agent.stop()
    agent = node.agent()

    def figures() -> list[str]:
        port = agent.log().split("pages on port ")[1].split()[0]
        ask = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{port}/metrics').read().decode())"
        text = node.run("/usr/bin/python3", "-c", ask).stdout
        return [line for line in text.splitlines() if line.startswith("vferry_leases{")]

    wait_until(figures, "they are counted")
    assert sorted(figures()) == [
        'vferry_leases{datastore="host-local",pool="rail"} 2.0',
        'vferry_leases{datastore="local",pool="blue"} 1.0',
    ]
    assert agent.stop() == 0


@pytest.mark.parametrize("dropped", ["sys_admin", "sys_chroot", "sys_ptrace"])
def test_agent_that_cannot_enter_the_host_does_not_start(node: Node, dropped: str) -> None:
    enter = container.in_container(node.pid, node.image, container.agents(), dropped=dropped)
    command = [*enter, *container.command(node.pid, container.agents())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"entering the mount namespace failed on /proc/{node.pid}/ns/mnt" in done.stderr
    assert "Traceback" not in done.stderr


def test_agent_keeps_what_the_manifest_gives_it(node: Node) -> None:
    agent = node.agent()
    status = dict(
        line.split(":\t") for line in Path(f"/proc/{agent.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["CapBnd"] == status["CapPrm"] == status["CapEff"]
    assert int(status["CapEff"], 16) == sum(1 << number for number in NEEDED.values())


# --- the image and the init step


def test_what_the_image_is_given_makes_the_same_build(archives: Path, tmp_path: Path) -> None:
    """The Dockerfile copies everything that is packed; the libraries are those of the lock, fetched before."""
    for source, target in container.copied():
        origin, place = container.ROOT / source, tmp_path / "src" / target
        if origin.is_dir():
            shutil.copytree(origin, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(origin, place)
    (tmp_path / "src/build").mkdir()
    for fetched in (container.ROOT / "build").glob("venv-*"):
        (tmp_path / "src/build" / fetched.name).symlink_to(fetched)
    done = subprocess.run(
        [
            tmp_path / "src/scripts/install-binaries.sh",
            *("--python", python_of(archives / COMMAND)),
            *("--dest", tmp_path / "bin", "--runtime-dir", tmp_path / "runtime"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert "fetching" not in done.stdout
    assert packed(tmp_path / "bin" / COMMAND) == packed(archives / COMMAND)


def packed(archive: Path) -> list[str]:
    """Return what of the rooms and libraries is in an archive."""
    with zipfile.ZipFile(archive) as outer:
        return sorted(zipfile.ZipFile(io.BytesIO(outer.read(RUNTIME_MEMBER))).namelist())


def test_init_step_installs_what_the_host_can_start(node: Node) -> None:
    for path in node.installed.bin.iterdir():
        path.unlink()
    (node.installed.bin / "sriov").write_text("a Go plugin")
    enter = container.in_container(node.pid, node.image, container.installers())
    words = container.command(node.pid, container.installers())
    words[0] = str(container.ROOT / Path(words[0]).relative_to(container.SOURCES))
    done = subprocess.run([*enter, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert sorted(path.name for path in node.installed.bin.iterdir()) == sorted((*EXECUTABLES, COMMAND))
    assert node.run("cat", "/opt/cni/vferry-replaced/sriov").stdout == "a Go plugin"
    # Cold, from the libraries that it has put on the host.
    done = node.call("ADD", {"cniVersion": "1.0.0", "name": "rail", "type": "static", "ipam": {"type": "static"}})
    assert json.loads(done.stdout)["cniVersion"] == "1.0.0", done
    (tree,) = node.run("ls", "/var/lib/cni/vferry/runtime").stdout.split()
    assert tree == read_entry(node.installed.bin / COMMAND)["build_id"]


def test_init_step_changes_nothing_where_the_host_could_not_start_it(node: Node) -> None:
    before = {path.name: path.stat().st_ino for path in node.installed.bin.iterdir()}
    (own,) = (node.image / "python/bin").iterdir()
    enter = container.in_container(node.pid, node.image, container.installers())
    done = subprocess.run(
        [
            *enter,
            container.ROOT / "scripts/install-binaries.sh",
            f"--python=/opt/python/bin/{own.name}",
            f"--node-mounts=/proc/{node.pid}/ns/mnt",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"on the node /opt/python/bin/{own.name} is no Python 3.9 or later" in done.stderr
    assert {path.name: path.stat().st_ino for path in node.installed.bin.iterdir()} == before


# --- what is run once after a boot


class Rebooted:
    """A host that has booted since ``old`` was attached, not since ``new``; both leased from a store of the host."""

    def __init__(self, node: Node, book: Path) -> None:
        self.node, self._book = node, book
        (node.installed.folder / "etc/vferry/vferry.toml").write_text("[whereabouts]\ndeadlineSeconds = 1\n")
        for container_id, device in (("old", "dev0"), ("new", "peer0")):
            ipam = {"type": "whereabouts", "datastore": "local", "range": "10.7.2.0/29", "dataDir": str(book)}
            conf = {**config(**ipam), "device": device}
            done = node.call("ADD", conf, CNI_CONTAINERID=container_id, CNI_IFNAME=device, VFERRY_AGENT="off")
            assert done.returncode == 0, done
        self._record("old:dev0", '"boot_id": "[^"]*"', '"boot_id": "before"')

    def has_a_silent_store(self) -> None:
        """Have one more container of the earlier boot, whose etcd does not answer."""
        self.node.run("cp", self._path("old:dev0"), self._path("lost:dev0"))
        self._record("lost:dev0", '"container_id": "old"', '"container_id": "lost"')
        self._record("lost:dev0", '"datastore": "local"', '"datastore": "etcd"')
        self._record("lost:dev0", '"dataDir": ".*"', '"etcd": {"endpoints": ["http://127.0.0.1:1"]}')

    def forgets_it(self) -> None:
        self.node.run("rm", self._path("lost:dev0"))

    def holders(self) -> set[str]:
        """Return which containers have an address."""
        words = ["/opt/cni/bin/vferry", "ipam", "leases", "--data-dir", self._book, "--output", "json"]
        return {each["containerID"] for each in json.loads(self.node.run(*words).stdout)}

    def _path(self, name: str) -> str:
        return f"/var/lib/cni/vferry/attachments/host-device/{name}.json"

    def _record(self, name: str, old: str, new: str) -> None:
        before = self.node.run("cat", self._path(name)).stdout
        self.node.run("sed", "-i", f"s|{old}|{new}|", self._path(name))
        assert self.node.run("cat", self._path(name)).stdout != before


@pytest.fixture
def rebooted(node: Node, tmp_path: Path) -> Rebooted:
    return Rebooted(node, tmp_path / "book")


def test_unit_gives_back_what_an_earlier_boot_had(rebooted: Rebooted) -> None:
    unit = (container.ROOT / "conf/deploy/vferry-node-startup.service").read_text()
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
    kept = settings["CapabilityBoundingSet"].lower().replace("cap_", "+")
    enter = ["setpriv", "--inh-caps=-all", f"--bounding-set=-all,{kept}"]
    started = [*enter, *settings["ExecStart"].split()]
    done = rebooted.node.run(*started)
    assert (done.returncode, rebooted.holders()) == (0, {"new"}), done
    rebooted.has_a_silent_store()
    done = rebooted.node.run(*started)
    assert (done.returncode, rebooted.holders()) == (1, {"new"}), done  # Restart=on-failure
    assert "127.0.0.1:1" in done.stderr and "Traceback" not in done.stderr


def test_container_beside_the_agent_gives_it_back_and_the_agent_does_not_wait_for_it(
    rebooted: Rebooted, tmp_path: Path
) -> None:
    node, spec = rebooted.node, container.agents("node-startup")
    rebooted.has_a_silent_store()
    words = [word.replace("sleep 300", "sleep 0.1") for word in container.command(node.pid, spec)]
    enter = container.in_container(node.pid, node.image, spec)
    with (tmp_path / "log").open("wb") as log, subprocess.Popen([*enter, *words], stdout=log, stderr=log) as process:
        try:
            node.agent()
            wait_until(lambda: "127.0.0.1:1" in (tmp_path / "log").read_text(), "the silent store is told of")
            wait_until(lambda: rebooted.holders() == {"new"}, "what the other one has is given back")
            told = (tmp_path / "log").read_text().count("127.0.0.1:1")
            wait_until(lambda: (tmp_path / "log").read_text().count("127.0.0.1:1") > told, "it is asked again")
            rebooted.forgets_it()
            cmdline = Path(f"/proc/{process.pid}/cmdline")
            wait_until(lambda: cmdline.read_bytes() == b"sleep\0infinity\0", "there is nothing more to do")
        finally:
            process.kill()
    assert rebooted.holders() == {"new"}
