"""The contract of ipam/stores/contract.py, run against every store; nothing here is tuned to one of them."""

from __future__ import annotations

from collections import Counter

import pytest
from netaddr import IPAddress, IPNetwork

from conf.errors import AddressesExhausted, TryAgainLater
from ipam.stores.contract import Owner, Want
from tests.processes import at_once
from tests.stores.conftest import owner, pool, release, reserve

BLOCK = "10.0.0.0/29"  # hands out .1 to .6


def test_reserve_gives_each_owner_its_own_address(lab):
    assert [reserve(lab, f"c{n}", BLOCK) for n in range(3)] == [["10.0.0.1"], ["10.0.0.2"], ["10.0.0.3"]]


def test_reserve_again_gives_the_same_addresses(lab):
    first = reserve(lab, "a", BLOCK, "2001:db8::/64")
    reserve(lab, "b", BLOCK, "2001:db8::/64")
    assert reserve(lab, "a", BLOCK, "2001:db8::/64") == first


def test_two_interfaces_of_one_container_are_two_owners(lab):
    assert reserve(lab, "a", BLOCK, ifname="net1") != reserve(lab, "a", BLOCK, ifname="net2")


def test_an_owner_that_wants_more_than_it_has_gets_the_rest(lab):
    reserve(lab, "a", BLOCK)
    assert reserve(lab, "a", BLOCK, "2001:db8::/64") == ["10.0.0.1", "2001:db8::1"]


def test_leases_record_who_holds_them(lab):
    recorded = Owner("c1", "net1", "rail1", "ns", "pod", "uid", "node7")
    with lab.open() as store:
        (lease,) = store.reserve(recorded, [Want(pool(BLOCK, network_name="blue"))], allocation="lowest")
        assert store.find(owner("c1")) == (lease,)
        (found,) = store.leases("blue")
    assert (found.owner.cni_network, found.owner.pod_namespace, found.owner.pod_name) == ("rail1", "ns", "pod")
    assert (found.owner.pod_uid, found.owner.node, found.network_name) == ("uid", "node7", "blue")
    assert found.allocated_at == lab.clock.now


def test_all_families_or_none(lab):
    reserve(lab, "a", "10.0.0.1/32")
    with pytest.raises(AddressesExhausted, match=r"10\.0\.0\.1/32"):
        reserve(lab, "b", "2001:db8::/64", "10.0.0.1/32")
    with lab.open() as store:
        assert store.find(owner("b")) == ()
    assert reserve(lab, "c", "2001:db8::/64") == ["2001:db8::1"]


def test_a_failed_reserve_leaves_what_the_owner_had(lab):
    reserve(lab, "a", "10.0.0.1/32")
    reserve(lab, "b", "2001:db8::/64")
    with pytest.raises(AddressesExhausted):
        reserve(lab, "b", "2001:db8::/64", "10.0.0.1/32")
    assert reserve(lab, "b", "2001:db8::/64") == ["2001:db8::1"]


def test_exhaustion_counts_used_cooling_and_excluded(lab):
    block = pool(BLOCK, exclude=[IPNetwork("10.0.0.6/32")])
    for n in range(5):
        reserve(lab, f"c{n}", Want(block))
    release(lab, "c0")
    with pytest.raises(AddressesExhausted) as raised:
        reserve(lab, "late", Want(block))
    assert raised.value.details == "size 5, used 4, cooling down 1, excluded 1"


def test_excluded_addresses_are_not_given(lab):
    block = pool(BLOCK, exclude=[IPNetwork("10.0.0.1/32"), IPNetwork("10.0.0.4/30")])
    assert [reserve(lab, f"c{n}", Want(block)) for n in range(2)] == [["10.0.0.2"], ["10.0.0.3"]]
    with pytest.raises(AddressesExhausted):
        reserve(lab, "late", Want(block))


def test_release_returns_what_was_held_and_repeats(lab):
    reserve(lab, "a", BLOCK, "2001:db8::/64")
    assert sorted(release(lab, "a")) == ["10.0.0.1", "2001:db8::1"]
    assert release(lab, "a") == []
    with lab.open() as store:
        assert store.find(owner("a")) == ()
        assert list(store.leases()) == []


def test_release_before_anything_was_reserved(lab):
    assert release(lab, "a") == []
    with lab.open() as store:
        assert (store.find(owner("a")), list(store.leases())) == ((), [])


def test_release_reaches_every_name_space(lab):
    reserve(lab, "a", Want(pool(BLOCK, network_name="blue")), Want(pool(BLOCK, overlap_checked=False)))
    assert len(release(lab, "a")) == 2


def test_release_touches_no_other_owner(lab):
    reserve(lab, "a", BLOCK, ifname="net1")
    reserve(lab, "a", BLOCK, ifname="net2")
    reserve(lab, "b", BLOCK, ifname="net1")
    release(lab, "a", ifname="net1")
    with lab.open() as store:
        assert {str(lease.address) for lease in store.leases()} == {"10.0.0.2", "10.0.0.3"}


def test_a_released_address_cools_down(lab):
    reserve(lab, "a", BLOCK)
    release(lab, "a")
    lab.clock.now += 59
    assert reserve(lab, "b", BLOCK) == ["10.0.0.2"]
    lab.clock.now += 1
    assert reserve(lab, "c", BLOCK) == ["10.0.0.1"]


def test_without_cool_down_an_address_is_free_at_once(lab):
    reserve(lab, "a", BLOCK, cooldown_s=0.0)
    release(lab, "a", cooldown_s=0.0)
    assert reserve(lab, "b", BLOCK) == ["10.0.0.1"]


def test_cool_down_ends_although_the_clock_was_set_back(lab):
    reserve(lab, "a", BLOCK)
    release(lab, "a")
    lab.clock.now -= 365 * 86400
    assert reserve(lab, "b", BLOCK) == ["10.0.0.1"]


def test_the_cool_down_of_the_release_counts(lab):
    reserve(lab, "a", BLOCK)
    release(lab, "a", cooldown_s=600.0)
    lab.clock.now += 61
    assert reserve(lab, "b", BLOCK, cooldown_s=1.0) == ["10.0.0.2"]


def test_a_requested_address_is_reserved(lab):
    assert reserve(lab, "a", Want(pool(BLOCK), IPAddress("10.0.0.5"))) == ["10.0.0.5"]
    with pytest.raises(TryAgainLater, match=r"10\.0\.0\.5 is already allocated"):
        reserve(lab, "b", Want(pool(BLOCK), IPAddress("10.0.0.5")))
    assert reserve(lab, "a", Want(pool(BLOCK), IPAddress("10.0.0.5"))) == ["10.0.0.5"]
    assert [reserve(lab, f"c{n}", BLOCK)[0][-1] for n in range(5)] == ["1", "2", "3", "4", "6"]


def test_a_requested_address_is_given_while_it_cools(lab):
    reserve(lab, "a", BLOCK)
    release(lab, "a")
    assert reserve(lab, "b", Want(pool(BLOCK), IPAddress("10.0.0.1"))) == ["10.0.0.1"]
    with lab.open() as store:
        assert [lease.owner.container_id for lease in store.leases()] == ["b"]
    lab.clock.now += 3600
    assert reserve(lab, "c", BLOCK) == ["10.0.0.2"]


def test_overlapping_ranges_of_one_name_never_share_an_address(lab):
    assert reserve(lab, "a", "10.0.0.0/24") == ["10.0.0.1"]
    assert reserve(lab, "b", BLOCK) == ["10.0.0.2"]


def test_network_names_are_name_spaces(lab):
    blue, red = Want(pool(BLOCK, network_name="blue")), Want(pool(BLOCK, network_name="red"))
    assert reserve(lab, "a", blue) == reserve(lab, "b", red) == reserve(lab, "c", BLOCK) == ["10.0.0.1"]
    with lab.open() as store:
        assert [lease.owner.container_id for lease in store.leases("blue")] == ["a"]
        assert [lease.owner.container_id for lease in store.leases("")] == ["c"]
        assert len(list(store.leases())) == 3


def test_without_overlap_checks_each_range_is_a_name_space(lab):
    wide, narrow = pool("10.0.0.0/24", overlap_checked=False), pool(BLOCK, overlap_checked=False)
    assert reserve(lab, "a", Want(wide)) == reserve(lab, "b", Want(narrow)) == ["10.0.0.1"]
    assert reserve(lab, "c", Want(narrow)) == ["10.0.0.2"]


def test_two_addresses_out_of_one_range(lab):
    assert reserve(lab, "a", BLOCK, BLOCK) == ["10.0.0.1", "10.0.0.2"]
    assert reserve(lab, "a", BLOCK, BLOCK) == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize(
    "text", ["2001:db8::/64", "2001:db8::/48", "::/0", "10.0.0.0/8", "10.0.0.4/31", "2001:db8::4/127"]
)
def test_any_width_allocates_lowest_first(lab, text):
    first, second = reserve(lab, "a", text), reserve(lab, "b", text)
    assert IPAddress(second[0]).value == IPAddress(first[0]).value + 1


def test_the_top_of_the_address_space_is_no_trouble(lab):
    top = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"
    assert reserve(lab, "a", top) == ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"]
    assert reserve(lab, "b", top) == ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]


def test_families_do_not_meet(lab):
    assert reserve(lab, "a", "10.0.0.1/32") == ["10.0.0.1"]
    assert reserve(lab, "b", "::a00:1/128") == ["::10.0.0.1"]


def test_window_allocation_stays_near_the_low_end(lab):
    given = {reserve(lab, f"c{n}", "10.0.0.0/16", allocation="window")[0] for n in range(10)}
    assert len(given) == 10
    assert all(IPAddress(text).value - IPAddress("10.0.0.0").value <= 64 + 10 for text in given)


def test_reap_takes_exactly_the_lease_it_was_shown(lab):
    reserve(lab, "a", BLOCK)
    with lab.open() as store:
        (lease,) = store.leases()
        assert store.reap(lease) is True
        assert store.reap(lease) is False
        assert store.find(owner("a")) == ()
        lab.clock.now += 61
        store.reserve(owner("b"), [Want(pool(BLOCK))], allocation="lowest")
        assert store.reap(lease) is False
        assert [str(held.address) for held in store.find(owner("b"))] == ["10.0.0.1"]


def test_reap_cools_down(lab):
    reserve(lab, "a", BLOCK)
    with lab.open() as store:
        store.reap(next(iter(store.leases())))
    assert reserve(lab, "b", BLOCK) == ["10.0.0.2"]


def test_probe_writes_nothing_and_passes_before_and_after_the_first_lease(lab):
    with lab.open() as store:
        store.probe()
    reserve(lab, "a", BLOCK)
    with lab.open() as store:
        store.probe()
        assert len(list(store.leases())) == 1


# Many processes at once. None is to be late for a deadline here because there are so many on a machine of two cores.

PATIENCE_S = 300.0


def _concurrently(lab, names):
    def act(name, wait):
        wait()
        try:
            return reserve(lab, name, "10.9.0.0/22", "2001:db8::/64", deadline_s=PATIENCE_S)
        except AddressesExhausted as error:
            return error.msg

    return at_once(act, names)


def test_200_concurrent_owners_get_200_addresses(lab):
    collected = _concurrently(lab, [f"c{n}" for n in range(200)])
    addresses = Counter(address for _, given in collected for address in given)
    assert len(addresses) == 400
    assert set(addresses.values()) == {1}
    with lab.open() as store:
        held = {(lease.owner.container_id, str(lease.address)) for lease in store.leases()}
    assert held == {(name, address) for name, given in collected for address in given}


def test_one_owner_that_calls_many_times_at_once_gets_one_set(lab):
    collected = _concurrently(lab, ["same"] * 20)
    assert len({tuple(given) for _, given in collected}) == 1
    with lab.open() as store:
        assert len(list(store.leases())) == 2
