"""What an ADD costs at ``kubernetes-leases`` in calls, on nodes that do not know what others have."""

from __future__ import annotations

import shutil

import pytest
from netaddr import IPAddress

from conf.errors import AddressesExhausted
from ipam.stores import iplease_claim
from ipam.stores.contract import Want
from ipam.stores.iplease import COLLECTION
from ipam.stores.kubernetes_api import KubernetesApi
from tests.stores.conftest import Lab, kubernetes_lab, pool, release, reserve
from tests.stores.filling import fill_ipleases


@pytest.fixture
def lab(api_server, tmp_path):
    return Lab(kubernetes_lab(api_server, "kubernetes-leases", tmp_path))


def requests(api_server):
    return [line.split(" ")[0] for line in api_server.counts()["log"]]


def calls_on_new_nodes(lab, api_server, tmp_path, block, nodes):
    """Reserve one address on each of so many nodes that know nothing, and return what each asked the server."""
    calls = []
    for number in range(nodes):
        api_server.reset()
        reserve(lab.on_another_node(tmp_path / f"node{number}"), f"new{number}", Want(block), allocation="window")
        calls.append(requests(api_server))
    return calls


@pytest.mark.parametrize(
    ("taken", "most", "listed"),
    # Nobody; hardly anybody; all of the lowest ones, from which a first candidate is drawn; many.
    [(0, 1.3, 0), (12, 1.5, 0), (100, 2.5, 0), (300, 3.5, 3)],
)
def test_a_node_that_knows_nothing_tries_further_up_before_it_looks(lab, api_server, tmp_path, taken, most, listed):
    block = pool("10.0.0.0/16")
    fill_ipleases(lab.make.kubeconfig, block, range(block.range.first, block.range.first + taken))
    calls = calls_on_new_nodes(lab, api_server, tmp_path, block, 16)
    assert sum(map(len, calls)) / 16 <= most
    assert sum("GET" in each for each in calls) <= listed
    assert calls[0] == ["POST"] or taken


def test_who_met_others_draws_from_more_next_time(lab, api_server, tmp_path):
    block = pool("10.0.0.0/16")
    fill_ipleases(lab.make.kubeconfig, block, range(block.range.first, block.range.first + 100))
    calls_on_new_nodes(lab, api_server, tmp_path, block, 8)
    api_server.reset()
    for number in range(8):
        reserve(lab.on_another_node(tmp_path / f"node{number}"), f"next{number}", Want(block), allocation="window")
    assert len(requests(api_server)) < 8 * 1.8


@pytest.mark.parametrize(
    ("block", "calls"),
    [
        ("10.0.0.0/20", ["POST", "GET", "GET", "POST"]),
        # Where there may be thousands, two looks tell whether there are.
        ("10.0.0.0/16", ["POST", "GET", "GET", "GET", "GET", "POST"]),
    ],
)
def test_another_node_asks_how_many_and_for_which_and_knows(lab, api_server, monkeypatch, block, calls):
    monkeypatch.setattr(iplease_claim, "_PATIENCE_BLANK", 1)
    for number in range(64):
        reserve(lab, f"c{number}", block, allocation="lowest")
    shutil.rmtree(lab.make.run)
    api_server.reset()
    reserve(lab, "late", block, allocation="window")
    assert requests(api_server) == calls
    api_server.reset()
    reserve(lab, "later", block, allocation="window")
    assert requests(api_server) == ["POST"]


def test_many_of_other_networks_are_not_listed_either(lab, api_server, monkeypatch):
    monkeypatch.setattr(iplease_claim, "_MANY", 300)
    monkeypatch.setattr(iplease_claim, "_PATIENCE_BLANK", 1)
    other, block = pool("10.0.0.0/16", network_name="blue"), pool("10.1.0.0/20")
    fill_ipleases(lab.make.kubeconfig, other, range(other.range.first, other.range.first + 400))
    for number in range(64):
        reserve(lab, f"c{number}", Want(block), allocation="lowest")
    shutil.rmtree(lab.make.run)
    api_server.reset()
    (address,) = reserve(lab, "late", Want(block), allocation="window")
    assert api_server.counts()["log"].count(f"GET {COLLECTION}") == 1
    assert requests(api_server) == ["POST", *["GET"] * 3, "POST"]
    assert 64 <= IPAddress(address).value - block.range.first < 64 + 2 * 64 + 64


def test_that_a_range_is_full_is_never_guessed(lab, monkeypatch):
    """The leases that are counted may be another network's."""
    monkeypatch.setattr(iplease_claim, "_MANY", 300)
    other = pool("10.0.0.0/16", network_name="blue")
    fill_ipleases(lab.make.kubeconfig, other, range(other.range.first, other.range.first + 400))
    block = pool("10.1.0.0/25")
    for number in range(126):
        reserve(lab, f"c{number}", Want(block), allocation="window")
    shutil.rmtree(lab.make.run)
    with pytest.raises(AddressesExhausted) as raised:
        reserve(lab, "late", Want(block), allocation="window")
    assert "used 126" in raised.value.details


# The lowest free address.


@pytest.fixture
def lists(monkeypatch):
    """Note of each list whether the server was asked for what it has in memory; ``memory``: what it then has."""
    noted, memory = [], []
    listed = KubernetesApi.listed

    def note(self, path, *, cached=False, **keys):
        noted.append(cached)
        return iter(memory[0]) if cached and memory else listed(self, path, cached=cached, **keys)

    monkeypatch.setattr(KubernetesApi, "listed", note)
    return noted, memory


@pytest.fixture
def as_it_was(lab):
    """Return what the server has now, as it would list it from its memory."""

    def read():
        with lab.open() as store:
            return list(store.api.listed(COLLECTION, metadata_only=True))

    return read


BLOCK = "10.0.0.0/29"


def test_the_lowest_address_is_chosen_from_the_servers_memory(lab, lists):
    noted, _ = lists
    assert [reserve(lab, f"c{number}", BLOCK) for number in range(3)] == [["10.0.0.1"], ["10.0.0.2"], ["10.0.0.3"]]
    assert noted == [True] * 3
    del noted[:]
    # Where nothing cools, what was just released is the lowest one.
    release(lab, "c0", cooldown_s=0.0)
    assert reserve(lab, "c3", BLOCK, cooldown_s=0.0) == ["10.0.0.1"]
    assert noted == [False]


def test_a_memory_that_is_old_neither_doubles_nor_exhausts(lab, lists, as_it_was):
    noted, memory = lists
    empty = as_it_was()
    assert [reserve(lab, f"c{number}", BLOCK)[0] for number in range(5)] == [f"10.0.0.{at}" for at in range(1, 6)]
    memory[:] = [empty]
    assert reserve(lab, "c5", BLOCK) == ["10.0.0.6"]
    full = as_it_was()
    memory[:] = [full]
    del noted[:]
    release(lab, "c2", cooldown_s=0.0)
    assert reserve(lab, "late", BLOCK) == ["10.0.0.3"]
    with pytest.raises(AddressesExhausted):
        reserve(lab, "later", BLOCK)
    assert noted == [True, False] * 2


def test_what_was_released_longer_ago_than_the_memory_is_old_is_the_lowest(lab, lists, as_it_was):
    _, memory = lists
    for number in range(4):
        reserve(lab, f"c{number}", BLOCK)
    release(lab, "c1")
    memory[:] = [as_it_was()]
    lab.clock.now += 61
    assert [reserve(lab, name, BLOCK)[0] for name in ("d", "e")] == ["10.0.0.2", "10.0.0.5"]
