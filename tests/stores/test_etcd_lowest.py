"""``"allocation": "lowest"`` in etcd: what others counted is not counted again, and is never believed too long."""

from __future__ import annotations

import multiprocessing
import random

import pytest
from netaddr import IPAddress, IPNetwork

from conf.errors import AddressesExhausted
from ipam.stores import etcd_full
from ipam.stores.contract import Want
from ipam.stores.etcd_requests import delete, put, transaction
from tests.stores.conftest import EtcdLab, Lab, owner, pool, release, reserve
from tests.stores.conftest import etcd as make_lab
from tests.stores.filling import fill_etcd

BLOCK = "10.1.0.0/16"
FIRST = IPNetwork(BLOCK).first + 1
PATIENCE_S = 300.0


@pytest.fixture
def lab(request):
    return Lab(make_lab(request))


@pytest.fixture
def on_node(lab, etcd_server, tmp_path):
    """Return the same leases as another node sees them, which begins without any files."""
    return lambda name: Lab(EtcdLab(etcd_server, tmp_path / name / "stores", lab.make.prefix), lab.clock)


def add(lab, name, block=BLOCK, **opening):
    """Reserve the lowest address; return its place in the range, the calls and the bytes received."""
    want = Want(pool(block))
    with lab.open(cooldown_s=0.0, **opening) as store:
        (lease,) = store.reserve(owner(name), [want], allocation="lowest")
        return lease.address.value - want.pool.range.first, store.gateway.calls, store.gateway.received_bytes


def counted_by(on_node, *names):
    """Have somebody count: the first one has releases leave a trace, the second one leaves what it counted."""
    for number, name in enumerate(names or ("first", "second")):
        add(on_node(f"{name}'s"), f"{name}{number}")


@pytest.fixture
def filled(lab, etcd_server):
    """Lease the first addresses to others, and those of ``ours`` to an owner each, named after its place."""

    def fill(number, ours=()):
        for place in ours:
            reserve(lab, f"c{place}", Want(pool(BLOCK), IPAddress(FIRST + place)))
        fill_etcd(etcd_server, lab.make.prefix, pool(BLOCK), (FIRST + at for at in range(number) if at not in ours))

    return fill


def test_60000_taken_addresses_and_a_gap_are_counted_twice_at_most(lab, etcd_server, on_node):
    gap = 34_567
    fill_etcd(etcd_server, lab.make.prefix, pool(BLOCK), (FIRST + at for at in range(60_000) if at != gap))
    assert [add(on_node(name), name)[:2] for name in "ab"] == [(gap, 4), (60_000, 3)]
    place, calls, received = add(on_node("c"), "c")
    assert (place, calls) == (60_001, 2)
    assert received < 3000
    for number in range(6):
        place, calls, received = add(on_node("c"), f"c{number}")
        assert (place, calls) == (60_002 + number, 1)
        assert received < 1000


@pytest.mark.parametrize("released", [1, 2, 5])
def test_released_addresses_are_the_next_ones_on_every_node(filled, on_node, released):
    filled(100, ours=range(0, 50, 10))
    add(on_node("here"), "here")
    assert add(on_node("here"), "here again")[0] == 101
    for number in range(released):
        release(on_node("there"), f"c{10 * number}", cooldown_s=0.0)
    for number in range(released):
        place, calls, _ = add(on_node("here" if number % 2 else f"unknown-{number}"), f"late{number}")
        assert place == 10 * number
        assert calls <= 3
    assert add(on_node("here"), "last")[0] == 102


def test_what_only_cools_is_passed_over_and_comes_back(lab, filled, on_node):
    filled(100, ours=[7])
    counted_by(on_node)
    release(lab, "c7", cooldown_s=60.0)
    assert [add(on_node("here"), f"d{number}")[0] for number in range(4)] == [102, 103, 104, 105]
    lab.clock.now += 61
    assert add(on_node("here"), "e")[0] == 7
    assert add(on_node("here"), "f")[0] == 106


def test_a_lease_deleted_by_hand_is_found_after_ten_minutes(lab, filled, etcd_server, on_node):
    filled(100)
    counted_by(on_node)
    key = f"{lab.make.prefix}/v1/ip/_default/all/v4/{FIRST + 20:08x}"
    etcd_server.call("/v3/kv/txn", transaction([], [delete(key)]))
    assert add(on_node("here"), "a")[0] == 102
    lab.clock.now += 601
    assert [add(on_node("here"), name)[0] for name in ("b", "c")] == [20, 103]


def test_that_a_range_is_full_is_not_taken_from_others(lab, etcd_server, on_node):
    block = "10.0.0.0/25"
    first = IPNetwork(block).first + 1
    fill_etcd(etcd_server, lab.make.prefix, pool(block), range(first, first + 124))
    assert [add(on_node(name), name, block)[0] for name in ("here", "there")] == [124, 125]
    with pytest.raises(AddressesExhausted, match=r"10\.0\.0\.0/25"):
        add(on_node("here"), "late", block)
    key = f"{lab.make.prefix}/v1/ip/_default/all/v4/{first + 4:08x}"
    etcd_server.call("/v3/kv/txn", transaction([], [delete(key)]))
    assert add(on_node("here"), "later", block)[0] == 4


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '["x"]', '{"revision": 1}', '{"revision": "x", "runs": 7}'])
def test_what_makes_no_sense_is_as_good_as_nothing(lab, filled, etcd_server, on_node, text):
    filled(100, ours=[9])
    counted_by(on_node)
    add(on_node("here"), "a")
    for kind in ("full", "freed"):
        key = f"{lab.make.prefix}/v1/{kind}/_default/all/v4"
        etcd_server.call("/v3/kv/txn", transaction([], [put(key, text)]))
    for path in (on_node("here").make.scratch).iterdir():
        path.write_text(text)
    assert [add(on_node("here"), name)[0] for name in "bcd"] == [103, 104, 105]
    release(lab, "c9", cooldown_s=0.0)
    assert add(on_node("here"), "e")[0] == 9


@pytest.mark.parametrize("fewest", [1, 20])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_happened_on_whichever_node_the_lowest_one_is_given(lab, on_node, monkeypatch, seed, fewest):
    monkeypatch.setattr(etcd_full, "_FEWEST", fewest)
    rng = random.Random(seed)
    excluded = [IPNetwork("10.0.0.8/29"), IPNetwork("10.0.0.33/32")]
    want = Want(pool("10.0.0.0/24", exclude=excluded))
    values = [value for first, last in want.pool.range.spans for value in range(first, last + 1)]
    held, cooling = {}, set()
    for number in range(120):
        node = on_node(f"node{rng.randrange(3)}")
        if held and rng.random() < 0.4:
            name = rng.choice(sorted(held))
            cools = rng.random() < 0.3
            release(node, name, cooldown_s=60.0 if cools else 0.0)
            cooling |= {held[name]} if cools else set()
            del held[name]
        elif rng.random() < 0.1:
            lab.clock.now += 61
            cooling = set()
        else:
            expected = next(value for value in values if value not in cooling | set(held.values()))
            with node.open() as store:
                (lease,) = store.reserve(owner(f"c{number}"), [want], allocation="lowest")
            assert lease.address.value == expected, number
            held[f"c{number}"] = expected


@pytest.mark.parametrize("leaves_a_trace", [False, True])
@pytest.mark.parametrize("moment", range(4))
def test_a_release_at_any_moment_of_an_add_is_seen_by_the_next(
    lab, filled, on_node, monkeypatch, moment, leaves_a_trace
):
    filled(300, ours=[5])
    first_free = 300
    if leaves_a_trace:
        counted_by(on_node)
        first_free += 2
    is_released = False
    calls = iter(range(100))

    def after_a_release(send):
        def sent(*args, **keys):
            nonlocal is_released
            if next(calls) == moment:
                release(on_node("there"), "c5", cooldown_s=0.0)
                is_released = True
            return send(*args, **keys)

        return sent

    with on_node("here").open() as store:
        for verb in ("read", "write"):
            monkeypatch.setattr(store.gateway, verb, after_a_release(getattr(store.gateway, verb)))
        (lease,) = store.reserve(owner("meanwhile"), [Want(pool(BLOCK))], allocation="lowest")
    if not is_released:
        release(on_node("there"), "c5", cooldown_s=0.0)
    found = lease.address.value - FIRST
    others = [add(on_node("here" if moment % 2 else "unknown"), f"next{number}")[0] for number in range(2)]
    assert [found, *others] in ([5, first_free, first_free + 1], [first_free, 5, first_free + 1])


def _add_in_a_process(lab, names, results):
    results.put([add(lab, name)[0] for name in names])


def test_many_at_once_leave_no_gap(lab, filled, on_node):
    filled(100)
    counted_by(on_node)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(
            target=_add_in_a_process, args=(on_node(f"n{at % 3}"), [f"n{at}-{each}" for each in range(4)], results)
        )
        for at in range(12)
    ]
    for process in processes:
        process.start()
    given = [place for _ in processes for place in results.get(timeout=PATIENCE_S)]
    for process in processes:
        process.join()
    assert len(set(given)) == 48
    assert max(given) < 102 + 48 + 16
    # The few that rivals made somebody pass over are given next.
    left = sorted(set(range(102, max(given) + 1)) - set(given))
    assert [add(on_node("late"), f"late{number}")[0] for number in range(len(left))] == left
    with lab.open() as store:
        values = [lease.address.value - FIRST for lease in store.leases()]
    assert sorted(values) == list(range(len(values)))
