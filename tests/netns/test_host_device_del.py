"""``host-device``'s DEL: the link comes back as it was, whatever was done to it, its name or its pod."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cni.linux.link import Link
from tests.netns.conftest import wait_until
from tests.netns.host_device_node import LINK, give_network, leased, prev_result, static, take_network
from tests.netns.node import Node, Pod, config

pytest_plugins = ["tests.netns.node", "tests.netns.host_device_node"]
pytestmark = pytest.mark.usefixtures("host_is_as_before")


def test_finds_device_if_renamed_in_pod(pod: Pod) -> None:
    pod.add(LINK)
    pod.net.ip("link", "set", "net1", "down")
    pod.net.ip("link", "set", "net1", "name", "mine")
    assert "it is called mine" in pod.refused("CHECK", {**LINK, "prevResult": prev_result(pod)})["details"]
    pod.delete(LINK)
    assert pod.net.rtnl.link_get("mine") is None


@pytest.mark.parametrize("up", [True, False])
def test_restores_up_down_mac_mtu_promisc_queue_alias_altnames(node: Node, pod: Pod, up: bool) -> None:
    node.net.ip("link", "set", "ens1v0", "up" if up else "down")
    before = node.snapshot()
    pod.add(LINK)
    pod.net.ip("link", "property", "del", "dev", "net1", "altname", "a-long-altname-of-the-rail")
    pod.net.ip("link", "property", "add", "dev", "net1", "altname", "left-by-the-pod")
    for words in ("mtu 1300", "address 02:00:00:00:00:77", "promisc on", "allmulticast on", "txqueuelen 7", "alias x"):
        pod.net.ip("link", "set", "net1", *words.split())
    pod.delete(LINK)
    assert node.snapshot() == before
    node.net.ip("link", "set", "ens1v0", "up")


def test_comes_back_untouched_with_the_hosts_addresses_and_routes(node: Node, pod: Pod) -> None:
    give_network(node)
    before = node.snapshot()
    assert before["routes -4"] and before["routes -6"] and len(before["ens1v0"]["addresses"]) == 3
    conf = config(device="ens1v0", **static("10.7.7.1/24"))
    result = pod.add(conf)
    assert [ip["address"] for ip in result["ips"]] == ["10.7.7.1/24"]
    pod.delete(conf)
    assert node.snapshot() == before
    take_network(node)


def test_what_has_a_lifetime_or_came_from_a_daemon_is_left_to_it(node: Node, pod: Pod) -> None:
    node.net.ip("addr", "add", "10.9.0.5/24", "dev", "ens1v0", "valid_lft", "600", "preferred_lft", "600")
    node.net.ip("route", "add", "10.20.0.0/16", "via", "10.9.0.1", "proto", "dhcp")
    conf = config(device="ens1v0", useInterfaceNetwork=True)
    assert "ips" not in pod.add(conf)
    pod.delete(conf)


def test_route_that_has_no_way_any_more_does_not_hold_up_the_del(node: Node, pod: Pod) -> None:
    node.net.ip("addr", "add", "10.9.0.5/24", "dev", "ens1v0", "valid_lft", "600", "preferred_lft", "600")
    node.net.ip("route", "add", "10.20.0.0/16", "via", "10.9.0.1", "dev", "ens1v0", "proto", "boot")
    pod.add(LINK)
    pod.delete(LINK)
    assert "10.20.0.0" not in node.net.ip("route")


def test_del_is_idempotent(pod: Pod, tmp_path_factory: pytest.TempPathFactory) -> None:
    conf = config(device="ens1v0", **leased(tmp_path_factory.mktemp("store")))
    pod.delete(conf)  # one that never was
    pod.add(conf)
    pod.delete(conf)
    pod.delete(conf)
    pod.add(conf)
    pod.delete(conf)


def test_del_of_another_networks_refused_add_takes_neither_device_nor_address(pod: Pod, tmp_path: Path) -> None:
    conf = config(device="ens1v0", **leased(tmp_path))
    other = {**conf, "name": "other"}
    result = pod.add(conf)
    assert "net1" in pod.refused("ADD", other)["msg"]
    pod.delete(other)  # as every runtime does after a failed ADD
    pod.check(conf, result)
    pod.delete(conf)
    assert not pod.node.records()
    again = pod.add(other)
    assert again["ips"][0]["address"] == "10.7.7.5/24"
    pod.delete(other)


def test_del_does_not_need_the_configuration_of_the_add(pod: Pod) -> None:
    pod.add(LINK)
    pod.delete(config())


@pytest.mark.usefixtures("link_may_go")
@pytest.mark.parametrize("netns", ["path gone", "empty"])
def test_del_when_netns_is_gone_releases_the_address_and_a_virtual_link_is_no_more(
    node: Node, pods: Callable[[], Pod], tmp_path_factory: pytest.TempPathFactory, netns: str
) -> None:
    conf = config(device="ens1v0", **leased(tmp_path_factory.mktemp("store")))
    blue, green = pods(), pods()
    blue.add(conf)
    blue.destroy()
    wait_until(lambda: node.net.rtnl.link_get("ens1p0") is None)
    blue.delete(conf, **({"CNI_NETNS": ""} if netns == "empty" else {}))
    node.net.ip("link", "add", "ens1v0", "type", "veth", "peer", "name", "ens1p0")
    green.add(conf)  # there is one address only
    green.delete(conf)


def test_del_with_empty_netns_while_the_sandbox_lives_brings_the_link_back(pod: Pod) -> None:
    pod.add(LINK)
    pod.delete(LINK, CNI_NETNS="")


@pytest.mark.usefixtures("link_may_go")
def test_late_del_leaves_a_link_made_anew_alone(node: Node, pods: Callable[[], Pod]) -> None:
    blue, green = pods(), pods()
    blue.add(LINK)
    blue.destroy()
    wait_until(lambda: node.net.rtnl.link_get("ens1p0") is None)
    node.net.ip("link", "add", "ens1v0", "index", "5000", "type", "veth", "peer", "name", "ens1p0")
    before = node.snapshot()
    green.add(LINK)
    blue.delete(LINK)
    assert green.net.link("net1").up
    green.delete(LINK)
    assert node.snapshot() == {**before, "records": []}


@pytest.mark.usefixtures("link_may_go")
def test_del_of_a_virtual_link_that_was_deleted_in_the_pod(node: Node, pod: Pod) -> None:
    pod.add(LINK)
    pod.net.ip("link", "del", "net1")
    pod.delete(LINK)


def test_name_taken_on_the_host_brings_the_link_back_under_another_and_the_next_del_renames(
    node: Node, pod: Pod, veth: Link
) -> None:
    pod.add(LINK)
    node.net.ip("link", "add", "ens1v0", "type", "veth", "peer", "name", "other")
    refusal = pod.refused("DEL", LINK)
    assert (refusal["code"], "not as ens1v0" in refusal["msg"]) == (108, True)
    assert pod.net.rtnl.link_get("net1") is None
    node.net.ip("link", "del", "other")
    pod.delete(LINK)
    assert node.net.link("ens1v0").mac == veth.mac


def test_records_of_another_boot_are_forgotten_without_touching_a_link(node: Node, pod: Pod) -> None:
    pod.add(LINK)
    (path,) = node.attachments.root.rglob("*.json")
    record = json.loads(path.read_text())
    pod.delete(LINK)
    record["sandbox"]["boot_id"] = "an earlier boot"
    record["link"]["mtu_bytes"] = 1234
    path.write_text(json.dumps(record))
    pod.delete(LINK)
    assert node.net.link("ens1v0").mtu_bytes == 1450
