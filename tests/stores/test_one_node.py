"""Many invocations of one node at one IPPool lose no race to each other: each costs what one alone does."""

from __future__ import annotations

import pytest

from ipam.stores.contract import Want
from tests.processes import at_once
from tests.stores.conftest import Lab, kubernetes_lab, owner, pool

PODS = 24
BLOCK = "10.9.0.0/24"
PATIENCE_S = 120.0


@pytest.fixture
def lab(api_server, tmp_path):
    return Lab(kubernetes_lab(api_server, "kubernetes", tmp_path))


def _reserve(store, name):
    (lease,) = store.reserve(owner(name), [Want(pool(BLOCK))], allocation="lowest")
    return str(lease.address)


def _release(store, name):
    return [str(lease.address) for lease in store.release(owner(name))]


def _at_once(lab, call):
    def act(name, wait):
        with lab.open(deadline_s=PATIENCE_S) as store:
            wait()
            return call(store, name), store.api.calls

    collected = at_once(act, [f"c{n}" for n in range(PODS)])
    return [(name, done, calls) for name, (done, calls) in collected]


def test_a_nodes_pods_lose_no_race_to_each_other(lab):
    with lab.open() as store:
        _reserve(store, "first")  # the pool is there
    added = _at_once(lab, _reserve)
    assert {address for _, address, _ in added} == {f"10.9.0.{n}" for n in range(2, PODS + 2)}
    # Pool, reservation, patch.
    assert [calls for _, _, calls in added] == [3] * PODS
    deleted = _at_once(lab, _release)
    assert {name: [address] for name, address, _ in added} == {name: gone for name, gone, _ in deleted}
    # Pool, reservations of the owner, the reservation, patch.
    assert [calls for _, _, calls in deleted] == [4] * PODS


def test_nor_where_there_is_something_to_sweep(lab):
    names = [f"c{n}" for n in range(2 * PODS)]
    with lab.open() as store:
        for name in names:
            _reserve(store, name)
        for name in names:
            _release(store, name)
    lab.clock.now += 1e7  # nobody remembers who had them
    _at_once(lab, _reserve)
    assert [calls for _, _, calls in _at_once(lab, _release)] == [4] * PODS


def test_the_pool_is_made_by_one_of_them(lab, api_server):
    added = _at_once(lab, _reserve)
    assert {address for _, address, _ in added} == {f"10.9.0.{n}" for n in range(1, PODS + 1)}
    made = [line for line in api_server.counts()["log"] if line.startswith("POST") and line.endswith("/ippools")]
    assert len(made) == 1


def test_an_address_that_was_given_back_is_the_lowest_again(lab):
    with lab.open(cooldown_s=0) as store:
        assert [_reserve(store, name) for name in ("a", "b", "c")] == ["10.9.0.1", "10.9.0.2", "10.9.0.3"]
        _release(store, "b")
        assert _reserve(store, "d") == "10.9.0.2"
