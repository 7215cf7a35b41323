"""The loop of choosing, attempting and losing, against a store that loses races on purpose."""

from __future__ import annotations

import random

import pytest
from netaddr import IPAddress, IPNetwork

from conf.errors import AddressesExhausted, TryAgainLater
from ipam.choice import choose, choose_of_sets, match
from ipam.ranges import Range
from ipam.stores.contract import Attempt, Deadline, Lease, Outcome, Owner, Pool, Want


def pool(text, **kwargs):
    return Pool("", Range.of(IPNetwork(text)), **kwargs)


class Board:
    """Taken addresses that a rival writes to between listing and attempt."""

    def __init__(self, taken=(), *, rivals=(), cooling=()):
        self.addresses = {IPAddress(text) for text in taken}
        self.rivals = [{IPAddress(text) for text in batch} for batch in rivals]
        self.cooling_addresses = {IPAddress(text) for text in cooling}
        self.attempts = []

    def occupancy(self, pool):
        return _View(pool, frozenset(self.addresses | self.cooling_addresses), self.cooling_addresses)

    def attempt(self, candidates):
        """As one transaction would: all or nothing."""
        self.attempts.append(dict(candidates))
        if self.rivals:
            self.addresses |= self.rivals.pop(0)
        lost = {at for at, address in candidates.items() if address in self.addresses}
        if lost:
            return Attempt(taken=frozenset(lost))
        self.addresses |= set(candidates.values())
        return Attempt(held=frozenset(candidates))

    def attempt_each(self, candidates):
        """As one POST per address would: what was won is kept."""
        self.attempts.append(dict(candidates))
        if self.rivals:
            self.addresses |= self.rivals.pop(0)
        lost = {at for at, address in candidates.items() if address in self.addresses}
        self.addresses |= {address for at, address in candidates.items() if at not in lost}
        return Attempt(held=frozenset(candidates.keys() - lost), taken=frozenset(lost))


class _View:
    def __init__(self, pool, taken, cooling):
        self._taken = [address.value for address in taken if address.version == pool.range.version]
        self._cooling = [address.value for address in cooling if address.version == pool.range.version]

    def count(self, first, last):
        return len(self.taken(first, last))

    def taken(self, first, last):
        return [value for value in self._taken if first <= value <= last]

    def cooling(self, first, last):
        return sum(first <= value <= last for value in self._cooling)


def run(board, wants, *, allocation="lowest", attempt=None, seed=0, deadline=None):
    return choose(
        wants,
        occupancy=board.occupancy,
        attempt=attempt or board.attempt,
        allocation=allocation,
        deadline=deadline or Deadline(30),
        rng=random.Random(seed),
    )


def test_lowest_takes_the_lowest_free_address():
    board = Board(["10.0.0.1", "10.0.0.3"])
    assert run(board, [Want(pool("10.0.0.0/24"))]) == (IPAddress("10.0.0.2"),)


def test_window_draws_from_the_64_lowest_free_addresses():
    chosen = {
        run(Board(["10.0.0.1"]), [Want(pool("10.0.0.0/16"))], allocation="window", seed=seed)[0].value & 0xFFFF
        for seed in range(200)
    }
    assert chosen <= set(range(2, 66))
    assert len(chosen) > 30


def test_window_opens_after_each_lost_race():
    board = Board(rivals=[["10.0.0.1"], [f"10.0.0.{n}" for n in (2, 3)], []])
    (address,) = run(board, [Want(pool("10.0.0.0/24"))])
    assert len(board.attempts) == 3
    assert address.value & 0xFF in range(4, 8)  # four lowest free after two losses


def test_a_lost_address_is_not_tried_twice_although_a_stale_list_calls_it_free():
    board = Board()
    tried = []

    def attempt(candidates):
        tried.append(candidates[0])
        return Attempt(held=frozenset({0})) if len(tried) == 4 else Attempt(taken=frozenset({0}))

    run(board, [Want(pool("10.0.0.0/29"))], attempt=attempt)
    assert len(set(tried)) == 4


def run_sets(board, wants, *, sets=4, preferred=lambda pool: (), seed=0):
    def attempt(offered):
        """As one transaction would: the first set that is free."""
        board.attempts.append([dict(candidates) for candidates in offered])
        if board.rivals:
            board.addresses |= board.rivals.pop(0)
        taken = []
        for candidates in offered:
            lost = [(at, address) for at, address in candidates.items() if address in board.addresses]
            if not lost:
                board.addresses |= set(candidates.values())
                return Outcome(candidates, tuple(taken))
            taken += lost
        return Outcome({}, tuple(taken))

    return choose_of_sets(
        wants,
        occupancy=board.occupancy,
        attempt=attempt,
        sets=lambda: sets,
        allocation="window",
        deadline=Deadline(30),
        preferred=preferred,
        rng=random.Random(seed),
    )


def test_each_set_is_drawn_from_four_times_as_many_addresses_and_none_is_offered_twice():
    places = [[] for _ in range(4)]
    for seed in range(200):
        board = Board()
        run_sets(board, [Want(pool("10.0.0.0/16")), Want(pool("10.0.0.0/16"))], seed=seed)
        (offered,) = board.attempts
        assert len({address for candidates in offered for address in candidates.values()}) == 8
        for place, candidates in zip(places, offered, strict=True):
            place += [address.value - IPAddress("10.0.0.0").value for address in candidates.values()]
    for number, place in enumerate(places):
        window = 64 * 4**number
        assert window * 0.9 <= max(place) <= window + 8


def test_the_first_free_set_is_claimed():
    rivals = [{f"10.0.0.{last}" for last in range(1, 255)}]
    board = Board(rivals=rivals)
    (address,) = run_sets(board, [Want(pool("10.0.0.0/16"))])
    (offered,) = board.attempts
    assert address == next(each[0] for each in offered if each[0] > IPAddress("10.0.0.254"))


def test_sets_end_where_the_pool_does():
    board = Board()
    run_sets(board, [Want(pool("10.0.0.0/30"))])
    assert [len(offered) for offered in board.attempts] == [2]


def test_requested_address_is_the_same_in_every_set():
    board = Board()
    asked = IPAddress("10.0.0.9")
    run_sets(board, [Want(pool("10.0.0.0/24"), asked), Want(pool("2001:db8::/64"))])
    assert {candidates[0] for candidates in board.attempts[0]} == {asked}
    run_sets(board, [Want(pool("10.0.0.0/24"), IPAddress("10.0.0.10"))])
    assert len(board.attempts[1]) == 1


def test_preferred_addresses_are_in_the_first_set_only():
    board = Board(taken=["10.0.0.200"])
    former = [IPAddress("10.0.0.200"), IPAddress("10.0.0.201")]
    wants = [Want(pool("10.0.0.0/24"))] * 2
    run_sets(board, wants, preferred=lambda pool: former)
    first, *spares = board.attempts[0]
    assert list(first.values()) == former
    assert not {address for spare in spares for address in spare.values()} & set(former)


def test_two_wants_of_one_name_space_get_two_addresses():
    wide, narrow = pool("10.0.0.0/24"), pool("10.0.0.0/29")
    assert run(Board(), [Want(wide), Want(narrow)]) == (IPAddress("10.0.0.1"), IPAddress("10.0.0.2"))


def test_ranges_that_are_not_checked_for_overlap_may_give_one_address_twice():
    wants = [Want(pool("10.0.0.0/24", overlap_checked=False)), Want(pool("10.0.0.0/29", overlap_checked=False))]
    held = run(Board(), wants, attempt=lambda candidates: Attempt(held=frozenset(candidates)))
    assert held == (IPAddress("10.0.0.1"), IPAddress("10.0.0.1"))


def test_only_the_lost_candidate_is_replaced_where_the_store_keeps_what_it_won():
    board = Board(rivals=[["2001:db8::1"]])
    wants = [Want(pool("10.0.0.0/24")), Want(pool("2001:db8::/64"))]
    run(board, wants, attempt=board.attempt_each)
    assert board.attempts[0].keys() == {0, 1}
    assert board.attempts[1].keys() == {1}


def test_a_requested_address_is_tried_as_it_stands_and_its_loss_ends_the_loop():
    want = Want(pool("10.0.0.0/24"), IPAddress("10.0.0.77"))
    assert run(Board(), [want]) == (IPAddress("10.0.0.77"),)
    with pytest.raises(TryAgainLater, match=r"requested address .* is already allocated"):
        run(Board(["10.0.0.77"]), [want])


def test_exhaustion_says_where_every_address_went():
    block = Range.of(IPNetwork("10.0.0.0/29"), exclude=[IPAddress("10.0.0.6")])
    board = Board(["10.0.0.1", "10.0.0.2", "10.0.0.3"], cooling=["10.0.0.4", "10.0.0.5"])
    with pytest.raises(AddressesExhausted) as raised:
        run(board, [Want(Pool("storage", block))])
    assert "10.0.0.0/29" in raised.value.msg
    assert "storage" in raised.value.msg
    assert raised.value.details == "size 5, used 3, cooling down 2, excluded 1"


def test_a_store_that_always_loses_is_left_at_the_deadline():
    now = [0.0]

    def attempt(candidates):
        now[0] += 1
        return Attempt(taken=frozenset(candidates))

    with pytest.raises(TryAgainLater, match="30 s"):
        run(Board(), [Want(pool("10.0.0.0/16"))], attempt=attempt, deadline=Deadline(30, clock=lambda: now[0]))
    assert now[0] == 30


def test_a_transaction_that_fails_without_naming_an_address_is_tried_again():
    outcomes = [Attempt(), Attempt(held=frozenset({0}))]
    assert run(Board(), [Want(pool("10.0.0.0/24"))], attempt=lambda _: outcomes.pop(0)) == (IPAddress("10.0.0.1"),)


def lease(text, *, space=""):
    return Lease(Owner("c", "net1"), "", space, IPAddress(text), 0.0, text)


def test_match_uses_each_lease_once_and_serves_requested_ones_first():
    block = pool("10.0.0.0/24")
    wants = [Want(block), Want(block, IPAddress("10.0.0.5")), Want(block)]
    matched = match(wants, [lease("10.0.0.5"), lease("10.0.0.6")])
    assert {at: str(found.address) for at, found in matched.items()} == {1: "10.0.0.5", 0: "10.0.0.6"}


def test_match_minds_name_space_and_range():
    assert match([Want(pool("10.0.0.0/24"))], [lease("10.0.1.5"), lease("10.0.0.5", space="blue")]) == {}
