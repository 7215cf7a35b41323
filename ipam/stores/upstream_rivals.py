"""The Go plugin at work in pools that overlap ours: whoever has just reserved an address outlasts it, or gives way.

Upstream's ADD looks for a reservation, enters its allocation and makes its reservation, in this order. In one pool the
allocation decides between it and us. Out of another pool that has the address too it fails where ours was made in
between, and the DEL that the runtime then calls deletes the reservation by its name: ours. So where a pool is known to
overlap another one, and upstream's plugin is in the cluster, it is waited for until the one that may have looked before
we reserved has ended (upstream's exclude each other by a Lease). What it has entered is left to it.

That pools overlap is learnt when a reservation of upstream's is met that our pool knows nothing of, and remembered by
the node; until then, and in a cluster without upstream's plugin, nothing is asked.

Source: reference 1.3, 1.4, 8.5; k8s.io/client-go tools/leaderelection.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from netaddr import AddrFormatError, IPNetwork

from conf.errors import StoreUnavailable
from ipam.stores.contract import Deadline, Owner
from ipam.stores.iplease import Json
from ipam.stores.scratch import Scratch
from ipam.stores.upstream_cluster import Cluster, Place
from ipam.stores.upstream_names import cidr
from ipam.stores.upstream_notes import Mark
from ipam.stores.upstream_pool import PoolObject, is_held_by, is_reserved_by

# Upstream gives all requests of one invocation so long; one that stopped renewing its Lease may be at work until then.
_AT_WORK_S = 10.0
_POLL_S = 0.05
# A Lease that nobody has renewed for so long is of a plugin that is no more.
_GONE_S = 3600.0
# What was learnt is looked at anew where it is met again, at most so often; and forgotten where it is not met.
_LEARNT_S, _KNOWN_S = 60.0, 86400.0

log = logging.getLogger("vferry.ipam.kubernetes")


class Rivals:
    """Upstream's plugin, as one reserve meets it; ``entered`` are the addresses that the pools of a contest have."""

    def __init__(self, cluster: Cluster, scratch: Scratch, deadline: Deadline, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._scratch = scratch
        self._deadline = deadline
        self._clock = clock
        self.entered: set[int] = set()
        self._lease = f"/apis/coordination.k8s.io/v1/namespaces/{cluster.api.access.namespace}/leases/whereabouts"

    def learn(self, place: Place) -> None:
        """Find the pools that may have a reservation's address and are not ours, and remember them."""
        if 0 <= self._clock() - float(self._kept(place).get("at", 0)) < _LEARNT_S:
            return
        found = [[pool.name, cidr(pool.network)] for pool in self._cluster.pools() if _overlap(pool, place)]
        self._scratch.keep(self._about(place), {"at": self._clock(), "pools": found})

    def outlast(self, place: Place, owner: Owner, reserved: Json, mark: Mark) -> Json | None:
        """Return the owner's reservation once no other pool can contest it any more; None when one does."""
        there = self._known(place)
        while there and self._is_over():
            if self._is_contested(place, owner, there):
                return None
            stored = self._cluster.reservation(place.network_name, place.address)
            if stored is None:
                # By the DEL of one who had failed. Somebody may have looked before it stands again.
                stored = self._cluster.reserve(place, owner, mark)
            if stored is None or not is_reserved_by(stored, owner):
                return None
            if stored["metadata"]["uid"] == reserved["metadata"]["uid"]:
                return stored
            reserved = stored
        return reserved

    def _is_contested(self, place: Place, owner: Owner, there: list[tuple[str, IPNetwork]]) -> bool:
        for name, network in there:
            pool = self._cluster.named(name, network, slice_of=None)
            if _contests(pool, place, owner):
                # All at once: to meet them one by one would take a request or six for each.
                self.entered |= {int(network.first) + offset for offset in pool.allocations}
                return True
        return False

    def _is_over(self) -> bool:
        """Wait until upstream's invocation that is at work has ended; False where there is no such plugin."""
        holder = first = self._holder()
        until = time.monotonic() + min(_AT_WORK_S, self._deadline.remaining_s() / 4)
        while holder and holder == first and time.monotonic() < until:
            time.sleep(_POLL_S)
            holder = self._holder()
        return first is not None

    def _holder(self) -> tuple[str, ...] | None:
        """Return whose Lease it is at present, empty when it is nobody's, None where there is none."""
        try:
            lease = self._cluster.api.get(self._lease)
        except StoreUnavailable as error:
            # Without the right to read it: what others have entered is looked at all the same.
            log.debug("upstream's Lease is not read: %s", error)
            return ()
        if lease is None:
            return None
        spec = lease.get("spec") or {}
        renewed_s = self._cluster.api.since_s(spec.get("renewTime"))
        if renewed_s > _GONE_S:
            return None
        is_held = spec.get("holderIdentity") and renewed_s < _AT_WORK_S
        return (spec["holderIdentity"], str(spec.get("acquireTime"))) if is_held else ()

    def _known(self, place: Place) -> list[tuple[str, IPNetwork]]:
        kept = self._kept(place)
        try:
            if 0 <= self._clock() - kept["at"] < _KNOWN_S:
                networks = [(str(name), IPNetwork(network)) for name, network in kept["pools"]]
                return [(name, network) for name, network in networks if place.address in network]
        except (KeyError, TypeError, ValueError, AddrFormatError):
            pass
        return []

    def _kept(self, place: Place) -> Json:
        return self._scratch.read(self._about(place))

    def _about(self, place: Place) -> str:
        return f"pools that overlap {place.pool.name} at {self._cluster.api}"


def _overlap(pool: PoolObject, place: Place) -> bool:
    one, other = pool.network, place.pool.network
    is_another = pool.name != place.pool.name and place.network_name in pool.network_names
    return is_another and (one in other or other in one)


def _contests(pool: PoolObject, place: Place, owner: Owner) -> bool:
    entry = pool.allocations.get(int(place.address) - int(pool.network.first))
    return entry is not None and not is_held_by(entry, owner)
