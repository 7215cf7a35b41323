"""``host-device`` when something goes wrong in the middle: each order to the kernel fails once, or is the last one.

The host is compared in whole, addresses, routes and records too. What a step does when all goes well is in
test_host_device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cni.attachments import Attachments
from cni.linux.link import Link
from conf.errors import IoFailure
from tests.netns.node import Node, Orders, Pod, config
from tests.vm.node import differences

pytest_plugins = ["tests.netns.node"]

CONF = config(
    device="ens1v0",
    useInterfaceNetwork=True,
    ipam={
        "type": "static",
        "addresses": [{"address": "10.7.7.1/24"}, {"address": "fd00::1/64"}],
        "routes": [{"dst": "10.8.0.0/16", "gw": "10.7.7.9"}],
    },
)


@pytest.fixture
def before(node: Node, veth: Link) -> dict[str, Any]:
    """Give the link what an administrator may have given it; it must survive everything here."""
    node.net.ip("link", "set", "ens1v0", "mtu", "1450", "alias", "rail 1", "txqueuelen", "500", "up")
    node.net.ip("link", "property", "add", "dev", "ens1v0", "altname", "net1", "altname", "rail1-with-a-long-name")
    node.net.ip("addr", "add", "10.9.0.5/24", "dev", "ens1v0")
    node.net.ip("route", "add", "10.20.0.0/16", "via", "10.9.0.1", "dev", "ens1v0", "proto", "static")
    return node.snapshot()


@pytest.fixture
def whole(node: Node, pod: Pod, before: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the orders of an ADD and of its DEL where all goes well."""
    added = pod.call("ADD", CONF)
    assert added.status == 0, added
    deleted = pod.call("DEL", CONF)
    assert (deleted.status, node.snapshot()) == (0, before)
    return {"ADD": added.orders, "DEL": deleted.orders}


def numbered(orders: tuple[str, ...], *words: str) -> Iterator[tuple[int, str]]:
    assert all(any(word in order for order in orders) for word in words), orders
    return enumerate(orders, 1)


@pytest.mark.parametrize("late", [False, True], ids=["refused", "done-but-refused"])
def test_add_undoes_all_whichever_order_fails(
    node: Node, pod: Pod, before: dict[str, Any], whole: dict[str, tuple[str, ...]], late: bool
) -> None:
    left = {}
    for number, order in numbered(whole["ADD"], "altname", "alias", "moving", "up", "address", "route"):
        answer = pod.call("ADD", CONF, orders=Orders(number, late=late))
        after = node.snapshot()
        if answer.document.get("code") != 102 or after != before or len(pod.net.rtnl.links()) != 1:
            left[f"{number} {order}"] = (answer.text, differences(before, after))
            pod.delete(CONF)
    assert left == {}


@pytest.mark.parametrize("late", [False, True], ids=["refused", "done-but-refused"])
def test_del_takes_every_other_step_and_the_next_del_the_rest(
    node: Node, pod: Pod, before: dict[str, Any], whole: dict[str, tuple[str, ...]], late: bool
) -> None:
    left = {}
    for number, order in numbered(whole["DEL"], "altname", "alias", "moving", "up", "address", "route"):
        pod.add(CONF)
        answer = pod.call("DEL", CONF, orders=Orders(number, late=late))
        retried = pod.call("DEL", CONF)
        after = node.snapshot()
        if answer.status == 0 or retried.status or after != before:
            left[f"{number} {order}"] = (answer.text, retried.text, differences(before, after))
    assert left == {}


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("netns", ["lives", "is empty"])
def test_del_after_an_add_killed_at_any_order(
    node: Node, pod: Pod, before: dict[str, Any], whole: dict[str, tuple[str, ...]], late: bool, netns: str
) -> None:
    left = {}
    for number, order in enumerate(whole["ADD"], 1):
        assert pod.call("ADD", CONF, orders=Orders(number, late=late, killed=True)).status == -9
        pod.delete(CONF, **({"CNI_NETNS": ""} if netns == "is empty" else {}))
        if node.snapshot() != before or len(pod.net.rtnl.links()) != 1:
            left[f"{number} {order}"] = differences(before, node.snapshot())
    assert left == {}


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("then", ["DEL", "GC"])
def test_del_or_gc_after_a_del_killed_at_any_order(
    node: Node, pod: Pod, before: dict[str, Any], whole: dict[str, tuple[str, ...]], late: bool, then: str
) -> None:
    left = {}
    for number, order in enumerate(whole["DEL"], 1):
        pod.add(CONF)
        assert pod.call("DEL", CONF, orders=Orders(number, late=late, killed=True)).status == -9
        answer = pod.call(then, {**CONF, "cni.dev/valid-attachments": []})
        if answer.status or node.snapshot() != before:
            left[f"{number} {order}"] = (answer.text, differences(before, node.snapshot()))
    assert left == {}


def test_next_add_takes_the_link_of_an_add_killed_at_any_order(
    node: Node, pods: Callable[[], Pod], before: dict[str, Any], whole: dict[str, tuple[str, ...]]
) -> None:
    left = {}
    for number, order in enumerate(whole["ADD"], 1):
        if order == "moving the link":
            break  # from here on the living sandbox has it
        dead, heir = pods(), pods()
        assert dead.call("ADD", CONF, orders=Orders(number, late=True, killed=True)).status == -9
        result = heir.add(CONF)
        dead.delete(CONF)
        heir.check(CONF, result)
        heir.delete(CONF)
        if node.snapshot() != before:
            left[f"{number} {order}"] = differences(before, node.snapshot())
    assert left == {}


def test_next_add_of_the_same_attachment_with_another_link_gives_the_first_one_back(
    node: Node, pod: Pod, before: dict[str, Any]
) -> None:
    node.net.ip("link", "add", "ens2v0", "type", "veth", "peer", "name", "ens2p0")
    before = node.snapshot()
    other = config(device="ens2v0")
    assert pod.call("ADD", CONF, orders=Orders(2, late=True, killed=True)).status == -9
    pod.add(other)
    pod.delete(other)
    assert node.snapshot() == before


class FullDisk(Attachments):
    """Records on a file system that is full."""

    def write(self, attachment: Any) -> None:
        raise IoFailure("cannot write the record", details="ENOSPC")


def test_add_changes_nothing_when_the_record_cannot_be_written(node: Node, pod: Pod, before: dict[str, Any]) -> None:
    answer = pod.call("ADD", CONF, more={"attachments": FullDisk(node.folder)})
    assert (answer.document["code"], answer.orders) == (5, ())
    assert node.snapshot() == before


def test_two_adds_for_one_link_one_wins(node: Node, pods: Callable[[], Pod], before: dict[str, Any]) -> None:
    both = pods(), pods()
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(lambda pod: pod.call("ADD", CONF), both))
    assert sorted((answer.status, answer.document.get("code", 0)) for answer in answers) == [(0, 0), (1, 11)]
    winner, loser = both if answers[0].status == 0 else both[::-1]
    loser.delete(CONF)
    assert winner.net.link("net1").up
    winner.delete(CONF)
    assert node.snapshot() == before


def test_record_that_is_damaged_is_not_taken_for_absent(node: Node, pod: Pod, before: dict[str, Any]) -> None:
    pod.add(CONF)
    (path,) = node.attachments.root.rglob("*.json")
    content = path.read_text()
    path.write_text(content[:-20])
    # With its own selector the DEL would go by the link's alias: test_host_device_go.
    assert pod.refused("DEL", {**CONF, "device": "ens1v9"})["code"] == 5
    path.write_text(json.dumps(json.loads(content)))
    pod.delete(CONF)
    assert node.snapshot() == before
