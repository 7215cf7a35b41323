"""``sriov`` when something goes wrong in the middle, on a NIC: each step fails once, processes are killed, two race.

What a step does when all goes well is in test_sriov.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from functools import partial
from typing import Any

import pytest

from cni.attachments import Attachments
from cni.kernel import Kernel
from cni.linux.netlink import NetlinkSocket
from cni.linux.netns import Netns
from cni.linux.rtnetlink import Rtnetlink
from cni.linux.rtnetlink_socket import NETLINK_ROUTE
from cni.sriov import Sriov
from cni.upstream_sriov import ROOT as GO_FILES
from conf.errors import IoFailure, KernelRefused
from tests.vm.node import PF, VFS, config, in_child, ip, joined, links, netdev, side_by_side, vf_state

LAB = {"vfs": 2}
pytest_plugins = ["tests.vm.node_fixtures"]
pytestmark = pytest.mark.usefixtures("host_is_as_before")

MAC = "02:00:5e:10:00:01"
CONF = config(
    VFS[0],
    vlan=100,
    vlanQoS=3,
    mac=MAC,
    mtu=1400,
    max_tx_rate=100,
    spoofchk="off",
    promisc=True,
    allmulti=True,
    ipam={
        "type": "static",
        "addresses": [{"address": "10.7.7.1/24"}, {"address": "fd00::1/64"}],
        "routes": [{"dst": "10.8.0.0/16", "gw": "10.7.7.9"}],
    },
)


class Orders:
    """The orders given to the kernel, in their order; one of them can fail, ``late``: after it was carried out."""

    def __init__(self, failing: int = 0, *, late: bool = False) -> None:
        self.given: list[str] = []
        self.failing = failing
        self.late = late

    def rtnetlink(self, netns: Netns | None = None) -> Rtnetlink:
        return Rtnetlink(netns, netlink=ObedientSocket(netns, self))

    def sriov(self, _name: str = "", **more: Any) -> Sriov:
        return Sriov(kernel=Kernel(rtnetlink=self.rtnetlink), **more)


class ObedientSocket(NetlinkSocket):
    """A real socket that tells of every order."""

    def __init__(self, netns: Netns | None, orders: Orders) -> None:
        super().__init__(NETLINK_ROUTE, netns)
        self._orders = orders

    def command(self, message: Any, kind: int, *, operation: str, target: str, flags: int = 0) -> None:
        orders = self._orders
        orders.given.append(operation)
        fails = len(orders.given) == orders.failing
        if not fails or orders.late:
            super().command(message, kind, operation=operation, target=target, flags=flags)
        if fails:
            raise KernelRefused(operation, target, errno.EIO)


@pytest.fixture(scope="module", autouse=True)
def administrators_own():
    """Give the VF what an administrator may have given it; it must survive everything here."""
    name = netdev(VFS[0])
    ip("link", "set", name, "up", "mtu", "1450", "alias", "rail 1")
    ip("link", "property", "add", "dev", name, "altname", "net1", "altname", "rail1-with-a-long-name")


@pytest.mark.parametrize("late", [False, True], ids=["refused", "done-but-refused"])
def test_add_undoes_all_whichever_order_to_the_kernel_fails(blue, host_is_as_before, late):
    whole = Orders()
    blue.add(CONF, load=whole.sriov)
    blue.delete(CONF)
    expected = ("altname", "VLAN", "MAC", "rates", "spoofchk", "moving", "MTU", "promisc", "allmulti", "up", "address")
    assert all(any(word in order for order in whole.given) for word in expected), whole.given
    left = {}
    for number, order in enumerate(whole.given, 1):
        answer = blue.call("ADD", CONF, load=Orders(number, late=late).sriov)
        if answer.status == 0 or answer.document["code"] != 102 or host_is_as_before() or "net1" in links("blue"):
            left[f"{number} {order}"] = (answer.document, host_is_as_before())
            blue.delete(CONF)
    assert left == {}


def test_del_takes_every_other_step_and_the_next_del_the_rest(blue, host_is_as_before):
    blue.add(CONF)
    whole = Orders()
    blue.delete(CONF, load=whole.sriov)
    assert len(whole.given) > 8
    left = {}
    for number, order in enumerate(whole.given, 1):
        blue.add(CONF)
        answer = blue.call("DEL", CONF, load=Orders(number).sriov)
        retried = blue.call("DEL", CONF)
        if answer.status == 0 or retried.status or host_is_as_before():
            left[f"{number} {order}"] = (answer.document, retried.document, host_is_as_before())
    assert left == {}


class FullDisk(Attachments):
    """Records on a file system that is full from the n-th write on."""

    def __init__(self, works: int) -> None:
        super().__init__()
        self._works = works

    def write(self, attachment):
        self._works -= 1
        if self._works < 0:
            raise IoFailure("cannot write the record", details="ENOSPC")
        super().write(attachment)


@pytest.mark.parametrize("works", [0, 1])
def test_add_undoes_all_when_a_record_cannot_be_written(blue, host_is_as_before, works):
    refusal = blue.refused("ADD", CONF, load=partial(Orders().sriov, attachments=FullDisk(works)))
    assert refusal["code"] == 5
    assert host_is_as_before() == []


def test_add_undoes_all_when_ipam_fails(blue, host_is_as_before, tmp_path):
    asked = tmp_path / "asked"
    plugin = tmp_path / "picky"
    plugin.write_text(
        f"#!/bin/sh\necho $CNI_COMMAND >>{asked}\n[ $CNI_COMMAND = DEL ] && exit\n"
        'echo \'{"code": 11, "msg": "no", "details": "later"}\'; exit 1\n'
    )
    plugin.chmod(0o755)
    refusal = blue.refused("ADD", {**CONF, "ipam": {"type": "picky"}}, CNI_PATH=str(tmp_path))
    assert (refusal["code"], refusal["msg"], asked.read_text()) == (11, "picky: no", "ADD\nDEL\n")
    assert host_is_as_before() == []


def test_sigterm_ends_an_add_by_its_undo(blue, host_is_as_before):
    def interrupted(*_more):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the signal did not end it")

    def terminated():
        from cni import skel  # noqa: PLC0415

        with skel._process_streams():
            blue.refused("ADD", CONF, load=lambda _name: Sriov(kernel=Kernel(announce=interrupted)))

    assert side_by_side(terminated) == [0]
    assert host_is_as_before() == []


def test_killed_adds_leave_nothing_that_a_del_cannot_put_back(blue, host_is_as_before):
    chance = random.Random(20)
    begun = time.monotonic()
    assert side_by_side(partial(blue.add, CONF)) == [0]
    takes_s = time.monotonic() - begun
    blue.delete(CONF)
    outcomes = []
    for _round in range(20):
        pid = in_child(partial(blue.add, CONF))
        time.sleep(chance.uniform(0, takes_s))
        os.kill(pid, signal.SIGKILL)
        outcomes += joined(pid)
        blue.delete(CONF)
        assert host_is_as_before() == []
    assert outcomes.count(-signal.SIGKILL) > 10


@pytest.mark.parametrize("word", ["MAC", "moving", "MTU", "address"])
def test_next_container_takes_the_vf_of_one_killed_in_its_add(pods, blue, host_is_as_before, word):
    orders = Orders()

    class Deadly(ObedientSocket):
        def command(self, message, kind, *, operation, target, flags=0):
            super().command(message, kind, operation=operation, target=target, flags=flags)
            if word in operation:
                os.kill(os.getpid(), signal.SIGKILL)

    orders.rtnetlink = lambda netns=None: Rtnetlink(netns, netlink=Deadly(netns, orders))
    assert side_by_side(partial(blue.add, CONF, load=orders.sriov)) == [-signal.SIGKILL]
    blue.destroy()
    heir = pods("heir")
    other = config(VFS[0], vlan=7)
    result = heir.add(other)
    assert vf_state(0)["vlan_list"] == [{"vlan": 7}]
    blue.delete(CONF)
    heir.check(other, result)
    heir.delete(other)


def test_two_adds_for_one_vf_one_wins(blue, green, host_is_as_before, tmp_path):
    def add(pod):
        answer = pod.call("ADD", CONF)
        (tmp_path / pod.name).write_text(json.dumps([answer.status, answer.document.get("code")]))

    assert side_by_side(partial(add, blue), partial(add, green)) == [0, 0]
    answers = {pod: json.loads((tmp_path / pod.name).read_text()) for pod in (blue, green)}
    assert sorted(answers.values()) == [[0, None], [1, 11]]
    (winner,) = [pod for pod, answer in answers.items() if answer[0] == 0]
    loser = green if winner is blue else blue
    loser.delete(CONF)
    assert winner.link()["address"] == MAC
    winner.delete(CONF)


def go_state(name: str, mac: str) -> dict[str, Any]:
    """Return what the Go plugin of v2.10 writes for a VLAN and a MAC."""
    return {
        "cniVersion": "1.0.0",
        "name": "rail",
        "type": "sriov",
        "ipam": {"type": "static"},
        "dns": {},
        "OrigVfState": {
            "HostIFName": name,
            "SpoofChk": True,
            "Trust": False,
            "AdminMAC": mac,
            "EffectiveMAC": mac,
            "Vlan": 0,
            "VlanQoS": 0,
            "VlanProto": 33024,
            "MinTxRate": 0,
            "MaxTxRate": 0,
            "LinkState": 0,
            "MTU": 1500,
        },
        "Master": PF,
        "MAC": MAC,
        "MTU": 1500,
        "vlan": 100,
        "vlanQoS": 0,
        "vlanProto": "802.1q",
        "deviceID": VFS[1],
        "VFID": 1,
        "min_tx_rate": None,
        "max_tx_rate": None,
        "spoofchk": "off",
        "runtimeConfig": {},
    }


@pytest.mark.parametrize("netns_lives", [True, False])
def test_attachment_of_the_go_plugin_is_given_back(blue, netns_lives):
    name = netdev(VFS[1])
    mac = links()[name]["address"]
    state = GO_FILES / "blue-net1"
    allocation = GO_FILES / "pci" / VFS[1]
    allocation.parent.mkdir(parents=True, exist_ok=True)
    state.write_text(json.dumps(go_state(name, mac)))
    allocation.write_text(blue.path)
    ip("link", "set", PF, "vf", "1", "vlan", "100", "spoofchk", "off")
    ip("link", "set", name, "address", MAC, "netns", "blue", "name", "net1")
    blue.ip("link", "set", "net1", "up")
    if not netns_lives:
        blue.destroy()
    blue.delete(config(VFS[1], vlan=100))


def test_go_plugin_finds_in_our_files_what_its_del_needs(blue):
    name = netdev(VFS[0])
    before, vf = links()[name], vf_state(0)
    blue.add(CONF)
    state = json.loads((GO_FILES / "blue-net1").read_text())
    allocated_to = (GO_FILES / "pci" / VFS[0]).read_text()
    blue.delete(CONF)
    assert allocated_to == blue.path
    asked = {
        key: state[key]
        for key in ("Master", "VFID", "deviceID", "MAC", "vlan", "vlanQoS", "vlanProto", "max_tx_rate", "spoofchk")
    }
    assert asked == {
        "Master": PF,
        "VFID": 0,
        "deviceID": VFS[0],
        "MAC": MAC,
        "vlan": 100,
        "vlanQoS": 3,
        "vlanProto": "802.1q",
        "max_tx_rate": 100,
        "spoofchk": "off",
    }
    assert state["ipam"] == {"type": "static"}
    assert state["OrigVfState"] == {
        "HostIFName": name,
        "EffectiveMAC": before["address"],
        "AdminMAC": vf["address"],
        "MTU": 1450,
        "SpoofChk": True,
        "Trust": False,
        "Vlan": 0,
        "VlanQoS": 0,
        "VlanProto": 0x8100,
        "MinTxRate": 0,
        "MaxTxRate": 0,
        "LinkState": 0,
    }
