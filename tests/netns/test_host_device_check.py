"""``host-device``'s CHECK, STATUS and GC between scratch namespaces."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.netns.host_device_node import LINK, leased, static
from tests.netns.node import Node, Pod, config

pytest_plugins = ["tests.netns.node", "tests.netns.host_device_node"]
pytestmark = pytest.mark.usefixtures("host_is_as_before")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("link set net1 down", "it is down"),
        ("link set net1 address 02:00:00:00:00:77", "MAC is 02:00:00:00:00:77, prevResult says"),
        ("addr del 10.7.7.1/24 dev net1", "address 10.7.7.1/24 is not on it"),
        ("route del 10.8.0.0/16", "route 10.8.0.0/16 via 10.7.7.9 is not there"),
    ],
)
def test_check_sees_every_difference(pod: Pod, change: str, said: str) -> None:
    conf = config(device="ens1v0", **static("10.7.7.1/24", routes=[{"dst": "10.8.0.0/16", "gw": "10.7.7.9"}]))
    result = pod.add(conf)
    pod.net.ip(*change.split())
    refusal = pod.refused("CHECK", {**conf, "prevResult": result})
    assert (refusal["code"], said in refusal["details"]) == (103, True), refusal
    pod.delete(conf)


def test_check_of_a_link_that_was_taken_away(node: Node, pod: Pod) -> None:
    result = pod.add(LINK)
    pod.node.inside(lambda: pod.net.ip("link", "set", "net1", "netns", node.net.name))
    assert "it is on the host as net1" in pod.refused("CHECK", {**LINK, "prevResult": result})["details"]
    pod.delete(LINK)
    assert pod.refused("CHECK", {**LINK, "prevResult": result})["code"] == 103


def test_check_tolerates_what_later_plugins_did(pod: Pod) -> None:
    conf = config(device="ens1v0", **static("10.7.7.1/24"))
    result = pod.add(conf)
    result["interfaces"][0]["mac"] = "02:00:00:00:00:77"  # tuning says so
    for words in ("address 02:00:00:00:00:77", "mtu 1300", "promisc on"):
        pod.net.ip("link", "set", "net1", *words.split())
    pod.net.ip("addr", "add", "10.7.8.1/24", "dev", "net1")
    pod.check(conf, result)
    pod.delete(conf)


def test_check_needs_prev_result(pod: Pod) -> None:
    assert pod.refused("CHECK", LINK)["code"] == 7


def test_status(node: Node, pod: Pod) -> None:
    assert pod.call("STATUS", LINK).status == 0
    refusal = pod.refused("STATUS", config(device="ens1v0", rdmaIsolation=True))
    assert (refusal["code"], "RDMA" in refusal["details"]) == (50, True)
    refusal = pod.refused("STATUS", config(device="ens1v0", ipam={"type": "absent"}))
    assert "absent" in refusal["msg"]


def test_gc_gives_back_what_is_not_valid_any_more(
    pods: Callable[[], Pod], node: Node, tmp_path_factory: pytest.TempPathFactory
) -> None:
    node.net.ip("link", "add", "ens2v0", "type", "veth", "peer", "name", "ens2p0")
    store = leased(tmp_path_factory.mktemp("store"))
    blue, green = pods(), pods()
    stale, other = config(device="ens1v0", **store), {**config(device="ens2v0"), "name": "another"}
    blue.add(stale)
    green.add(other)
    gc = {**stale, "cni.dev/valid-attachments": [{"containerID": blue.net.name, "ifname": "net1"}]}
    for conf in (gc, stale, {**gc, "name": "another-still", "cni.dev/valid-attachments": []}):
        assert blue.call("GC", conf).status == 0
        assert blue.net.link("net1").up
    assert blue.call("GC", {**gc, "cni.dev/valid-attachments": []}).status == 0
    assert blue.net.rtnl.link_get("net1") is None
    assert green.net.link("net1").up
    green.delete(other)
    node.net.ip("link", "del", "ens2v0")
    green.add(stale)
    green.delete(stale)
