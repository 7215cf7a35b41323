"""Moving a cluster between upstream's CRDs and IPLeases while pods run: nobody loses or shares an address."""

from __future__ import annotations

import pytest

from conf.errors import TryAgainLater
from ipam.migration import Migration
from ipam.stores.contract import Want
from ipam.stores.upstream_cluster import Cluster
from tests.stores.conftest import owner, pool
from tests.stores.move import BLOCK, Move, filled
from tests.stores.upstream_writer import run


@pytest.fixture
def move(api_server, tmp_path):
    return Move(api_server, tmp_path)


def test_every_lease_is_copied_with_its_owner(move):
    before = filled(move)
    assert len(before) == 4
    assert "4 leases to copy to kubernetes-leases, 0 are there" in move("kubernetes-leases", "--dry-run")
    assert move.held(move.new) == {}
    told = move("kubernetes-leases")
    assert "copied 4; 4 of 4 leases are in kubernetes-leases" in told
    assert move.held(move.new) == before
    with move.new.open() as store:
        (lease,) = store.find(owner("c-a"))
    assert (lease.owner.pod_name, lease.owner.pod_uid, lease.owner.node) == ("a", "uid-a", "n1")
    assert lease.allocated_at == pytest.approx(move.old.clock.now)
    assert "copied 0; 4 of 4" in move("kubernetes-leases")
    assert move.held(move.old) == before


def test_pools_give_nothing_new_once_they_are_migrated(move):
    filled(move)
    move("kubernetes-leases")
    with pytest.raises(TryAgainLater, match="is migrated to datastore kubernetes-leases"):
        move.lease(move.old, "new")
    reserved = {spec["podref"] for spec in move.upstream.reservations().values()}
    assert "ns/new" not in reserved
    # Who has an address keeps it, and can give it back.
    assert move.lease(move.old, "a") == "192.0.2.1"
    assert move.release(move.old, "a") == ["192.0.2.1"]
    # The new datastore gives none that is in use.
    given = {move.lease(move.new, f"new{number}") for number in range(8)}
    assert given.isdisjoint({"192.0.2.1", "192.0.2.2", "192.0.2.3"})
    assert move.release(move.new, "b") == ["192.0.2.2"]


def test_add_that_has_read_its_pool_before_it_was_frozen_does_not_enter(move, monkeypatch):
    filled(move)
    enter = Cluster.enter

    def frozen_in_between(cluster, place, *more):
        monkeypatch.setattr(Cluster, "enter", enter)
        move("kubernetes-leases")
        return enter(cluster, place, *more)

    monkeypatch.setattr(Cluster, "enter", frozen_in_between)
    with pytest.raises(TryAgainLater, match="is migrated"):
        move.lease(move.old, "late")
    assert "c-late" not in move.held(move.old).values()
    # Its reservation may have been copied before it was given up.
    move("kubernetes-leases")
    assert move.held(move.new) == move.held(move.old)


def test_there_and_back_again(move):
    before = filled(move)
    move("kubernetes-leases")
    added = move.lease(move.new, "d")
    move.release(move.old, "a")
    move.release(move.new, "a")
    told = move("kubernetes")
    assert "copied 1; 4 of 4 leases are in kubernetes" in told
    assert "2 IPPools are open" in told
    after = move.held(move.old)
    assert after == move.held(move.new)
    assert after["", added] == "c-d"
    assert len(before) == len(after)
    # Upstream's plugin can delete what came back, and ADDs go on.
    run(move.upstream.delete("c-d", BLOCK))
    assert ("", added) not in move.held(move.old)
    assert added not in move.upstream.reservations()
    move.lease(move.old, "e")


def test_address_that_was_given_to_another_pod_after_the_move_goes_back_as_its(move):
    filled(move)
    move("kubernetes-leases")
    move.release(move.new, "a")
    move.new.clock.now += 61
    move.old.clock.now += 61
    assert move.lease(move.new, "d") == "192.0.2.1"
    told = move("kubernetes")
    assert "1 allocations taken out" in told
    assert move.held(move.old) == move.held(move.new)
    assert move.held(move.old)["", "192.0.2.1"] == "c-d"


def test_interrupted_anywhere_it_is_done_by_running_it_again(move, monkeypatch):
    before = filled(move)
    copy = Migration._copy
    for number in range(3):

        def killed(migration, lease, left=[number]):  # noqa: B006 - counts the calls
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            copy(migration, lease)

        monkeypatch.setattr(Migration, "_copy", killed)
        move("kubernetes-leases", ok=False)
    assert len(move.held(move.new)) == 3
    monkeypatch.setattr(Migration, "_copy", copy)
    assert "4 of 4 leases" in move("kubernetes-leases")
    assert move.held(move.new) == before


def test_lost_replies_and_a_busy_server_lose_nothing(move, api_server):
    before = filled(move)
    api_server.switch(lose=3, throttle=1, retry_after=0)
    assert "4 of 4 leases" in move("kubernetes-leases")
    assert move.held(move.new) == before


def test_address_that_somebody_else_has_there_is_told_and_the_others_are_copied(move):
    with move.new.open() as store:
        store.reserve(owner("rival"), [Want(pool(BLOCK), pool(BLOCK).range.network[2])], allocation="lowest")
    filled(move)
    told = move("kubernetes-leases", ok=False)
    assert "192.0.2.2 of container c-b interface net1 of pod ns/b: 192.0.2.2 is held by container rival" in told
    assert len(move.held(move.new)) == 4  # the rival's and three


def test_cooling_address_is_taken(move):
    assert move.lease(move.new, "before") == "192.0.2.1"
    move.release(move.new, "before")
    filled(move)
    assert "copied 4; 4 of 4" in move("kubernetes-leases")


def test_what_was_given_back_after_the_move_is_not_copied_again(move):
    filled(move)
    move("kubernetes-leases")
    # Of one pod the runtime knows the new datastore, of the other one the old.
    move.release(move.new, "a")
    move.release(move.old, "b")
    told = move("kubernetes-leases")
    assert "1 copies taken back" in told
    assert "copied 0" in told
    assert sorted(move.held(move.new).values()) == ["c-c", "c-go"]


def test_outdated_copies_stay_where_the_pools_are_deleted(move, api_server):
    before = filled(move)
    move("kubernetes-leases")
    for name in move.upstream.pools():
        move.upstream.call("DELETE", f"ippools/{name}")
    move("kubernetes-leases")
    assert move.held(move.new) == before


def test_ranges_that_may_overlap_stay_name_spaces_of_their_own(move):
    address = move.lease(move.old, "own", overlap_checked=False)
    assert move.held(move.old) == {(f"/{BLOCK}", address): "c-own"}
    move("kubernetes-leases")
    assert move.held(move.new) == {(f"/{BLOCK}", address): "c-own"}


def test_lease_of_no_known_range_cannot_go_back(move):
    move.lease(move.new, "far", "203.0.113.0/24")
    told = move("kubernetes", ok=False)
    assert "no range is known that 203.0.113.1 is of" in told
