"""What an ADD costs at etcd, in calls and bytes: ranges in use, hints of this node, many wants."""

from __future__ import annotations

import json

import pytest
from netaddr import IPAddress, IPNetwork

from conf.errors import AddressesExhausted
from ipam.stores.contract import Want
from tests.stores.conftest import EtcdLab, Lab, owner, pool, release, reserve
from tests.stores.conftest import etcd as make_lab
from tests.stores.filling import fill_etcd


@pytest.fixture
def lab(request):
    return Lab(make_lab(request))


def calls_of(lab, name, *wants, allocation="window"):
    """Reserve as one invocation does and return how often etcd was called."""
    wants = [want if isinstance(want, Want) else Want(pool(want)) for want in wants]
    with lab.open() as store:
        store.reserve(owner(name), wants, allocation=allocation)
        return store.gateway.calls


def fill(lab, etcd_server, network, values):
    """Write leases as ADDs of other owners did."""
    fill_etcd(etcd_server, lab.make.prefix, pool(network), values)


def test_a_quiet_add_is_one_call(lab):
    assert [calls_of(lab, f"c{n}", "10.0.0.0/16") for n in range(150)].count(1) >= 147  # a new hint now and then misses


def test_the_first_add_for_two_families_is_one_call(lab):
    assert calls_of(lab, "a", "10.0.0.0/24", "2001:db8::/64") == 1


def test_a_second_add_of_the_same_owner_is_one_call(lab):
    calls_of(lab, "a", "10.0.0.0/24")
    assert calls_of(lab, "a", "10.0.0.0/24") == 1


def test_a_requested_address_is_one_call(lab):
    reserve(lab, "other", "10.0.0.0/24")
    assert calls_of(lab, "a", Want(pool("10.0.0.0/24"), IPAddress("10.0.0.9"))) == 1


def test_an_add_on_a_node_that_knows_nothing_is_two_calls_at_most(lab, etcd_server, tmp_path):
    fill(lab, etcd_server, "10.0.0.0/24", range(IPAddress("10.0.0.1").value, IPAddress("10.0.0.65").value))
    other_node = Lab(EtcdLab(etcd_server, tmp_path / "other" / "stores", lab.make.prefix))
    assert calls_of(other_node, "b", "10.0.0.0/24") <= 2
    assert calls_of(other_node, "c", "10.0.0.0/24") == 1


def test_two_families_in_use_are_two_calls_at_most(lab, etcd_server, tmp_path):
    fill(lab, etcd_server, "10.0.0.0/24", range(IPAddress("10.0.0.1").value, IPAddress("10.0.0.101").value))
    fill(lab, etcd_server, "2001:db8::/64", (IPNetwork("2001:db8::/64").first + 1 + at for at in range(5000)))
    other_node = Lab(EtcdLab(etcd_server, tmp_path / "other" / "stores", lab.make.prefix))
    for name in "abc":
        assert calls_of(other_node, name, "10.0.0.0/24", "2001:db8::/64") <= 2


def test_the_lowest_address_is_two_calls_and_really_the_lowest(lab):
    for n in range(5):
        reserve(lab, f"c{n}", "10.0.0.0/24", allocation="window")
    for n in range(3):
        assert calls_of(lab, f"d{n}", "10.0.0.0/24", allocation="lowest") <= 2
    with lab.open() as store:
        taken = {lease.address.value for lease in store.leases()}
    lowest = next(value for value in range(IPAddress("10.0.0.1").value, 2**32) if value not in taken)
    assert reserve(lab, "e", "10.0.0.0/24") == [str(IPAddress(lowest))]


def test_a_release_is_three_calls_whatever_is_held(lab):
    for _ in range(2):
        with lab.open() as store:
            store.release(owner("a"))
            assert store.gateway.calls == 3


@pytest.mark.parametrize("allocation", ["window", "lowest"])
@pytest.mark.parametrize("number", [2, 3, 4, 5, 12, 30])
def test_many_wants_fit_into_one_transaction_of_etcd(lab, etcd_server, tmp_path, number, allocation):
    block = pool("10.4.0.0/16")
    fill(lab, etcd_server, "10.4.0.0/16", (block.range.first + at for at in range(0, 300, 2)))
    wants = [Want(block) if at % 2 else Want(pool("2001:db8::/48")) for at in range(number)]
    for name in ("a", "b"):
        assert len(set(reserve(lab, name, *wants, allocation=allocation))) == number
    assert len(set(reserve(lab, "a", *wants, Want(block), allocation=allocation))) == number + 1
    assert len(release(lab, "a")) == number + 1


def test_60000_taken_addresses_of_a_48_cost_a_node_that_knows_nothing_two_calls(lab, etcd_server):
    """As those of a /16 in test_contract_widths."""
    network = "2001:db8::/48"
    first = IPNetwork(network).first + 1
    fill(lab, etcd_server, network, range(first, first + 60_000))
    with lab.open() as store:
        store.reserve(owner("a"), [Want(pool(network))], allocation="window")
        assert store.gateway.calls == 2
        assert store.gateway.received_bytes < 20_000
    # What is asked along with the next ones leads back to where the free addresses begin.
    assert [calls_of(lab, f"b{n}", network) for n in range(6)] == [1] * 6
    with lab.open() as store:
        (lease,) = store.reserve(owner("c"), [Want(pool(network))], allocation="window")
    assert 60_000 <= lease.address.value - first < 60_000 + 1024


def test_a_single_gap_in_a_full_16_is_found(lab, etcd_server):
    first = IPNetwork("10.1.0.0/16").first + 1
    gap = first + 34_567
    fill(lab, etcd_server, "10.1.0.0/16", (first + at for at in range(65_534) if first + at != gap))
    with lab.open() as store:
        (lease,) = store.reserve(owner("c"), [Want(pool("10.1.0.0/16"))], allocation="lowest")
        assert store.gateway.calls <= 5
    assert lease.address.value == gap
    release(lab, "c", cooldown_s=0.0)
    assert calls_of(lab, "d", "10.1.0.0/16") <= 6
    with pytest.raises(AddressesExhausted):
        reserve(lab, "e", "10.1.0.0/16", allocation="window")


def test_free_addresses_here_and_there_are_found(lab, etcd_server):
    first = IPNetwork("10.2.0.0/19").first + 1
    fill(lab, etcd_server, "10.2.0.0/19", (first + at for at in range(8_190) if at % 1000))
    given = [reserve(lab, f"c{n}", "10.2.0.0/19", allocation="window")[0] for n in range(9)]
    assert sorted((IPAddress(each).value - first) % 1000 for each in set(given)) == [0] * 9
    with pytest.raises(AddressesExhausted):
        reserve(lab, "late", "10.2.0.0/19", allocation="window")


def test_many_excluded_blocks_are_no_trouble(lab, etcd_server):
    excluded = [IPNetwork(f"10.3.{at}.0/25") for at in range(0, 256)]
    block = pool("10.3.0.0/16", exclude=excluded)
    first = IPNetwork("10.3.0.0/16").first
    fill(lab, etcd_server, "10.3.0.0/16", (first + at for at in range(20_000)))
    given = {reserve(lab, f"c{n}", Want(block), allocation="window")[0] for n in range(30)}
    assert len(given) == 30
    assert all(block.range.offers(IPAddress(each)) for each in given)
    assert all(IPAddress(each).value - first >= 20_000 for each in given)


# Hints.


def hints(lab):
    return [json.loads(path.read_text()) for path in lab.make.scratch.iterdir() if "free" in path.read_text()]


def test_a_hint_holds_what_is_free(lab):
    given = {reserve(lab, f"c{n}", "10.0.0.0/24", allocation="window")[0] for n in range(5)}
    (hint,) = hints(lab)
    assert len(hint["free"]) >= 64
    assert not {str(IPAddress(value)) for value in hint["free"]} & given


def test_a_stale_hint_costs_a_call_and_is_replaced(lab, etcd_server, tmp_path):
    reserve(lab, "a", "10.0.0.0/24", allocation="window")
    (hint,) = hints(lab)
    fill(lab, etcd_server, "10.0.0.0/24", hint["free"])
    assert calls_of(lab, "b", "10.0.0.0/24") == 2
    (replaced,) = hints(lab)
    assert not set(hint["free"]) & set(replaced["free"])
    assert calls_of(lab, "c", "10.0.0.0/24") == 1


def test_an_old_hint_learns_of_freed_addresses_without_another_call(lab):
    for n in range(100):
        reserve(lab, f"c{n}", "10.0.0.0/24", allocation="window", cooldown_s=0.0)
    for n in range(100):
        release(lab, f"c{n}", cooldown_s=0.0)
    lab.clock.now += 3600
    for n in range(2):
        assert calls_of(lab, f"d{n}", "10.0.0.0/24") <= 2
    with lab.open() as store:
        (lease,) = store.reserve(owner("e"), [Want(pool("10.0.0.0/24"))], allocation="window")
    assert lease.address.value - IPAddress("10.0.0.0").value <= 64 + 3


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"about": 1, "free": "x"}', None])
def test_a_damaged_hint_is_no_hint(lab, damage):
    reserve(lab, "a", "10.0.0.0/28", allocation="window")
    for path in lab.make.scratch.iterdir():
        path.chmod(0o600)
        path.unlink() if damage is None else path.write_text(damage)
        if damage is None:
            path.mkdir()
    assert reserve(lab, "b", "10.0.0.0/28", allocation="window")


@pytest.mark.parametrize("free", [["x"], "text", [-1], [2**40], 5, [None], [True]])
def test_a_hint_that_makes_no_sense_does_no_harm(lab, free):
    reserve(lab, "a", "10.0.0.0/28", allocation="window")
    for path in lab.make.scratch.iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), "free": free}))
    (given,) = reserve(lab, "b", "10.0.0.0/28", allocation="window")
    assert IPAddress(given) in IPNetwork("10.0.0.0/28")


def test_hints_are_private(lab):
    reserve(lab, "a", "10.0.0.0/28", allocation="window")
    scratch = lab.make.scratch
    assert {path.stat().st_mode & 0o777 for path in (scratch, scratch.parent)} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in scratch.iterdir()} == {0o600}


def test_a_hint_never_makes_a_small_pool_look_exhausted(lab):
    assert len({reserve(lab, f"c{n}", "10.0.0.0/29", allocation="window")[0] for n in range(6)}) == 6
    with pytest.raises(AddressesExhausted, match=r"10\.0\.0\.0/29"):
        reserve(lab, "late", "10.0.0.0/29", allocation="window")
    release(lab, "c3", cooldown_s=0.0)
    assert reserve(lab, "late", "10.0.0.0/29", allocation="window")
