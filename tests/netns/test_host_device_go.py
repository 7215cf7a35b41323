"""``host-device`` and Go's plugin of that name on one node: each one's ADD is undone by the other's DEL."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni.linux.link import Link
from tests.netns.node import Answer, Node, Pod, config

pytest_plugins = ["tests.netns.node"]

GO = Path("/usr/lib/cni")
pytestmark = pytest.mark.skipif(
    not (GO / "host-device").exists(), reason=f"no {GO}/host-device: Debian package containernetworking-plugins"
)
# The newest version that Debian 12's containernetworking-plugins 1.1.1 speaks.
NEWEST = {"cniVersion": "1.0.0"}


def go(pod: Pod, command: str, conf: dict[str, Any], *, plugin: str = "host-device", ifname: str = "net1") -> Answer:
    """Run a Go plugin on the node as a runtime would."""
    environ = {
        **os.environ,
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod.net.name,
        "CNI_NETNS": pod.net.path,
        "CNI_IFNAME": ifname,
        "CNI_PATH": str(GO),
    }
    done = subprocess.run(
        ["ip", "netns", "exec", pod.node.net.name, GO / plugin],
        input=json.dumps(conf),
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return Answer(done.returncode, json.loads(done.stdout or "{}"))


def ours(pod: Pod, command: str, conf: dict[str, Any]) -> Answer:
    return pod.call(command, conf, CNI_PATH=str(GO))


@pytest.fixture
def conf(tmp_path: Path) -> dict[str, Any]:
    """Return a configuration with one free address, of Go's host-local: a leak shows at the next ADD."""
    ipam = {
        "type": "host-local",
        "dataDir": str(tmp_path / "leases"),
        "subnet": "10.7.7.0/30",
        "rangeStart": "10.7.7.2",
    }
    return {**config(device="ens1v0", ipam=ipam), **NEWEST}


@pytest.fixture
def before(node: Node, veth: Link) -> dict[str, Any]:
    node.net.ip("link", "set", "ens1v0", "mtu", "1450")
    return node.snapshot()


def test_our_del_undoes_the_go_plugins_add(node: Node, pod: Pod, conf: dict[str, Any], before: dict[str, Any]) -> None:
    for _again in range(2):
        assert go(pod, "ADD", conf).status == 0
        assert pod.net.link("net1").alias == "ens1v0"
        answer = ours(pod, "DEL", conf)
        assert (answer.status, answer.document, node.snapshot()) == (0, {}, before)


def test_our_del_goes_by_the_alias_when_our_record_is_damaged(
    node: Node, pod: Pod, conf: dict[str, Any], before: dict[str, Any]
) -> None:
    assert ours(pod, "ADD", conf).status == 0
    (record,) = node.attachments.root.rglob("*.json")
    record.write_text("{")
    # Of another device this one's alias is no word.
    refused = ours(pod, "DEL", {**conf, "device": "ens1v9"})
    assert (refused.document["code"], str(record) in refused.document["msg"]) == (5, True)
    assert ours(pod, "DEL", conf).status == 0
    record.with_name(f"{record.name}.damaged").unlink()
    assert node.snapshot() == before


def test_go_plugins_del_undoes_our_add(node: Node, pod: Pod, conf: dict[str, Any], before: dict[str, Any]) -> None:
    for _again in range(2):
        assert ours(pod, "ADD", conf).status == 0
        assert go(pod, "DEL", conf).status == 0
        assert node.net.link("ens1v0").mtu_bytes == 1450
        assert pod.net.rtnl.link_get("net1") is None
    # Our own record is left; what is still to be put right waits for one of us.
    assert node.records() != []
    assert ours(pod, "DEL", conf).status == 0
    assert node.snapshot() == before


@pytest.mark.parametrize("next_one", ["ADD", "GC"])
def test_record_left_by_the_go_plugins_del_is_settled_by_the_next(
    node: Node, pods: Callable[[], Pod], conf: dict[str, Any], before: dict[str, Any], next_one: str
) -> None:
    node.net.ip("link", "set", "ens1v0", "alias", "rail 1", "up")
    before = node.snapshot()
    old, new = pods(), pods()
    assert ours(old, "ADD", conf).status == 0
    assert go(old, "DEL", conf).status == 0
    assert not node.net.link("ens1v0").up  # it leaves it down, and the alias its own
    if next_one == "ADD":
        assert ours(new, "ADD", conf).status == 0
        assert ours(old, "DEL", conf).status == 0  # late; it must not take the link from its new owner
        assert new.net.link("net1").up
        assert ours(new, "DEL", conf).status == 0
    else:
        # Version 1.1.0 has GC, and Go's host-local here does not speak it.
        gc = {**config(device="ens1v0"), "cni.dev/valid-attachments": []}
        assert new.call("GC", gc).status == 0
    assert node.snapshot() == before


def test_our_check_of_the_go_plugins_add(pod: Pod, conf: dict[str, Any], before: dict[str, Any]) -> None:
    result = go(pod, "ADD", conf).document
    checked = {**conf, "prevResult": result}
    assert ours(pod, "CHECK", checked).status == 0
    pod.net.ip("link", "set", "net1", "down")
    assert "it is down" in ours(pod, "CHECK", checked).text
    assert ours(pod, "DEL", conf).status == 0


def test_go_plugins_check_of_our_add(pod: Pod, conf: dict[str, Any], before: dict[str, Any]) -> None:
    result = ours(pod, "ADD", conf).document
    assert go(pod, "CHECK", {**conf, "prevResult": result}).status == 0
    assert ours(pod, "DEL", conf).status == 0


def test_tuning_and_sbr_after_ours(node: Node, pod: Pod, conf: dict[str, Any], before: dict[str, Any]) -> None:
    tuning = {
        **NEWEST,
        "name": "rail",
        "type": "tuning",
        "dataDir": str(node.folder.parent / "tuning"),
        "mac": "02:00:00:00:00:77",
        "mtu": 1300,
        "promisc": True,
        "sysctl": {"net.ipv4.conf.net1.rp_filter": "0"},
    }
    sbr = {**NEWEST, "name": "rail", "type": "sbr"}
    conf["ipam"]["routes"] = [{"dst": "10.8.0.0/16"}]
    result = ours(pod, "ADD", conf).document
    for plugin in (tuning, sbr):
        answer = go(pod, "ADD", {**plugin, "prevResult": result}, plugin=plugin["type"])
        assert answer.status == 0, answer
        result = answer.document
    assert "10.8.0.0/16 via 10.7.7.1 dev net1 table 100" in pod.net.ip("route", "show", "table", "all")
    assert pod.net.link("net1").mac == "02:00:00:00:00:77"
    checked = ours(pod, "CHECK", {**conf, "prevResult": result})
    assert (checked.status, checked.document) == (0, {})
    for plugin in (tuning, sbr):
        assert go(pod, "CHECK", {**plugin, "prevResult": result}, plugin=plugin["type"]).status == 0
    for plugin in (sbr, tuning):
        assert go(pod, "DEL", {**plugin, "prevResult": result}, plugin=plugin["type"]).status == 0
    assert ours(pod, "DEL", conf).status == 0
    assert node.snapshot() == before
