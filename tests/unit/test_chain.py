"""What a runtime does with a network, on plugins that keep what they are told: order, results, capabilities, cache."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cni.cli.chain import Chain, Sandbox
from cni.cli.results import Results
from conf.errors import DelegateFailed, IncompatibleCniVersion, InvalidEnvironment, UndoneInPart
from conf.network import find_network
from conf.request import Request
from conf.result import Interface, Ip, Result

POD = Sandbox("c1", "/run/netns/pod", "net1", args=(("A", "1"), ("A", "b=2")), capability_args={"mac": "m", "ips": []})


@dataclass
class Node:
    """Plugins that add an interface each, keep who has one, and fail at the calls the test names."""

    fails: set[tuple[str, str]] = field(default_factory=set)
    calls: list[Request] = field(default_factory=list)
    held: set[tuple[str, str, str]] = field(default_factory=set)

    def find(self, plugin_type: str) -> NodePlugin:
        return NodePlugin(self, plugin_type)

    @property
    def order(self) -> list[str]:
        return [f"{call.command} {call.config['type']}" for call in self.calls]


@dataclass
class NodePlugin:
    node: Node
    name: str

    def add(self, request: Request) -> Result:
        self._called(request)
        self.node.held.add((self.name, request.container_id, request.ifname))
        before = request.prev_result() or Result()
        made = Interface(name=f"{request.ifname}-{self.name}", sandbox=request.netns, mtu=1400)
        return Result(interfaces=[*before.interfaces, made], ips=before.ips or [Ip(address="192.0.2.7/24")])

    def delete(self, request: Request) -> None:
        self._called(request)
        self.node.held.discard((self.name, request.container_id, request.ifname))

    def check(self, request: Request) -> None:
        self._called(request)

    def gc(self, request: Request) -> None:
        self._called(request)

    def status(self, request: Request) -> None:
        self._called(request)

    def _called(self, request: Request) -> None:
        self.node.calls.append(request)
        assert json.loads(request.stdin) == request.config
        assert request.environ["CNI_COMMAND"] == request.command
        if (request.command, self.name) in self.node.fails:
            raise DelegateFailed(f"{self.name}: no", code=11)


@dataclass
class Runtime:
    """A configuration directory, a cache and a node."""

    root: Path
    node: Node

    def chain(self, **keys: Any) -> Chain:
        network = {"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "one"}, {"type": "two"}], **keys}
        (self.root / "a.conflist").write_text(json.dumps(network))
        return Chain(
            find_network(self.root, "net"),
            find=self.node.find,
            results=Results(self.root / "cache"),
            environ={"PATH": "/bin", "CNI_COMMAND": "stale", "CNI_ARGS": "stale"},
            path=("/opt/cni/bin", "/usr/lib/cni"),
        )

    @property
    def cache_files(self) -> list[str]:
        return sorted(path.name for path in (self.root / "cache" / "results").glob("*"))


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(tmp_path, Node())


def test_add_goes_forward_and_hands_each_result_on(runtime):
    made = runtime.chain().add(POD)
    first, second = runtime.node.calls
    assert runtime.node.order == ["ADD one", "ADD two"]
    assert "prevResult" not in first.config
    assert [link["name"] for link in second.config["prevResult"]["interfaces"]] == ["net1-one"]
    assert [link["name"] for link in made["interfaces"]] == ["net1-one", "net1-two"]
    assert made["cniVersion"] == "1.1.0"


def test_plugin_gets_the_environment_of_a_runtime(runtime):
    runtime.chain().add(POD)
    environ = dict(runtime.node.calls[0].environ)
    assert environ == {
        "PATH": "/bin",
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/pod",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": "A=1;A=b=2",
        "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
    }


def test_capability_is_given_to_those_that_declare_it(runtime):
    plugins = [
        {"type": "one", "capabilities": {"mac": True, "ips": False, "portMappings": True}},
        {"type": "two", "name": "its own", "cniVersion": "0.3.0"},
    ]
    runtime.chain(plugins=plugins).add(POD)
    one, two = (call.config for call in runtime.node.calls)
    assert one["runtimeConfig"] == {"mac": "m"}
    assert "runtimeConfig" not in two
    assert (two["name"], two["cniVersion"]) == ("net", "1.1.0")


def test_result_is_spoken_in_the_networks_version(runtime):
    made = runtime.chain(cniVersion="0.4.0").add(POD)
    assert made["cniVersion"] == "0.4.0"
    assert "mtu" not in made["interfaces"][0]
    assert made["ips"] == [{"version": "4", "address": "192.0.2.7/24"}]


def test_cache_is_libcnis(runtime):
    made = runtime.chain().add(POD)
    assert runtime.cache_files == ["net-c1-net1"]
    path = runtime.root / "cache" / "results" / "net-c1-net1"
    cached = json.loads(path.read_text())
    # Keys and their order as Go writes cachedInfo.
    assert list(cached) == [
        *("kind", "containerId", "config", "ifName", "networkName", "netns", "cniArgs", "capabilityArgs", "result")
    ]
    assert json.loads(base64.b64decode(cached["config"])) == json.loads((runtime.root / "a.conflist").read_text())
    assert cached | {"config": ""} == {
        "kind": "cniCacheV1",
        "containerId": "c1",
        "config": "",
        "ifName": "net1",
        "networkName": "net",
        "netns": "/run/netns/pod",
        "cniArgs": [["A", "1"], ["A", "b=2"]],
        "capabilityArgs": {"mac": "m", "ips": []},
        "result": made,
    }
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_failing_add_leaves_the_rest_to_a_del(runtime):
    runtime.node.fails = {("ADD", "two")}
    with pytest.raises(DelegateFailed) as failed:
        runtime.chain().add(POD)
    assert failed.value.code == 11
    assert runtime.node.held == {("one", "c1", "net1")}
    assert runtime.cache_files == []
    runtime.chain().delete(POD)
    assert runtime.node.held == set()


def test_del_goes_backward_with_the_final_result_and_forgets_it(runtime):
    made = runtime.chain().add(POD)
    runtime.node.calls.clear()
    runtime.chain().delete(POD)
    assert runtime.node.order == ["DEL two", "DEL one"]
    assert [call.config["prevResult"] for call in runtime.node.calls] == [made, made]
    assert (runtime.cache_files, runtime.node.held) == ([], set())
    runtime.chain().delete(POD)
    assert "prevResult" not in runtime.node.calls[-1].config


def test_failing_del_keeps_the_result_for_the_next(runtime):
    made = runtime.chain().add(POD)
    runtime.node.fails = {("DEL", "one")}
    with pytest.raises(DelegateFailed):
        runtime.chain().delete(POD)
    assert runtime.cache_files == ["net-c1-net1"]
    runtime.node.fails = set()
    runtime.chain().delete(POD)
    assert runtime.node.calls[-1].config["prevResult"] == made


def test_del_before_0_4_0_has_no_prev_result(runtime):
    runtime.chain(cniVersion="0.3.1").add(POD)
    runtime.chain(cniVersion="0.3.1").delete(POD)
    assert "prevResult" not in runtime.node.calls[-1].config
    assert runtime.cache_files == []


@pytest.mark.parametrize("content", ["no json", '{"kind": "other"}', '{"kind": "cniCacheV1"}'])
def test_del_works_without_a_readable_result(runtime, content):
    runtime.chain().add(POD)
    (runtime.root / "cache" / "results" / "net-c1-net1").write_text(content)
    runtime.chain().delete(POD)
    assert (runtime.node.held, runtime.cache_files) == (set(), [])


def test_cached_result_follows_a_changed_version(runtime):
    runtime.chain().add(POD)
    runtime.chain(cniVersion="0.4.0").check(POD)
    given = runtime.node.calls[-1].config["prevResult"]
    assert given["cniVersion"] == "0.4.0"
    assert given["ips"][0]["version"] == "4"


def test_check_goes_forward_with_the_final_result(runtime):
    made = runtime.chain().add(POD)
    runtime.node.calls.clear()
    assert runtime.chain().check(POD)
    assert runtime.node.order == ["CHECK one", "CHECK two"]
    assert [call.config["prevResult"] for call in runtime.node.calls] == [made, made]


def test_check_is_not_called_when_disabled_or_unknown(runtime):
    assert not runtime.chain(disableCheck="true").check(POD)
    with pytest.raises(IncompatibleCniVersion):
        runtime.chain(cniVersion="0.3.1").check(POD)
    assert runtime.node.calls == []


def test_device_is_remembered_for_check_del_and_gc(runtime):
    pod = Sandbox("c1", "/run/netns/pod", "net1", device="0000:01:10.0")
    runtime.chain().add(pod)
    runtime.chain().check(Sandbox("c1", "/run/netns/pod", "net1"))
    runtime.chain().gc(None)
    with_device = [call.config for call in runtime.node.calls if call.command in ("ADD", "CHECK", "DEL")]
    assert [(config["deviceID"], config["pciBusID"]) for config in with_device] == [("0000:01:10.0",) * 2] * 6


@pytest.mark.parametrize(
    "pod", [Sandbox("c/1", "/n", "net1"), Sandbox("c1", "/n", "a-name-too-long-"), Sandbox("c1", "/n", "..")]
)
def test_bad_attachment_is_refused_before_anything_is_called(runtime, pod):
    with pytest.raises(InvalidEnvironment):
        runtime.chain().add(pod)
    assert (runtime.node.calls, runtime.cache_files) == ([], [])


def added(runtime: Runtime, *container_ids: str, **keys: Any) -> None:
    for container_id in container_ids:
        runtime.chain(**keys).add(Sandbox(container_id, f"/run/netns/{container_id}", "net1"))
    runtime.node.calls.clear()


def test_gc_deletes_what_is_not_valid_and_tells_the_plugins(runtime):
    added(runtime, "c1", "c2", "c3")
    assert runtime.chain().gc([("c2", "net1")]) == [("c1", "net1"), ("c3", "net1")]
    assert runtime.cache_files == ["net-c2-net1"]
    assert runtime.node.held == {("one", "c2", "net1"), ("two", "c2", "net1")}
    gc = [call for call in runtime.node.calls if call.command == "GC"]
    valid = [{"containerID": "c2", "ifname": "net1"}]
    assert [call.config["cni.dev/valid-attachments"] for call in gc] == [valid, valid]
    assert [call.config["cni.dev/attachments"] for call in gc] == [valid, valid]
    assert {call.environ["CNI_CONTAINERID"] for call in gc} == {""}


def test_gc_without_a_list_deletes_all_and_tells_the_plugins_nothing(runtime):
    added(runtime, "c1", "c2")
    assert runtime.chain().gc(None) == [("c1", "net1"), ("c2", "net1")]
    assert runtime.node.order[-2:] == ["GC one", "GC two"]
    assert not {"cni.dev/valid-attachments", "cni.dev/attachments"} & runtime.node.calls[-1].config.keys()


def test_gc_with_an_empty_list_says_that_none_is_valid(runtime):
    added(runtime, "c1")
    runtime.chain().gc([])
    assert runtime.node.calls[-1].config["cni.dev/valid-attachments"] == []


def test_gc_leaves_other_networks_alone(runtime):
    added(runtime, "c1")
    cached = json.loads((runtime.root / "cache/results/net-c1-net1").read_text())
    # "net-a" and its container "c1" look like "net" and a container "a-c1".
    (runtime.root / "cache/results/net-a-c1-net1").write_text(json.dumps({**cached, "networkName": "net-a"}))
    (runtime.root / "cache/results/net-junk").write_text("junk")
    assert runtime.chain().gc([]) == [("c1", "net1")]
    assert runtime.cache_files == ["net-a-c1-net1", "net-junk"]


def test_gc_goes_on_after_failures_and_tells_them_all(runtime):
    added(runtime, "c1", "c2")
    runtime.node.fails = {("DEL", "two"), ("GC", "one")}
    with pytest.raises(UndoneInPart) as failed:
        runtime.chain().gc([])
    assert all(words in failed.value.details for words in ("DEL of c1", "DEL of c2", "one: no"))
    assert runtime.node.order == ["DEL two", "DEL two", "GC one", "GC two"]


def test_gc_is_only_dels_before_1_1_0_and_nothing_when_disabled(runtime):
    added(runtime, "c1", cniVersion="1.0.0")
    assert runtime.chain(cniVersion="1.0.0", disableGC=True).gc([]) == []
    assert runtime.node.calls == []
    assert runtime.chain(cniVersion="1.0.0").gc([]) == [("c1", "net1")]
    assert runtime.node.order == ["DEL two", "DEL one"]


def test_status_asks_every_plugin_and_stops_at_the_first_that_cannot(runtime):
    assert runtime.chain().status()
    assert runtime.node.order == ["STATUS one", "STATUS two"]
    runtime.node.fails = {("STATUS", "one")}
    with pytest.raises(DelegateFailed):
        runtime.chain().status()
    assert runtime.node.order[2:] == ["STATUS one"]
    assert not runtime.chain(cniVersion="1.0.0").status()
