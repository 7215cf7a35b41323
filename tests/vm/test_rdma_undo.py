"""``rdma`` and ``rdmaIsolation`` when something goes wrong in the middle: each order fails once, or is the last one.

What they do when all goes well is in test_rdma.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cni.host_device import HostDevice
from cni.rdma import Rdma
from cni.sriov import Sriov
from tests.netns.node import Orders
from tests.vm.node import Pod, in_child, joined
from tests.vm.rdma_node import CHAINS, add, delete, devices

LAB = {"vfs": 2}
pytest_plugins = ["tests.vm.node_fixtures", "tests.vm.rdma_node"]
pytestmark = pytest.mark.usefixtures("host_is_as_before", "rdma_is_as_before")

PLUGINS = {"sriov": Sriov, "host-device": HostDevice, "rdma": Rdma}
# Each plugin once: rdma does the same after any other.
LASTS = ("sriov-rdma", "sriov-isolated", "host-device-isolated")
EACH_CHAIN = pytest.mark.parametrize("chain", [CHAINS[name] for name in LASTS], ids=LASTS)


def obeying(orders: Orders) -> Callable[[str], Any]:
    return lambda name: PLUGINS[name](kernel=orders.kernel())


def killed_at(pod: Pod, command: str, conf: dict[str, Any], number: int, *, late: bool) -> int:
    orders = Orders(number, late=late, killed=True)
    (status,) = joined(in_child(lambda: pod.call(command, conf, load=obeying(orders))))
    return status


@pytest.mark.parametrize("name", ["sriov-isolated", "host-device-isolated"])
def test_netdev_is_first_in_and_rdma_device_first_out(blue: Pod, name: str) -> None:
    (conf,) = CHAINS[name]
    there, back = Orders(), Orders()
    blue.add(conf, load=obeying(there))
    assert blue.call("DEL", conf, load=obeying(back)).status == 0
    moves = [[order for order in orders.given if "moving" in order] for orders in (there, back)]
    assert [["RDMA" in order for order in given] for given in moves] == [[False, True], [True, False]], moves


@EACH_CHAIN
@pytest.mark.parametrize("then", ["DEL", "GC"])
def test_kill_between_any_two_steps_leaves_nothing_moved(
    blue: Pod, host_is_as_before: Any, chain: list[dict[str, Any]], then: str
) -> None:
    before, *earlier = devices(), *chain[:-1]
    last = chain[-1]
    result = add(blue, earlier) if earlier else None
    conf = {**last, "prevResult": result} if result else last
    whole = Orders()
    blue.add(conf, load=obeying(whole))
    blue.delete(conf)
    left = {}
    assert any("RDMA" in order for order in whole.given)
    # Before the first, then after each.
    for number, order in enumerate([whole.given[0], *whole.given]):
        assert killed_at(blue, "ADD", conf, max(number, 1), late=number > 0) == -9
        answer = blue.call(then, {**conf, "cni.dev/valid-attachments": []})
        told = [] if earlier else host_is_as_before()
        if answer.status or devices() != before or told:
            left[f"{number} {order}"] = (answer, devices(), told)
    if earlier:
        delete(blue, earlier)
    assert left == {}


@EACH_CHAIN
def test_del_killed_between_any_two_steps_is_completed_by_the_next(
    blue: Pod, host_is_as_before: Any, chain: list[dict[str, Any]]
) -> None:
    before, *earlier = devices(), *chain[:-1]
    last = chain[-1]
    result = add(blue, earlier) if earlier else None
    conf = {**last, "prevResult": result} if result else last
    whole = Orders()
    blue.add(conf)
    blue.delete(conf, load=obeying(whole))
    left = {}
    for number, order in enumerate(whole.given, 1):
        blue.add(conf)
        assert killed_at(blue, "DEL", conf, number, late=True) == -9
        answer = blue.call("DEL", conf)
        told = [] if earlier else host_is_as_before()
        if answer.status or devices() != before or told:
            left[f"{number} {order}"] = (answer, devices(), told)
    if earlier:
        delete(blue, earlier)
    assert left == {}


@EACH_CHAIN
@pytest.mark.parametrize("late", [False, True], ids=["refused", "done-but-refused"])
def test_add_undoes_all_whichever_order_fails(
    blue: Pod, host_is_as_before: Any, chain: list[dict[str, Any]], late: bool
) -> None:
    before, *earlier = devices(), *chain[:-1]
    last = chain[-1]
    result = add(blue, earlier) if earlier else None
    conf = {**last, "prevResult": result} if result else last
    whole = Orders()
    blue.add(conf, load=obeying(whole))
    blue.delete(conf)
    left = {}
    for number, order in enumerate(whole.given, 1):
        answer = blue.call("ADD", conf, load=obeying(Orders(number, late=late)))
        told = [] if earlier else host_is_as_before()
        if answer.document.get("code") != 102 or devices() != before or told:
            left[f"{number} {order}"] = (answer, devices(), told)
            blue.delete(conf)
    if earlier:
        delete(blue, earlier)
    assert left == {}
