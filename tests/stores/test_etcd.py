"""What is the ``etcd`` store's own: what a call costs, hints, fences, its layout, paging."""

from __future__ import annotations

import json
import time

import pytest
from netaddr import IPAddress

from conf.errors import StoreUnavailable, TryAgainLater
from ipam.stores.contract import Want
from ipam.stores.etcd_requests import absent, put, transaction
from tests.stores.conftest import Lab, owner, pool, release, reserve
from tests.stores.conftest import etcd as make_lab
from tests.stores.filling import fill_etcd


@pytest.fixture
def lab(request):
    return Lab(make_lab(request))


@pytest.fixture
def keys(lab, etcd_server):
    """Return every key of the test, without the prefix."""

    def read(below=""):
        prefix = f"{lab.make.prefix}/v1/"
        return {key.removeprefix(prefix): value for key, (value, _) in etcd_server.keys(prefix + below).items()}

    return read


# Late and repeated requests.


def recorded(monkeypatch, store):
    """Return the transactions the store sends from now on."""
    sent = []
    write = store.gateway.write

    def write_and_record(path, body):
        sent.append((path, body))
        return write(path, body)

    monkeypatch.setattr(store.gateway, "write", write_and_record)
    return sent


def test_a_replayed_add_changes_nothing_after_the_del(lab, keys, etcd_server, monkeypatch):
    with lab.open() as store:
        sent = recorded(monkeypatch, store)
        store.reserve(owner("a"), [Want(pool("10.0.0.0/24"))], allocation="lowest")
        store.release(owner("a"))
    before = keys()
    for path, body in sent:
        assert not etcd_server.call(path, body).get("succeeded")
    assert keys() == before
    assert not keys("ip/")


def test_a_replayed_del_leaves_the_next_lease_alone(lab, keys, etcd_server, monkeypatch):
    reserve(lab, "a", "10.0.0.0/24")
    with lab.open() as store:
        sent = recorded(monkeypatch, store)
        store.release(owner("a"))
    assert reserve(lab, "a", Want(pool("10.0.0.0/24"), IPAddress("10.0.0.1"))) == ["10.0.0.1"]
    assert reserve(lab, "b", "10.0.0.0/24") == ["10.0.0.2"]
    before = keys()
    for path, body in sent:
        etcd_server.call(path, body)
    assert keys() == before


def test_a_del_before_the_add_arrives_wins(lab, keys):
    release(lab, "a")
    (value,) = keys("own/").values()
    assert json.loads(value)["leases"] == []
    assert reserve(lab, "a", "10.0.0.0/24") == ["10.0.0.1"]  # the runtime's next ADD is none of the past


def test_an_add_on_its_way_loses_to_its_del_in_a_second_life_too(lab, keys, etcd_server, monkeypatch):
    reserve(lab, "a", "10.0.0.0/24")
    release(lab, "a")

    class Killed(BaseException):
        pass

    with lab.open() as store:
        on_the_way = []

        def kill_at_the_second(path, body):
            on_the_way.append((path, body))
            if len(on_the_way) == 2:
                raise Killed
            return write(path, body)

        write = store.gateway.write
        monkeypatch.setattr(store.gateway, "write", kill_at_the_second)
        with pytest.raises(Killed):
            store.reserve(owner("a"), [Want(pool("10.0.0.0/24"))], allocation="lowest")
    assert release(lab, "a") == []
    assert not etcd_server.call(*on_the_way[1]).get("succeeded")
    assert not keys("ip/")


def test_an_add_that_is_overtaken_by_its_del_gives_up(lab, monkeypatch):
    with lab.open() as store:
        reserve(lab, "other", "10.0.0.0/24")
        change = store._cluster.change

        def change_after_a_release(body):
            monkeypatch.setattr(store._cluster, "change", lambda body: (release(lab, "a"), change(body))[1])
            return change(body)

        monkeypatch.setattr(store._cluster, "change", change_after_a_release)
        with pytest.raises(TryAgainLater, match="was released while it reserved"):
            store.reserve(owner("a"), [Want(pool("10.0.0.0/24"))], allocation="lowest")
    assert release(lab, "a") == []


def test_one_revision_for_a_record_and_its_addresses(lab, etcd_server):
    reserve(lab, "a", "10.0.0.0/24")
    reserve(lab, "a", "10.0.0.0/24", "2001:db8::/64")
    prefix = f"{lab.make.prefix}/v1/"
    revisions = {kv["mod_revision"] for below in ("ip/", "own/") for _, kv in etcd_server.keys(prefix + below).values()}
    assert len(revisions) == 1


def test_reap_of_one_of_two_leases_keeps_the_other(lab, keys):
    reserve(lab, "a", "10.0.0.0/24", "2001:db8::/64")
    with lab.open() as store:
        first, second = store.leases()
        assert store.reap(first) is True
        assert [lease.address for lease in store.find(owner("a"))] == [second.address]
        assert store.reap(second) is False  # it was written anew; who reaps looks again
        assert store.reap(*store.find(owner("a"))) is True
    assert not keys("ip/")
    assert not keys("node/")


def test_an_address_given_away_by_hand_survives_the_del(lab, keys, etcd_server):
    reserve(lab, "a", "10.0.0.0/24")
    (key,) = (f"{lab.make.prefix}/v1/{key}" for key in keys("ip/"))
    etcd_server.call("/v3/kv/txn", transaction([], [put(key, "somebody else's")]))
    assert release(lab, "a") == ["10.0.0.1"]
    assert list(keys("ip/").values()) == ["somebody else's"]


_NO_ADDRESS = {"address": "10.0.0.x", "network_name": "", "space": "", "allocated_at": 1.0}


@pytest.mark.parametrize("value", ["no JSON", "[]", "{}", json.dumps({"owner": {}, "leases": [_NO_ADDRESS]})])
def test_a_record_not_of_ours_is_an_error_that_names_it(lab, keys, etcd_server, value):
    reserve(lab, "a", "10.0.0.0/24")
    (key,) = (f"{lab.make.prefix}/v1/{key}" for key in keys("own/"))
    etcd_server.call("/v3/kv/txn", transaction([], [put(key, value)]))
    with pytest.raises(StoreUnavailable, match="own/a/net1 cannot be read"):
        release(lab, "a")


# Layout, cool-down, lists.


def test_layout(lab, keys):
    with lab.open() as store:
        store.reserve(
            owner("c1", node="node/7", pod_name="p"),
            [
                Want(pool("10.0.0.0/24"), IPAddress("10.0.0.10")),
                Want(pool("2001:db8::/64", network_name="blue"), IPAddress("2001:db8::a")),
                Want(pool("10.0.0.0/29", network_name="blue", overlap_checked=False), IPAddress("10.0.0.1")),
            ],
            allocation="lowest",
        )
    assert sorted(keys()) == [
        "ip/_default/all/v4/0a00000a",
        "ip/blue/10.0.0.0_29/v4/0a000001",
        "ip/blue/all/v6/20010db800000000000000000000000a",
        "node/node%2F7/c1/net1",
        "own/c1/net1",
    ]
    assert json.loads(keys()["ip/_default/all/v4/0a00000a"])["owner"]["pod_name"] == "p"
    release(lab, "c1")
    assert sorted(keys()) == [
        "cool/_default/all/v4/0a00000a",
        "cool/blue/10.0.0.0_29/v4/0a000001",
        "cool/blue/all/v6/20010db800000000000000000000000a",
        next(key for key in keys() if key.startswith("former/")),
        "own/c1/net1",
    ]


def test_etcd_ends_the_cool_down_and_removes_the_empty_record(lab, keys):
    reserve(lab, "a", "10.0.0.0/29")
    release(lab, "a", cooldown_s=1.0)
    assert keys()
    end = time.monotonic() + 300
    while keys() and time.monotonic() < end:
        time.sleep(0.1)
    assert keys() == {}


def test_leases_come_page_by_page(lab, etcd_server):
    first = IPAddress("10.1.0.1").value
    fill_etcd(etcd_server, lab.make.prefix, pool("10.1.0.0/16"), range(first, first + 2500))
    with lab.open() as store:
        values = [lease.address.value for lease in store.leases("")]
        assert values == sorted(set(values))
        assert (len(values), store.gateway.calls) == (2500, 3)


def test_leases_of_a_node(lab):
    for n in range(5):
        with lab.open() as store:
            wants = [Want(pool("10.0.0.0/24", network_name=name)) for name in ("", "blue")]
            store.reserve(owner(f"c{n}", node=f"node{n % 2}"), wants, allocation="lowest")
    with lab.open() as store:
        found = list(store.leases("blue", node="node1"))
        assert {(lease.owner.container_id, lease.network_name) for lease in found} == {("c1", "blue"), ("c3", "blue")}
        assert len(list(store.leases(node="node0"))) == 6
        assert list(store.leases(node="node")) == []


def test_a_key_beside_the_probe_is_never_written(lab, keys):
    with lab.open() as store:
        store.probe()
    assert keys() == {}
    assert absent("x")["create_revision"] == "0"


def test_nested_wants_are_matched_again(lab):
    wants = ["10.0.0.0/24", "10.0.0.0/28"]
    first = reserve(lab, "a", *wants)
    assert reserve(lab, "a", *wants) == first
    with lab.open() as store:
        assert len(store.find(owner("a"))) == 2
