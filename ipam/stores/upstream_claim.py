"""Claiming addresses for one owner among upstream's objects, as ``ipam.choice`` chooses them.

Source: reference 8.5; design section 12 ("which address").
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice

from netaddr import IPAddress

from conf.errors import CniError, StoreUnavailable
from ipam.choice import PoolOccupancy, choose
from ipam.stores import upstream_journal
from ipam.stores.contention import Races
from ipam.stores.contract import Attempt, Candidates, Deadline, Lease, Owner, Pool, Want
from ipam.stores.iplease import Json
from ipam.stores.journal import Journal
from ipam.stores.known import Believed
from ipam.stores.kubernetes_api import Refused, ReplyLost
from ipam.stores.node_queue import Tried
from ipam.stores.runs import Runs
from ipam.stores.scratch import Scratch
from ipam.stores.upstream_cluster import MEETINGS, Cluster, Place
from ipam.stores.upstream_names import object_of, offset_of, reservation_name, reserved_address
from ipam.stores.upstream_notes import Mark
from ipam.stores.upstream_pool import PoolObject, belongs_to, is_reserved_by, mark_of, read_lease
from ipam.stores.upstream_rivals import Rivals

# After so many lost races it is looked again what is there.
_PATIENCE = 3
# So many addresses that others have reserved, and have had for long, are met before all of them are listed.
_DOUBTS = 2
# A reservation that is this old is no rival's: its allocation would have been entered since. Where the server is slow a
# rival waits for his turn, as Turns has it.
_STANDING_S, _STANDING_ANSWERS = 2, 4
# What the last tenth of the deadline is for: taking back what was claimed.
_SHARE_OF_CHOICE = 0.9

log = logging.getLogger("vferry.ipam.kubernetes")


class Claim:
    """One reserve; ``pools`` are those of its wants as they were just read, by name."""

    def __init__(
        self,
        cluster: Cluster,
        owner: Owner,
        pools: Mapping[str, PoolObject],
        *,
        journal: Journal,
        races: Races,
        deadline: Deadline,
        clock: Callable[[], float],
        scratch: Scratch,
        sticky: bool = True,
    ) -> None:
        self._pod_key = owner.pod_key if sticky else ""
        self._cluster = cluster
        self._owner = owner
        self._journal = journal
        self._pools = dict(pools)
        self._races = races
        self._deadline = deadline
        self._clock = clock
        self._scratch = scratch
        self._tried: set[int] = set()
        self._rivals = Rivals(cluster, scratch, deadline, clock)
        self._reserved: dict[str, set[int]] = {}
        self._standing = 0
        self._claimed: list[tuple[str, Place, Json | None]] = []
        self._leases: dict[int, Lease] = {}

    def run(self, wants: Sequence[Want]) -> list[Lease]:
        """Claim one address per want.

        Raises: AddressesExhausted, TryAgainLater, StoreUnavailable, InvalidNetworkConfig; what was claimed is then
        given back.
        """
        self._meet_others()
        try:
            choose(
                wants,
                occupancy=self._occupancy,
                attempt=lambda candidates: self._attempt(wants, candidates),
                allocation="lowest",
                deadline=Deadline(self._deadline.remaining_s() * _SHARE_OF_CHOICE),
                preferred=self._preferred,
            )
        except BaseException:
            self._undo()
            raise
        self._races.remember()
        self._try_no_more({int(lease.address) for lease in self._leases.values()})
        # A request whose reply was lost may be done later, even after a DEL.
        if not self._cluster.api.lost:
            self._journal.settle()
        return [self._leases[index] for index in range(len(wants))]

    def _preferred(self, pool: Pool) -> list[IPAddress]:
        """Return what the pod had; then the lowest free one, or after lost races any of the lowest in the window."""
        former = self._pools[_name(pool)].given_back_by(self._pod_key)
        free = pool.range.free_values(self._occupancy(pool))
        if self._races.window > 1:
            nearest = list(islice(free, self._races.window))
            random.shuffle(nearest)
        else:
            own = tried(self._cluster, self._scratch, _name(pool)).choose(free, self._owner)
            nearest = [] if own is None else [own]
            self._tried.update(nearest)
        return former + [IPAddress(value, pool.range.version) for value in nearest]

    def _try_no_more(self, entered: Collection[int] = ()) -> None:
        if self._tried <= set(entered):
            return
        for name in self._pools:
            tried(self._cluster, self._scratch, name).drop(self._owner, besides=entered)

    def _occupancy(self, pool: Pool) -> PoolOccupancy:
        there = self._pools[_name(pool)]
        first = int(there.network.first)
        block = range(first, int(there.network.last) + 1)
        reserved = self._reserved.get(pool.network_name, set()) if pool.overlap_checked else set()
        taken = {first + offset for offset in there.allocations} | {each for each in reserved if each in block}
        cooling = {first + offset for offset in there.cooling(self._clock())} - taken
        return Believed(Runs.of(taken), Runs.of(cooling))

    def _attempt(self, wants: Sequence[Want], candidates: Candidates) -> Attempt:
        held, taken = set(), set()
        for index, address in candidates.items():
            pool = wants[index].pool
            there = self._pools[_name(pool)]
            place = Place(there, offset_of(there.network, address), pool.network_name)
            lease = self._claim(pool, place)
            if lease is not None:
                self._leases[index] = lease
                held.add(index)
                continue
            is_race = not pool.overlap_checked or not self._is_standing(place)
            if is_race or wants[index].requested is not None:
                taken.add(index)
            if is_race:
                self._lose(pool)
        return Attempt(frozenset(held), frozenset(taken))

    def _claim(self, pool: Pool, place: Place) -> Lease | None:
        mark = Mark.of(self._owner, self._clock(), place.pool)
        reserved, checked = None, pool.overlap_checked
        is_new = not checked or self._journal.is_new(reservation_name(place.network_name, place.address))
        name = upstream_journal.write(self._journal, place, None, overlap_checked=checked)
        if checked:
            reserved = self._cluster.reserve(place, self._owner, mark, is_new=is_new)
            if reserved is None or not is_reserved_by(reserved, self._owner):
                self._drop(name)
                return None
            upstream_journal.write(self._journal, place, reserved, overlap_checked=True)
        self._claimed.append((name, place, reserved))
        if reserved is not None:
            require_interface(reserved)
        entered = self._cluster.enter(place, self._owner, None if reserved else mark)
        if entered is None:
            self._claimed.pop()
            there = self._pools[_name(pool)] = self._cluster.again(place.pool)
            # Upstream's ADD for another sandbox of this pod takes our reservation for its own, and makes none.
            if reserved is None or not belongs_to(reserved, there.allocations.get(place.offset, {})):
                if reserved is not None:
                    self._cluster.unreserve(reserved)
                self._drop(name)
            return None
        if reserved is not None:
            kept = self._rivals.outlast(place, self._owner, reserved, mark)
            if kept is None:
                self._give_way(pool, place._replace(pool=entered), name, reserved)
                return None
            reserved = kept
            self._claimed[-1] = (name, place, reserved)
            upstream_journal.write(self._journal, place, reserved, overlap_checked=True)
        self._pools[_name(pool)] = entered
        return read_lease(entered, place.offset, mark_of(reserved), space=pool.space)

    def _give_way(self, pool: Pool, place: Place, name: str, reserved: Json) -> None:
        self._cluster.take_out(place, self._owner, reserved, None, now=self._clock())
        self._claimed.pop()
        self._drop(name)
        self._reserved.setdefault(place.network_name, set()).update(self._rivals.entered)
        self._pools[_name(pool)] = self._cluster.again(place.pool)

    def _is_standing(self, place: Place) -> bool:
        """Whether it was no race that was lost: somebody has long reserved the address, for another pool or in vain.

        It is then known to be taken, and the window stays as it is. The second one has all of them listed.
        """
        lost = self._races.lost
        if lost % _PATIENCE or (not lost and self._races.window > 1):
            return False
        reserved = self._cluster.reservation(place.network_name, place.address)
        mark = mark_of(reserved)
        # Upstream's writers are never two at once, and no crowd.
        is_rival = mark is not None and mark.pool in ("", place.pool.name)
        api = self._cluster.api
        if reserved is None or (is_rival and api.age_s(reserved) < _STANDING_S + _STANDING_ANSWERS * api.answering_s):
            return False
        if mark is None:
            self._rivals.learn(place)
        known = self._reserved.setdefault(place.network_name, set())
        known.add(int(place.address.value))
        self._standing += 1
        if self._standing == _DOUBTS:
            for obj in self._cluster.api.listed(self._cluster.reservations, metadata_only=True):
                address = reserved_address(obj["metadata"]["name"], place.network_name)
                if address is not None and address in place.pool.network:
                    known.add(int(address.value))
        return True

    def _lose(self, pool: Pool) -> None:
        self._races.lose()
        self._meet_others()
        if self._races.lost % _PATIENCE == 0:
            self._pools[_name(pool)] = self._cluster.again(self._pools[_name(pool)])

    def _meet_others(self) -> None:
        if self._races.window > 1:
            # The pool will have changed since it was read.
            self._cluster.turns.met = MEETINGS
            self._cluster.turns.among = self._races.window

    def _undo(self) -> None:
        self._try_no_more()
        for name, place, reserved in reversed(self._claimed):
            try:
                there = self._cluster.again(place.pool)
                self._cluster.take_out(place._replace(pool=there), self._owner, reserved, None, now=self._clock())
            except (CniError, Refused, ReplyLost) as error:
                log.warning("%s is not given back yet, the DEL does it: %s", place.address, error)
                return
            # Where this owner goes on in another datastore, its lease may come back to any pool: what the DEL knew
            # would not be all.
            self._drop(name)
        if not self._cluster.api.lost:
            self._journal.settle()

    def _drop(self, name: str) -> None:
        # Were a reply lost, the request may yet be done.
        if not self._cluster.api.lost:
            self._journal.drop(name)


def require_interface(obj: Json) -> None:
    """Raise StoreUnavailable for a reservation of ours, as the server has it, out of which it dropped the interface.

    Its definitions of upstream's kinds are then older than whereabouts 0.8, and allocations are cut likewise.
    """
    if not obj["spec"].get("ifname"):
        raise StoreUnavailable(
            "the CRDs of whereabouts in this cluster are too old",
            details='the API server drops "ifname" from what is written, so that no DEL would find it',
            hint="kubectl apply -f conf/deploy/crds/whereabouts.yaml, or those of whereabouts 0.8 or later",
        )


def tried(cluster: Cluster, scratch: Scratch, name: str) -> Tried:
    """Return what this node's invocations try in a pool."""
    return Tried(scratch, f"{cluster.api} {name}")


def _name(pool: Pool) -> str:
    return object_of(pool)[0]
