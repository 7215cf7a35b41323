"""Upstream's objects in one namespace of the API server: entering an address and taking it out, step by step.

The order of steps is not upstream's. Taking: the reservation is created first, and is the lock; then the allocation is
entered into the pool, where nobody may be. Giving back: the reservation goes first, then the allocation. Whoever is
killed in between leaves an object that names the owner, and no order of our steps and those of upstream's plugin gives
one address to two:

* upstream reads the reservation after ours was created: it takes another address;
* upstream read it before: whoever enters the allocation first wins, the other one's patch fails; out of another pool
  that overlaps ours, see ``ipam.stores.upstream_rivals``;
* upstream's ADD for a pod of the same name takes the allocation over while we give it back: our patch fails on the
  container's id, and the reservation, if we had deleted it, is put back.

Source: reference 8.5.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from netaddr import IPAddress, IPNetwork

from ipam.stores.contention import Turns
from ipam.stores.contract import Deadline, Owner, Pool
from ipam.stores.iplease import OWNER_LABEL, Json, owner_label
from ipam.stores.kubernetes_api import KubernetesApi, Refused, ReplyLost
from ipam.stores.node_queue import Queue
from ipam.stores.scratch import Scratch
from ipam.stores.upstream_names import object_of, pool_name, reservation_name
from ipam.stores.upstream_notes import Cooling, Mark
from ipam.stores.upstream_pool import (
    API_VERSION,
    MIGRATED,
    RESERVATION_KIND,
    PoolObject,
    belongs_to,
    entry_of,
    is_held_by,
    is_reserved_by,
    reservation,
)

# After meeting others so many times, one lets the server find the moment.
MEETINGS = 3

log = logging.getLogger("vferry.ipam.kubernetes")


class Place(NamedTuple):
    """One address as upstream keeps it: an allocation of a pool, and a reservation where overlaps are checked."""

    pool: PoolObject
    offset: int
    network_name: str

    @property
    def address(self) -> IPAddress:
        """The address."""
        return self.pool.address(self.offset)


class Cluster:
    """Pools and reservations of one namespace; ``scratch`` has the queues in which this node changes them."""

    def __init__(
        self, api: KubernetesApi, *, deadline: Deadline, migrates: bool = False, scratch: Scratch | None = None
    ) -> None:
        self.api = api
        self._queue = Queue(scratch, deadline)
        self.turns = Turns(deadline, lambda: api.answering_s)
        self._deadline = deadline
        self._migrates = migrates
        kinds = f"/apis/{API_VERSION}/namespaces/{api.access.namespace}"
        self._pools = f"{kinds}/ippools"
        self.reservations = f"{kinds}/overlappingrangeipreservations"

    def pool(self, network_name: str, network: IPNetwork) -> PoolObject:
        """Read the pool of a range."""
        return self._pool(pool_name(network_name, network), network)

    def kept(self, pool: Pool) -> PoolObject:
        """Read the pool that a configuration's is kept in: the range's, or the node's slice of it."""
        return self._pool(
            *object_of(pool), slice_of=f"{pool.network_name}/{pool.range.network}" if pool.node_slice else None
        )

    def again(self, pool: PoolObject) -> PoolObject:
        """Read a pool as it is now."""
        return self._pool(pool.name, pool.network, slice_of=pool.slice_of)

    def named(self, name: str, network: IPNetwork, *, slice_of: str | None) -> PoolObject:
        """Read a pool of which all is known but what is in it."""
        return self._pool(name, network, slice_of=slice_of)

    def pools(self) -> Iterator[PoolObject]:
        """Read every pool, page by page."""
        for obj in self.api.listed(self._pools):
            pool = PoolObject.read(obj)
            if pool is None:
                log.warning("IPPool %s has no range", obj["metadata"]["name"])
            else:
                yield pool

    def reservation(self, network_name: str, address: IPAddress) -> Json | None:
        """Read the reservation of an address."""
        return self.api.get(self._reservation(network_name, address))

    def reserved_by(self, owner: Owner, *, cached: bool = False) -> dict[str, Json]:
        """Read the owner's reservations that we made, by their name; ``cached``: see KubernetesApi.listed."""
        found = self.api.listed(self.reservations, selector=f"{OWNER_LABEL}={owner_label(owner)}", cached=cached)
        return {obj["metadata"]["name"]: obj for obj in found if is_reserved_by(obj, owner)}

    def reserve(self, place: Place, owner: Owner, mark: Mark, *, is_new: bool = False) -> Json | None:
        """Create the reservation unless there is one, and return the one that is there, whoever's it is.

        ``is_new``: the owner has certainly not reserved it, so that None says enough about another one's.
        Undo: unreserve.
        """
        new = reservation(owner, reservation_name(place.network_name, place.address), mark)
        while True:
            self._deadline.require(f"reserving {place.address}")
            try:
                return self.api.create(self.reservations, new)
            except Refused:
                if is_new:
                    return None
            except ReplyLost:
                is_new = False
            stored = self.reservation(place.network_name, place.address)
            if stored is not None:
                return stored

    def unreserve(self, obj: Json) -> bool:
        """Delete exactly this reservation; whether it was there."""
        metadata = obj["metadata"]
        path, sent = f"{self.reservations}/{metadata['name']}", False
        while True:
            self._deadline.require(f"deleting the reservation {metadata['name']}")
            try:
                self.api.delete(path, uid=metadata["uid"])
            except Refused:
                return sent  # it is gone, or another one is there
            except ReplyLost:
                sent = True
            else:
                return True

    def enter(self, place: Place, owner: Owner, mark: Mark | None) -> PoolObject | None:
        """Enter the allocation and return the pool with it; None when somebody else has the address.

        Undo: take_out.
        """
        pool, entry = place.pool, entry_of(owner)
        while True:
            self._deadline.require(f"entering {place.address} into IPPool {pool.name}")
            there = pool.allocations.get(place.offset)
            if there is not None:
                return pool if is_held_by(there, owner) else None
            try:
                if pool.exists:
                    obj = self._patch(pool, pool.adding(place.offset, owner, mark, migrates=self._migrates))
                    return pool.with_entry(place.offset, entry, obj)
                made = self._make(pool, pool.new(place.offset, entry, mark))
                if made is not None:
                    return PoolObject(pool.name, pool.network, made, slice_of=pool.slice_of)
                pool = self.again(pool)
            except (Refused, ReplyLost):
                # A test failed, or it was written too often meanwhile: what is there now decides.
                pool = self.again(pool)

    def _patch(self, pool: PoolObject, operations: list[Json], *, crowded: list[Json] | None = None) -> Json:
        """Apply a patch: if no other node changed the pool since it was read, or else when it is our turn.

        ``crowded``: what is to be done where others on this node have changed it since.
        Raises: Refused, ReplyLost.
        """
        path = f"{self._pools}/{pool.name}"
        self.turns.wait(len(pool.allocations))
        with self._queue.at(self._about(pool)) as changes:
            if changes.since(pool.read_at):
                patched = self.api.patch(path, crowded or operations, metadata_only=True)
            elif self.turns.met >= MEETINGS:
                patched = self.api.patch(path, operations, metadata_only=True)
            else:
                patched = self._patch_unchanged(path, pool, operations)
            changes.note()
        return patched

    def _make(self, pool: PoolObject, obj: Json) -> Json | None:
        """Create a pool; None when another invocation here has done so. Raises: Refused, ReplyLost."""
        with self._queue.at(self._about(pool)) as changes:
            if changes.since(pool.read_at):
                return None
            made = self.api.create(self._pools, obj)
            changes.note()
        return made

    def _about(self, pool: PoolObject) -> str:
        return f"{self.api} {self._pools}/{pool.name}"

    def _patch_unchanged(self, path: str, pool: PoolObject, operations: list[Json]) -> Json:
        try:
            # That costs the server little when it fails; without the test it would try until it succeeds.
            return self.api.patch(path, [pool.unchanged(), *operations], metadata_only=True)
        except Refused:
            self.turns.met += 1
            raise

    def fence(self, pool: PoolObject, owner: Owner, *, now: float) -> None:
        """See that whatever the owner's earlier invocation sent, and the server has not done yet, enters nothing."""
        while not pool.is_fenced(owner, now):
            self._deadline.require(f"changing IPPool {pool.name}")
            try:
                if pool.exists:
                    self._patch(pool, pool.fencing(owner, now))
                else:
                    self.api.create(self._pools, pool.new_fenced(owner, now))
            except (Refused, ReplyLost):
                pool = self.again(pool)
            else:
                return

    def begin_frozen(self, pool: PoolObject, datastore: str) -> bool:
        """Create a pool that is not there, so that nobody enters anything; False when somebody else was faster."""
        while not pool.exists:
            self._deadline.require(f"making IPPool {pool.name}")
            try:
                self.api.create(self._pools, pool.new_frozen(datastore))
            except Refused:
                return False
            except ReplyLost:
                pool = self.again(pool)
            else:
                return True
        return pool.annotations.get(MIGRATED) == datastore

    def change(self, pool: PoolObject, patch: Callable[[PoolObject], list[Json]]) -> bool:
        """Apply a patch of the pool as it is; False when it is empty, so that nothing was to be done."""
        while operations := patch(pool):
            self._deadline.require(f"changing IPPool {pool.name}")
            try:
                self._patch(pool, operations)
            except (Refused, ReplyLost):
                pool = self.again(pool)
            else:
                return True
        return False

    def take_out(
        self, place: Place, owner: Owner, reserved: Json | None, cooling: Cooling | None, *, now: float
    ) -> bool:
        """Delete the reservation, then take the owner's allocation out; whether there was one.

        ``reserved``: the reservation that belongs to the allocation.
        """
        pool, removed = place.pool, False
        if reserved is not None:
            self.unreserve(reserved)
        sweeps = True
        while is_held_by(pool.allocations.get(place.offset, {}), owner):
            self._deadline.require(f"giving back {place.address}")
            try:
                patch = pool.removing(place.offset, owner, cooling, now=now, sweeps=sweeps)
                # Others sweep the same annotations, and one that has gone would make the patch fail.
                crowded = pool.removing(place.offset, owner, cooling, now=now, sweeps=False) if sweeps else patch
                self._patch(pool, patch, crowded=crowded)
                return True
            except ReplyLost:
                removed = True
            except Refused:
                sweeps = False
            pool = self.again(pool)
        if reserved is not None:
            self._put_back(reserved, pool.allocations.get(place.offset))
        return removed

    def _put_back(self, reserved: Json, entry: Json | None) -> None:
        """Restore a reservation whose allocation was taken over by another sandbox of the same pod."""
        podref = reserved["spec"].get("podref")
        if entry is None or not podref or entry.get("podref") != podref:
            return
        spec = {"podref": podref, **({"ifname": entry["ifname"]} if entry.get("ifname") else {})}
        metadata = {"name": reserved["metadata"]["name"]}
        body: Json = {"apiVersion": API_VERSION, "kind": RESERVATION_KIND, "metadata": metadata, "spec": spec}
        try:
            self.api.create(self.reservations, body)
        except (Refused, ReplyLost) as error:
            log.debug("reservation %s is there: %s", metadata["name"], error)

    def reservation_of(self, place: Place) -> Json | None:
        """Read the reservation that belongs to an allocation; None when there is none, or it is another one's."""
        for network_name in dict.fromkeys([place.network_name, *place.pool.network_names]):
            stored = self.reservation(network_name, place.address)
            if stored is not None and belongs_to(stored, place.pool.allocations[place.offset]):
                return stored
        return None

    def _pool(self, name: str, network: IPNetwork, *, slice_of: str | None = None) -> PoolObject:
        read_at = time.monotonic()
        return PoolObject(name, network, self.api.get(f"{self._pools}/{name}"), slice_of=slice_of, read_at=read_at)

    def _reservation(self, network_name: str, address: IPAddress) -> str:
        return f"{self.reservations}/{reservation_name(network_name, address)}"
