"""The contract's memory of pods: the same pod, in another container, gets its former address while it is free."""

from __future__ import annotations

import pytest
from netaddr import IPAddress

from ipam.stores.contract import Want
from tests.stores.conftest import owner, pool, reserve

BLOCK = "10.0.0.0/29"


def pod(container_id, name="web-0", *, namespace="ns", ifname="net1"):
    return owner(container_id, ifname, pod_namespace=namespace, pod_name=name, node="node1")


def start(lab, pod, *wants, **opening):
    with lab.open(**opening) as store:
        leases = store.reserve(
            pod, [Want(pool(each)) if isinstance(each, str) else each for each in wants], allocation="lowest"
        )
    return [str(lease.address) for lease in leases]


def stop(lab, pod, **opening):
    with lab.open(**opening) as store:
        store.release(pod)


@pytest.fixture
def stopped(lab):
    """A pod that had 10.0.0.2 and 2001:db8::2 and gave them back."""
    start(lab, pod("other", "other"), BLOCK, "2001:db8::/64")
    assert start(lab, pod("c1"), BLOCK, "2001:db8::/64") == ["10.0.0.2", "2001:db8::2"]
    stop(lab, pod("c1"))
    stop(lab, pod("other", "other"))
    return lab


@pytest.mark.parametrize("seconds", [0, 59, 61, 7200])
def test_a_pod_that_comes_again_gets_its_former_addresses_cooling_or_not(stopped, seconds):
    stopped.clock.now += seconds
    assert start(stopped, pod("c2"), BLOCK, "2001:db8::/64") == ["10.0.0.2", "2001:db8::2"]
    with stopped.open() as store:
        assert {lease.owner.container_id for lease in store.leases()} == {"c2"}
    stop(stopped, pod("c2"))
    assert start(stopped, pod("c3"), "2001:db8::/64", BLOCK) == ["2001:db8::2", "10.0.0.2"]


@pytest.mark.parametrize(
    "stranger",
    [pod("c2", "web-1"), pod("c2", namespace="other"), pod("c2", ifname="net2"), owner("c2"), pod("c2", "")],
)
def test_nobody_else_gets_it_before_it_has_cooled(stopped, stranger):
    assert start(stopped, stranger, BLOCK) == ["10.0.0.3"]


def test_somebody_elses_address_is_never_taken(stopped):
    stopped.clock.now += 61
    taken = start(stopped, owner("x"), Want(pool(BLOCK), IPAddress("10.0.0.2")))
    assert start(stopped, pod("c2"), BLOCK) != taken


def test_what_somebody_else_gave_back_since_cools(stopped):
    start(stopped, owner("x"), Want(pool(BLOCK), IPAddress("10.0.0.2")))
    stop(stopped, owner("x"))
    assert start(stopped, pod("c2"), BLOCK) != ["10.0.0.2"]


def test_the_former_address_counts_only_where_the_range_offers_it(stopped):
    assert start(stopped, pod("c2"), Want(pool(BLOCK, exclude=[IPAddress("10.0.0.2")]))) == ["10.0.0.3"]
    assert start(stopped, pod("c3"), Want(pool(BLOCK, network_name="blue"))) == ["10.0.0.1"]
    assert start(stopped, pod("c4"), Want(pool(BLOCK), IPAddress("10.0.0.5"))) == ["10.0.0.5"]


def test_a_full_range_still_has_the_address_that_cools_for_its_pod(lab):
    start(lab, pod("c1"), "10.0.0.1/32")
    stop(lab, pod("c1"))
    assert start(lab, pod("c2"), "10.0.0.1/32") == ["10.0.0.1"]


def test_two_containers_of_one_pod_never_share_the_former_address(stopped):
    first, second = (start(stopped, pod(each), BLOCK) for each in ("c2", "c3"))
    assert (first, second != first) == (["10.0.0.2"], True)
    assert start(stopped, pod("c2"), BLOCK) == first


def test_without_sticky_it_is_as_with_any_other(stopped):
    assert start(stopped, pod("c2"), BLOCK, sticky=False) == ["10.0.0.3"]


def test_what_was_reaped_is_remembered_too(lab):
    start(lab, owner("x"), BLOCK)
    start(lab, pod("c1"), BLOCK)
    with lab.open() as store:
        store.reap(next(lease for lease in store.leases() if lease.owner.container_id == "c1"))
    reserve(lab, "y", BLOCK)
    assert start(lab, pod("c2"), BLOCK) == ["10.0.0.2"]


def test_another_node_knows_it_when_it_may_ask(stopped, tmp_path):
    elsewhere = stopped.on_another_node(tmp_path / "elsewhere")
    assert start(elsewhere, pod("c2"), BLOCK, sticky=True) == ["10.0.0.2"]
