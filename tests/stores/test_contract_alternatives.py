"""A want of the contract with alternatives: one address, of the first range that has a free one."""

from __future__ import annotations

import pytest
from netaddr import IPAddress

from conf.errors import AddressesExhausted
from ipam.stores.contract import Want
from tests.stores.conftest import owner, pool, release, reserve


def any_of(*texts, **keys):
    pools = tuple(pool(text, **keys) for text in texts)
    return Want(pools[0], None, pools)


FIRST_OF_THREE = any_of("10.0.0.0/31", "10.1.0.0/31", "2001:db8::/127")


def test_the_ranges_are_used_up_in_order(lab):
    given = [reserve(lab, f"c{n}", FIRST_OF_THREE)[0] for n in range(6)]
    assert given == ["10.0.0.0", "10.0.0.1", "10.1.0.0", "10.1.0.1", "2001:db8::", "2001:db8::1"]
    with pytest.raises(AddressesExhausted) as raised:
        reserve(lab, "late", FIRST_OF_THREE)
    assert all(text in raised.value.msg for text in ("10.0.0.0/31", "10.1.0.0/31", "2001:db8::/127"))
    assert "10.1.0.0/31: size 2, used 2" in raised.value.details
    with lab.open() as store:
        assert store.find(owner("late")) == ()


def test_an_owner_keeps_what_it_has_of_a_later_range_when_an_earlier_one_has_room_again(lab):
    for n in range(3):
        reserve(lab, f"c{n}", FIRST_OF_THREE)
    release(lab, "c0", cooldown_s=0.0)
    assert reserve(lab, "c2", FIRST_OF_THREE) == ["10.1.0.0"]
    assert reserve(lab, "new", FIRST_OF_THREE) == ["10.0.0.0"]
    with lab.open() as store:
        assert len(list(store.leases())) == 3


def test_beside_other_wants_it_is_all_or_none(lab):
    reserve(lab, "a", "10.0.0.1/32")
    both = [any_of("10.0.0.1/32", "10.1.0.1/32"), Want(pool("2001:db8::1/128"))]
    assert reserve(lab, "b", *both) == ["10.1.0.1", "2001:db8::1"]
    with pytest.raises(AddressesExhausted):
        reserve(lab, "c", any_of("10.0.0.1/32", "10.2.0.0/31"), Want(pool("2001:db8::1/128")))
    with lab.open() as store:
        assert store.find(owner("c")) == ()


def test_without_overlap_checks_each_range_is_a_name_space_here_too(lab):
    want = any_of("10.0.0.0/31", "10.0.0.0/30", overlap_checked=False)
    given = [reserve(lab, f"c{n}", want)[0] for n in range(4)]
    assert given == ["10.0.0.0", "10.0.0.1", "10.0.0.1", "10.0.0.2"]
    assert reserve(lab, "c2", want) == ["10.0.0.1"]


def test_an_address_of_a_requested_one_is_of_its_range(lab):
    assert reserve(lab, "a", Want(pool("10.1.0.0/31"), IPAddress("10.1.0.1"))) == ["10.1.0.1"]
    assert reserve(lab, "a", any_of("10.0.0.0/31", "10.1.0.0/31")) == ["10.1.0.1"]
