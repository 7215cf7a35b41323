"""Which free address is tried next, for every store: the loop of choosing, attempting and losing lives only here.

How an address is claimed is the store's; see ``ipam.stores.contract``.

Greedy lowest-free is quadratic when many contend for the same address, so each lost race doubles the window of lowest
free addresses from which the next candidate is drawn. ``lowest`` begins with a window of 1, ``window`` with one of 64.

Source: reference/ipam.md 8.1 (the simulation behind the numbers).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, takewhile
from typing import Protocol, TypeVar

from netaddr import IPAddress

from conf.errors import AddressesExhausted, TryAgainLater
from ipam.ranges import Occupancy
from ipam.stores.contract import Allocation, Attempt, Candidates, Deadline, Lease, Outcome, Pool, Want

# Name space, family, address.
_Place = tuple[str, int, int]

Claimed = TypeVar("Claimed")
FIRST_WINDOW: dict[Allocation, int] = {"lowest": 1, "window": 64}


class PoolExhausted(AddressesExhausted):
    """One pool has no free address; a want that has alternatives goes on to the next one."""

    def __init__(self, pool: Pool, msg: str, *, details: str, hint: str) -> None:
        super().__init__(msg, details=details, hint=hint)
        self.pool = pool


class PoolOccupancy(Occupancy, Protocol):
    """The taken addresses of a pool's name space; cooling ones are taken."""

    def cooling(self, first: int, last: int) -> int:
        """Return how many of the taken addresses only cool down."""
        ...


def match(wants: Sequence[Want], leases: Sequence[Lease]) -> dict[int, Lease]:
    """Return which lease of the owner already satisfies which want, each lease once.

    Requested ones choose first, the others in their order, in which the leases were given; where that leaves a want
    without, narrow ranges before wide ones, so that a range within another one does not lose its lease to it.
    """
    in_order = sorted(range(len(wants)), key=lambda at: wants[at].requested is None)
    narrow_first = sorted(in_order, key=lambda at: (wants[at].requested is None, wants[at].pool.range.size))
    return max((_match(wants, leases, order) for order in (in_order, narrow_first)), key=len)


def _match(wants: Sequence[Want], leases: Sequence[Lease], order: Sequence[int]) -> dict[int, Lease]:
    unused = list(leases)
    matched: dict[int, Lease] = {}
    for index in order:
        want = wants[index]
        for lease in unused:
            if want.pool_of(lease) is not None:
                matched[index] = lease
                unused.remove(lease)
                break
    return matched


def first_available(wants: Sequence[Want], claim: Callable[[Sequence[Want]], Claimed]) -> Claimed:
    """Claim, and where a pool is exhausted claim anew with the next of the wants' alternatives.

    ``claim`` leaves nothing behind when it raises.
    Raises: AddressesExhausted, with what each of several pools is full of, and what ``claim`` raises.
    """
    failures: list[PoolExhausted] = []
    while True:
        try:
            return claim(wants)
        except PoolExhausted as error:
            failures.append(error)
            following = [want.next() if want.pool == error.pool else want for want in wants]
        wants = [want for want in following if want is not None]
        if len(wants) < len(following):
            if len(failures) == 1:
                raise failures[0]
            raise AddressesExhausted(
                "; ".join(error.msg for error in failures),
                details="; ".join(f"{error.pool.range.network}: {error.details}" for error in failures),
                hint=failures[-1].hint,
            ) from failures[-1]


def choose(
    wants: Sequence[Want],
    *,
    occupancy: Callable[[Pool], PoolOccupancy],
    attempt: Callable[[Candidates], Attempt],
    allocation: Allocation,
    deadline: Deadline,
    preferred: Callable[[Pool], Iterable[IPAddress]] = lambda _: (),
    window: Callable[[], int] | None = None,
    rng: random.Random | None = None,
) -> tuple[IPAddress, ...]:
    """Claim one address per want and return them in order.

    ``preferred``: what is tried before any other of a pool, taken or not as far as ``occupancy`` knows; to lose it is
    no lost race, for its time is long over. ``window``: from how many of the lowest free addresses the next candidate
    is drawn, where a store has better reasons than the number of lost races.

    When this raises, the caller undoes the attempts that held.
    Raises: AddressesExhausted, TryAgainLater.
    """

    def attempt_the_one(sets: Sequence[Candidates]) -> Outcome:
        (candidates,) = sets
        outcome = attempt(candidates)
        return Outcome(
            {index: candidates[index] for index in outcome.held},
            tuple((index, candidates[index]) for index in outcome.taken),
        )

    return choose_of_sets(
        wants,
        occupancy=occupancy,
        attempt=attempt_the_one,
        sets=lambda: 1,
        allocation=allocation,
        deadline=deadline,
        preferred=preferred,
        window=window,
        rng=rng,
    )


def choose_of_sets(
    wants: Sequence[Want],
    *,
    occupancy: Callable[[Pool], PoolOccupancy],
    attempt: Callable[[Sequence[Candidates]], Outcome],
    sets: Callable[[], int],
    allocation: Allocation,
    deadline: Deadline,
    preferred: Callable[[Pool], Iterable[IPAddress]] = lambda _: (),
    window: Callable[[], int] | None = None,
    rng: random.Random | None = None,
) -> tuple[IPAddress, ...]:
    """Choose in a store that is offered up to so many ``sets`` of candidates at once, and claims the first free one.

    Each set after the first is drawn from four times as many addresses as the one before, for it is wanted only where
    that is lost, or is the lowest one left; all else is as with ``choose``.
    """
    rng = rng or random.SystemRandom()
    width = FIRST_WINDOW[allocation]
    lost: set[_Place] = set()
    held: dict[int, IPAddress] = {}
    while len(held) < len(wants):
        deadline.require("choosing an address")
        draw = _Draw(wants, held, lost, occupancy=occupancy, rng=rng)
        width = window() if window else width
        first, former = draw.first(preferred, width)
        # Who wants the lowest one wants the one above it next, as long as nobody contends.
        growth = 4 if width > 1 else 1
        spares = (draw.spare(width * growth**number) for number in range(1, sets()))
        offered = [first, *takewhile(bool, spares)]
        outcome = attempt(offered)
        held |= outcome.held
        for index, address in outcome.taken:
            _require_not_requested(wants[index])
            lost.add(_place(wants[index], address))
        if any((index, address) not in former for index, address in outcome.taken):
            width *= 2
    return tuple(held[index] for index in range(len(wants)))


class _Draw:
    """The candidates of one attempt: no two of a name space alike."""

    def __init__(
        self,
        wants: Sequence[Want],
        held: Candidates,
        lost: set[_Place],
        *,
        occupancy: Callable[[Pool], PoolOccupancy],
        rng: random.Random,
    ) -> None:
        self._missing = [(index, want) for index, want in enumerate(wants) if index not in held]
        self._avoided = lost | {_place(wants[index], address) for index, address in held.items()}
        self._occupancy = occupancy
        self._rng = rng

    def first(
        self, preferred: Callable[[Pool], Iterable[IPAddress]], window: int
    ) -> tuple[Candidates, set[tuple[int, IPAddress]]]:
        """Return a candidate for each want, and which of them are the preferred ones.

        Raises: AddressesExhausted.
        """
        drawn: dict[int, IPAddress] = {}
        former = set()
        for index, want in self._missing:
            address = want.requested or _first_of(preferred(want.pool), want.pool, self._avoided)
            if address is None:
                address = self._drawn(want.pool, window)
                if address is None:
                    raise exhausted(want.pool, self._occupancy(want.pool))
            elif want.requested is None:
                former.add((index, address))
            drawn[index] = address
            self._avoided.add(_place(want, address))
        return drawn, former

    def spare(self, window: int) -> Candidates:
        """Return other candidates for the same wants, empty when there are none."""
        drawn: dict[int, IPAddress] = {}
        for index, want in self._missing:
            address = want.requested or self._drawn(want.pool, window)
            if address is None:
                return {}
            drawn[index] = address
            self._avoided.add(_place(want, address))
        return drawn if any(want.requested is None for _, want in self._missing) else {}

    def _drawn(self, pool: Pool, window: int) -> IPAddress | None:
        version = pool.range.version
        avoided = {value for space, family, value in self._avoided if (space, family) == (pool.space, version)}
        free = (value for value in pool.range.free_values(self._occupancy(pool)) if value not in avoided)
        nearest = list(islice(free, window))
        return IPAddress(self._rng.choice(nearest), version) if nearest else None


def _first_of(addresses: Iterable[IPAddress], pool: Pool, avoid: set[_Place]) -> IPAddress | None:
    usable = (
        each for each in addresses if pool.range.offers(each) and (pool.space, each.version, each.value) not in avoid
    )
    return next(usable, None)


def _place(want: Want, address: IPAddress) -> _Place:
    return want.pool.space, address.version, address.value


def exhausted(pool: Pool, occupancy: PoolOccupancy) -> PoolExhausted:
    """Return the error that says where every address of the pool went."""
    taken = pool.range.count(occupancy)
    cooling = sum(occupancy.cooling(first, last) for first, last in pool.range.spans)
    network = f" of network_name {pool.network_name}" if pool.network_name else ""
    return PoolExhausted(
        pool,
        f"range {pool.range}{network} has no free address",
        details=f"size {pool.range.size}, used {taken - cooling}, cooling down {cooling}, "
        f"excluded {pool.range.excluded}",
        hint="cooling addresses become free by themselves; see who holds the others, or widen the range"
        if cooling
        else "see who holds the addresses, or widen the range",
    )


def _require_not_requested(want: Want) -> None:
    if want.requested is not None:
        raise TryAgainLater(
            f"requested address {want.requested} is already allocated to another interface",
            hint="free it, or ask for another one",
        )
