"""``vferry run`` on real plugins, Debian's: a bridge with addresses, chained, added, checked, deleted, collected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.conftest import ScratchNetns, wait_until

ROOT = Path(__file__).resolve().parents[2]
GO_PLUGINS = Path("/usr/lib/cni")

pytestmark = pytest.mark.skipif(
    not (GO_PLUGINS / "bridge").exists(), reason="containernetworking-plugins is not installed: scripts/needs.sh test"
)


class Node:
    """A network namespace that plays the host, with a configuration directory and a cache of its own."""

    def __init__(self, host: ScratchNetns, place: Path) -> None:
        self.host = host
        self.place = place

    def network(self, **keys: Any) -> None:
        plugins = [
            {
                "type": "bridge",
                "bridge": "vfbr0",
                "isGateway": True,
                "ipam": {"type": "host-local", "subnet": "192.0.2.0/24", "dataDir": str(self.place / "leases")},
            },
            {"type": "tuning", "capabilities": {"mac": True}},
        ]
        network = {"cniVersion": "1.0.0", "name": "net", "plugins": plugins, **keys}
        (self.place / "net.conflist").write_text(json.dumps(network))

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; from cni.cli.command import main; sys.exit(main('vferry'))"
        return subprocess.run(
            ["ip", "netns", "exec", self.host.name, sys.executable, "-c", code, "run", *words],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "NETCONFPATH": str(self.place),
                "CNI_PATH": str(GO_PLUGINS),
                "CNI_IFNAME": "net1",
                **environ,
            },
            cwd=self.place,
            capture_output=True,
            text=True,
            check=False,
        )

    def runs(self, *words: str, **environ: str) -> str:
        done = self.run(*words, "--cache-dir", str(self.place / "cache"), **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refuses(self, *words: str, **environ: str) -> str:
        done = self.run(*words, "--cache-dir", str(self.place / "cache"), **environ)
        assert done.returncode == 1, done.stdout
        assert "Traceback" not in done.stderr
        return done.stderr

    @property
    def cached(self) -> list[Path]:
        return sorted((self.place / "cache" / "results").glob("*"))

    @property
    def leases(self) -> list[str]:
        return sorted(path.name for path in (self.place / "leases" / "net").glob("192.*"))


@pytest.fixture
def node(host_ns: ScratchNetns, tmp_path: Path) -> Iterator[Node]:
    node = Node(host_ns, tmp_path)
    node.network()
    yield node
    # The bridge plugin's forwarding and addresses die with the namespace.


def addresses(pod: ScratchNetns) -> list[str]:
    (link,) = json.loads(pod.ip("-j", "address", "show", "dev", "net1"))
    return [f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if each["family"] == "inet"]


def names(netns: ScratchNetns) -> set[str]:
    return {link["ifname"] for link in json.loads(netns.ip("-j", "link", "show"))}


def test_add_check_del(node: Node, sandbox: ScratchNetns) -> None:
    made = json.loads(node.runs("add", "net", sandbox.path, CAP_ARGS='{"mac": "02:00:00:00:00:77"}'))
    assert [ip["address"] for ip in made["ips"]] == addresses(sandbox) == ["192.0.2.2/24"]
    assert sandbox.link("net1").mac == made["interfaces"][2]["mac"] == "02:00:00:00:00:77"
    (cached,) = node.cached
    assert json.loads(cached.read_text())["result"] == made
    assert node.runs("check", "net", sandbox.path) == ""
    sandbox.ip("address", "del", "192.0.2.2/24", "dev", "net1")
    assert "bridge" in node.refuses("check", "net", sandbox.path)
    assert node.runs("del", "net", sandbox.path) == ""
    assert (names(sandbox), node.cached, node.leases) == ({"lo"}, [], [])
    assert node.runs("del", "net", sandbox.path) == ""


def test_add_that_fails_half_way_is_undone_by_the_del_it_names(node: Node, sandbox: ScratchNetns) -> None:
    node.network(plugins=[*json.loads((node.place / "net.conflist").read_text())["plugins"], {"type": "nowhere"}])
    told = node.refuses("add", "net", sandbox.path)
    assert 'failed to find plugin "nowhere"' in told
    assert (names(sandbox), node.cached) == ({"lo", "net1"}, [])
    words = told.strip().rpartition("vferry run ")[2].split()
    node.network()
    node.runs(*words)
    assert (names(sandbox), node.leases) == ({"lo"}, [])


def test_second_add_is_refused_and_the_first_lives(node: Node, sandbox: ScratchNetns) -> None:
    node.runs("add", "net", sandbox.path)
    assert "it was added before" in node.refuses("add", "net", sandbox.path)
    node.runs("check", "net", sandbox.path)


def test_del_after_the_netns_is_gone_gives_the_address_back(node: Node, sandbox: ScratchNetns) -> None:
    node.runs("add", "net", sandbox.path)
    sandbox.rtnl.close()
    sandbox.netns.close()
    subprocess.run(["ip", "netns", "del", sandbox.name], check=True)
    assert node.leases == ["192.0.2.2"]
    node.runs("del", "net", sandbox.path)
    assert (node.leases, node.cached) == ([], [])


def test_gc_keeps_what_is_valid(node: Node, scratch_netns: Callable[[], ScratchNetns]) -> None:
    pods = {name: scratch_netns() for name in ("c1", "c2", "c3")}
    for container_id, pod in pods.items():
        node.runs("add", "net", pod.path, CNI_CONTAINERID=container_id)
    node.runs("gc", "net", "--valid", "c2:net1")
    assert [names(pod) for pod in pods.values()] == [{"lo"}, {"lo", "net1"}, {"lo"}]
    node.runs("gc", "net", pods["c2"].path)
    assert (names(pods["c2"]), node.leases, node.cached) == ({"lo"}, [], [])


def test_plugin_that_is_told_to_stop_undoes_its_work_and_says_so(node: Node, sandbox: ScratchNetns) -> None:
    slow = node.place / "slow"
    slow.write_text(
        '#!/bin/sh\ntrap \'echo "{\\"code\\": 11, \\"msg\\": \\"undone\\"}"; touch undone; kill $!; exit 1\' INT\n'
        "touch started\nsleep 600 >/dev/null 2>&1 & wait\n"
    )
    slow.chmod(0o755)
    node.network(plugins=[{"type": "slow"}])
    # Ctrl-C goes to every process of the terminal's group.
    code = "import sys; from cni.cli.command import main; sys.exit(main('vferry'))"
    with subprocess.Popen(
        [sys.executable, "-c", code, "run", "add", "net", sandbox.path, "--cache-dir", str(node.place)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "NETCONFPATH": str(node.place), "CNI_PATH": "."},
        cwd=node.place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        wait_until(lambda: process.poll() is not None or (node.place / "started").exists())
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        os.killpg(process.pid, 2)
        _out, told = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "slow: undone" in told
    assert (node.place / "undone").exists()
