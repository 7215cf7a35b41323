"""Ours and upstream's plugin on one pool: whatever comes between two calls of ours, no address has two holders."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations_with_replacement

import pytest

from conf.errors import AddressesExhausted, StoreUnavailable
from ipam.stores.contract import Deadline, Want
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes import CRDS, RBAC, KubernetesStore
from ipam.stores.kubernetes_api import KubernetesApi
from tests.stores.conftest import Lab, kubernetes_lab, owner, pool, release, reserve
from tests.stores.upstream_writer import Upstream, UpstreamError, run

BLOCK, WIDE = "10.0.0.0/29", "10.0.0.0/24"
POD = {"pod_namespace": "ns", "pod_name": "web-0"}
# Before which call of ours upstream makes each of its calls; what is left over comes after.
GAPS, STEPS = 6, 5
SCHEDULES = list(combinations_with_replacement(range(GAPS), STEPS))


@pytest.fixture
def lab(api_server, tmp_path):
    return Lab(kubernetes_lab(api_server, "kubernetes", tmp_path))


@pytest.fixture
def upstream(api_server):
    return Upstream(api_server)


class Steps:
    """Upstream's calls, let go one by one; when it fails it starts again, as the kubelet has it."""

    def __init__(self, start):
        self._start = start
        self._running = start()
        self.result = self.failure = None
        self.done = False

    def next(self):
        if self.done:
            return
        try:
            next(self._running)
        except StopIteration as end:
            self.result, self.done = end.value, True
        except UpstreamError as error:
            self.failure, self.done = error, True

    def finish(self):
        while not self.done:
            self.next()
        for _ in range(3):
            if self.failure is None:
                return
            try:
                self.result, self.failure = run(self._start()), None
            except UpstreamError as error:
                self.failure = error


class Interrupted(KubernetesApi):
    """Lets upstream make its next calls before each of ours."""

    def arm(self, steps, schedule):
        self.made, self.steps, self.schedule = 0, steps, schedule

    def _once(self, call, token):
        for gap in self.schedule:
            if gap == self.made:
                self.steps.next()
        self.made += 1
        return super()._once(call, token)


def interrupted(lab, steps, schedule, *, cooldown_s=60.0):
    deadline = Deadline(30)

    def open_api():
        api = Interrupted(find_access(lab.make.kubeconfig), deadline=deadline, crds=CRDS, rbac=RBAC)
        api.arm(steps, schedule)
        return api

    run = lab.make.run
    return KubernetesStore(
        open_api,
        deadline=deadline,
        cooldown_s=cooldown_s,
        clock=lab.clock,
        scratch=run / "stores",
        journals=run / "owners",
    )


def clean(api_server, lab):
    api_server.clear()
    api_server.switch(tokens={"node's token": RBAC, "admin": "*"})


def require_sound(upstream):
    """Every allocation has its reservation, and no reservation is without an allocation."""
    allocated = {}
    for entries in upstream.pools().values():
        for address, entry in entries.items():
            assert address not in allocated, f"{address} is in two pools"
            allocated[address] = entry["podref"]
    assert {name: spec["podref"] for name, spec in upstream.reservations().items()} == allocated


@pytest.mark.parametrize("others", [0, 1])
def test_add_beside_add(lab, upstream, api_server, others):
    for schedule in SCHEDULES:
        clean(api_server, lab)
        if others:
            run(upstream.add("first", "ns/first", BLOCK))
        steps = Steps(lambda: upstream.add("go", "ns/go", BLOCK))
        with interrupted(lab, steps, schedule) as store:
            (ours,) = store.reserve(owner(f"c{schedule}", **POD), [Want(pool(BLOCK))], allocation="lowest")
        steps.finish()
        assert steps.failure is None, schedule
        assert str(ours.address) != steps.result
        entries = upstream.pools()["10.0.0.0-29"]
        assert (entries[str(ours.address)]["podref"], entries[steps.result]["podref"]) == ("ns/web-0", "ns/go")
        assert len(entries) == 2 + others
        require_sound(upstream)


def test_add_beside_add_in_an_overlapping_range(lab, upstream, api_server):
    for schedule in SCHEDULES:
        clean(api_server, lab)
        steps = Steps(lambda: upstream.add("go", "ns/go", WIDE))
        with interrupted(lab, steps, schedule) as store:
            (ours,) = store.reserve(owner(f"c{schedule}", **POD), [Want(pool(BLOCK))], allocation="lowest")
        steps.finish()
        # Upstream picks an address anew that another range has only until it has entered it into its pool.
        assert steps.failure is not None or steps.result != str(ours.address)
        assert upstream.reservations()[str(ours.address)]["podref"] == "ns/web-0"
        assert upstream.pools()["10.0.0.0-29"][str(ours.address)]["id"] == f"c{schedule}"
        if steps.result:
            assert upstream.reservations()[steps.result]["podref"] == "ns/go"


def test_add_beside_delete(lab, upstream, api_server):
    for schedule in SCHEDULES:
        clean(api_server, lab)
        run(upstream.add("go", "ns/go", BLOCK))
        steps = Steps(lambda: upstream.delete("go", BLOCK))
        with interrupted(lab, steps, schedule) as store:
            (ours,) = store.reserve(owner(f"c{schedule}", **POD), [Want(pool(BLOCK))], allocation="lowest")
        steps.finish()
        assert upstream.pools() == {
            "10.0.0.0-29": {str(ours.address): {"id": f"c{schedule}", "podref": "ns/web-0", "ifname": "net1"}}
        }
        require_sound(upstream)


def test_delete_beside_add(lab, upstream, api_server):
    for schedule in SCHEDULES:
        clean(api_server, lab)
        reserve(lab, f"c{schedule}", BLOCK)
        steps = Steps(lambda: upstream.add("go", "ns/go", BLOCK))
        with interrupted(lab, steps, schedule) as store:
            assert len(store.release(owner(f"c{schedule}"))) == 1
        steps.finish()
        assert steps.failure is None
        assert upstream.pools()["10.0.0.0-29"] == {steps.result: {"id": "go", "podref": "ns/go", "ifname": "net1"}}
        require_sound(upstream)


def test_delete_of_an_old_sandbox_beside_upstreams_add_of_the_new_one(lab, upstream, api_server):
    """Upstream takes an allocation over by the pod's name; our DEL of the old sandbox must leave it its address."""
    for schedule in SCHEDULES:
        clean(api_server, lab)
        with lab.open() as store:
            store.reserve(owner(f"c{schedule}", **POD), [Want(pool(BLOCK))], allocation="lowest")
        steps = Steps(lambda: upstream.add("new", "ns/web-0", BLOCK))
        with interrupted(lab, steps, schedule) as store:
            store.release(owner(f"c{schedule}", **POD))
        steps.finish()
        assert steps.failure is None
        assert upstream.pools()["10.0.0.0-29"] == {steps.result: {"id": "new", "podref": "ns/web-0", "ifname": "net1"}}
        require_sound(upstream)
        release(lab, f"c{schedule}")
        require_sound(upstream)


def test_add_beside_upstreams_add_of_another_sandbox_of_the_pod(lab, upstream, api_server):
    """Upstream takes a reservation of its pod for its own: when we lose the allocation to it, it must not lose that."""
    for schedule in SCHEDULES[::4]:
        clean(api_server, lab)
        steps = Steps(lambda: upstream.add("go", "ns/web-0", BLOCK))
        with interrupted(lab, steps, schedule) as store:
            (ours,) = store.reserve(owner(f"c{schedule}", **POD), [Want(pool(BLOCK))], allocation="lowest")
        steps.finish()
        assert steps.failure is None, schedule
        entries = upstream.pools()["10.0.0.0-29"]
        # What upstream took over from us is its own, as a pod's former address is.
        assert entries[steps.result]["id"] == "go"
        assert entries.keys() == {steps.result, str(ours.address)}
        require_sound(upstream)
        release(lab, f"c{schedule}")
        assert upstream.pools()["10.0.0.0-29"].keys() == {steps.result}
        require_sound(upstream)


def test_what_upstream_took_over_from_us_is_released_with_its_reservation(lab, upstream):
    with lab.open() as store:
        (ours,) = store.reserve(owner("old", **POD), [Want(pool(BLOCK))], allocation="lowest")
    assert run(upstream.add("new", "ns/web-0", BLOCK)) == str(ours.address)
    with lab.open() as store:  # the node has our plugin again
        (again,) = store.reserve(owner("new", **POD), [Want(pool(BLOCK))], allocation="lowest")
    assert again.address == ours.address
    assert release(lab, "old") == []
    require_sound(upstream)
    assert release(lab, "new") == [str(ours.address)]
    assert (upstream.pools(), upstream.reservations()) == ({"10.0.0.0-29": {}}, {})


def test_without_overlap_checks_the_pool_alone_decides(lab, upstream, api_server):
    for schedule in SCHEDULES[:: len(SCHEDULES) // 60]:
        clean(api_server, lab)
        steps = Steps(lambda: upstream.add("go", "ns/go", BLOCK))
        with interrupted(lab, steps, schedule) as store:
            want = Want(pool(BLOCK, overlap_checked=False))
            (ours,) = store.reserve(owner(f"c{schedule}", **POD), [want], allocation="lowest")
        steps.finish()
        assert steps.failure is None
        assert set(upstream.pools()["10.0.0.0-29"]) == {str(ours.address), steps.result}
        assert len({str(ours.address), steps.result}) == 2


def test_a_running_sandbox_of_the_same_pod_keeps_its_address(lab, upstream):
    theirs = run(upstream.add("old", "ns/web-0", BLOCK))
    with lab.open() as store:
        (ours,) = store.reserve(owner("new", **POD), [Want(pool(BLOCK))], allocation="lowest")
    assert str(ours.address) != theirs
    assert upstream.pools()["10.0.0.0-29"][theirs]["id"] == "old"


def test_what_upstream_added_is_found_and_released_by_us(lab, upstream):
    address = run(upstream.add("c1", "ns/web-0", BLOCK, network_name="blue"))
    with lab.open() as store:
        (lease,) = store.leases("blue")
        assert (str(lease.address), lease.owner, lease.owner.pod_name) == (address, owner("c1"), "web-0")
        assert lease.owner.node == ""
        assert list(store.leases("blue", node="here")) == []
        assert store.find(owner("c1")) == (lease,)
        assert reserve(lab, "c1", Want(pool(BLOCK, network_name="blue"))) == [address]
        assert [str(each.address) for each in store.release(owner("c1"))] == [address]
    assert (upstream.pools(), upstream.reservations()) == ({"blue-10.0.0.0-29": {}}, {})


def test_what_we_added_is_found_and_released_by_upstream(lab, upstream):
    with lab.open() as store:
        (lease,) = store.reserve(owner("c1", **POD), [Want(pool("2001:db8::/64"))], allocation="lowest")
    assert run(upstream.add("c1", "ns/web-0", "2001:db8::/64")) == str(lease.address)
    run(upstream.delete("c1", "2001:db8::/64"))
    assert (upstream.pools(), upstream.reservations()) == ({"2001-db8---64": {}}, {})
    assert release(lab, "c1") == []


def test_exhaustion_by_upstreams_allocations(lab, upstream):
    for number in range(6):
        run(upstream.add(f"go{number}", f"ns/go{number}", BLOCK))
    with pytest.raises(AddressesExhausted):
        reserve(lab, "late", BLOCK)


def test_reaping_upstreams_allocation_takes_exactly_it(lab, upstream):
    address = run(upstream.add("gone", "ns/gone", BLOCK))
    with lab.open() as store:
        (lease,) = store.leases()
        assert not store.reap(replace(lease, revision="another"))
        assert store.reap(lease)
        assert not store.reap(lease)
    assert address not in upstream.pools()["10.0.0.0-29"]
    assert upstream.reservations() == {}


class Pruned(KubernetesApi):
    """Writes what a server would that has the CRDs of an old upstream."""

    def _once(self, call, token):
        if call.method == "POST":
            spec = {key: value for key, value in call.body["spec"].items() if key != "ifname"}
            call = call._replace(body={**call.body, "spec": spec})
        return super()._once(call, token)


def test_crds_that_drop_the_interface_are_refused(lab, upstream):
    """No DEL would find what has been entered; upstream's of today leaks it."""

    def open_api():
        return Pruned(find_access(lab.make.kubeconfig), deadline=Deadline(30), crds=CRDS, rbac=RBAC)

    keys = {"scratch": lab.make.run / "stores", "journals": lab.make.run / "owners"}
    with KubernetesStore(open_api, deadline=Deadline(30), cooldown_s=60.0, clock=lab.clock, **keys) as store:
        with pytest.raises(StoreUnavailable, match="too old") as raised:
            store.probe()
        with pytest.raises(StoreUnavailable, match="too old"):
            store.reserve(owner("c1", **POD), [Want(pool(BLOCK))], allocation="lowest")
    assert "crds/whereabouts.yaml" in raised.value.hint
    assert (upstream.pools(), upstream.reservations()) == ({}, {})


def test_what_an_old_upstream_entered_without_an_interface_can_be_given_back(lab, upstream):
    """No DEL finds it, as with upstream's own of today; reconcile and ``vferry ipam release`` do."""
    entry = {"id": "old", "podref": "ns/gone"}
    body = {"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "IPPool", "metadata": {"name": "10.0.0.0-29"}}
    assert upstream.call("POST", "ippools", {**body, "spec": {"range": BLOCK, "allocations": {"1": entry}}})
    spec = {"podref": "ns/gone", "containerid": "old"}
    body |= {"kind": "OverlappingRangeIPReservation", "metadata": {"name": "10.0.0.1"}, "spec": spec}
    assert upstream.call("POST", "overlappingrangeipreservations", body)
    assert release(lab, "old") == []
    with lab.open() as store:
        (lease,) = store.leases()
        assert (lease.owner, lease.owner.pod_name) == (owner("old", ""), "gone")
        assert store.reap(lease)
        assert not store.reap(lease)
    assert (upstream.pools(), upstream.reservations()) == ({"10.0.0.0-29": {}}, {})


class Outlasted(KubernetesApi):
    """Lets upstream make its next call whenever ours has looked twice whether it is still at work."""

    steps: Steps
    looked = 0

    def _once(self, call, token):
        if call.path.endswith("/leases/whereabouts"):
            self.looked += 1
            if self.looked % 2 == 0:
                self.steps.next()
        return super()._once(call, token)


@pytest.mark.parametrize("made", range(7))
def test_the_delete_of_an_add_that_lost_an_overlapping_range_takes_nothing_of_ours(lab, upstream, made):
    """Upstream fails where we reserved before it could; the runtime's DEL then deletes the reservation by its name."""
    run(upstream.elected(upstream.add("first", "ns/first", WIDE)))
    assert reserve(lab, "teaches", BLOCK) == ["10.0.0.2"]
    steps = Steps(lambda: upstream.elected(upstream.add("go", "ns/go", WIDE)))
    for _ in range(made):
        steps.next()
    make = lab.make

    def open_api():
        api = Outlasted(find_access(make.kubeconfig), deadline=Deadline(30), crds=CRDS, rbac=RBAC)
        api.steps = steps
        return api

    keys = {"scratch": make.run / "stores", "journals": make.run / "owners"}
    with KubernetesStore(open_api, deadline=Deadline(30), cooldown_s=60.0, clock=lab.clock, **keys) as store:
        (ours,) = store.reserve(owner("ours", **POD), [Want(pool(BLOCK))], allocation="lowest")
    while not steps.done:
        steps.next()
    result = steps.result
    if steps.failure is not None:
        run(upstream.elected(upstream.delete("go", WIDE)))
        result = run(upstream.elected(upstream.add("go-again", "ns/go", WIDE)))
    assert result not in (None, str(ours.address))
    assert upstream.reservations()[str(ours.address)]["podref"] == "ns/web-0"
    require_sound(upstream)
    release(lab, "ours")
    release(lab, "teaches")
    require_sound(upstream)


def test_upstreams_plugin_is_asked_for_only_where_ranges_overlap_and_it_is_there(lab, upstream, api_server):
    def after_the_patch(name):
        api_server.reset()
        reserve(lab, name, BLOCK)
        made = [line.split("?")[0] for line in api_server.counts()["log"]]
        last = max(at for at, line in enumerate(made) if line.startswith("PATCH"))
        return [line.split("/")[-1] for line in made[last + 1 :]]

    run(upstream.elected(upstream.add("go", "ns/go", BLOCK)))
    assert after_the_patch("before") == []
    run(upstream.elected(upstream.add("wide", "ns/wide", WIDE)))
    assert reserve(lab, "teaches", BLOCK) == ["10.0.0.4"]
    assert after_the_patch("overlapping") == ["whereabouts", "10.0.0.0-24", "10.0.0.5"]
    # One that was killed holds the Lease for ever, and is not waited for.
    upstream.renew("ns/killed", ago_s=60)
    assert after_the_patch("later") == ["whereabouts", "10.0.0.0-24", "10.0.0.6"]
    upstream.renew("", ago_s=86400)
    release(lab, "later", cooldown_s=0.0)
    assert after_the_patch("uninstalled") == ["whereabouts"]
