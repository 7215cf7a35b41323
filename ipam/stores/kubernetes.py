"""The ``kubernetes`` datastore: upstream's own IPPools and reservations, shared with nodes that run the Go plugin.

Who owns an allocation is container and interface, here as everywhere; upstream's second key, the pod's name, may
belong to a sandbox that still runs, and is never taken over. Cooling addresses are annotations of the pool: upstream's
plugin, which knows no cool-down, does not see them.

Source: reference 1.2, 8.5; ``ipam.stores.contract``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from netaddr import IPAddress, IPNetwork

from conf.whereabouts import StoreConf
from ipam.choice import FIRST_WINDOW, first_available, match
from ipam.stores import upstream_journal
from ipam.stores.api_store import ApiStore
from ipam.stores.contention import Races
from ipam.stores.contract import Allocation, Deadline, Lease, Owner, Pool, Store, Want
from ipam.stores.iplease import Json
from ipam.stores.journal import Journal
from ipam.stores.kubernetes_api import KubernetesApi, Refused
from ipam.stores.upstream_claim import Claim, require_interface, tried
from ipam.stores.upstream_cluster import Cluster, Place
from ipam.stores.upstream_journal import Known
from ipam.stores.upstream_names import object_of, reservation_name
from ipam.stores.upstream_notes import Cooling, Mark
from ipam.stores.upstream_pool import PoolObject, belongs_to, mark_of, read_lease, read_reservation, reservation

# How long a request of a caller that was killed may take to be done.
_SETTLE_S = 0.5
CRDS, RBAC = "whereabouts.yaml", "rbac-kubernetes.yaml"

log = logging.getLogger("vferry.ipam.kubernetes")


def open_store(conf: StoreConf, deadline: Deadline) -> Store:
    """Return the store a configuration names; nothing is read or connected yet."""
    return KubernetesStore.of(conf, deadline, crds=CRDS, rbac=RBAC)


class KubernetesStore(ApiStore):
    """The allocations of one namespace of a cluster."""

    name = "kubernetes"
    allocation: Allocation = "lowest"

    def __init__(self, open_api: Callable[[], KubernetesApi], **options: Any) -> None:
        super().__init__(open_api, **options)
        self._where: dict[tuple[str, IPAddress], PoolObject] = {}

    def reserve(self, owner: Owner, wants: Sequence[Want], *, allocation: Allocation) -> tuple[Lease, ...]:
        """Enter one allocation per want that the owner does not have already; see the contract.

        Raises: also InvalidNetworkConfig for addresses that an IPPool cannot hold.
        """
        with self._reserving(owner) as journal:
            cluster = self._cluster()
            pools = {name: cluster.kept(pool) for name, pool in _pools_of(wants).items()}
            leases = self._kept(cluster, owner, wants, pools, journal)
            missing = [index for index in range(len(wants)) if index not in leases]
            if missing:
                for there in pools.values():
                    # Before anything is reserved: the patch would be refused.
                    there.require_not_migrated()
                claimed = first_available(
                    [wants[index] for index in missing],
                    lambda asked: Claim(
                        cluster,
                        owner,
                        pools,
                        journal=journal,
                        races=Races(self._scratch, str(self.api), first=FIRST_WINDOW[allocation]),
                        deadline=self._deadline,
                        clock=self._clock,
                        scratch=self._scratch,
                        sticky=self._sticky is not False,
                    ).run(asked),
                )
                leases |= dict(zip(missing, claimed, strict=True))
            elif not self.api.lost:
                journal.settle()
        return tuple(leases[index] for index in range(len(wants)))

    def release(self, owner: Owner, *, pools: Sequence[Pool] = ()) -> tuple[Lease, ...]:
        """Take out everything the owner has, and every reservation it left behind; see the contract."""
        with self._lock(owner, makes=False) as journal:
            if not self._has_sent(owner, journal) or not self._may_hold(owner):
                return ()
            cluster = self._cluster()
            known = upstream_journal.read(journal, cluster)
            if not journal.is_settled:
                released = self._fence(cluster, owner, known, pools)
            elif known is not None:
                # Besides what it knows of: what a box between us repeated after an earlier DEL, as far as it is seen.
                reserved = cluster.reserved_by(owner, cached=True) | known.reserved
                released = self._take_out(cluster, owner, known.pools, reserved, pools)
            else:
                released = self._take_out_all(cluster, owner, pools)
            journal.forget()
        return tuple(released)

    def find(self, owner: Owner, *, pools: Sequence[Pool] = ()) -> tuple[Lease, ...]:
        """Return what the owner has; see the contract."""
        cluster = self._cluster()
        with self._lock(owner, makes=False) as journal:
            known = upstream_journal.read(journal, cluster) if journal.is_settled else None
        if known is None:
            there = list(cluster.pools())
            known = Known(there, cluster.reserved_by(owner) if any(_places(there, owner)) else {})
        leases = [
            read_lease(
                place.pool,
                place.offset,
                mark_of(known.reserved.get(reservation_name(place.network_name, place.address))),
                space=_space(place, pools),
            )
            for place in _places(known.pools, owner)
        ]
        return tuple(sorted(leases, key=lambda lease: lease.address))

    def leases(self, network_name: str | None = None, *, node: str | None = None) -> Iterator[Lease]:
        """Yield every allocation; see the contract. What upstream made is no node's."""
        cluster = self._cluster()
        pools = [pool for pool in cluster.pools() if network_name in (None, pool.network_name)]
        # After the pools: a reservation is there before its allocation is.
        reserved = {obj["metadata"]["name"]: obj for obj in self.api.listed(cluster.reservations)}
        for pool in pools:
            for offset in sorted(pool.allocations):
                own = reserved.pop(reservation_name(pool.network_name, pool.address(offset)), None)
                lease = read_lease(pool, offset, mark_of(own))
                if node in (None, lease.owner.node):
                    self._where[lease.space, lease.address] = pool
                    yield lease
        for obj in reserved.values():
            # Who was killed before the allocation was entered: the address is taken, and only this says by whom.
            orphan = read_reservation(obj)
            if orphan and network_name in (None, orphan.network_name) and node in (None, orphan.owner.node):
                yield orphan

    def reap(self, lease: Lease) -> bool:
        """Give back exactly this lease; see the contract."""
        cluster = self._cluster()
        seen = self._where.get((lease.space, lease.address))
        pools = [cluster.again(seen)] if seen else cluster.pools()
        for place in _places(pools, lease.owner):
            if (place.network_name, place.address) != (lease.network_name, lease.address):
                continue
            own = None if place.pool.mark(place.offset) else cluster.reservation_of(place)
            if read_lease(place.pool, place.offset, mark_of(own)).revision == lease.revision:
                tried(cluster, self._scratch, place.pool.name).drop(lease.owner)
                return cluster.take_out(place, lease.owner, own, self._cooling(lease), now=self._clock())
            return False
        alone = cluster.reservation(lease.network_name, lease.address)
        is_this = alone is not None and read_reservation(alone) == lease
        return alone is not None and is_this and cluster.unreserve(alone)

    def probe(self) -> None:
        """Read a pool, and have the server check a reservation as if it were written; see the contract."""
        cluster, owner = self._cluster(), Owner("probe", "probe")
        self.api.patient = False
        try:
            cluster.pool("vferry-probe", IPNetwork("192.0.2.0/24"))
            probe = reservation(owner, "vferry-probe", Mark.of(owner, 0))
            require_interface(self.api.create(cluster.reservations, probe, dry_run=True))
        except Refused:
            pass  # 409: it would be written, were it not there
        finally:
            self.api.patient = True

    def _fence(self, cluster: Cluster, owner: Owner, known: Known | None, pools: Sequence[Pool]) -> list[Lease]:
        """Give back what a caller has who was killed, or stopped waiting: the server may yet do what it was asked.

        An allocation that comes later is refused. A reservation that comes later than our second look takes an address
        from nobody's use but its own, and is a lease of its owner's, which reconcile reaps.
        """
        for pool in known.pools if known else ():
            cluster.fence(pool, owner, now=self._clock())
        released = self._take_out_all(cluster, owner, pools)
        time.sleep(min(_SETTLE_S, self._deadline.remaining_s()))
        return released + self._take_out_all(cluster, owner, pools)

    def _take_out_all(self, cluster: Cluster, owner: Owner, pools: Sequence[Pool]) -> list[Lease]:
        return self._take_out(cluster, owner, list(cluster.pools()), cluster.reserved_by(owner), pools)

    def _take_out(
        self,
        cluster: Cluster,
        owner: Owner,
        there: Sequence[PoolObject],
        reserved: dict[str, Json],
        pools: Sequence[Pool],
    ) -> list[Lease]:
        released = []
        for place in _places(there, owner):
            own = reserved.pop(reservation_name(place.network_name, place.address), None)
            if own is None and place.pool.mark(place.offset) is None:
                own = cluster.reservation_of(place)
            lease = read_lease(place.pool, place.offset, mark_of(own), space=_space(place, pools))
            if cluster.take_out(place, owner, own, self._cooling(lease), now=self._clock()):
                released.append(lease)
        for pool in there:
            tried(cluster, self._scratch, pool.name).drop(owner)
        for obj in reserved.values():
            # Upstream's ADD for another sandbox of the pod may have taken the allocation over, and this with it.
            if not _is_taken_over(obj, there):
                cluster.unreserve(obj)
        return released

    def _kept(
        self, cluster: Cluster, owner: Owner, wants: Sequence[Want], pools: dict[str, PoolObject], journal: Journal
    ) -> dict[int, Lease]:
        """Return what the owner has already, and keep; an address that another one has reserved it loses."""
        held: dict[Lease, tuple[Place, Pool]] = {}
        for name, pool in _pools_of(wants).items():
            for place in _places([pools[name]], owner):
                held[read_lease(place.pool, place.offset, None, space=pool.space)] = (place, pool)
        leases = match(wants, list(held))
        for index, lease in list(leases.items()):
            place, pool = held[lease]
            own = None
            if pool.overlap_checked:
                own = cluster.reservation_of(place) or cluster.reserve(
                    place, owner, Mark.of(owner, self._clock(), place.pool)
                )
                if own is None or not belongs_to(own, place.pool.allocations[place.offset]):
                    log.warning("%s was given to another owner than %s, which has it no more", place.address, owner)
                    cluster.take_out(place, owner, None, None, now=self._clock())
                    pools[_name(pool)] = cluster.again(place.pool)
                    del leases[index]
                    continue
            upstream_journal.write(journal, place, own, overlap_checked=pool.overlap_checked)
            leases[index] = read_lease(place.pool, place.offset, mark_of(own), space=pool.space)
        return leases

    def _cooling(self, lease: Lease) -> Cooling | None:
        pod_key = lease.owner.pod_key if self._sticky is not False else ""
        return Cooling(self._clock(), self._cooldown_s, pod_key) if self._cooldown_s or pod_key else None

    def _cluster(self) -> Cluster:
        return Cluster(self.api, deadline=self._deadline, scratch=self._scratch)


def _name(pool: Pool) -> str:
    return object_of(pool)[0]


def _pools_of(wants: Iterable[Want]) -> dict[str, Pool]:
    return {_name(pool): pool for want in wants for pool in want.pools}


def _places(pools: Iterable[PoolObject], owner: Owner) -> Iterator[Place]:
    for pool in pools:
        for offset in pool.offsets_of(owner):
            yield Place(pool, offset, pool.network_name)


def _space(place: Place, pools: Sequence[Pool]) -> str | None:
    """Return the name space of an allocation, where the configuration at hand says it."""
    return next((pool.space for pool in pools if _name(pool) == place.pool.name), None)


def _is_taken_over(obj: Json, pools: Iterable[PoolObject]) -> bool:
    name, podref = obj["metadata"]["name"], obj["spec"].get("podref")
    return any(
        entry.get("podref") == podref and reservation_name(network_name, pool.address(offset)) == name
        for pool in pools
        for network_name in pool.network_names
        for offset, entry in pool.allocations.items()
    )
