"""A lease is given back when every condition holds, at two looks; each condition that is missing alone keeps it."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace

import pytest
from netaddr import IPNetwork

from conf.errors import StoreUnavailable, TryAgainLater
from ipam import reaping
from ipam.ranges import Range
from ipam.reaping import NOTHING_KNOWN, Reaper, Rules, Word
from ipam.stores.contract import Deadline, Owner, Pool, Want
from ipam.stores.local import LocalStore

START = 1_700_000_000.0
RULES = Rules(grace_s=600, interval_s=30)
POOL = Pool("", Range.of(IPNetwork("192.0.2.0/28")))
GONE, LIVES = Word(gone="it is gone"), Word(lives="it is there")


class Witness:
    """Node and cluster in one: what they say of each container, until told otherwise."""

    def __init__(self):
        self.pods, self.nodes, self.sandboxes, self.boots = {}, {}, {}, {}
        self.told = []
        self.asked = 0
        self.while_locking = lambda: None

    def pod(self, lease):
        self.asked += 1
        said = self.pods.get(lease.owner.container_id, LIVES)
        if isinstance(said, Exception):
            raise said
        return said

    def node(self, lease):
        return self.nodes.get(lease.owner.container_id, NOTHING_KNOWN)

    def sandbox(self, lease):
        return self.sandboxes.get(lease.owner.container_id, NOTHING_KNOWN)

    def earlier_boot(self, lease):
        return self.boots.get(lease.owner.container_id, NOTHING_KNOWN)

    @contextmanager
    def held_off(self, lease):
        self.while_locking()
        yield

    def forget(self):
        pass

    def tell(self, finding):
        self.told.append((str(finding.lease.address), finding.proof))


class Scene:
    """One local store and its reaper, in a time of their own."""

    def __init__(self, data_dir):
        self.now = START
        self.witness = Witness()
        self.opened = LocalStore
        self._data_dir = data_dir
        self.reaper = self.make()

    def make(self, **more):
        return Reaper(
            self.open,
            self.witness,
            **{"cluster": self.witness, "rules": RULES, "clock": self.clock, "monotonic": self.clock, **more},
        )

    def clock(self):
        return self.now

    def open(self, deadline=None):
        return self.opened(self._data_dir, deadline=deadline or Deadline(30), cooldown_s=0, clock=self.clock)

    def lease(self, name, **recorded):
        recorded = {"pod_namespace": "ns", "pod_name": name, "pod_uid": f"uid-{name}", "node": "n1", **recorded}
        with self.open() as store:
            (lease,) = store.reserve(Owner(name, "net1", **recorded), [Want(POOL)], allocation="lowest")
        return lease

    def holders(self):
        with self.open() as store:
            return {lease.owner.container_id for lease in store.leases()}

    def states(self):
        return {finding.lease.owner.container_id: finding.state for finding in self.reaper.look()}


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path / "data")


def stale(scene, name, *, proof="sandboxes"):
    """Make a lease of which all holds but the second look."""
    lease = scene.lease(name)
    scene.now += 601
    scene.witness.pods[name] = GONE
    getattr(scene.witness, proof)[name] = GONE
    return lease


@pytest.mark.parametrize("proof", ["sandboxes", "nodes"])
def test_lease_is_reaped_at_the_second_look_when_all_holds(scene, caplog, proof):
    caplog.set_level(logging.INFO, "vferry.ipam.reaping")
    lease = stale(scene, "a", proof=proof)
    assert scene.states() == {"a": "seen once"}
    assert scene.holders() == {"a"}
    scene.now += 30
    assert scene.states() == {"a": "reaped"}
    assert scene.holders() == set()
    assert scene.witness.told == [(str(lease.address), "it is gone")]
    assert f"{lease.address} of {lease.owner} reaped" in caplog.text
    assert "proof: it is gone" in caplog.text


def test_younger_than_grace_is_left_alone(scene):
    stale(scene, "a")
    scene.now = START + 599
    assert scene.states() == {"a": "young"}
    scene.now = START + 599.9
    assert scene.states() == {"a": "young"}
    assert scene.holders() == {"a"}


def test_pod_that_lives_keeps_its_lease_whatever_is_said_of_sandbox_and_node(scene):
    stale(scene, "a")
    scene.witness.pods["a"], scene.witness.nodes["a"] = LIVES, GONE
    for _ in range(3):
        assert scene.states() == {"a": "in use"}
        scene.now += 100
    assert scene.holders() == {"a"}


@pytest.mark.parametrize(("said", "state"), [(NOTHING_KNOWN, "suspected"), (LIVES, "suspected")])
def test_no_proof_of_the_sandbox_is_only_suspicion(scene, said, state):
    stale(scene, "a")
    scene.witness.sandboxes["a"] = said
    for _ in range(3):
        assert scene.states() == {"a": state}
        scene.now += 100
    assert scene.holders() == {"a"}


def test_own_word_that_it_lives_outweighs_what_is_said_of_the_node(scene):
    stale(scene, "a", proof="nodes")
    scene.witness.sandboxes["a"] = LIVES
    for _ in range(2):
        assert scene.states() == {"a": "suspected"}
        scene.now += 100
    assert scene.holders() == {"a"}


def test_second_look_too_soon_does_not_count(scene):
    stale(scene, "a")
    for _ in range(3):
        assert scene.states() == {"a": "seen once"}
        scene.now += 9
    assert scene.holders() == {"a"}


def test_what_was_in_use_in_between_begins_anew(scene):
    stale(scene, "a")
    assert scene.states() == {"a": "seen once"}
    scene.now += 30
    scene.witness.pods["a"] = LIVES
    assert scene.states() == {"a": "in use"}
    scene.now += 30
    scene.witness.pods["a"] = GONE
    assert scene.states() == {"a": "seen once"}
    assert scene.holders() == {"a"}


def test_new_lease_of_the_same_address_is_another_one(scene):
    old = stale(scene, "a")
    assert scene.states() == {"a": "seen once"}
    with scene.open() as store:
        store.release(old.owner)
    new = scene.lease("b")
    assert new.address == old.address
    scene.now += 30
    assert scene.states() == {"b": "in use"}
    assert scene.holders() == {"b"}


def test_lease_taken_anew_while_it_is_judged_is_not_reaped(scene):
    stale(scene, "a")
    assert scene.states() == {"a": "seen once"}
    scene.now += 30

    class Rival(LocalStore):
        def reap(self, lease):
            with LocalStore(scene._data_dir, deadline=Deadline(5), cooldown_s=0, clock=scene.clock) as rival:
                rival.release(lease.owner)
                rival.reserve(Owner("b", "net1"), [Want(POOL, lease.address)], allocation="lowest")
            return super().reap(lease)

    scene.opened = Rival
    assert scene.states() == {"a": "changed"}
    assert scene.holders() == {"b"}


def test_pod_that_came_back_while_others_were_judged_keeps_its_lease(scene):
    stale(scene, "a")
    stale(scene, "b")
    assert scene.states() == {"a": "seen once", "b": "seen once"}
    scene.now += 30
    pod = scene.witness.pod

    def back_after_the_first_round(lease):
        if lease.owner.container_id == "b" and scene.witness.asked > 6:
            return LIVES
        return pod(lease)

    scene.witness.pod = back_after_the_first_round
    assert scene.states() == {"a": "reaped", "b": "in use"}
    assert scene.holders() == {"b"}


def test_error_with_one_lease_does_not_stop_the_others(scene):
    for name in "abc":
        stale(scene, name)
    scene.witness.pods["a"] = StoreUnavailable("API server does not answer")
    scene.states()
    scene.now += 30

    class Failing(LocalStore):
        def reap(self, lease):
            if lease.owner.container_id == "b":
                raise StoreUnavailable("the disk is full")
            return super().reap(lease)

    scene.opened = Failing
    assert scene.states() == {"a": "unknown", "b": "failed", "c": "reaped"}
    assert scene.holders() == {"a", "b"}
    scene.opened = LocalStore
    scene.now += 30
    assert scene.states() == {"a": "unknown", "b": "reaped"}


def test_dry_run_gives_nothing_back(scene):
    stale(scene, "a")
    scene.reaper = scene.make(dry_run=True)
    scene.states()
    scene.now += 30
    assert scene.states() == {"a": "stale"}
    assert scene.holders() == {"a"}
    assert scene.witness.told == []


def test_two_reapers_at_once_reap_once(scene):
    stale(scene, "a")
    other = scene.make()
    scene.states(), other.look()
    scene.now += 30
    assert scene.states() == {"a": "reaped"}
    assert other.look() == []


@pytest.mark.parametrize(("word", "state"), [(GONE, "reaped"), (LIVES, "in use"), (NOTHING_KNOWN, "unknown")])
def test_without_a_cluster_the_nodes_own_word_decides(scene, word, state):
    scene.lease("a")
    scene.reaper = scene.make(cluster=None)
    scene.now += 601
    scene.witness.pods["a"], scene.witness.sandboxes["a"] = GONE, word
    scene.states()
    scene.now += 30
    assert scene.states() == {"a": state}
    assert scene.witness.asked == 0


def test_node_is_not_believed_of_a_lease_without_a_pod(scene):
    # Podman's containers are on machines that never were Nodes.
    scene.lease("a", pod_name="", pod_namespace="")
    scene.witness.nodes["a"] = GONE
    for _ in range(3):
        scene.now += 601
        assert scene.states() == {"a": "unknown"}
    scene.witness.sandboxes["a"] = GONE
    scene.states()
    scene.now += 30
    assert scene.states() == {"a": "reaped"}


def test_lease_without_a_time_is_as_old_as_it_was_seen_stale(scene):
    class Timeless(LocalStore):
        def leases(self, network_name=None, *, node=None):
            return tuple(replace(each, allocated_at=0.0) for each in super().leases(network_name, node=node))

    stale(scene, "a")
    scene.opened = Timeless
    assert scene.states() == {"a": "young"}
    scene.now += 599
    assert scene.states() == {"a": "young"}
    scene.now += 2
    assert scene.states() == {"a": "reaped"}


def test_clock_set_back_makes_nothing_old(scene):
    stale(scene, "a")
    scene.now = START - 100_000
    assert scene.states() == {"a": "young"}
    scene.now += 30
    assert scene.states() == {"a": "young"}


def test_start_up_gives_back_what_earlier_boots_had_here_at_once(scene):
    for name, node in (("old", "n1"), ("new", "n1"), ("foreign", "n1"), ("elsewhere", "n2")):
        scene.lease(name, node=node)
        scene.witness.boots[name] = GONE
    scene.witness.boots["new"], scene.witness.boots["foreign"] = LIVES, NOTHING_KNOWN
    found = {each.lease.owner.container_id: each.state for each in scene.reaper.start_up("n1")}
    assert found == {"old": "reaped", "new": "in use", "foreign": "unknown"}
    assert scene.holders() == {"new", "foreign", "elsewhere"}


def test_start_up_leaves_alone_what_is_made_anew_while_it_waits_for_the_device(scene):
    """A runtime may call its containers the same after each boot; the same ADD then gets the same lease."""
    scene.lease("old")
    scene.witness.boots["old"] = GONE
    scene.witness.while_locking = lambda: scene.witness.boots.update(old=LIVES)
    assert [each.state for each in scene.reaper.start_up("n1")] == ["in use"]
    assert scene.holders() == {"old"}


def test_start_up_goes_on_behind_a_device_that_stays_locked(scene):
    def refuse():
        scene.witness.while_locking = lambda: None
        raise TryAgainLater("0000:01:10.0 is locked")

    for name in ("a", "b"):
        scene.lease(name)
        scene.witness.boots[name] = GONE
    scene.witness.while_locking = refuse
    assert [each.state for each in scene.reaper.start_up("n1")] == ["failed", "reaped"]
    assert scene.holders() == {"a"}


@pytest.mark.parametrize(("took_s", "asked"), [(10, 1), (1, 3)])
def test_start_up_does_not_wait_for_a_silent_store_again_and_again(scene, monkeypatch, took_s, asked):
    now, tried = [0.0], []
    reaping_deadline = reaping.RenewedDeadline

    def silent(_store, lease):
        tried.append(lease)
        now[0] += took_s
        raise StoreUnavailable("it is away")

    monkeypatch.setattr(LocalStore, "reap", silent)
    monkeypatch.setattr(reaping, "RenewedDeadline", lambda seconds: reaping_deadline(seconds, clock=lambda: now[0]))

    for name in "abc":
        scene.lease(name)
        scene.witness.boots[name] = GONE
    found = scene.make(deadline_s=10).start_up("n1")
    assert [(each.state, each.reason) for each in found] == [("failed", "it is away")] * 3
    assert len(tried) == asked
    assert scene.holders() == {"a", "b", "c"}
