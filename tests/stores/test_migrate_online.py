"""Leases that move while pods come and go: ADDs wait for a moment at most, and no address is given twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import pytest

from conf.errors import StoreUnavailable, TryAgainLater
from ipam.migration import Migration
from ipam.reaping import give_back
from ipam.stores.kubernetes_leases import KubernetesLeasesStore
from tests.stores.conftest import owner
from tests.stores.move import WIDE, Move, filled, followed

PATIENCE_S = 300.0


@pytest.fixture
def move(api_server, tmp_path):
    return Move(api_server, tmp_path)


class Pods:
    """Pods of one node after the other, until stopped; their network is switched when the administrator does so."""

    def __init__(self, move):
        self._move = move
        self.switched, self.stopped = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self.holders, self.doubled, self.refused, self.made = {}, [], 0, Counter()

    def work(self, number):
        rng = random.Random(number)
        mine = {}
        at = 0
        while not self.stopped.is_set():
            if mine and rng.random() < 0.4:
                name = rng.choice(sorted(mine))
                self._delete(name, mine.pop(name))
            else:
                at += 1
                lab = self._add(f"{number}-{at}")
                if lab is not None:
                    mine[f"{number}-{at}"] = lab

    def _add(self, name):
        lab = self._move.new if self.switched.is_set() else self._move.old
        try:
            address = self._move.lease(lab, name, WIDE)
        except TryAgainLater:
            self.refused += 1
            self._move.release(lab, name)  # the runtime's DEL after a failed ADD
            time.sleep(0.02)
            return None
        with self._lock:
            self.made["new" if lab is self._move.new else "old"] += 1
            holder = self.holders.setdefault(address, name)
            if holder != name:
                self.doubled.append((address, holder, name))
        return lab

    def _delete(self, name, lab):
        # The runtime has the configuration of the ADD in its cache.
        with self._lock:
            self.holders = {address: holder for address, holder in self.holders.items() if holder != name}
        self._move.release(lab, name)


@pytest.fixture
def following(move, tmp_path):
    """Let networks of the old datastore follow, as the door opens it."""
    return followed(move, tmp_path)


def test_adds_go_on_where_the_pools_were_moved_to(following):
    move = following
    before = filled(move)
    move("kubernetes-leases")
    assert move.lease(move.old, "a") == "192.0.2.1"
    added = move.lease(move.old, "d")
    assert move.lease(move.old, "d") == added
    assert move.held(move.new) == {**before, ("", added): "c-d"}
    # What is listed and reaped is what counts, wherever it is; a range that was not moved is listed as before.
    other = move.lease(move.old, "e", WIDE)
    assert move.held(move.old) == {**before, ("", added): "c-d", ("", other): "c-e"}
    with move.old.open() as store:
        for lease in list(store.leases()):
            assert lease.owner.container_id not in ("c-b", "c-e") or give_back(store, lease)
    del before["", "192.0.2.2"]
    assert move.held(move.old) == {**before, ("", added): "c-d"}
    with move.old.open() as store:
        assert [str(lease.address) for lease in store.find(owner("c-d"))] == [added]
    assert move.release(move.old, "d") == [added]
    assert move.release(move.old, "d") == []
    assert move.held(move.new) == before
    # Nothing is left of the reservations that the frozen pools refused; that of b is as its pool is.
    assert len(move.upstream.reservations()) == len(before) + 1


def test_adds_wait_where_the_node_has_no_right_to_the_next_store(following, monkeypatch):
    filled(following)
    following("kubernetes-leases")

    def refuse(*_args, **_keys):
        raise StoreUnavailable("forbidden")

    monkeypatch.setattr(KubernetesLeasesStore, "reserve", refuse)
    with pytest.raises(TryAgainLater, match="is migrated"):
        following.lease(following.old, "d")


def test_add_that_meets_the_way_back_starts_again(following, monkeypatch):
    move = following
    filled(move)
    move("kubernetes-leases")
    reserve = KubernetesLeasesStore.reserve

    def back_in_between(store, *args, **keys):
        monkeypatch.setattr(KubernetesLeasesStore, "reserve", reserve)
        move("kubernetes")
        return reserve(store, *args, **keys)

    monkeypatch.setattr(KubernetesLeasesStore, "reserve", back_in_between)
    address = move.lease(move.old, "late")
    assert move.held(move.old)["", address] == "c-late"
    assert "c-late" not in move.held(move.new).values()
    assert move.lease(move.old, "later") != address


def test_pods_never_wait_long_while_leases_move_there_and_back(following):
    move = following
    for number in range(30):
        move.lease(move.old, f"long-{number}", WIDE)
    pods = Pods(move)
    threads = [threading.Thread(target=pods.work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for to in ("kubernetes-leases", "kubernetes", "kubernetes-leases"):
            made = pods.made["old"]
            _wait_for(lambda made=made: pods.made["old"] > made + 10)
            move(to)
        made = pods.made["old"]
        _wait_for(lambda: pods.made["old"] > made + 10)
    finally:
        pods.stopped.set()
        for thread in threads:
            thread.join()
    assert pods.doubled == []
    move("kubernetes")
    held = {address: name.removeprefix("c-") for (_, address), name in move.held(move.old).items()}
    assert pods.holders.items() <= held.items()


def test_pods_come_and_go_while_leases_move(move, monkeypatch):
    for number in range(30):
        move.lease(move.old, f"long-{number}", WIDE)
    pods = Pods(move)
    threads = [threading.Thread(target=pods.work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        _wait_for(lambda: pods.made["old"] > 10)
        freeze = Migration.freeze
        made_before_freeze = []

        def counted(migration, network_name):
            made_before_freeze.append(pods.made["old"])
            return freeze(migration, network_name)

        begun_at = pods.made["old"]
        copy = Migration._copy

        def unhurried(migration, lease):
            copy(migration, lease)
            # So that there is time for an ADD; were they held up by the copying, none would come.
            _wait_for(lambda: pods.made["old"] > begun_at)

        monkeypatch.setattr(Migration, "freeze", counted)
        monkeypatch.setattr(Migration, "_copy", unhurried)
        move("kubernetes-leases")
        assert made_before_freeze[0] > begun_at, "ADDs went on while leases were copied"
        _wait_for(lambda: pods.refused > 0)
        pods.switched.set()
        _wait_for(lambda: pods.made["new"] > 20)
    finally:
        pods.stopped.set()
        for thread in threads:
            thread.join()
    assert pods.doubled == []
    # What was given back where it was taken, after it was copied, goes at the next run.
    move("kubernetes-leases")
    held = {address: name.removeprefix("c-") for (_, address), name in move.held(move.new).items()}
    assert {address: name for address, name in held.items() if not name.startswith("long")} == pods.holders
    assert sum(name.startswith("long") for name in held.values()) == 30


def _wait_for(happened):
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)
