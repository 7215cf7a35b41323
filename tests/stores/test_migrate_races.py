"""One step of an ADD or a DEL between two of the migration's, each at the moment at which it does most harm."""

from __future__ import annotations

import pytest

from conf.errors import TryAgainLater
from ipam.migration import Migration
from ipam.stores.contract import Want
from ipam.stores.kubernetes import KubernetesStore
from ipam.stores.kubernetes_leases import KubernetesLeasesStore
from ipam.stores.upstream_cluster import Cluster
from tests.stores.conftest import owner, pool
from tests.stores.move import BLOCK, Move, filled, followed

SECOND = "10.7.0.0/30"


@pytest.fixture
def following(api_server, tmp_path):
    return followed(Move(api_server, tmp_path), tmp_path)


def before_listings(monkeypatch, happens, *, times=None):
    """Let something happen before each of the first listings of the IPLeases."""
    leases, left = KubernetesLeasesStore.leases, [times]

    def listed(store, *args, **keys):
        if left[0] != 0:
            left[0] = left[0] and left[0] - 1
            happens()
        return leases(store, *args, **keys)

    monkeypatch.setattr(KubernetesLeasesStore, "leases", listed)


def moved_there_and_back(move):
    """Return the address of an owner who was sent on, so that its DEL goes to the IPLease first and the pool last."""
    move("kubernetes-leases")
    address = move.lease(move.old, "d")
    move("kubernetes")
    return address


@pytest.mark.parametrize("times", range(1, 6))
def test_lease_that_is_being_given_back_is_not_counted_as_missing(following, monkeypatch, times):
    move = following
    filled(move)
    address = moved_there_and_back(move)
    # A DEL stands between its two steps, and the runtime repeats it from the start.
    before_listings(monkeypatch, lambda: move.release(move.new, "d"), times=times)
    assert "5 of 5 leases are in kubernetes-leases" in move("kubernetes-leases")
    monkeypatch.undo()
    assert move.release(move.old, "d") == [address]
    assert "c-d" not in move.held(move.new).values()


def test_lease_that_cannot_be_kept_there_is_missing(following, monkeypatch):
    move = following
    filled(move)
    moved_there_and_back(move)
    before_listings(monkeypatch, lambda: move.release(move.new, "d"))
    told = move("kubernetes-leases", ok=False)
    assert "4 of 5 leases" in told
    assert "1 leases are not in kubernetes-leases" in told
    with pytest.raises(TryAgainLater, match="under way"):
        move.lease(move.old, "e")
    monkeypatch.undo()
    assert "5 of 5 leases" in move("kubernetes-leases")


def test_pool_that_is_made_after_the_count_is_not_taken_for_moved(following, monkeypatch):
    move = following
    filled(move)
    finish, made = Migration.finish, []

    def made_in_between(migration, *args):
        if not made:
            made.append(move.lease(move.old, "late", SECOND))
        return finish(migration, *args)

    monkeypatch.setattr(Migration, "finish", made_in_between)
    move("kubernetes-leases")
    assert ("", made[0]) in move.held(move.new)
    assert move.lease(move.old, "next", SECOND) not in made


def test_copy_of_what_was_given_back_in_its_pool_does_not_go_back(following):
    move = following
    before = filled(move)
    move("kubernetes-leases")
    # Who was never sent on gives back in the pool alone.
    assert move.release(move.old, "a") == ["192.0.2.1"]
    del before["", "192.0.2.1"]
    told = move("kubernetes")
    assert "1 copies taken back" in told
    assert "3 of 3 leases are in kubernetes" in told
    assert move.held(move.old) == move.held(move.new) == before
    assert len(move.upstream.reservations()) == len(before)


def test_what_was_given_back_among_the_ipleases_does_not_stay_in_its_pool(following):
    move = following
    before = filled(move)
    move("kubernetes-leases")
    # Their networks were switched meanwhile. Of what upstream's plugin made nobody knows when: it may be a new one.
    for name in ("a", "c", "go"):
        assert move.release(move.new, name)
    told = move("kubernetes")
    assert "2 allocations taken out" in told
    assert sorted(move.held(move.old).values()) == ["c-b", "c-go"]
    assert len(move.upstream.reservations()) == len(before) - 2


def test_address_that_another_one_has_by_now_moves_again(following, tmp_path):
    move = following
    filled(move)
    address = moved_there_and_back(move)
    # Nobody on another node knows that this owner was sent on once: the IPLease stays.
    with move.old.on_another_node(tmp_path / "n2").open() as store:
        (lease,) = [each for each in store.leases() if str(each.address) == address]
        assert [str(each.address) for each in store.release(lease.owner)] == [address]
    move.old.clock.now += 61
    names = iter("efghijklmn")
    while move.lease(move.old, name := next(names), BLOCK) != address:
        pass
    move("kubernetes-leases")
    assert move.held(move.new)["", address] == f"c-{name}"
    # And back once more, where running it again brings nothing back.
    move("kubernetes")
    assert move.release(move.old, name) == [address]
    assert "copied 0" in move("kubernetes")
    assert ("", address) not in move.held(move.old)


def test_pool_that_another_run_has_frozen_meanwhile_is_counted(following, monkeypatch):
    move = following
    filled(move)
    finish, made = Migration.finish, []

    def frozen_in_between(migration, *args):
        if not made:
            made.append(move.lease(move.old, "late", SECOND))
            Migration(migration._api, "kubernetes-leases", deadline=migration._deadline).freeze(None)
        return finish(migration, *args)

    monkeypatch.setattr(Migration, "finish", frozen_in_between)
    move("kubernetes-leases")
    assert ("", made[0]) in move.held(move.new)


def test_range_within_one_that_was_moved_is_copied_too(following):
    move = following
    filled(move)
    move("kubernetes-leases")
    # It is configured nowhere here, so that nothing says that it moved.
    late = move.lease(move.old, "late", "192.0.2.0/29")
    move("kubernetes-leases")
    assert move.held(move.new)["", late] == "c-late"
    assert move.lease(move.new, "next") != late


def test_copies_stay_where_pools_were_deleted_and_made_anew(following):
    move = following
    before = filled(move)
    move("kubernetes-leases")
    for name in move.upstream.pools():
        move.upstream.call("DELETE", f"ippools/{name}")
    for name in move.upstream.reservations():
        move.upstream.call("DELETE", f"overlappingrangeipreservations/{name}")
    for to in ("kubernetes-leases", "kubernetes-leases", "kubernetes"):
        move(to)
        assert move.held(move.new) == before
    assert move.held(move.old) == before


def test_range_nobody_has_leased_from_moves_with_the_others(following):
    move = following
    move("kubernetes-leases")
    given = {move.lease(lab, f"{number}", BLOCK) for number, lab in enumerate([move.new, move.old] * 3)}
    assert len(given) == 6
    assert len(move.held(move.new)) == 6
    move("kubernetes")
    assert set(move.held(move.old)) == {("", address) for address in given}
    assert move.lease(move.old, "next", BLOCK) not in given


def test_adds_wait_for_the_pool_that_is_made_on_the_way_back(following, monkeypatch):
    move = following
    given = [move.lease(move.new, name) for name in ("a", "b")]
    copy, refused = Migration._copy, []

    def met(migration, lease):
        copy(migration, lease)
        with pytest.raises(TryAgainLater):
            move.lease(move.old, "late")
        refused.append(lease)

    monkeypatch.setattr(Migration, "_copy", met)
    move("kubernetes")
    assert len(refused) == 2
    assert {address for _, address in move.held(move.old)} == set(given)
    assert move.lease(move.old, "late") not in given


def test_del_finds_what_went_back_to_a_pool_that_its_add_never_came_to(following, monkeypatch):
    move = following
    filled(move)
    move.lease(move.old, "f", SECOND)
    enter = Cluster.enter

    def moved_in_between(cluster, place, *more):
        monkeypatch.setattr(Cluster, "enter", enter)
        move("kubernetes-leases")
        return enter(cluster, place, *more)

    monkeypatch.setattr(Cluster, "enter", moved_in_between)
    both = [Want(pool(BLOCK)), Want(pool(SECOND))]
    with move.old.open() as store:
        first, second = store.reserve(owner("c-d"), both, allocation="lowest")
    move("kubernetes")
    assert ("", str(second.address)) in move.held(move.old)
    with move.old.open() as store:
        released = store.release(owner("c-d"))
    assert {each.address for each in released} == {first.address, second.address}
    assert "c-d" not in move.held(move.old).values()
    assert "c-d" not in {spec.get("containerid") for spec in move.upstream.reservations().values()}


def test_del_that_was_killed_half_way_leaves_no_address_to_two(following, monkeypatch):
    move = following
    filled(move)
    address = moved_there_and_back(move)
    move("kubernetes-leases")
    done = []

    def killed_at_the_second(release):
        def released(store, *args, **keys):
            if done:
                raise KeyboardInterrupt
            done.append(store.name)
            return release(store, *args, **keys)

        return released

    for store in (KubernetesStore, KubernetesLeasesStore):
        monkeypatch.setattr(store, "release", killed_at_the_second(store.release))
    with pytest.raises(KeyboardInterrupt):
        move.release(move.old, "d")
    monkeypatch.undo()
    # The runtime does not repeat the DEL, but comes with an ADD for the same container.
    again = move.lease(move.old, "d")
    assert again == address
    assert move.held(move.new)["", again] == "c-d"


def test_del_takes_out_what_goes_back_while_it_is_at_it(following, monkeypatch):
    move = following
    before = filled(move)
    move("kubernetes-leases")
    address = move.lease(move.old, "d")
    release = KubernetesLeasesStore.release

    def back_in_between(store, *args, **keys):
        monkeypatch.setattr(KubernetesLeasesStore, "release", release)
        assert "copied 1;" in move("kubernetes")
        return release(store, *args, **keys)

    monkeypatch.setattr(KubernetesLeasesStore, "release", back_in_between)
    assert move.release(move.old, "d") == [address]
    assert move.held(move.old) == move.held(move.new) == before
    assert len(move.upstream.reservations()) == len(before)
