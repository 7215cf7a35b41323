"""The stand-in does what the documentation of the Kubernetes API says of the real one, where the stores rest on it."""

from __future__ import annotations

import threading

import pytest

from conf.errors import InvalidNetworkConfig
from ipam.stores.contract import Deadline
from ipam.stores.iplease import API_VERSION, COLLECTION, KIND
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes_api import KubernetesApi, Refused
from tests.stores.api_schema import holds, instant
from tests.stores.json_patch import PatchFailed, apply_json_patch, apply_merge_patch
from tests.stores.upstream_writer import Upstream

POOLS = "/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/kube-system/ippools"
POOL = {
    "apiVersion": "whereabouts.cni.cncf.io/v1alpha1",
    "kind": "IPPool",
    "metadata": {"name": "p"},
    "spec": {"range": "10.0.0.0/8", "allocations": {}},
}
ENTRY = {"id": "c", "podref": "a/b"}


@pytest.fixture
def api(api_server, tmp_path):
    kubeconfig = api_server.write_kubeconfig(path=tmp_path / "kubeconfig")
    return KubernetesApi(find_access(str(kubeconfig)), deadline=Deadline(1200), crds="", rbac="")


def code_of(api, body, path=POOLS):
    """Return how a creation is answered that our client takes for a configuration's fault."""
    try:
        api.create(path, body)
    except InvalidNetworkConfig:
        return 422
    return 201


def refusal(call, *arguments, **options):
    with pytest.raises(Refused) as raised:
        call(*arguments, **options)
    return raised.value.status, raised.value.reason


def test_create_is_once_and_versions_grow(api):
    first = api.create(POOLS, POOL)
    assert refusal(api.create, POOLS, POOL) == (409, "AlreadyExists")
    second = api.create(POOLS, {**POOL, "metadata": {"name": "q"}})
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    assert first["metadata"]["uid"] != second["metadata"]["uid"]


def test_a_dry_run_checks_and_writes_nothing(api):
    assert api.create(POOLS, POOL, dry_run=True)["spec"] == POOL["spec"]
    assert api.get(f"{POOLS}/p") is None


def test_replace_needs_the_version_and_the_uid(api):
    stored = api.create(POOLS, POOL)
    changed = api.replace(f"{POOLS}/p", {**stored, "spec": {**stored["spec"], "allocations": {"1": ENTRY}}})
    assert (changed["metadata"]["generation"], stored["metadata"]["generation"]) == (2, 1)
    assert refusal(api.replace, f"{POOLS}/p", stored) == (409, "Conflict")
    other = {**changed, "metadata": {**changed["metadata"], "uid": "another"}}
    assert refusal(api.replace, f"{POOLS}/p", other) == (409, "Conflict")
    assert api.replace(f"{POOLS}/p", changed)["metadata"] == changed["metadata"]  # nothing changed


def test_what_is_not_there_cannot_be_replaced(api):
    there = api.create(POOLS, POOL)
    api.delete(f"{POOLS}/p", uid=there["metadata"]["uid"])
    assert refusal(api.replace, f"{POOLS}/p", there) == (404, "NotFound")


def test_an_object_with_a_finalizer_stays_until_that_is_gone(api):
    def refused_as(path, body):
        with pytest.raises(Refused) as raised:
            api.create(path, body)
        return raised.value.status, raised.value.text

    metadata = {"name": "p", "finalizers": ["x.io/gc"]}
    there = api.create(POOLS, {**POOL, "metadata": metadata})
    assert refusal(api.delete, f"{POOLS}/p", uid="another") == (409, "Conflict")
    api.delete(f"{POOLS}/p", uid=there["metadata"]["uid"])
    dying = api.get(f"{POOLS}/p")
    assert {"deletionTimestamp", "finalizers"} <= dying["metadata"].keys()
    assert dying["metadata"]["resourceVersion"] != there["metadata"]["resourceVersion"]
    code, text = refused_as(POOLS, POOL)
    assert (code, text.partition(":")[0]) == (409, "object is being deleted")
    # It can be changed still, and nobody calls it back to life.
    add = {"op": "add", "path": "/spec/allocations/1", "value": ENTRY}
    revive = {"op": "remove", "path": "/metadata/deletionTimestamp"}
    changed = api.patch(f"{POOLS}/p", [add, revive])
    assert (changed["spec"]["allocations"], "deletionTimestamp" in changed["metadata"]) == ({"1": ENTRY}, True)
    more = {"op": "add", "path": "/metadata/finalizers/-", "value": "x.io/more"}
    assert refusal(api.patch, f"{POOLS}/p", [more]) == (422, "Invalid")
    # Who takes the finalizer away is answered as if it were there.
    assert api.patch(f"{POOLS}/p", [{"op": "remove", "path": "/metadata/finalizers"}])["metadata"]["name"] == "p"
    assert api.get(f"{POOLS}/p") is None


def test_delete_keeps_its_preconditions(api):
    stored = api.create(POOLS, POOL)["metadata"]
    assert refusal(api.delete, f"{POOLS}/p", uid="another") == (409, "Conflict")
    assert refusal(api.delete, f"{POOLS}/p", uid=stored["uid"], resource_version="1") == (409, "Conflict")
    api.delete(f"{POOLS}/p", uid=stored["uid"], resource_version=stored["resourceVersion"])
    assert refusal(api.delete, f"{POOLS}/p", uid=stored["uid"])[0] == 404


def test_a_json_patch_is_applied_whole_or_not_at_all(api):
    api.create(POOLS, POOL)
    add = [
        {"op": "test", "path": "/spec/allocations/1", "value": None},
        {"op": "add", "path": "/spec/allocations/1", "value": ENTRY},
    ]
    assert api.patch(f"{POOLS}/p", add)["spec"]["allocations"] == {"1": ENTRY}
    assert refusal(api.patch, f"{POOLS}/p", add) == (422, "Invalid")
    mixed = [
        {"op": "remove", "path": "/spec/allocations/1"},
        {"op": "test", "path": "/metadata/resourceVersion", "value": "1"},
    ]
    assert refusal(api.patch, f"{POOLS}/p", mixed) == (422, "Invalid")
    assert api.get(f"{POOLS}/p")["spec"]["allocations"] == {"1": ENTRY}


def test_patches_without_a_version_are_applied_anew_and_at_last_refused(api, api_server):
    api.create(POOLS, POOL)
    upstream = Upstream(api_server)
    codes = []

    def patch(number, path="/spec/allocations"):
        body = [{"op": "add", "path": f"{path}/{number}", "value": ENTRY}]
        codes.append(upstream.request("PATCH", "ippools/p", body)[0])

    api_server.switch(patch_delay_s=0.01)
    for batch, allowed in ((3, {200}), (40, {200, 409})):
        codes.clear()
        threads = [threading.Thread(target=patch, args=(number,)) for number in range(batch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(codes) <= allowed
        assert len(api.get(f"{POOLS}/p")["spec"]["allocations"]) >= codes.count(200)


def test_what_the_schema_does_not_know_is_pruned_and_what_it_wants_is_wanted(api):
    spec = {"range": "10.0.0.0/8", "allocations": {"1": {**ENTRY, "node": "x"}}, "more": 1}
    assert api.create(POOLS, {**POOL, "spec": spec})["spec"]["allocations"] == {"1": ENTRY}
    nothing = {"range": "10.0.0.0/8", "allocations": {"1": None, "2": {**ENTRY, "ifname": None}}}
    named = {"name": "nulls", "labels": {}, "annotations": None, "more": 1}
    stored = api.create(POOLS, {**POOL, "metadata": named, "spec": nothing})
    assert stored["spec"]["allocations"] == {"2": ENTRY}
    assert not {"labels", "annotations", "more"} & stored["metadata"].keys()
    for spec in (
        {"range": "10.0.0.0/8"},
        {"range": None, "allocations": {}},
        {"range": 7, "allocations": {}},
        {"range": "r", "allocations": {"1": {}}},
    ):
        assert code_of(api, {**POOL, "metadata": {"name": "q"}, "spec": spec}) == 422
    for name in ("Q", "-q", "q_", "q..r"):
        assert code_of(api, {**POOL, "metadata": {"name": name}}) == 422


def test_lists_are_of_one_moment(api):
    for number in range(1200):
        api.create(POOLS, {**POOL, "metadata": {"name": f"p{number:04}", "labels": {"odd": str(number % 2)}}})
    names = [item["metadata"]["name"] for item in api.listed(POOLS)]
    assert names == sorted(names)
    assert len(names) == 1200
    pages = api.listed(POOLS)
    next(pages)
    api.create(POOLS, {**POOL, "metadata": {"name": "p0600x"}})
    assert len(list(pages)) == 1199
    assert len(list(api.listed(POOLS, selector="odd=1"))) == len(list(api.listed(POOLS, selector="odd!=0,odd"))) == 600
    assert [set(item) for item in api.listed(POOLS, selector="!odd", metadata_only=True)] == [
        {"kind", "apiVersion", "metadata"}
    ]
    assert api.number(POOLS) == 1201


@pytest.mark.parametrize(
    ("operation", "after"),
    [
        ({"op": "test", "path": "/a/x", "value": None}, None),
        ({"op": "add", "path": "/a/k~1l", "value": 1}, {"a": {"b": 1, "k/l": 1}}),
        ({"op": "replace", "path": "/a/b", "value": 2}, {"a": {"b": 2}}),
        ({"op": "remove", "path": "/a/b"}, {"a": {}}),
    ],
)
def test_json_patch(operation, after):
    document = {"a": {"b": 1}}
    assert apply_json_patch(document, [operation]) == (after or document)
    assert document == {"a": {"b": 1}}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a/b", "value": None},
        {"op": "test", "path": "/x/y", "value": None},
        {"op": "add", "path": "/x/y", "value": 1},
        {"op": "remove", "path": "/a/x"},
        {"op": "replace", "path": "/a/x", "value": 1},
    ],
)
def test_json_patch_that_fails(operation):
    with pytest.raises(PatchFailed):
        apply_json_patch({"a": {"b": 1}}, [operation])


def test_merge_patch():
    assert apply_merge_patch({"a": {"b": 1, "c": 2}}, {"a": {"b": None, "d": 3}}) == {"a": {"c": 2, "d": 3}}


@pytest.mark.parametrize(
    ("rule", "old", "new", "verdict"),
    [
        ("self.a == oldSelf.a", {"a": 1}, {"a": 1}, True),
        ("self.a == oldSelf.a && self.b != oldSelf.b", {"a": 1, "b": 1}, {"a": 1, "b": 1}, False),
        ("has(oldSelf.r) || (self.a == oldSelf.a)", {"a": 1}, {"a": 2}, False),
        ("has(oldSelf.r) || (self.a == oldSelf.a)", {"a": 1, "r": 1}, {"a": 2}, True),
        ("has(self.r) == has(oldSelf.r) && (!has(self.r) || self.r == oldSelf.r)", {"r": 1}, {}, False),
        ("self.absent == oldSelf.absent", {}, {}, False),
    ],
)
def test_rules(rule, old, new, verdict):
    assert bool(holds(rule, new, old)) is verdict


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2026-01-01T00:00:00Z", "2025-12-31t19:00:00.000-05:00"),
        ("2026-01-01T00:00:00.1Z", "2026-01-01T00:00:00,1000000009z"),
        ("0000-01-01T00:00:00Z", "0000-01-02T00:00:00+24:00"),
    ],
)
def test_a_rule_compares_times_and_no_texts(one, other):
    times = {"at": {"type": "string", "format": "date-time"}}
    assert holds("self.at == oldSelf.at", {"at": one}, {"at": other}, times)
    assert not holds("self.at == oldSelf.at", {"at": one}, {"at": other})
    assert not holds("self.at == oldSelf.at", {"at": one}, {"at": one.replace("Z", "-00:01")}, times)


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-01T00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-01-01T00:00:00",
        "2026-01-01 00:00:00Z",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:60Z",
        "2026-01-01T00:00:00+0100",
        "2026-01-01T00:00:00Z\n",
        "2026-W01-1T00:00:00Z",
    ],
)
def test_no_time(text):
    assert instant(text) is None


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("ip", "10.0.0.1\n", 422),
        ("cooldownSeconds", True, 422),
        ("cooldownSeconds", 86400.5, 422),
        ("releasedAt", "2026-01-01", 422),
        ("releasedAt", "2026-01-01t00:00:00.5z", 201),
        ("node", None, 201),
        ("ip", None, 422),
    ],
)
def test_what_1_36_says_to_an_iplease(api, field, value, code):
    spec = {
        "ip": "10.0.0.1", "network": "default", "containerID": "c", "ifName": "eth0",
        "allocatedAt": "2026-01-01T00:00:00Z", field: value,
    }  # fmt: skip
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "default.10.0.0.1"}, "spec": spec}
    assert code_of(api, body, COLLECTION) == code
