"""Claiming addresses in etcd for one owner: one transaction when a guess is right, one more when all were wrong.

The transaction compares the owner's record with what we believe it to be, so of all requests of one owner, repeated,
late or concurrent, exactly one succeeds from each state; what became of a lost one is what the record says.

Source: reference 8.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

from netaddr import IPAddress

from conf.errors import TryAgainLater
from ipam.choice import PoolOccupancy, choose_of_sets, match
from ipam.stores.contract import Allocation, Candidates, Deadline, Lease, Outcome, Owner, Pool, Want
from ipam.stores.etcd_cluster import Cluster
from ipam.stores.etcd_keys import Former, Record, lease_value, read_former, read_record, record_value
from ipam.stores.etcd_requests import (
    Json,
    absent,
    count,
    counted,
    delete,
    get,
    kvs,
    nested,
    not_after,
    put,
    transaction,
    unchanged,
)
from ipam.stores.etcd_search import Wanted
from ipam.stores.etcd_taken import Inquiry
from ipam.stores.etcd_view import Views
from ipam.stores.gateway import ReplyLost

# etcd's --max-txn-ops is 128 by default.
_MOST_REQUESTS = 128
# So many of them for claims, when there are several sets of candidates, and the others for questions.
_MOST_OPERATIONS = 64

Asked = dict[Pool, Inquiry]


class RecordChanged(Exception):
    """The owner's record is not what we believed."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record


class Claim:
    """One reserve, from what the owner has to what it wants."""

    def __init__(
        self,
        cluster: Cluster,
        owner: Owner,
        *,
        allocation: Allocation,
        deadline: Deadline,
        views: Views,
        clock: Callable[[], float],
        sticky: bool = True,
    ) -> None:
        self._cluster = cluster
        self._keys = cluster.keys
        self._owner = owner
        self._allocation = allocation
        self._deadline = deadline
        self._views = views
        self._clock = clock
        self._record = Record()
        self._heard = False
        # As with the record, nothing is asked beforehand: the first transaction rests on there being nothing.
        self._former = Former() if sticky and owner.pod_key else None

    def run(self, wants: Sequence[Want]) -> tuple[Lease, ...]:
        """Return one lease per want."""
        while True:
            self._deadline.require("reserving an address")
            addresses = {at: (lease.space, lease.address) for at, lease in match(wants, self._record.leases).items()}
            missing = [at for at in range(len(wants)) if at not in addresses]
            try:
                if missing:
                    claimed = self._extend([wants[at] for at in missing])
                    spaces = [wants[at].pool.space for at in missing]
                    addresses |= dict(zip(missing, zip(spaces, claimed, strict=True), strict=True))
            except RecordChanged as changed:
                self._believe(changed.record)
                continue
            held = {(lease.space, lease.address): lease for lease in self._record.leases}
            return tuple(held[addresses[at]] for at in range(len(wants)))

    def _believe(self, record: Record) -> None:
        # An empty record that was there before we came is of an earlier life; one that came since is our own DEL.
        if self._heard and record.revision and not record.leases and record != self._record:
            raise TryAgainLater(f"{self._owner} was released while it reserved", hint="the runtime adds it anew")
        self._heard = True
        self._record = record

    def _extend(self, wants: Sequence[Want]) -> tuple[IPAddress, ...]:
        wanted = Counter(want.pool for want in wants)
        in_space = Counter((want.pool.space, want.pool.range.version) for want in wants)

        def occupancy(pool: Pool) -> PoolOccupancy:
            both = Wanted(wanted[pool], in_space[pool.space, pool.range.version])
            return self._views.of(pool, both).occupancy

        for want in wants:
            if want.requested is None:
                occupancy(want.pool)  # one whose former address is preferred has to be known too
        addresses = choose_of_sets(
            wants,
            occupancy=occupancy,
            attempt=lambda sets: self._attempt(wants, sets),
            sets=lambda: self._views.sets(wanted),
            allocation=self._allocation,
            deadline=self._deadline,
            preferred=self._preferred,
        )
        claimed: dict[Pool, set[int]] = {pool: set() for pool in wanted}
        for want, address in zip(wants, addresses, strict=True):
            claimed[want.pool].add(address.value)
        self._views.remember(claimed)
        return addresses

    def _preferred(self, pool: Pool) -> list[IPAddress]:
        given_back = self._former.addresses if self._former else ()
        return [address for space, address in given_back if space == pool.space]

    def _attempt(self, wants: Sequence[Want], sets: Sequence[Candidates]) -> Outcome:
        claims = _fitting([self._claim(wants, candidates) for candidates in sets])
        news, asked = self._questions(wants, claims)
        own = self._keys.own(self._owner)
        compare, failure = [unchanged(own, self._record.revision)], [get(own)]
        if self._former is not None:
            former = self._keys.former(self._owner)
            compare.append(unchanged(former, self._former.revision))
            failure.append(get(former))
        success = [_one_of(claims, _requests(asked)), *_requests(news)]
        try:
            reply = self._cluster.change(transaction(compare, success, failure))
        except ReplyLost:
            # What became of it, or may yet become of it, the record tells; a second address is not tried before.
            raise RecordChanged(self._cluster.record(self._owner)) from None
        responses = reply["responses"]
        if not reply.get("succeeded", False):
            self._learn_of_owner(responses)
            return Outcome({})
        self._heard = True
        _hear(news, responses[1:])
        return self._outcome(wants, claims, asked, responses[0], int(reply["header"]["revision"]))

    def _learn_of_owner(self, responses: Sequence[Json]) -> None:
        record = read_record(kvs(responses[0]))
        if record.revision != self._record.revision:
            raise RecordChanged(record)
        self._heard = True
        self._former = read_former(kvs(responses[1]))

    def _outcome(
        self, wants: Sequence[Want], claims: Sequence[_Claim], asked: Asked, response: Json, revision: int
    ) -> Outcome:
        """Learn which claim was done, or why none could be."""
        taken: list[tuple[int, IPAddress]] = []
        for claim in claims:
            done = response["response_txn"]
            responses = done.get("responses", [])
            if done.get("succeeded", False):
                self._record = stamped(claim.leases, revision)
                self._views.lost(wants, taken)
                return Outcome(claim.candidates, tuple(taken))
            counts = zip(responses[::2], responses[1::2], strict=False)
            taken += [
                pair
                for pair, of in zip(claim.candidates.items(), counts, strict=False)
                if _is_taken(of, wants[pair[0]])
            ]
            *_, response = responses
        _hear(asked, responses[2 * len(claim.candidates) :])
        # A guess at the lowest, without any knowledge, is no lost race, and does not widen the window.
        blank = {pool for pool in asked if self._views[pool].is_blank}
        self._views.lost(wants, taken)
        for pool in asked:
            self._views[pool].revise()
        return Outcome(
            {}, tuple((at, it) for at, it in taken if wants[at].requested is not None or wants[at].pool not in blank)
        )

    def _claim(self, wants: Sequence[Want], candidates: Candidates) -> _Claim:
        keys, own = self._keys, self._keys.own(self._owner)
        leases = (*self._record.leases, *(self._lease(wants[at].pool, address) for at, address in candidates.items()))
        # Every lease is written anew: an owner's record and its addresses always bear one revision.
        success = [put(own, record_value(self._owner, leases)), put(keys.node(self._owner), "")]
        success += [put(keys.lease("ip", lease), lease_value(lease)) for lease in leases]
        if self._former is not None and self._former.revision:
            success.append(delete(keys.former(self._owner)))
        compare, failure = [], []
        for at, address in candidates.items():
            ip, cool = (keys.candidate(kind, wants[at].pool, address) for kind in ("ip", "cool"))
            compare.append(absent(ip))
            if wants[at].requested is not None:
                success.append(delete(cool))
            elif self._former and address in self._preferred(wants[at].pool):
                # A pod's former addresses and their cool-down are written at once: a later one is another pod's.
                compare.append(not_after(cool, self._former.revision))
                success.append(delete(cool))
            else:
                compare.append(absent(cool))
            failure += [count(ip), count(cool)]
        # No key may be written twice by one transaction.
        places = {(pool.space, pool.range.version): pool for pool in reversed(_pools(wants, candidates))}
        for pool in places.values():
            view = self._views[pool]
            compare += view.guards
            success += view.changes({it.value for at, it in candidates.items() if wants[at].pool == pool})
        return _Claim(candidates, leases, compare, success, failure)

    def _questions(self, wants: Sequence[Want], claims: Sequence[_Claim]) -> tuple[Asked, Asked]:
        """Return what is asked in any case, and what besides it when all claims fail; as much as etcd lets us."""
        pools = _pools(wants, claims[0].candidates)
        # Nested transactions share the limit of the one around them.
        room = _MOST_REQUESTS - 1 - sum(claim.operations for claim in claims)
        share = max(room, 0) // max(len(pools), 1)
        views = {pool: self._views[pool] for pool in pools}
        return (
            {pool: view.news(share) for pool, view in views.items()},
            {pool: view.inquiry(share) for pool, view in views.items()},
        )

    def _lease(self, pool: Pool, address: IPAddress) -> Lease:
        return Lease(self._owner, pool.network_name, pool.space, address, self._clock(), revision="")


class _Claim(NamedTuple):
    """A nested transaction that claims one set of candidates."""

    candidates: Candidates
    leases: Sequence[Lease]
    compare: Sequence[Json]
    success: Sequence[Json]
    failure: Sequence[Json]

    @property
    def operations(self) -> int:
        # What it leaves for others is one within it.
        return max(len(self.compare), len(self.success) + 1, len(self.failure) + 1)


def _fitting(claims: Sequence[_Claim]) -> Sequence[_Claim]:
    """Return the first claims, as many as there is room for, at least one."""
    sums = accumulate(claim.operations for claim in claims)
    return [
        claim for at, (claim, total) in enumerate(zip(claims, sums, strict=True)) if not at or total <= _MOST_OPERATIONS
    ]


def _pools(wants: Sequence[Want], candidates: Candidates) -> list[Pool]:
    """Return the pools in which candidates were chosen."""
    return list(dict.fromkeys(wants[at].pool for at in candidates if wants[at].requested is None))


def _requests(asked: Asked) -> list[Json]:
    return [request for inquiry in asked.values() for request in inquiry.requests]


def _hear(asked: Asked, responses: Sequence[Json]) -> None:
    for inquiry in asked.values():
        number = len(inquiry.requests)
        inquiry.hear(responses[:number])
        responses = responses[number:]


def _one_of(claims: Sequence[_Claim], questions: Sequence[Json]) -> Json:
    """Return the request that does the first claim that can be done, and else asks the questions."""
    *others, last = claims
    request = nested(last.compare, last.success, [*last.failure, *questions])
    for claim in reversed(others):
        request = nested(claim.compare, claim.success, [*claim.failure, request])
    return request


def stamped(leases: Sequence[Lease], revision: int) -> Record:
    """Return the record as the transaction of this revision wrote it."""
    return Record(tuple(replace(lease, revision=str(revision)) for lease in leases), revision)


def _is_taken(counts: Sequence[Json], want: Want) -> bool:
    leased, cooling = map(counted, counts)
    return bool(leased or (cooling and want.requested is None))
