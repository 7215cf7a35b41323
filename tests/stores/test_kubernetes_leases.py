"""What is the ``kubernetes-leases`` store's own: names, one call per address, cooling objects, journals, beliefs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from conf.errors import AddressesExhausted, InvalidNetworkConfig, TryAgainLater
from ipam.stores import iplease
from ipam.stores.contract import Deadline, Want
from ipam.stores.iplease import COLLECTION
from ipam.stores.journal import Journals
from ipam.stores.known import Known
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes_api import KubernetesApi, Refused
from tests.stores.conftest import Lab, kubernetes_lab, owner, pool, release, reserve
from tests.stores.flapping_proxy import FlappingProxy

BLOCK = "10.0.0.0/29"


@pytest.fixture
def lab(api_server, tmp_path):
    return Lab(kubernetes_lab(api_server, "kubernetes-leases", tmp_path))


@pytest.fixture
def api(lab, api_server, tmp_path):
    """The server as its administrator sees it."""
    kubeconfig = api_server.write_kubeconfig(path=tmp_path / "admin.kubeconfig", token="admin")
    return KubernetesApi(find_access(str(kubeconfig)), deadline=Deadline(1200), crds="", rbac="")


def objects(api):
    return {obj["metadata"]["name"]: obj for obj in api.listed(COLLECTION)}


def requests(api_server):
    return [line.split(" ")[0] for line in api_server.counts()["log"]]


@pytest.mark.parametrize(
    ("want", "name"),
    [
        (pool("10.0.0.0/24"), "default.10.0.0.1"),
        (pool("10.0.0.0/24", network_name="blue"), "blue.10.0.0.1"),
        (pool("2001:db8::/64"), "default.2001-0db8-0000-0000-0000-0000-0000-0001"),
        (pool("::/64", network_name="a.b"), "a.b.0000-0000-0000-0000-0000-0000-0000-0001"),
        (pool("10.0.0.0/24", overlap_checked=False), "default.10.0.0.0-24.10.0.0.1"),
        (
            pool("2001:db8::/64", network_name="blue", overlap_checked=False),
            "blue.2001-0db8-0000-0000-0000-0000-0000-0000-64.2001-0db8-0000-0000-0000-0000-0000-0001",
        ),
    ],
)
def test_names(lab, api, want, name):
    reserve(lab, "c1", Want(want))
    assert list(objects(api)) == [name]


@given(st.integers(0, 2**128 - 1), st.sampled_from([4, 6]), st.sampled_from(["default", "a.b", "n.10.0.0.0-24"]))
def test_a_name_tells_its_address(value, version, prefix):
    address = IPAddress(value % 2 ** (32 if version == 4 else 128), version)
    assert iplease.address_in(iplease.name_of(prefix, address), prefix) == address
    assert iplease.address_in(iplease.name_of(prefix, address), "other") is None


@pytest.mark.parametrize("network_name", ["a..b", "a.-b", "x" * 200])
def test_a_network_name_that_no_object_can_have_is_refused(lab, network_name):
    with pytest.raises(InvalidNetworkConfig, match="network_name"):
        reserve(lab, "c1", Want(pool(BLOCK, network_name=network_name)))


def test_labels_that_are_too_long_are_digests_and_still_find_the_leases(lab):
    network_name, node = "n" * 100, "node." + "x" * 80
    with lab.open() as store:
        want = Want(pool(BLOCK, network_name=network_name))
        (lease,) = store.reserve(owner("c1", node=node), [want], allocation="lowest")
        assert list(store.leases(network_name)) == list(store.leases(network_name, node=node)) == [lease]
        assert list(store.leases("n" * 99)) == list(store.leases(node="other")) == []


def test_the_network_without_a_name_is_called_default(lab):
    named, unnamed = pool(BLOCK, network_name="default"), pool(BLOCK)
    assert reserve(lab, "a", Want(named)) == ["10.0.0.1"]
    assert reserve(lab, "b", Want(unnamed)) == ["10.0.0.2"]
    assert reserve(lab, "a", Want(named)) == ["10.0.0.1"]
    with lab.open() as store:
        (lease,) = store.find(owner("a"), pools=[named])
        assert (lease.network_name, lease.space) == ("default", "default")


def test_a_quiet_add_is_one_call_and_a_quiet_del_two(lab, api_server):
    for number in range(20):
        api_server.reset()
        reserve(lab, f"c{number}", "10.0.0.0/16", "2001:db8::/64", allocation="window")
        calls = requests(api_server)
        # The lowest 64 are drawn from at random: now and then one is somebody's, on this node that is known.
        assert calls == ["POST", "POST"]
    api_server.reset()
    release(lab, "c0")
    assert requests(api_server) == ["GET", "GET", "PUT", "PUT"]


def test_a_cooled_object_is_taken_over_with_one_call(lab, api, api_server):
    for number in range(6):
        reserve(lab, f"c{number}", BLOCK)
    release(lab, "c3")
    (before,) = [obj for obj in objects(api).values() if iplease.is_released(obj)]
    assert iplease.OWNER_LABEL not in before["metadata"]["labels"]
    with pytest.raises(AddressesExhausted):
        reserve(lab, "late", BLOCK, allocation="window")
    lab.clock.now += 61
    api_server.reset()
    assert reserve(lab, "late", BLOCK, allocation="window") == ["10.0.0.4"]
    assert requests(api_server) == ["PUT"]
    after = objects(api)["default.10.0.0.4"]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert "releasedAt" not in after["spec"]
    assert iplease.COOLING_LABEL not in after["metadata"]["labels"]


def test_a_cooled_object_that_another_node_took_is_left_to_it(lab, api_server):
    for number in range(6):
        reserve(lab, f"c{number}", BLOCK)
    release(lab, "c3")
    lab.clock.now += 61
    mine = lab.make.run
    shutil.copytree(mine, mine.with_name("other"))
    shutil.rmtree(mine)
    assert reserve(lab, "there", BLOCK, allocation="window") == ["10.0.0.4"]
    shutil.rmtree(mine)
    shutil.move(mine.with_name("other"), mine)
    with pytest.raises(AddressesExhausted):
        reserve(lab, "here", BLOCK, allocation="window")


@pytest.mark.parametrize("knows", [True, False])
def test_a_cooled_object_that_is_being_deleted_is_not_taken_over(lab, api, api_server, knows):
    for number in range(6):
        reserve(lab, f"c{number}", BLOCK)
    release(lab, "c3")
    lab.clock.now += 61
    path = f"{COLLECTION}/default.10.0.0.4"
    # As with kubectl delete --cascade=foreground: it stays until the garbage collector was there.
    api.replace(path, {**(cooled := api.get(path)), "metadata": {**cooled["metadata"], "finalizers": ["x.io/gc"]}})
    api.delete(path, uid=cooled["metadata"]["uid"])
    if not knows:
        shutil.rmtree(lab.make.run)
    with pytest.raises(AddressesExhausted):
        reserve(lab, "late", BLOCK, allocation="window")
    gone = api.get(path)
    assert gone["metadata"]["finalizers"] == ["x.io/gc"]
    del gone["metadata"]["finalizers"]
    api.replace(path, gone)
    assert api.get(path) is None
    assert reserve(lab, "late", BLOCK, allocation="window") == ["10.0.0.4"]
    assert objects(api)["default.10.0.0.4"]["spec"]["containerID"] == "late"


def test_an_object_that_says_no_lease_hides_no_other(lab, api, caplog):
    reserve(lab, "c1", BLOCK)
    (obj,) = objects(api).values()
    said = [{"ip": "1."}, {"ip": "ffff"}, {"allocatedAt": "0000-01-01T00:00:00Z"}]
    labels = {iplease.NETWORK_LABEL: "default"}
    for number, nonsense in enumerate(said, 2):
        spec = {**obj["spec"], "ip": f"10.0.0.{number}", **nonsense}
        metadata = {"name": f"default.10.0.0.{number}", "labels": labels}
        api.create(COLLECTION, {**obj, "metadata": metadata, "spec": spec})
    # What cools since nobody knows when is not taken.
    spec = {**obj["spec"], "ip": "10.0.0.5", "releasedAt": "0000-01-01T00:00:00Z"}
    api.create(COLLECTION, {**obj, "metadata": {"name": "default.10.0.0.5", "labels": labels}, "spec": spec})
    with lab.open() as store:
        assert [str(lease.address) for lease in store.leases()] == ["10.0.0.1"]
    assert [record.args[0] for record in caplog.records] == [f"default.10.0.0.{number}" for number in (2, 3, 4)]
    assert reserve(lab, "c2", Want(pool(BLOCK)), allocation="window") == ["10.0.0.6"]


def test_sweep_deletes_what_has_cooled_and_nothing_else(lab, api):
    for number in range(3):
        reserve(lab, f"c{number}", BLOCK)
    release(lab, "c0")
    release(lab, "c1", cooldown_s=600.0)
    lab.clock.now += 61
    with lab.open() as store:
        store._opened = api  # the plugin itself need not be allowed to delete
        assert store.sweep() == 1
        assert store.sweep() == 0
    assert list(objects(api)) == ["default.10.0.0.2", "default.10.0.0.3"]


def test_the_schema_lets_nobody_change_a_live_lease(lab, api):
    reserve(lab, "c1", BLOCK)
    (obj,) = objects(api).values()
    path = f"{COLLECTION}/{obj['metadata']['name']}"
    for changed in (
        {"ip": "10.0.0.9"},
        {"network": "blue"},
        {"range": BLOCK},
        {"containerID": "c2"},
        {"ifName": "net2"},
    ):
        with pytest.raises(InvalidNetworkConfig, match="never changes"):
            api.replace(path, {**obj, "spec": {**obj["spec"], **changed}})
    released = api.replace(path, iplease.released(obj, lab.clock.now, 60))
    again = {**released, "spec": {**obj["spec"], "containerID": "c2"}}
    assert api.replace(path, again)["metadata"]["generation"] == 3
    with pytest.raises(Refused):
        api.replace(path, again)


def test_the_same_pod_gets_the_same_address_while_it_is_free(lab):
    pod = {"pod_namespace": "ns", "pod_name": "web-0"}

    def start(name):
        with lab.open(cooldown_s=0.0) as store:
            (lease,) = store.reserve(owner(name, **pod), [Want(pool("10.0.0.0/24"))], allocation="window")
            return lease.address

    first = start("sandbox1")
    release(lab, "sandbox1", cooldown_s=0.0)
    assert start("sandbox2") == first
    assert start("sandbox3") != first


def test_what_a_request_made_that_arrived_twice_is_not_given_to_the_next_add(lab, api_server, tmp_path):
    """Its second answer says that the address is taken; that it is the owner's own comes out later."""
    proxy = FlappingProxy(api_server.port, seed=1, mishaps={"hand over twice": 0.5})
    path = api_server.write_kubeconfig(
        path=tmp_path / "through.kubeconfig", cluster={"server": proxy.url}, token="node's token"
    )
    through = replace(lab, make=replace(lab.make, kubeconfig=str(path)))
    more = 0
    for number in range(10):
        leased = reserve(through, f"c{number}", "10.0.0.0/24", "10.0.0.0/24", allocation="window")
        with lab.open() as store:
            more += len(store.find(owner(f"c{number}"))) - 2
        assert reserve(lab, f"c{number}", "10.0.0.0/24", "10.0.0.0/24", allocation="window") == leased
        release(lab, f"c{number}")
    assert more > 0
    proxy.close()
    with lab.open() as store:
        assert list(store.leases()) == []


# What a node remembers only saves calls.


def test_without_its_files_a_node_finds_its_leases(lab, api_server):
    given_ = reserve(lab, "c1", BLOCK, "2001:db8::/64", allocation="window")
    shutil.rmtree(lab.make.run)
    with lab.open() as store:
        assert sorted(str(lease.address) for lease in store.find(owner("c1"))) == sorted(given_)
    assert sorted(release(lab, "c1")) == sorted(given_)


def test_a_node_that_cannot_write_files_works_without(lab, api_server):
    lab.make.run.write_text("no directory")
    given_ = reserve(lab, "c1", BLOCK, allocation="window")
    assert reserve(lab, "c1", BLOCK, allocation="window") == given_
    assert release(lab, "c1") == given_


def test_nonsense_in_the_files_is_as_good_as_nothing(lab):
    reserve(lab, "c1", BLOCK, allocation="window")
    for path in lab.make.run.glob("stores/*"):
        about = json.loads(path.read_bytes())["about"]
        path.write_text(json.dumps({"about": about, "known": {"taken": {"4": [["x", 1]]}, "cooling": 7}}))
    reserve(lab, "c2", BLOCK, allocation="window")


def test_belief_that_everything_is_taken_is_checked(lab):
    for number in range(6):
        reserve(lab, f"c{number}", BLOCK, allocation="window")
    memory = {path: path.read_bytes() for path in lab.make.run.glob("stores/*")}
    release(lab, "c2", cooldown_s=0.0)
    for path, content in memory.items():
        path.write_bytes(content)
    assert len(reserve(lab, "late", BLOCK, allocation="window")) == 1


def test_known_survives_being_written_down():
    known = Known(patience=1)
    known.fill(IPAddress(f"10.0.0.{n}") for n in (1, 2, 3, 9))
    known.take(IPAddress("2001:db8::ffff"))
    known.free(IPAddress("10.0.0.2"), iplease.Cooling("u", "7", 100.0, 60.0))
    known.lose()
    assert known.window > 64
    again = Known.from_json(json.loads(json.dumps(known.to_json())), patience=2, patience_unlooked=1)
    network = IPNetwork("10.0.0.0/24")
    for moment, taken, cooling in ((101.0, [1, 3, 9, 2], 1), (200.0, [1, 3, 9], 0)):
        view = again.occupancy(4, moment)
        bounds = (network.first, network.last)
        assert view.taken(*bounds) == [network.first + n for n in taken]
        assert (view.count(*bounds), view.cooling(*bounds)) == (len(taken), cooling)
    assert again.cooling == known.cooling
    assert (again.window, again.looked, again.patience) == (known.window, False, 1)
    known.looked = True
    assert Known.from_json(known.to_json(), patience=2, patience_unlooked=1).patience == 2


def test_a_journal_keeps_invocations_of_one_owner_apart(tmp_path):
    journals = Journals(tmp_path / "run" / "owners", "store")
    with journals.of(owner("a"), Deadline(1), makes=True) as journal:
        journal.add("x")
        journal.add("y")
        journal.drop("x")
        assert not journal.is_settled
        with pytest.raises(TryAgainLater), journals.of(owner("a"), Deadline(0.05), makes=True):
            pass
        with journals.of(owner("b"), Deadline(1), makes=True) as other:
            assert other.names == ()
    with journals.of(owner("a"), Deadline(1), makes=False) as journal:
        assert (journal.names, journal.is_settled) == (("y",), False)
        journal.settle()
        assert (journal.is_new("x"), journal.is_new("y")) == (True, False)
        journal.forget()
    with journals.of(owner("a"), Deadline(1), makes=False) as journal:
        assert journal.names is None
        assert not journal.is_new("x")


def test_a_list_of_many_pages(lab, api, api_server):
    for number in range(1100):
        api.create(
            COLLECTION, iplease.make(owner(f"c{number}"), pool("10.0.0.0/16"), IPAddress("10.0.0.1") + number, 0)
        )
    api_server.reset()
    assert reserve(lab, "late", "10.0.0.0/16", cooldown_s=0.0) == ["10.0.4.77"]
    assert requests(api_server) == ["GET"] * 3 + ["POST"]
    with lab.open() as store:
        assert len({lease.address for lease in store.leases()}) == 1101


def test_a_list_whose_moment_is_forgotten_is_begun_anew(lab, api, api_server):
    for number in range(1100):
        api.create(
            COLLECTION, iplease.make(owner(f"c{number}"), pool("10.0.0.0/16"), IPAddress("10.0.0.1") + number, 0)
        )
    api_server.switch(expire=2)
    api_server.reset()
    with lab.open() as store:
        addresses = [lease.address for lease in store.leases()]
    assert len(addresses) == len(set(addresses)) == 1100
    assert requests(api_server) == ["GET"] * 7


def test_an_object_that_was_swept_away_is_free(lab, api, api_server):
    for number in range(6):
        reserve(lab, f"c{number}", BLOCK, allocation="window")
    release(lab, "c3")
    lab.clock.now += 61
    (cooled,) = [obj for obj in objects(api).values() if iplease.is_released(obj)]
    api.delete(f"{COLLECTION}/{cooled['metadata']['name']}", uid=cooled["metadata"]["uid"])
    api_server.reset()
    assert reserve(lab, "late", BLOCK, allocation="window") == [cooled["spec"]["ip"]]
    assert requests(api_server) == ["PUT", "POST"]
