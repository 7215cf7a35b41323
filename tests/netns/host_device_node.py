"""What the tests of ``host-device`` share: a link as an administrator left it, its network, addresses for the pod.

What is asked of the plugin is in the tests, how it is run in node.
"""

from __future__ import annotations

from typing import Any

import pytest

from cni.linux.link import Link
from tests.netns.node import Node, Pod, config

LINK = config(device="ens1v0")


def static(*addresses: str, **keys: Any) -> dict[str, Any]:
    return {"ipam": {"type": "static", "addresses": [{"address": each} for each in addresses], **keys}}


def leased(folder: Any) -> dict[str, Any]:
    """Return an ipam object of one free address, so that a leak shows at the next ADD."""
    one = {"range": "10.7.7.0/24", "range_start": "10.7.7.5", "range_end": "10.7.7.5", "cooldownSeconds": 0}
    return {"ipam": {"type": "whereabouts", "datastore": "local", "dataDir": str(folder), **one}}


@pytest.fixture
def link_may_go() -> None:
    """Say that the host's link is not there after the test."""


@pytest.fixture
def host_is_as_before(request: pytest.FixtureRequest, node: Node, veth: Link) -> Any:
    """After every test the host is as it was before, unless its link may go."""
    node.net.ip("link", "set", "ens1v0", "mtu", "1450", "alias", "rail 1", "txqueuelen", "500", "up")
    node.net.ip("link", "property", "add", "dev", "ens1v0", "altname", "a-long-altname-of-the-rail")
    before = node.snapshot()
    yield
    if "link_may_go" not in request.fixturenames:
        assert node.snapshot() == before
    assert node.records() == []


def give_network(node: Node) -> None:
    for words in ("10.9.0.5/24", "10.9.0.6/24", "fd09::5/64 nodad"):
        node.net.ip("addr", "add", *words.split(), "dev", "ens1v0")
    for words in (
        "10.20.0.0/16 via 10.9.0.1 metric 7 mtu 1300 proto static",
        "10.21.0.0/16 proto static",
        "10.22.0.0/16 via 10.21.0.1 table 77 proto static",
        "10.23.0.0/16 via 10.9.0.1 src 10.9.0.6 proto static",
        "fd20::/64 via fd09::1 proto static",
    ):
        node.net.ip("route", "add", *words.split(), "dev", "ens1v0")


def take_network(node: Node) -> None:
    node.net.ip("route", "flush", "proto", "static")
    node.net.ip("route", "flush", "table", "77")
    node.net.ip("-6", "route", "flush", "proto", "static")
    for address in ("10.9.0.6/24", "10.9.0.5/24", "fd09::5/64"):
        node.net.ip("addr", "del", address, "dev", "ens1v0")


def prev_result(pod: Pod, **more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "interfaces": [{"name": "net1", "sandbox": pod.net.path, **more}]}
