"""Moving leases between upstream's IPPools and our IPLeases while pods come and go: each is copied, none is taken away.

To IPLeases: all but the last are copied while ADDs go on in the pools. Then the pools are frozen, so that our plugins
enter nothing new there (error 11, the runtime tries again); copies of what was given back meanwhile are taken back, and
what came is copied. When every lease was counted in both, the pools say that they are moved, and ADDs go on among the
IPLeases (``ipam.stores.moved``); what is missing there from then on was given back there, and is not copied again.
Ranges that are known here and have no pool get an empty one, that says so too.

Back: the pools say so, and ADDs wait; one that took an IPLease just before looks once more and gives it up. When every
IPLease is entered, the pools are thawed.

A DEL never waits. It may have given back in one kind alone, because its owner was never sent on, or because it is not
further yet. So each IPLease that a pool has too names that pool: once the pool has it no more, it is a copy of nothing.

Upstream's own plugin knows of no freeze: while it makes pods on these pools, nothing may be migrated. Whoever is killed
runs it again: a lease that is there already, with the same owner, is left as it is.

Source: reference 8.5.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from netaddr import IPNetwork

from conf.errors import CniError, InvalidNetworkConfig, TryAgainLater
from ipam.ranges import Range
from ipam.stores import iplease
from ipam.stores.contract import Deadline, Lease, Pool
from ipam.stores.iplease import Json
from ipam.stores.kubernetes_api import KubernetesApi, Refused, ReplyLost
from ipam.stores.upstream_cluster import Cluster, Place
from ipam.stores.upstream_names import object_of, offset_of
from ipam.stores.upstream_notes import Mark
from ipam.stores.upstream_pool import MIGRATED, MIGRATED_TO, PoolObject, is_held_by, is_reserved_by

Direction = Literal["kubernetes-leases", "kubernetes"]

# The annotation of an IPLease that is in pools too: their UIDs, for a pool that was deleted and made anew says nothing
# of what it never had. It is gone when an ADD makes the IPLease anew.
COPIED = "ipam.vferry.io/copied-from"
_COPYING, _LEAVING = f"{MIGRATED_TO} (under way)", f"{MIGRATED_TO} (on the way back)"


@dataclass(frozen=True)
class Count:
    """What became of the leases of one pass."""

    copied: int
    failures: tuple[str, ...]


class Migration:
    """One move in one direction; ``pools`` are the ranges that are known here."""

    def __init__(
        self,
        api: KubernetesApi,
        to: Direction,
        *,
        deadline: Deadline,
        pools: Sequence[Pool] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._to = to
        self._deadline = deadline
        self._pools = pools
        self._clock = clock
        self._cluster = Cluster(api, deadline=deadline, migrates=True)
        self._there: list[PoolObject] = []
        self._frozen: set[str] = set()

    def freeze(self, network_name: str | None) -> int:
        """Have our plugins enter nothing new into the pools of a network, or of all; return how many were not yet so.

        Undo: thaw.
        """
        count = self._begin(network_name, _COPYING)
        for pool in self._pools_of(network_name):
            if not _is_finished(pool):
                count += self._cluster.change(pool, lambda each: each.freezing(_COPYING))
            self._frozen.add(pool.uid)
        return count

    def finish(self, network_name: str | None) -> bool:
        """Note in the pools that everything was copied since we froze them; False where there are others by now.

        An ADD may have made those, and nothing in them was counted.
        """
        pools = self._pools_of(network_name)
        if not {pool.uid for pool in pools} <= self._frozen:
            return False
        for pool in pools:
            self._cluster.change(pool, lambda each: each.freezing(MIGRATED_TO))
        return True

    def leave(self, network_name: str | None) -> None:
        """Have our plugins enter nothing new where something moved from is on its way back. Undo: finish, thaw."""
        self._begin(network_name, _LEAVING)
        for pool in self._pools_of(network_name):
            if _is_finished(pool):
                self._cluster.change(pool, lambda each: each.freezing(_LEAVING))

    def _begin(self, network_name: str | None, state: str) -> int:
        """Make the pools that the ranges here lack, frozen: an ADD would make one that knows nothing of IPLeases."""
        there = {pool.name for pool in self._pools_of(None)}
        lacking = {
            object_of(pool)[0]: pool
            for pool in self._pools
            if pool.node_slice is None and network_name in (None, pool.network_name)
        }
        return sum(
            self._cluster.begin_frozen(self._cluster.kept(pool), state)
            for name, pool in lacking.items()
            if name not in there
        )

    def is_finished(self) -> Callable[[Lease], bool]:
        """Return what tells whether a lease was copied for good: where it has no IPLease, that was given back."""
        pools = self._pools_of(None)
        return lambda lease: any(map(_is_finished, _pools_with(lease, pools)))

    def outdated(self, allocations: Callable[[], Iterable[Lease]], network_name: str | None) -> list[Lease]:
        """Return the IPLeases of what pools had, and have no more."""
        # The copies first: of one that was made later, an older list of allocations would know nothing.
        copies = [(iplease.read_lease(obj), _copied_from(obj)) for obj in self._live()]
        there = {key_of(lease) for lease in allocations()}
        pools = {pool.uid for pool in self._pools_of(network_name)}
        return [lease for lease, copied_from in copies if key_of(lease) not in there and copied_from & pools]

    def note_copies(self, network_name: str | None) -> Iterator[Lease]:
        """Have every IPLease that pools have too name them, one after the other."""
        pools = self._pools_of(network_name)
        for obj in self._live():
            lease, metadata = iplease.read_lease(obj), obj["metadata"]
            copied_from = {pool.uid for pool in pools if _holds(pool, lease)}
            if copied_from - _copied_from(obj):
                annotations = metadata.get("annotations", {}) | _noted(copied_from)
                path = f"{iplease.COLLECTION}/{metadata['name']}"
                # Whoever changes it meanwhile gives it back, or makes it anew. A note that is lost, a later run makes.
                with suppress(Refused, ReplyLost):
                    self._api.replace(path, {**obj, "metadata": {**metadata, "annotations": annotations}})
                yield lease

    def _live(self) -> Iterator[Json]:
        return (obj for obj in self._api.listed(iplease.COLLECTION) if not iplease.is_released(obj))

    def thaw(self, network_name: str | None) -> int:
        """Undo freeze."""
        return sum(self._cluster.change(pool, lambda each: each.thawing()) for pool in self._pools_of(network_name))

    def _pools_of(self, network_name: str | None) -> list[PoolObject]:
        return [each for each in self._cluster.pools() if network_name in (None, each.network_name)]

    def run(self, leases: Iterable[Lease]) -> Count:
        """Copy leases; one that cannot be copied does not stop the others."""
        copied, failures = 0, []
        self._there = self._pools_of(None)
        for lease in leases:
            try:
                self._copy(lease)
                copied += 1
            except CniError as error:
                failures.append(f"{lease.address} of {lease.owner}: {error}")
            except Refused as refused:
                failures.append(f"{lease.address} of {lease.owner}: {refused.text}")
        return Count(copied, tuple(failures))

    def _copy(self, lease: Lease) -> None:
        if self._to == "kubernetes":
            self._enter(lease)
        else:
            self._create(lease)

    def _create(self, lease: Lease) -> None:
        """Make the IPLease, or take one that only cools."""
        new = iplease.make(lease.owner, _own_pool(lease), lease.address, lease.allocated_at or self._clock())
        new["metadata"]["annotations"] = _noted(pool.uid for pool in _pools_with(lease, self._there))
        path = _path(lease)
        while True:
            self._deadline.require(f"copying {lease.address}")
            stored = self._api.get(path)
            cooling = iplease.cooling(stored) if stored else None
            try:
                if stored is None:
                    self._api.create(iplease.COLLECTION, new)
                elif cooling is not None:
                    guard = {"uid": cooling.uid, "resourceVersion": cooling.resource_version}
                    self._api.replace(path, {**new, "metadata": {**new["metadata"], **guard}})
                elif iplease.is_held_by(stored, lease.owner):
                    return
                else:
                    raise _taken(lease, iplease.read_lease(stored).owner)
            except ReplyLost:
                continue  # what is there now tells
            except Refused as refused:
                if refused.status not in (404, 409):
                    raise
            else:
                return

    def _enter(self, lease: Lease) -> None:
        """Reserve the address and enter it into the pool of its range, as an ADD does."""
        pool = self._pool_of(lease)
        there = self._cluster.pool(pool.network_name, pool.range.network)
        copy = self._api.get(_path(lease))
        if copy is None or there.uid in _copied_from(copy):
            return  # it was given back meanwhile, and in the pool alone if its copy is there
        place = Place(there, offset_of(pool.range.network, lease.address), pool.network_name)
        mark = Mark.of(lease.owner, lease.allocated_at or self._clock())
        reserved = None
        if lease.space == lease.network_name:
            reserved = self._cluster.reserve(place, lease.owner, mark)
            if reserved is None or not is_reserved_by(reserved, lease.owner):
                raise _taken(lease, (reserved or {}).get("spec", {}).get("podref", "somebody else"))
        entered = self._cluster.enter(place, lease.owner, None if reserved else mark)
        if entered is None:
            if reserved is not None:
                self._cluster.unreserve(reserved)
            raise _taken(lease, there.allocations.get(place.offset, {}).get("podref", "somebody else"))
        stored = self._api.get(_path(lease))
        if stored is None or not iplease.is_held_by(stored, lease.owner):
            # Its DEL was there meanwhile, first at the IPLease, then at the pool.
            self._cluster.take_out(place._replace(pool=entered), lease.owner, reserved, None, now=self._clock())

    def _pool_of(self, lease: Lease) -> Pool:
        block = _block(lease)
        for pool in self._pools:
            is_its_own = block is None or pool.range.network == block
            if pool.network_name == lease.network_name and lease.address in pool.range.network and is_its_own:
                if pool.node_slice is not None:
                    break
                return pool
        raise InvalidNetworkConfig(
            f"no range is known that {lease.address} is of",
            details="slices of nodes are not migrated to",
            hint="name its network with --network, or a directory of networks with --conf-dir",
        )


def _path(lease: Lease) -> str:
    return f"{iplease.COLLECTION}/{iplease.name_of(iplease.prefix_of(_own_pool(lease)), lease.address)}"


def _own_pool(lease: Lease) -> Pool:
    block = _block(lease)
    if block is None:
        return Pool(lease.network_name, Range.of(IPNetwork(lease.address)))
    return Pool(lease.network_name, Range.of(block), overlap_checked=False)


def _block(lease: Lease) -> IPNetwork | None:
    """Return the range that is a name space of its own, None where the network is one."""
    block = lease.space.removeprefix(lease.network_name).removeprefix("/")
    return IPNetwork(block) if block else None


def _is_finished(pool: PoolObject) -> bool:
    return bool(pool.annotations.get(MIGRATED) in (MIGRATED_TO, _LEAVING))


def _is_of(lease: Lease, pool: PoolObject) -> bool:
    return pool.network_name == lease.network_name and lease.address in pool.network


def key_of(lease: Lease) -> tuple[object, ...]:
    """Return what a lease and its copy have in common."""
    return lease.network_name, lease.address, lease.owner


def _holds(pool: PoolObject, lease: Lease) -> bool:
    """Whether the lease's owner has its address in this pool."""
    entry = pool.allocations.get(int(lease.address) - int(pool.network.first), {})
    return _is_of(lease, pool) and is_held_by(entry, lease.owner)


def _pools_with(lease: Lease, pools: Sequence[PoolObject]) -> list[PoolObject]:
    """Return the pools that hold a lease; of a reservation without allocation, those it may have been made for."""
    return [pool for pool in pools if _holds(pool, lease)] or [pool for pool in pools if _is_of(lease, pool)]


def _noted(copied_from: Iterable[str]) -> dict[str, str]:
    return {COPIED: ",".join(sorted(copied_from))}


def _copied_from(obj: Json) -> set[str]:
    return set(filter(None, obj["metadata"].get("annotations", {}).get(COPIED, "").split(",")))


def _taken(lease: Lease, holder: object) -> TryAgainLater:
    return TryAgainLater(
        f"{lease.address} is held by {holder} there",
        hint='one of the two is stale or a duplicate: "vferry ipam verify", "vferry ipam release"',
    )
