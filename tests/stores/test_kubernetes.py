"""What is the ``kubernetes`` store's own: upstream's fields to the letter, its calls, its annotations."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from netaddr import IPAddress, IPNetwork

from conf.errors import InvalidNetworkConfig, StoreUnavailable, TryAgainLater
from conf.whereabouts import StoreConf
from ipam.stores import door
from ipam.stores.contract import Deadline, Want
from ipam.stores.upstream_pool import PoolObject
from tests.stores.conftest import Lab, kubernetes_lab, owner, pool, release, reserve
from tests.stores.json_patch import apply_json_patch
from tests.stores.upstream_writer import Upstream

BLOCK = "10.0.0.0/29"
POD = {"pod_namespace": "ns", "pod_name": "web-0", "pod_uid": "u1", "node": "node7", "cni_network": "rail1"}


@pytest.fixture
def lab(api_server, tmp_path):
    return Lab(kubernetes_lab(api_server, "kubernetes", tmp_path))


@pytest.fixture
def upstream(api_server):
    return Upstream(api_server)


def take(lab, name, *wants, **recorded):
    with lab.open() as store:
        return store.reserve(owner(name, **recorded), [Want(pool(want)) for want in wants], allocation="lowest")


def requests(api_server):
    return [line.split(" ")[0] for line in api_server.counts()["log"]]


def test_objects_are_upstreams(lab, upstream):
    take(lab, "c1", BLOCK, "2001:db8::/64", **POD)
    entry = {"id": "c1", "podref": "ns/web-0", "ifname": "net1"}
    items = {item["metadata"]["name"]: item["spec"] for item in upstream.call("GET", "ippools")["items"]}
    assert items == {
        "10.0.0.0-29": {"range": "10.0.0.0/29", "allocations": {"1": entry}},
        "2001-db8---64": {"range": "2001:db8::/64", "allocations": {"1": entry}},
    }
    reserved = {"podref": "ns/web-0", "ifname": "net1", "containerid": "c1"}
    assert upstream.reservations() == {"10.0.0.1": reserved, "2001-db8--1": reserved}


def test_network_name_is_in_every_name(lab, upstream):
    reserve(lab, "c1", Want(pool(BLOCK, network_name="blue")), Want(pool("::/64", network_name="blue")))
    assert list(upstream.pools()) == ["blue----64", "blue-10.0.0.0-29"]
    assert list(upstream.reservations()) == ["blue---1", "blue-10.0.0.1"]


def test_without_a_pod_the_podref_can_be_no_pods(lab, upstream):
    (lease,) = take(lab, "c1", BLOCK)
    assert upstream.pools()["10.0.0.0-29"]["10.0.0.1"]["podref"] == "_/c1"
    assert (lease.owner.pod_namespace, lease.owner.pod_name) == ("", "")


def test_a_quiet_add_is_three_calls_and_a_quiet_del_four(lab, api_server):
    api_server.reset()
    reserve(lab, "c0", BLOCK)
    assert requests(api_server) == ["GET", "POST", "POST"]
    api_server.reset()
    reserve(lab, "c1", BLOCK)
    assert requests(api_server) == ["GET", "POST", "PATCH"]
    api_server.reset()
    release(lab, "c1")
    assert requests(api_server) == ["GET", "GET", "DELETE", "PATCH"]


def test_without_overlap_checks_it_is_two_and_there_is_no_reservation(lab, api_server, upstream):
    want = Want(pool(BLOCK, overlap_checked=False))
    reserve(lab, "c0", want)
    api_server.reset()
    reserve(lab, "c1", want)
    assert requests(api_server) == ["GET", "PATCH"]
    with lab.open() as store:
        (lease,) = store.find(owner("c1"), pools=[want.pool])
        assert lease.space == "/10.0.0.0/29"
        assert [each.revision for each in store.find(owner("c1"))] == [lease.revision]
    assert release(lab, "c1") == ["10.0.0.2"]
    assert upstream.reservations() == {}


def test_what_upstream_has_no_field_for_is_kept_without_overlap_checks_too(lab):
    with lab.open() as store:
        want = Want(pool(BLOCK, overlap_checked=False))
        (lease,) = store.reserve(owner("c1", **POD), [want], allocation="lowest")
        (found,) = store.leases(node="node7")
    assert found == lease
    assert (found.owner.cni_network, found.owner.pod_uid, found.allocated_at) == ("rail1", "u1", lab.clock.now)


def test_the_other_half_of_a_64_is_refused_and_nothing_is_written(lab, upstream):
    with pytest.raises(InvalidNetworkConfig, match="2001:db8::8000:0:0:1") as raised:
        reserve(lab, "c1", BLOCK, Want(pool("2001:db8::/64"), IPAddress("2001:db8::8000:0:0:1")))
    assert "kubernetes-leases" in raised.value.hint
    assert (upstream.pools(), upstream.reservations()) == ({"10.0.0.0-29": {}}, {})


def test_entries_that_upstream_cannot_read_are_nobodys(lab, upstream):
    entry = {"id": "x", "podref": "ns/x", "ifname": "net1"}
    allocations = {"18446463705355360228": entry, "-3": entry, "abc": entry, "300": entry, "1": entry}
    spec = {"range": BLOCK, "allocations": allocations}
    body = {"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "IPPool", "metadata": {"name": "10.0.0.0-29"}}
    assert upstream.call("POST", "ippools", {**body, "spec": spec})
    assert reserve(lab, "c1", BLOCK) == ["10.0.0.2"]
    with lab.open() as store:
        assert [str(lease.address) for lease in store.leases()] == ["10.0.0.1", "10.0.0.2"]


def test_a_pool_whose_range_is_none_hides_no_other(lab, upstream, caplog):
    assert reserve(lab, "c1", BLOCK) == ["10.0.0.1"]
    for name, block in (("a", "all of them"), ("b", ""), ("z", "10.0.0.0/99")):
        body = {"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "IPPool", "metadata": {"name": name}}
        assert upstream.call("POST", "ippools", {**body, "spec": {"range": block, "allocations": {}}})
    with lab.open() as store:
        assert [str(lease.address) for lease in store.leases()] == ["10.0.0.1"]
    assert [record.args for record in caplog.records] == [("a",), ("b",), ("z",)]


def test_reservations_of_another_range_are_passed_over_in_order(lab, api_server):
    for number in range(4):
        reserve(lab, f"wide{number}", "10.0.0.0/24")
    assert reserve(lab, "a", "10.0.0.0/28") != reserve(lab, "b", "10.0.0.0/28")
    with lab.open() as store:
        addresses = [lease.address for lease in store.leases()]
    assert len(addresses) == len(set(addresses)) == 6


def test_a_reservation_without_allocation_is_ours_again_or_released(lab, upstream, api_server):
    reserve(lab, "c1", BLOCK)
    patch = [{"op": "remove", "path": "/spec/allocations/1"}]
    assert upstream.request("PATCH", "ippools/10.0.0.0-29", patch)[0] == 200
    assert reserve(lab, "c1", BLOCK) == ["10.0.0.1"]
    assert upstream.request("PATCH", "ippools/10.0.0.0-29", patch)[0] == 200
    assert release(lab, "c1") == []
    assert upstream.reservations() == {}


@pytest.mark.parametrize(("answering_s", "is_listed"), [(0.0, True), (1.0, False)])
def test_a_rival_who_waits_for_a_slow_server_is_not_taken_for_one_that_has_gone(
    lab, upstream, api_server, tmp_path, answering_s, is_listed
):
    # Three of another node have reserved their addresses three seconds ago, and have not entered them yet.
    other_node = Lab(lab.make.elsewhere(tmp_path / "other"))
    for number in range(3):
        reserve(other_node, f"c{number}", "10.0.0.0/24")
    for offset in (1, 2, 3):
        upstream.request("PATCH", "ippools/10.0.0.0-24", [{"op": "remove", "path": f"/spec/allocations/{offset}"}])
    api_server.reset()
    with lab.open() as store:
        store.api.age_s = lambda _: 3.0
        store.api.answering_s = answering_s
        (lease,) = store.reserve(owner("c9"), [Want(pool("10.0.0.0/24"))], allocation="lowest")
    assert str(lease.address) not in ("10.0.0.1", "10.0.0.2", "10.0.0.3")
    lists = [line for line in api_server.counts()["log"] if line.endswith("/overlappingrangeipreservations")]
    assert ("GET" in " ".join(lists)) is is_listed


def test_a_lost_reservation_is_made_again_by_the_next_add(lab, upstream):
    reserve(lab, "c1", BLOCK)
    upstream.request("DELETE", "overlappingrangeipreservations/10.0.0.1")  # upstream's DEL of a stale holder
    assert reserve(lab, "c1", BLOCK) == ["10.0.0.1"]
    assert upstream.reservations()["10.0.0.1"]["containerid"] == "c1"


def test_an_address_that_another_one_reserved_meanwhile_is_given_up(lab, upstream):
    reserve(lab, "c1", BLOCK)
    upstream.request("DELETE", "overlappingrangeipreservations/10.0.0.1")
    body = {"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "OverlappingRangeIPReservation"}
    spec = {"podref": "ns/other"}
    upstream.call("POST", "overlappingrangeipreservations", {**body, "metadata": {"name": "10.0.0.1"}, "spec": spec})
    assert reserve(lab, "c1", BLOCK) == ["10.0.0.2"]
    assert list(upstream.pools()["10.0.0.0-29"]) == ["10.0.0.2"]
    release(lab, "c1")
    assert list(upstream.reservations()) == ["10.0.0.1"]


def test_cooling_is_an_annotation_that_goes_away_again(lab, upstream):
    for number in range(30):
        reserve(lab, f"c{number}", "10.0.0.0/24")
    for number in range(30):
        release(lab, f"c{number}")
    noted = upstream.call("GET", "ippools/10.0.0.0-24")["metadata"]["annotations"]
    assert sum(key.startswith("cooling.") for key in noted) == 30
    assert noted["cooling.ipam.vferry.io/1"] == f"{lab.clock.now:.3f}/60.000"
    lab.clock.now += 61
    for number in range(10):
        reserve(lab, f"late{number}", "10.0.0.0/24")
        release(lab, f"late{number}", cooldown_s=0.0)
    assert list(upstream.call("GET", "ippools/10.0.0.0-24")["metadata"]["annotations"]) == ["ipam.vferry.io/made-by"]


def test_annotations_never_outgrow_the_object(lab, upstream, api_server):
    notes = {f"cooling.ipam.vferry.io/{offset}": f"{lab.clock.now:.3f}/60.000" for offset in range(5, 1005)}
    entry = {"id": "c1", "podref": "ns/x", "ifname": "net1"}
    body = {
        "apiVersion": "whereabouts.cni.cncf.io/v1alpha1",
        "kind": "IPPool",
        "metadata": {"name": "10.0.0.0-16", "annotations": notes},
        "spec": {"range": "10.0.0.0/16", "allocations": {"1": entry}},
    }
    assert upstream.call("POST", "ippools", body)
    assert release(lab, "c1") == ["10.0.0.1"]
    assert upstream.call("GET", "ippools/10.0.0.0-16")["metadata"]["annotations"] == notes


def test_where_annotations_are_nearly_full_pods_come_and_go(lab, upstream):
    """Without overlap checks each lease has one, and the server refuses every patch that makes them too many."""
    note = json.dumps({"cid": "c" * 64, "network": "rail1", "node": "ip-10-0-12-34.eu-central-1.compute.internal"})
    notes = {f"lease.ipam.vferry.io/{offset}": note.ljust(300) for offset in range(1000, 1600)}
    notes |= {f"cooling.ipam.vferry.io/{offset}": f"{lab.clock.now:.3f}/60.000/{'a' * 16}" for offset in range(5, 1000)}
    room = 256 * 1024 - 100 - sum(len(key) + len(value) for key, value in notes.items())
    assert room > 0
    entries = {str(offset): {"id": f"c{offset}", "podref": "ns/x", "ifname": "net1"} for offset in (1, 2)}
    body = {
        "apiVersion": "whereabouts.cni.cncf.io/v1alpha1",
        "kind": "IPPool",
        "metadata": {"name": "10.0.0.0-16", "annotations": notes | {"example.org/x": "x" * (room - 13)}},
        "spec": {"range": "10.0.0.0/16", "allocations": entries},
    }
    assert upstream.call("POST", "ippools", body)
    assert reserve(lab, "new", Want(pool("10.0.0.0/16", overlap_checked=False))) == ["10.0.0.3"]
    for name, address in (("c1", "10.0.0.1"), ("c2", "10.0.0.2"), ("new", "10.0.0.3")):
        assert release(lab, name) == [address]


def test_a_pool_without_allocations_is_given_some():
    """A CRD of old did not require them."""
    there = PoolObject("10.0.0.0-29", IPNetwork(BLOCK), {"metadata": {"name": "10.0.0.0-29"}, "spec": {"range": BLOCK}})
    document = apply_json_patch({"metadata": {}, "spec": {"range": BLOCK}}, there.adding(1, owner("c"), None))
    assert document["spec"]["allocations"] == {"1": {"id": "c", "podref": "_/c", "ifname": "net1"}}


def test_the_door_opens_without_touching_anything(tmp_path):
    conf = StoreConf.model_validate({"kubernetes": {"kubeconfig": str(tmp_path / "absent")}})
    # The door's stores have the node's own journals, where an earlier run of these tests has left its word.
    with door.open_store(conf, Deadline(10)) as store, pytest.raises(StoreUnavailable, match="absent"):
        store.release(owner(f"door-{time.time_ns()}"))


def test_without_any_access_a_del_succeeds_and_an_add_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    for name in ("kubernetes", "kubernetes-leases"):
        conf = StoreConf.model_validate({"datastore": name})
        with door.open_store(conf, Deadline(10)) as store:
            assert store.release(owner("door")) == ()
            with pytest.raises(InvalidNetworkConfig, match="no API server is known"):
                store.reserve(owner("door"), [Want(pool(BLOCK))], allocation="lowest")


def test_a_requested_address_that_a_reservation_holds_is_taken(lab, upstream):
    reserve(lab, "wide", Want(pool("10.0.0.0/24"), IPAddress("10.0.0.3")))
    with pytest.raises(TryAgainLater, match=r"10\.0\.0\.3 is already allocated"):
        reserve(lab, "c1", Want(pool(BLOCK), IPAddress("10.0.0.3")))
    assert json.dumps(upstream.pools()).count('"c1"') == 0


def test_who_manages_which_field_is_not_kept(lab, upstream):
    for number in range(2):
        reserve(lab, f"c{number}", BLOCK)
    assert "managedFields" not in upstream.call("GET", "ippools/10.0.0.0-29")["metadata"]


def test_a_del_reads_its_own_pool_only(lab, api_server):
    for number in range(5):
        reserve(lab, f"c{number}", Want(pool(BLOCK, network_name=f"rail{number}")))
    api_server.reset()
    release(lab, "c3")
    paths = [line.rpartition("/")[2] for line in api_server.counts()["log"] if "/ippools" in line]
    assert paths == ["rail3-10.0.0.0-29"] * 2
    with lab.open() as store:
        assert len(list(store.leases())) == 4


def test_a_del_whose_journal_is_gone_finds_everything(lab, upstream):
    reserve(lab, "c1", BLOCK, Want(pool(BLOCK, network_name="blue")))
    shutil.rmtree(lab.make.run)
    assert len(release(lab, "c1")) == 2
    assert upstream.reservations() == {}
